"""Roles that should change: not at once, not twice, never the last, in both directions; and the command for it."""

import pytest

from homing.router.core.commands import ChangeRole, Dispatch
from homing.router.core.events import FirstToken, RequestArrived, RequestFinished, TimerFired, WorkerDraining
from homing.router.core.policies import make_policy
from homing.router.core.rebalance import LASTS_S, SETTLES_S, RoleBalance
from homing.router.core.types import LoadReport, ModelName, Outcome, Role, WorkerId

from .fleets import HERE, MODEL, THERE, chain, load, request, scheduler, worker

PREFILL, DECODE = f"{MODEL} {HERE}/prefill", f"{MODEL} {HERE}/decode"
STARVES, CALM = {PREFILL: 0.95}, {PREFILL: 0.75}
IDLES = {PREFILL: 0.2}


class Balance:
    """Some prefill and decode workers in one site, of ten requests each; all running numbers are reported."""

    def __init__(self, prefill="pq", decode="de", site=HERE):
        self.of = RoleBalance()
        for name in prefill:
            self.of.joined(worker(name, site, Role.PREFILL, requests_max=10))
        for name in decode:
            self.of.joined(worker(name, site, Role.DECODE, requests_max=10))

    def running(self, **counts):
        for name, count in counts.items():
            facts = {"sequence": 1, "measured_s": 0.0, "queued_prefill_tokens": 0, "kv_blocks_used": 0}
            self.of.reported(LoadReport(worker=WorkerId(name), running_requests=count, **facts))
        return self

    def wishes(self, loads, from_s, to_s):
        """All wishes of a span in which the loads stay, asked for each second: (when, who, what)."""
        span = range(round(from_s), round(to_s) + 1)
        return [(float(now), name, role) for now in span for name, role, _ in self.of.wishes(loads, float(now))]


def test_who_decodes_least_becomes_what_is_short():
    balance = Balance(decode="def").running(d=3, e=1, f=2)
    assert balance.wishes(STARVES, 0, LASTS_S) == [(LASTS_S, "e", Role.PREFILL)]


def test_the_other_way_round():
    balance = Balance().running(d=10, e=9, p=2, q=1)
    assert balance.wishes(IDLES, 0, LASTS_S) == [(LASTS_S, "q", Role.DECODE)]


def test_among_equals_the_name_decides():
    assert Balance().wishes(STARVES, 0, LASTS_S) == [(LASTS_S, "d", Role.PREFILL)]


def test_the_reason_has_both_numbers():
    balance = Balance().running(d=1, e=2)
    balance.of.wishes(STARVES, 0.0)
    ((_, _, why),) = balance.of.wishes(STARVES, LASTS_S)
    assert why == "prefill is asked for 95% of its time, decode has 15% of its requests"


@pytest.mark.parametrize("prefill_load", [0.9, 0.75, 0.6, 0.0])
def test_what_is_not_short_wishes_nothing(prefill_load):
    assert Balance().wishes({PREFILL: prefill_load}, 0, 300) == []


def test_where_both_are_short_or_nobody_can_spare_one_nothing_helps():
    assert Balance().running(d=10, e=10).wishes(STARVES, 0, 300) == []
    assert Balance().running(d=6, e=6).wishes(STARVES, 0, 300) == []
    assert Balance().running(d=10, e=10).wishes({PREFILL: 0.6}, 0, 300) == []


def test_an_imbalance_must_last():
    balance = Balance()
    assert balance.wishes(STARVES, 0, LASTS_S - 1) == []
    assert balance.wishes(CALM, LASTS_S, LASTS_S) == [], "a calm second, and it begins anew"
    assert balance.wishes(STARVES, LASTS_S + 1, 2 * LASTS_S) == []
    assert balance.wishes(STARVES, 2 * LASTS_S + 1, 2 * LASTS_S + 1) == [(2 * LASTS_S + 1, "d", Role.PREFILL)]


def test_one_that_turns_round_begins_anew():
    balance = Balance()
    assert balance.wishes(STARVES, 0, LASTS_S - 1) == []
    balance.running(d=10, e=10)
    assert balance.wishes(IDLES, LASTS_S, 2 * LASTS_S - 1) == []
    assert balance.wishes(IDLES, 2 * LASTS_S, 2 * LASTS_S) == [(2 * LASTS_S, "p", Role.DECODE)]


def test_a_change_must_settle():
    """A wish that nobody follows comes again only after both times are over."""
    first, second = Balance().wishes(STARVES, 0, 2 * (LASTS_S + SETTLES_S))
    assert (first[0], second[0]) == (LASTS_S, LASTS_S + SETTLES_S + LASTS_S)


@pytest.mark.parametrize(("prefill", "decode"), [("p", "d"), ("pq", "d"), ("", "de"), ("p", "")])
def test_the_last_worker_keeps_its_role(prefill, decode):
    balance = Balance(prefill, decode)
    assert balance.wishes(STARVES, 0, 300) == []
    if prefill == "pq":
        balance.running(d=10)
        assert balance.wishes(IDLES, 300, 600) == [(300 + LASTS_S, "p", Role.DECODE), (480, "p", Role.DECODE)]


def test_nor_does_the_last_one_that_computes():
    assert Balance("p", "de").running(d=10, e=10).wishes(IDLES, 0, 300) == []


def test_who_left_is_neither_spared_nor_counted():
    balance = Balance(decode="def").running(d=0, e=1, f=1)
    balance.of.left(WorkerId("d"))
    balance.of.left(WorkerId("d"))
    assert balance.wishes(STARVES, 0, LASTS_S) == [(LASTS_S, "e", Role.PREFILL)]
    balance.of.left(WorkerId("e"))
    assert balance.wishes(STARVES, 200, 500) == [], "f is the last one"


def test_who_joins_with_the_other_role_counts_there():
    balance = Balance()
    balance.of.joined(worker("e", HERE, Role.PREFILL, requests_max=10))
    assert balance.wishes(STARVES, 0, 300) == []


def test_sites_and_models_are_apart():
    """Prefill starves there, and decode workers here are no help; nor does one model's load speak for another's."""
    balance = Balance()
    for name, role in (("pp", Role.PREFILL), ("dd", Role.DECODE), ("ee", Role.DECODE)):
        balance.of.joined(worker(name, THERE, role, requests_max=10))
    there = {f"{MODEL} {THERE}/prefill": 0.95}
    assert balance.wishes(there, 0, LASTS_S) == [(LASTS_S, "dd", Role.PREFILL)]
    balance = Balance()
    for name, role in (("pp", Role.PREFILL), ("dd", Role.DECODE), ("ee", Role.DECODE)):
        balance.of.joined(worker(name, HERE, role, model=ModelName("n"), requests_max=10))
    assert balance.wishes({f"n {HERE}/prefill": 0.95}, 0, LASTS_S) == [(LASTS_S, "dd", Role.PREFILL)]


def test_a_stranger_reports_and_nothing_happens():
    assert Balance().running(x=10).wishes(STARVES, 0, LASTS_S) == [(LASTS_S, "d", Role.PREFILL)]


# -- out of the scheduler --------------------------------------------------------------------------------------------


def starving(policy, until_s, drained=()):
    """Each second a prompt of 1.1 s for the only prefill worker, and a sweep: what was wished for, and when."""
    roles = {"p": Role.PREFILL, "d": Role.DECODE, "e": Role.DECODE}
    made = scheduler(*(worker(name, role=role) for name, role in roles.items()), policy=policy)
    for name in drained:
        made.handle(WorkerDraining(worker_id=WorkerId(name)), 0.0)
    wished = []
    for second in range(until_s):
        now = float(second)
        for name in roles:
            made.handle(load(name, second, at=now), now)
        sent = made.handle(RequestArrived(request=request(f"r{second}", chain((f"doc {second}", 68)))), now)
        assert [type(command) for command in sent] == [Dispatch]
        assert sent[0].decision.plan.prefill == "p"
        name = sent[0].decision.request.id
        made.handle(FirstToken(request_id=name, ttft_s=0.5), now)
        made.handle(RequestFinished(request_id=name, outcome=Outcome.FINISHED, output_tokens=1), now)
        made.next_timer()
        commands = made.handle(TimerFired(), now)
        assert all(isinstance(command, ChangeRole) for command in commands)
        wished += [(now, command.worker_id, command.role) for command in commands]
    return wished


def test_a_sweep_commands_it_once():
    """The load passes 90 % after some time, and must stay there."""
    ((now, name, role),) = starving(make_policy("homing"), 150)
    assert (name, role) == ("d", Role.PREFILL)
    assert LASTS_S < now < 150


def test_switched_off_nobody_is_told():
    assert starving(make_policy("homing", {"rebalance": False}), 150) == []


def test_who_drains_is_not_told_to_change():
    """Nor the other one: it is the last that decodes."""
    assert starving(make_policy("homing"), 150, drained="d") == []

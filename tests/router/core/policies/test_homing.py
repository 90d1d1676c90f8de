"""Homing's own policy: what it remembers, and each decision that what it remembers changes, by hand."""

from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant

from homing.router.core.events import (
    BlocksRemoved,
    DispatchFailed,
    FirstToken,
    PrefillFinished,
    RequestCancelled,
    RequestFinished,
    TimerFired,
    WorkerDraining,
    WorkerJoined,
    WorkerLost,
)
from homing.router.core.limits import Limits
from homing.router.core.planner import search
from homing.router.core.policies.homing import Homing
from homing.router.core.types import Outcome, PlanKind, PrefillPrior, RequestId, Role, Tier, WorkerId

from ..fleets import BLOCK, HERE, PRIOR, THERE, both_ways, busy, chain, link, load, request, scheduler, stored, worker
from ..little_fleet import LittleFleet
from ..plan_worlds import every_plan, random_world
from ..test_storm import Storm, shapes
from .asking import send

A, B = WorkerId("a"), WorkerId("b")
KEYS = chain(("doc", 100))
"""1,600 tokens and one more: 1.611 s on a worker of these tests, 1.6 MB of KV."""
OFF = {"siblings": False, "tolls": False, "rebalance": False} | dict.fromkeys(
    ("stall", "crowd_s", "place", "together"), 0.0
)
SLOW = [link(HERE, HERE, 1e-3, 1e3)]
"""Nothing is worth being moved."""
R = RequestId("r")


def homing(**on):
    """With everything off but what is named."""
    return Homing(**{**OFF, **on})


def made_of(*workers, links=SLOW, **on):
    return scheduler(*workers, links=links, policy=homing(**on))


def finish(made, name, now):
    made.handle(FirstToken(request_id=RequestId(name), ttft_s=0.1), now)
    made.handle(RequestFinished(request_id=RequestId(name), outcome=Outcome.FINISHED, output_tokens=1), now)


# -- siblings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("siblings", "second"), [(True, "a"), (False, "b")])
def test_a_sibling_waits_for_one_computation(siblings, second):
    """1.1 s until it is done and 11 ms beside it, or all 1.6 s on an idle worker."""
    made = made_of(worker("a"), worker("b"), siblings=siblings)
    assert send(made, "first", KEYS).decode == "a"
    plan = send(made, "second", KEYS, 0.5)
    assert (plan.kind, plan.decode) == (PlanKind.LOCAL, second)
    assert plan.estimate.hit_tokens == (1600 if siblings else 0)
    assert plan.estimate.ttft_s == pytest.approx(0.0062 + (1.111 + 0.011 if siblings else 1.611), abs=1e-3)


def test_a_sibling_that_is_quicker_elsewhere_does_not_wait():
    made = made_of(worker("a"), worker("b"), siblings=True)
    busy(made, "b", 0.1)
    busy(made, "a", 0.05)
    send(made, "first", KEYS)
    assert send(made, "second", KEYS[:10]).decode == "b", "0.1 s and its own 0.17 s, beside 1.66 s"


ENDS = [
    FirstToken(request_id=R, ttft_s=0.1),
    PrefillFinished(request_id=R),
    RequestFinished(request_id=R, outcome=Outcome.FINISHED, output_tokens=1),
    RequestCancelled(request_id=R),
    DispatchFailed(request_id=R, worker_id=None, reason="broke", resume_as=None),
]


@pytest.mark.parametrize("end", ENDS, ids=lambda end: type(end).__name__)
def test_nobody_waits_for_what_has_ended(end):
    made = made_of(worker("a"), worker("b"), siblings=True)
    send(made, "r", KEYS)
    assert made.policy.pending() == 1
    made.handle(end, 0.5)
    assert made.policy.pending() == 0
    assert send(made, "second", KEYS, 0.5).estimate.hit_tokens == 0


def test_a_lease_ends_it_too():
    made = scheduler(worker("a"), policy=homing(siblings=True), limits=Limits(lease_s=10.0, lost_after_s=100.0))
    send(made, "r", KEYS)
    made.handle(TimerFired(), 10.0)
    assert made.policy.pending() == 0


def test_a_retry_is_waited_for_where_it_is():
    made = made_of(worker("a"), worker("b"), siblings=True)
    send(made, "r", KEYS)
    asked = made.in_flight[R].decision.request
    made.handle(DispatchFailed(request_id=R, worker_id=A, reason="broke", resume_as=asked), 0.5)
    assert made.policy.pending() == 1
    assert send(made, "second", KEYS, 1.0).decode == "b"


@pytest.mark.parametrize(("speed", "kind"), [(1e9, PlanKind.FETCH), (1e6, PlanKind.SPLIT)])
def test_what_waits_for_transferred_blocks_is_not_counted_on(speed, kind):
    """It is overtaken by those behind it: their prefix is not there when their turn comes."""
    made = made_of(worker("a"), worker("h", kv_blocks_max=1), links=[link(HERE, HERE, 1e-3, speed)], siblings=True)
    made.handle(stored("h", KEYS[:80]), 0.0)
    assert send(made, "first", KEYS).kind is kind
    assert made.policy.pending() == 0
    made.handle(BlocksRemoved(worker_id=WorkerId("h"), keys=KEYS[:80]), 0.1)
    assert send(made, "second", KEYS, 0.1).estimate.hit_tokens == 0


def test_a_prefill_worker_is_counted_on_for_what_it_computes():
    """Of a prompt of full blocks alone the last is computed where it is decoded."""
    workers = [worker(name, role=Role.PREFILL) for name in "pq"] + [worker("d", role=Role.DECODE)]
    made = made_of(*workers, links=[link(HERE, HERE, 1e-3, 1e8)], siblings=True)
    assert send(made, "first", KEYS, tokens=1600).prefill == "p"
    plan = send(made, "second", KEYS + chain(("more", 10)), 0.5)
    assert (plan.kind, plan.prefill) == (PlanKind.REMOTE, "p")
    assert plan.estimate.hit_tokens == 99 * BLOCK


def test_one_that_computes_is_found_in_a_crowd():
    """More workers than are looked at whole: it is the last of every rank, and holds nothing yet."""
    made = made_of(*(worker(f"w{i:02}") for i in range(40)), siblings=True)
    first = send(made, "first", KEYS)
    for state in list(made.fleet):
        if state.worker.id != first.decode:
            busy(made, state.worker.id, 0.01)
    assert send(made, "second", KEYS, 1.0).decode == first.decode


# -- tolls, each alone -----------------------------------------------------------------------------------------------


def pair(slower, **on):
    """`a`, and `b` that takes so many times as long."""
    prior = PrefillPrior(a_s=PRIOR.a_s * slower, b_s=PRIOR.b_s * slower, q_s=0.0)
    return made_of(worker("a"), worker("b", prior=prior), **on)


def choose(made, keys=KEYS):
    return made.policy.choose(made.question(request("x", keys)), Random(0))[0]


@pytest.mark.parametrize(("crowd_s", "chosen"), [(0.0, "a"), (0.004, "a"), (0.006, "b")])
def test_a_crowd_of_answers_is_left_alone(crowd_s, chosen):
    """Ten answers there, each slowed by 4 or 6 ms, or 50 ms of waiting elsewhere."""
    made = pair(1 + 0.05 / 1.611, crowd_s=crowd_s)
    made.handle(load("a", running=10), 0.0)
    plan = choose(made)
    assert plan.decode == chosen
    assert plan.estimate.toll_s == pytest.approx(10 * crowd_s if chosen == "a" else 0.0)


@pytest.mark.parametrize(("stall", "chosen"), [(0.0, "a"), (0.009, "a"), (0.011, "b")])
def test_answers_that_would_stall_are_left_alone(stall, chosen):
    """Ten answers stall for 1.611 s, each second worth a share of one; or a tenth longer elsewhere."""
    made = pair(1.1, stall=stall)
    made.handle(load("a", running=10), 0.0)
    plan = choose(made)
    assert plan.decode == chosen
    assert plan.estimate.toll_s == pytest.approx(10 * stall * 1.611 if chosen == "a" else 0.0)


@pytest.mark.parametrize(("together", "chosen"), [(0.0, "a"), (0.2, "a"), (0.3, "b")])
def test_a_prompt_that_could_end_sooner_alone_is_left_alone(together, chosen):
    """One prompt is queued there and would end with this one, up to 1.611 s later; 0.1 s of waiting, or 0.5 s more."""
    made = pair(1 + 0.5 / 1.611, together=together)
    busy(made, "a", 0.1)
    plan = choose(made)
    assert plan.decode == chosen
    assert plan.estimate.toll_s == pytest.approx(1.611 * together if chosen == "a" else 0.0)


def regretful(place, wanted_blocks, *, evicts=True):
    """`a` holds the document and is busy for a second; `b` is idle and throws out what is wanted again, if it must."""
    made = made_of(worker("a"), worker("b"), links=[link(HERE, HERE, 1e-3, 1e8)], place=place)
    made.handle(stored("a", KEYS), 0.0)
    old = chain(("old", 100))
    made.handle(stored("b", old), 0.0)
    if evicts:
        made.handle(BlocksRemoved(worker_id=B, keys=old), 0.0)
    send(made, "old", old[:wanted_blocks], 0.0)
    finish(made, "old", 0.0)
    made.handle(WorkerJoined(worker=worker("c", kv_blocks_max=1)), 1.5)
    assert made.question(request("x", KEYS)).pricer.now == 1.5
    busy(made, "a", 1.0, 1.5)
    return made


@pytest.mark.parametrize(
    ("place", "wanted", "evicts", "chosen"),
    [(3.0, 50, True, "a"), (0.0, 50, True, "b"), (3.0, 0, True, "b"), (3.0, 50, False, "b"), (3.0, 10, True, "b")],
    ids=["full and regretted", "switched off", "nothing regretted", "room", "regretted little"],
)
def test_a_copy_is_not_put_where_what_it_pushes_out_is_missed(place, wanted, evicts, chosen):
    """Fetching beats a second of waiting by far, unless 1,601 tokens push out half as many that are computed anew.

    A token takes 1.005 ms to compute: half of them, weighed by three, 2.4 s; a tenth of them 0.48 s.
    """
    made = regretful(place, wanted, evicts=evicts)
    plan = choose(made)
    assert plan.decode == chosen
    assert plan.kind is (PlanKind.LOCAL if chosen == "a" else PlanKind.FETCH)
    if place and evicts and chosen == "b":
        assert plan.estimate.toll_s == pytest.approx(3.0 * wanted / 100 * 1.005e-3 * 1601, rel=1e-3)


def test_blocks_that_leave_a_lower_tier_are_not_missed():
    made = made_of(worker("a"), place=3.0)
    made.handle(BlocksRemoved(worker_id=A, keys=KEYS, tier=Tier.HOST), 0.0)
    assert len(made.policy._space) == 0
    made.handle(BlocksRemoved(worker_id=A, keys=KEYS), 0.0)
    assert len(made.policy._space) == 100


# -- congestion ------------------------------------------------------------------------------------------------------


def prefill_as_a_service(*, tolls, until_s=120, every_s=1.0):
    """A worker that does both, a remote pool as fast as it, and a link that makes it a second dearer.

    Each second a prompt of 0.8 s; it has ended when the next one comes.
    """
    made = scheduler(
        worker("near"),
        *(worker(f"far {i}", THERE, Role.PREFILL) for i in range(4)),
        links=[link(HERE, HERE, 1e-3, 1e9), *both_ways(link(HERE, THERE, 0.2, 1e9))],
        policy=homing(tolls=tolls),
    )
    taken = []
    for number in range(round(until_s / every_s)):
        now = number * every_s
        taken.append(send(made, f"r{number}", chain((f"doc {number}", 50)), now).kind)
        finish(made, f"r{number}", now + 0.9)
    return made, taken


def test_a_busy_pools_price_sends_long_prompts_to_the_remote_pool():
    made, taken = prefill_as_a_service(tolls=True)
    assert taken[:10] == [PlanKind.LOCAL] * 10, "while nothing is known of the load"
    assert PlanKind.REMOTE in taken
    near = made.policy.loads()["m here/both"]
    assert 0.4 < near < 0.75, "no further than it helps"
    plan = choose(made, chain(("long", 200)))
    assert (plan.kind, plan.decode) == (PlanKind.REMOTE, "near")
    assert choose(made, chain(("short", 4))).kind is PlanKind.LOCAL, "the way there takes longer than it"


def test_without_prices_all_stay():
    made, taken = prefill_as_a_service(tolls=False)
    assert set(taken) == {PlanKind.LOCAL}
    assert choose(made, chain(("long", 200))).kind is PlanKind.LOCAL
    assert made.policy.loads()["m here/both"] == pytest.approx(0.7, abs=0.03)


def test_what_is_sent_over_a_link_is_its_load():
    """1.6 MB each second over 2 MB/s."""
    made = made_of(
        worker("p", THERE, Role.PREFILL),
        worker("d", role=Role.DECODE),
        links=[link(HERE, HERE, 1e-3, 1e9), *both_ways(link(HERE, THERE, 0.01, 2e6))],
        tolls=True,
    )
    for number in range(200):
        assert send(made, f"r{number}", chain((f"doc {number}", 100)), float(number)).kind is PlanKind.REMOTE
        finish(made, f"r{number}", number + 0.9)
    assert made.policy.loads()["there -> here"] == pytest.approx(0.77, abs=0.03)
    assert made.world.tolls.link(THERE, HERE) > 2
    assert made.world.tolls.link(HERE, THERE) == 0


# -- switches --------------------------------------------------------------------------------------------------------


def eventful(**on):
    """A day on which there was something to learn for every switch, and somebody is computing still."""
    made = made_of(worker("a", requests_max=100), worker("b", requests_max=100), **on)
    for number in range(100):
        now, keys = number * 0.5, chain((f"doc {number}", 50))
        for name in "ab":
            made.handle(stored(name, keys), now)
            made.handle(BlocksRemoved(worker_id=WorkerId(name), keys=keys), now)
        send(made, f"r{number}", keys, now)
        if number < 98:
            finish(made, f"r{number}", now)
    return made


def test_with_all_off_it_is_the_plan_of_least_seconds():
    made = eventful()
    asked = request("x", chain(("doc 99", 50)))
    plans = made.policy.choose(made.question(asked), Random(0))
    assert plans == search(made.question(asked))
    assert [plan.estimate.toll_s for plan in plans] == [0.0] * len(plans)
    assert plans[0].estimate.ttft_s == min(plan.estimate.ttft_s for plan in every_plan(made.question(asked)))


@pytest.mark.parametrize(
    "on", [{"tolls": True}, {"stall": 0.02}, {"crowd_s": 0.005}, {"place": 3.0}, {"together": 0.5}], ids=str
)
def test_each_toll_has_a_switch_of_its_own(on):
    assert choose(eventful(**on)).estimate.toll_s > 0


def test_without_explaining_the_choice_is_the_same():
    for seed in range(30):
        question = random_world(seed, sites=3, per_site=5, spread=2.0).question
        shown, alone = (Homing(explains=explains).choose(question(), Random(0)) for explains in (True, False))
        assert alone == shown[:1]


def test_the_same_seed_makes_the_same_decisions():
    first, again = (LittleFleet(11, "homing").run().log for _ in range(2))
    assert first == again
    assert len(first) > 200


# -- memory ----------------------------------------------------------------------------------------------------------


def remembers(made):
    """The workers that each part of its memory knows."""
    policy = made.policy
    return {
        "sites": policy._sites.keys(),
        "congestion": policy._congestion._pool_of.keys(),
        "balance": policy._balance._pool_of.keys(),
        "space": policy._space._evicted_s.keys(),
        "prices": made.world.tolls._worker.keys() | made.world.tolls._place.keys(),
    }


def check(made):
    """Of requests those that are out, of workers those that are here; each pool has as many as it has."""
    policy = made.policy
    here = {state.worker.id for state in made.fleet}
    able = {state.worker.id for state in made.fleet if not state.draining}
    known = remembers(made)
    assert known["sites"] == here
    assert known["congestion"] == known["balance"] == able
    assert known["space"] <= here
    assert known["prices"] <= here
    pools = policy._congestion._pools
    assert sum(load.capacity for load in pools.values()) == len(able)
    assert min((load.capacity for load in pools.values()), default=0) >= 0
    assert policy._pending._pending.keys() <= set(made.in_flight)


class Memory(Storm):
    """The storm of the scheduler, with Homing alone: whatever happened, and however often."""

    @initialize(policy=st.just("homing"), seed=st.integers(0, 3), first=st.lists(shapes, min_size=2, max_size=4))
    def begin(self, policy, seed, first):
        super().begin(policy, seed, first)

    @invariant()
    def memory_agrees(self):
        if hasattr(self, "made"):
            check(self.made)

    def teardown(self):
        super().teardown()
        if hasattr(self, "made"):
            check(self.made)
            assert self.made.policy.pending() == 0


TestMemory = Memory.TestCase
TestMemory.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)


def test_nothing_is_left_of_a_day():
    world = LittleFleet(7, "homing").run()
    check(world.scheduler)
    assert world.scheduler.policy.pending() == 0


@pytest.mark.parametrize("how", ["lost", "silent"])
def test_a_worker_that_is_gone_is_forgotten(how):
    """Told of by its stream, or given up because it said nothing for too long."""
    made = scheduler(worker("a"), worker("b"), limits=Limits(lost_after_s=4.0), policy=Homing())
    for number in range(100):
        now = float(number)
        made.handle(BlocksRemoved(worker_id=A, keys=chain((f"x {number}", 3))), now)
        for name in "ab":
            made.handle(load(name, number, at=now), now)
        send(made, f"r{number}", chain((f"doc {number}", 100)), now)
        finish(made, f"r{number}", now)
    assert all(A in known for known in remembers(made).values())
    if how == "lost":
        made.handle(WorkerLost(worker_id=A, reason="gone"), 101.0)
    else:
        made.next_timer()
        made.handle(load("b", 1000, at=101.0), 101.0)
        made.handle(TimerFired(), 104.0)
    assert made.fleet.get(A) is None
    assert not any(A in known for known in remembers(made).values())
    made.handle(BlocksRemoved(worker_id=A, keys=KEYS), 105.0)
    assert not any(A in known for known in remembers(made).values()), "what it said last comes late"


def test_one_that_drains_is_no_capacity():
    made = scheduler(worker("a"), worker("b"), policy=Homing())
    made.handle(WorkerDraining(worker_id=A), 0.0)
    check(made)

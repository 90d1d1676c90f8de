"""Loads that are learned from what is asked, and the prices that are made of them."""

from math import exp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homing.router.core.congestion import FREE_LOAD, HYSTERESIS, PRICE_MAX, Congestion, price_of
from homing.router.core.tolls import Tolls
from homing.router.core.types import Decision, Estimate, ModelName, Plan, PlanKind, Role, WorkerId

from .fleets import HERE, MODEL, THERE, request, worker

A, B, P = WorkerId("a"), WorkerId("b"), WorkerId("p")
POOL = f"{MODEL} {HERE}/both"
loads = st.floats(0, 3)


def decision(prefill=A, seconds=1.0, decode=None, tail_s=0.0):
    plan = Plan(
        kind=PlanKind.LOCAL if decode is None else PlanKind.REMOTE,
        prefill=prefill,
        decode=decode or prefill,
        moves=(),
        estimate=Estimate(),
        prefill_compute_s=seconds,
        decode_compute_s=tail_s,
    )
    facts = {"runners_up": (), "policy": "p", "decided_s": 0.0, "attempt": 1, "plans_priced": 1}
    return Decision(request=request(tokens=10), plan=plan, **facts)


class Asked:
    """So much is asked each second of a fleet of these workers."""

    def __init__(self, *workers, prices=True, every_s=1.0):
        self.congestion, self.tolls, self.now, self.every_s = Congestion(memory_s=30.0), Tolls(), 0.0, every_s
        self.prices = self.tolls if prices else None
        for one in workers:
            self.congestion.joined(one)
        self.congestion.update(self.prices, 0.0)

    def ask(self, for_s, seconds=0.0, name=A, links=None, **facts):
        """`seconds` of compute per second, asked of a worker."""
        until_s = self.now + for_s
        while self.now < until_s - 1e-9:
            self.congestion.dispatched(decision(name, seconds * self.every_s, **facts), links or {})
            self.now += self.every_s
            self.congestion.update(self.prices, self.now)
        return self

    def load(self, name=POOL):
        return self.congestion.loads()[name]


# -- prices ----------------------------------------------------------------------------------------------------------


@given(loads, loads)
def test_a_price_grows_with_the_load_within_bounds(one, other):
    low, high = sorted((one, other))
    assert 0 <= price_of(low) <= price_of(high) <= PRICE_MAX


def test_below_the_free_load_time_costs_nothing():
    assert price_of(0.0) == price_of(FREE_LOAD) == 0.0
    assert 0 < price_of(FREE_LOAD + 1e-6) < 1e-5, "it begins without a step"


def test_above_it_a_second_delays_others_as_in_a_queue():
    """load/(1-load) less the 2/3 that 40 % would cost."""
    assert price_of(0.5) == pytest.approx(1 - 2 / 3)
    assert price_of(0.8) == pytest.approx(4 - 2 / 3)
    assert price_of(0.99) == price_of(1.0) == price_of(7.0) == PRICE_MAX


# -- loads -----------------------------------------------------------------------------------------------------------


@given(st.floats(0, 2), st.integers(1, 5), st.sampled_from([1.0, 1.5, 4.0]))
def test_a_load_converges_to_the_share_that_is_asked(share, count, every_s):
    """Of the whole pool, whoever of it was asked, however often one looks."""
    fleet = Asked(*(worker(f"w{i}") for i in range(count)), every_s=every_s)
    fleet.ask(300.0, share * count, WorkerId("w0"))
    assert fleet.load() == pytest.approx(share, abs=0.001)


def test_it_goes_there_exponentially():
    assert Asked(worker("a")).ask(30.0, 0.8).load() == pytest.approx(0.8 * (1 - exp(-1)))
    assert Asked(worker("a")).ask(300.0, 0.8).ask(30.0, 0.0).load() == pytest.approx(0.8 * exp(-1), rel=1e-3)


def test_it_is_looked_at_once_in_a_period_and_nothing_asked_between_is_lost():
    fleet = Asked(worker("a"))
    for part in (0.25, 0.5, 0.75):
        fleet.congestion.dispatched(decision(seconds=0.25), {})
        fleet.congestion.update(fleet.tolls, part)
        assert fleet.load() == 0.0
    fleet.congestion.dispatched(decision(seconds=0.25), {})
    fleet.congestion.update(fleet.tolls, 1.0)
    assert fleet.load() == pytest.approx(1 - exp(-1 / 30))


def test_workers_of_another_site_model_or_role_are_another_pool():
    others = [worker("b", THERE), worker("c", role=Role.PREFILL), worker("d", model=ModelName("n"))]
    fleet = Asked(worker("a"), *others).ask(300.0, 0.7)
    loads = fleet.congestion.loads()
    assert loads.pop(POOL) == pytest.approx(0.7, abs=0.001)
    assert set(loads) == {f"{MODEL} {THERE}/both", f"{MODEL} {HERE}/prefill", f"n {HERE}/both"}
    assert set(loads.values()) == {0.0}
    assert [fleet.tolls.worker(one.id) for one in others] == [0, 0, 0]


def test_a_remote_plan_asks_both_its_workers():
    fleet = Asked(worker("p", role=Role.PREFILL), worker("d", role=Role.DECODE))
    fleet.ask(300.0, 0.8, P, decode=WorkerId("d"), tail_s=0.1)
    assert fleet.load(f"{MODEL} {HERE}/prefill") == pytest.approx(0.8, abs=0.001)
    assert fleet.load(f"{MODEL} {HERE}/decode") == pytest.approx(0.1, abs=0.001)


# -- who joins and leaves --------------------------------------------------------------------------------------------


def test_who_joins_adds_to_what_there_is():
    fleet = Asked(worker("a")).ask(300.0, 0.8)
    fleet.congestion.joined(worker("b"))
    assert fleet.ask(300.0, 0.8).load() == pytest.approx(0.4, abs=0.001)
    fleet.congestion.left(B)
    assert fleet.ask(300.0, 0.8).load() == pytest.approx(0.8, abs=0.001)


def test_who_joins_has_the_price_of_its_pool():
    """Even where one more worker hardly changes the load: otherwise all would go to the one that seems free."""
    fleet = Asked(*(worker(f"w{i}") for i in range(100))).ask(300.0, 80.0, WorkerId("w0"))
    fleet.congestion.joined(worker("late"))
    fleet.ask(1.0, 80.0, WorkerId("w0"))
    assert fleet.tolls.worker(WorkerId("late")) == fleet.tolls.worker(WorkerId("w0")) > 3


def test_joining_again_counts_once_and_in_the_new_pool():
    fleet = Asked(worker("a"), worker("b"))
    fleet.congestion.joined(worker("b", THERE))
    fleet.congestion.joined(worker("a"))
    assert fleet.ask(300.0, 0.8).load() == pytest.approx(0.8, abs=0.001)
    assert fleet.ask(300.0, 0.8, B).load(f"{MODEL} {THERE}/both") == pytest.approx(0.8, abs=0.001)


def test_who_is_unknown_or_gone_changes_nothing():
    fleet = Asked(worker("a"))
    fleet.congestion.left(B)
    fleet.ask(10.0, 5.0, B)
    assert fleet.load() == 0.0
    fleet.congestion.left(A)
    fleet.congestion.left(A)
    assert fleet.ask(10.0, 5.0).load() == 0.0, "a pool of nobody"


# -- hysteresis ------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1.5), max_size=60))
def test_a_price_stays_until_the_load_has_moved(asked):
    """And then it is the one of that load."""
    fleet, priced_at = Asked(worker("a")), float("-inf")
    for share in asked:
        fleet.ask(1.0, share)
        if abs(fleet.load() - priced_at) > HYSTERESIS:
            priced_at = fleet.load()
        assert fleet.tolls.worker(A) == price_of(priced_at)


def test_a_load_that_trembles_moves_no_price():
    fleet = Asked(worker("a")).ask(300.0, 0.7)
    price = fleet.tolls.worker(A)
    for number in range(100):
        fleet.ask(1.0, 0.7 + 0.2 * (-1) ** number)
        assert fleet.tolls.worker(A) == price


def test_a_price_ends_with_the_load():
    fleet = Asked(worker("a")).ask(300.0, 0.9)
    assert fleet.tolls.worker(A) > 5
    assert fleet.ask(100.0, 0.0).tolls.worker(A) == 0.0


def test_without_tolls_loads_are_learned_and_nobody_pays():
    fleet = Asked(worker("a"), prices=False).ask(300.0, 0.9)
    assert fleet.load() == pytest.approx(0.9, abs=0.001)
    assert fleet.tolls.worker(A) == 0.0


# -- links -----------------------------------------------------------------------------------------------------------


def test_a_link_has_the_load_of_what_is_sent_over_it():
    fleet = Asked(worker("a")).ask(300.0, links={(HERE, THERE): 0.5})
    assert fleet.load(f"{HERE} -> {THERE}") == pytest.approx(0.5, abs=0.001)
    assert fleet.tolls.link(HERE, THERE) == pytest.approx(price_of(0.5), abs=0.15)
    assert fleet.tolls.link(THERE, HERE) == 0.0, "the other direction is another link"
    assert fleet.ask(300.0).tolls.link(HERE, THERE) == 0.0

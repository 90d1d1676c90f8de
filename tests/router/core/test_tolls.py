"""Congestion prices by hand, and that a plan is charged by them."""

import pytest

from homing.router.core.policies.homing import Homing
from homing.router.core.tolls import Tolls
from homing.router.core.topology import Topology
from homing.router.core.types import PlanKind, WorkerId

from .fleets import HERE, THERE, both_ways, chain, link, request, scheduler, stored, worker

A = WorkerId("a")
GIGABYTE = 1_000_000_000
TOPOLOGY = Topology([link(HERE, THERE, 0.01, 1e8, price_per_gb=0.02)])


def test_without_prices_nothing_is_taken_from_others():
    tolls = Tolls()
    assert tolls.compute_s(A, 100.0) == 0.0
    assert tolls.link_s(TOPOLOGY, HERE, THERE, GIGABYTE) == 0.0


def test_compute_is_priced_per_worker():
    tolls = Tolls()
    tolls.set_worker(A, 0.5)
    assert tolls.compute_s(A, 4.0) == 2.0
    assert tolls.compute_s(WorkerId("b"), 4.0) == 0.0
    tolls.set_worker(A, 0.0)
    assert tolls.compute_s(A, 4.0) == 0.0


def test_a_link_is_priced_by_how_long_its_whole_capacity_is_taken():
    tolls = Tolls()
    tolls.set_link(HERE, THERE, 0.5)
    assert tolls.link_s(TOPOLOGY, HERE, THERE, GIGABYTE) == pytest.approx(0.5 * 10)
    assert tolls.link_s(TOPOLOGY, THERE, HERE, GIGABYTE) == 0.0, "the other direction has a price of its own"


def test_money_is_seconds_by_what_a_second_is_worth():
    """2 cents per gigabyte at 1 cent per second: two seconds each."""
    tolls = Tolls(dollars_per_s=0.01)
    assert tolls.link_s(TOPOLOGY, HERE, THERE, 3 * GIGABYTE) == pytest.approx(6.0)
    tolls.set_link(HERE, THERE, 0.1)
    assert tolls.link_s(TOPOLOGY, HERE, THERE, 3 * GIGABYTE) == pytest.approx(6.0 + 0.1 * 30)


def test_where_a_second_is_worth_nothing_money_does_not_count():
    assert Tolls(dollars_per_s=0.0).link_s(TOPOLOGY, HERE, THERE, GIGABYTE) == 0.0


def test_answers_stall_as_long_as_the_worker_computes():
    """Beside what the worker's time is worth to those who want it."""
    tolls = Tolls(stall=0.1)
    tolls.set_worker(A, 0.5)
    assert tolls.compute_s(A, 2.0, decoding=3) == pytest.approx((0.5 + 0.3) * 2.0)
    assert tolls.compute_s(WorkerId("b"), 2.0, decoding=3) == pytest.approx(0.6)
    assert tolls.compute_s(WorkerId("b"), 2.0) == 0.0


def test_one_more_answer_is_felt_by_each():
    assert Tolls(crowd_s=0.01).decode_s(7) == pytest.approx(0.07)
    assert Tolls(crowd_s=0.01).decode_s(0) == 0.0


def test_prompts_that_share_a_pass_end_later():
    assert Tolls(together=0.5).together_s(2.0, 3.0) == pytest.approx(3.0)


def test_a_place_is_priced_per_token_and_worker():
    tolls = Tolls()
    tolls.set_place(A, 1e-3)
    assert tolls.place_s(A, 500) == pytest.approx(0.5)
    assert tolls.place_s(WorkerId("b"), 500) == 0.0


def test_a_worker_that_is_gone_takes_its_prices_along():
    tolls = Tolls()
    tolls.set_worker(A, 1.0)
    tolls.set_place(A, 1.0)
    tolls.forget_worker(A)
    tolls.forget_worker(A)
    assert (tolls.worker(A), tolls.place_s(A, 1)) == (0.0, 0.0)


def test_a_negative_price_is_a_fault_of_the_caller():
    tolls = Tolls()
    with pytest.raises(AssertionError):
        tolls.set_place(A, -1.0)
    with pytest.raises(AssertionError):
        Tolls(together=-1.0)
    with pytest.raises(AssertionError):
        tolls.set_worker(A, -1.0)
    with pytest.raises(AssertionError):
        tolls.set_link(HERE, THERE, -1.0)


# -- what they do to a choice ------------------------------------------------------------------------------------------

KEYS = chain(("doc", 64))


def best(tolls=None, price_per_gb=0.0):
    """1,024 tokens, all held by a worker that takes no requests; 1 MB of KV, or 1 s of computing."""
    links = both_ways(link(HERE, THERE, 0.01, 1e7, price_per_gb))
    made = scheduler(worker("near"), worker("far", THERE, kv_blocks_max=1), links=links, tolls=tolls)
    made.handle(stored("far", KEYS), 0.0)
    return Homing().choose(made.question(request("r", KEYS)), None)[0]


def test_a_cheap_transfer_is_taken_and_a_dear_one_is_not():
    """1 MB at a thousand dollars per gigabyte is a dollar; the second of computing that it saves is worth a cent."""
    assert best().kind is PlanKind.FETCH
    assert best(Tolls(dollars_per_s=0.01), price_per_gb=0.01).kind is PlanKind.FETCH
    assert best(Tolls(dollars_per_s=0.01), price_per_gb=1000.0).kind is PlanKind.LOCAL


def test_a_link_that_others_want_is_left_to_them():
    wanted = Tolls()
    wanted.set_link(THERE, HERE, 100.0)
    assert best(wanted).kind is PlanKind.LOCAL


def test_the_toll_is_in_the_score_and_not_in_the_time_to_first_token():
    """The sender does not wait for what it takes from others."""
    priced = Tolls()
    priced.set_link(THERE, HERE, 0.1)
    with_toll, without = best(priced).estimate, best().estimate
    assert with_toll.ttft_s == pytest.approx(without.ttft_s)
    assert with_toll.score_s == pytest.approx(without.score_s + 0.1 * 64 * 16 * 1000 / 1e7)

"""Prefill as a service: routing by the threshold, and both loops, on a prefill cluster THERE and a local one HERE.

A worker takes 10 ms and 1 ms per token; a prompt of KEYS has 321 tokens.
"""

import pytest

from homing.router.core.ledger import Charge
from homing.router.core.policies import Rebalancing, make_policy
from homing.router.core.policies.prfaas_control import LENGTHS_MIN, RANGE, Stages, Threshold
from homing.router.core.types import PlanKind, RequestId, Role, WorkerId

from ..fleets import HERE, THERE, both_ways, busy, chain, link, load, request, scheduler, stored, worker
from .asking import KEYS, choose, occupy, send


def clusters(policy=None, *, prefill="q", decode="d", both="", far="p", bytes_per_s=1e8, **facts):
    made = [
        *(worker(name, THERE, Role.PREFILL, **facts) for name in far),
        *(worker(name, HERE, Role.PREFILL, **facts) for name in prefill),
        *(worker(name, HERE, Role.DECODE, **facts) for name in decode),
        *(worker(name, HERE, **facts) for name in both),
    ]
    return scheduler(*made, links=both_ways(link(HERE, THERE, 0.02, bytes_per_s)), policy=policy)


def route(made, keys=KEYS, tokens=None, **options):
    plans = choose("", made, request("r", keys, tokens), policy=make_policy("prfaas-threshold", options))
    return [(plan.prefill, plan.decode, plan.kind.value) for plan in plans]


# -- the rule ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("threshold", "prefill"), [(19_400, "q"), (321, "q"), (320, "p"), (0, "p")])
def test_longer_than_the_threshold_goes_far(threshold, prefill):
    assert route(clusters(), threshold_tokens=threshold) == [(prefill, "d", "remote")]


@pytest.mark.parametrize(("held", "prefill"), [(13, "p"), (14, "q")])
def test_what_the_local_cluster_has_does_not_count(held, prefill):
    """321 - 16 * 13 = 113 tokens, 321 - 16 * 14 = 97."""
    made = clusters()
    made.handle(stored("q", KEYS[:held]), 0.0)
    assert route(made, threshold_tokens=100) == [(prefill, "d", "remote")]


def test_what_the_far_cluster_has_counts_only_with_abundant_bandwidth():
    made = clusters()
    made.handle(stored("p", KEYS[:14]), 0.0)
    assert route(made, threshold_tokens=100) == [("p", "d", "remote")]
    policy = make_policy("prfaas-threshold", {"threshold_tokens": 100, "abundant": True})
    (plan,) = choose("", made, policy=policy)
    assert (plan.prefill, plan.decode, plan.kind) == ("q", "d", PlanKind.REMOTE)
    assert [(move.source, move.target, move.block_end) for move in plan.moves] == [("p", "q", 14), ("q", "d", 20)]


def test_an_offloaded_prompt_gets_the_longer_local_cache_first():
    made = clusters()
    made.handle(stored("q", KEYS[:10]), 0.0)
    policy = make_policy("prfaas-threshold", {"threshold_tokens": 100, "abundant": True})
    (plan,) = choose("", made, policy=policy)
    assert [(move.source, move.target, move.block_end) for move in plan.moves] == [("q", "p", 10), ("p", "d", 20)]


def test_a_cluster_where_nobody_can_is_passed_over():
    made = clusters()
    made.handle(load("p", running=64), 0.0)
    assert route(made, threshold_tokens=0) == [("q", "d", "remote")]
    assert route(clusters(prefill="")) == [("p", "d", "remote")]
    assert route(clusters(decode="")) == []


def test_local_workers_that_do_both_decode_what_they_compute():
    made = clusters(prefill="", decode="", both="bc")
    busy(made, "b", 1.0)
    assert route(made) == [("c", "c", "local")]
    assert route(made, threshold_tokens=0) == [("p", "b", "remote")]


def test_within_a_cluster_the_soonest_is_taken():
    """A cached prefix of 304 ms on q against nothing on s, until q has half a second to do."""
    made = clusters(prefill="qs")
    made.handle(stored("q", KEYS[:19]), 0.0)
    assert route(made) == [("q", "d", "remote")]
    busy(made, "q", 0.5)
    assert route(made) == [("s", "d", "remote")]


def test_a_decoder_that_has_all_and_a_short_prompt_need_nobody():
    made = clusters()
    made.handle(stored("d", KEYS), 0.0)
    assert route(made, threshold_tokens=0) == [("d", "d", "local")]
    assert route(clusters(prefill="", far=""), (), 10) == [("d", "d", "local")]


def test_the_prefill_cluster_can_be_named():
    made = clusters(prefill="", decode="", both="b")
    assert route(made, threshold_tokens=0, prefill_site="there") == [("p", "b", "remote")]
    busy(made, "p", 1.0)
    assert route(made, threshold_tokens=0, prefill_site="nowhere") == [("b", "b", "local")], "p is local, and busy"


# -- the threshold -----------------------------------------------------------------------------------------------------


def test_the_threshold_moves_in_steps_and_comes_back():
    threshold = Threshold(1000.0, 1.25)
    threshold.raise_()
    assert threshold.tokens == 1250
    threshold.relax()
    threshold.relax()
    assert threshold.tokens == 1000
    threshold.lower()
    assert threshold.tokens == 800
    threshold.relax()
    assert threshold.tokens == 1000
    for _ in range(50):
        threshold.raise_()
    assert threshold.tokens == 1000 * RANGE
    for _ in range(50):
        threshold.lower()
    assert threshold.tokens == 1000 / RANGE


def search(lengths, *, bytes_per_s, **how):
    made = clusters(**how)
    threshold = Threshold(500.0, 1.25)
    for length in lengths:
        threshold.note(length)
    question = made.question(request("r", KEYS))
    threshold.search(question, Stages.of(question, ""), bytes_per_s)
    return threshold.base_tokens


def test_a_search_balances_both_clusters():
    """Lengths 1..100: two thirds of their work belong where two of three workers are.

    Work above t is 100 * 101 / 2 - t * (t + 1) / 2 ms and 10 ms each: far takes half of near when t is about 82.
    """
    lengths = list(range(1, 101))
    near_ms = [sum(10 + n for n in lengths[:t]) / 2 for t in range(101)]
    far_ms = [sum(10 + n for n in lengths[t:]) for t in range(101)]
    best = min(range(101), key=lambda t: max(near_ms[t], far_ms[t]))
    assert search(lengths, bytes_per_s=1e12, prefill="qs") == best
    assert 75 < best < 85


def test_a_search_minds_the_link():
    """1,000 bytes per token at 10 kB/s: the link would take 100 ms per token, the local cluster takes 1."""
    assert search(range(1, 101), bytes_per_s=1e4) > 95


def test_a_search_wants_some_requests_and_both_clusters():
    assert search(range(LENGTHS_MIN - 1), bytes_per_s=1e9) == 500
    assert search(range(100), bytes_per_s=1e9, prefill="") == 500


# -- both loops --------------------------------------------------------------------------------------------------------


def two_loops(**options):
    return make_policy("prfaas-two-timescale", {"threshold_tokens": 100, **options})


def control(made, policy, now):
    """One more question, at least one period after the last."""
    busy_now = made._now
    made._now = now
    choose("", made, policy=policy)
    made._now = busy_now


def test_a_busy_egress_raises_the_threshold_and_makes_bandwidth_scarce():
    """321,000 bytes per prompt over 100 kB/s: three of them in ten seconds are 96 %."""
    policy = two_loops()
    made = clusters(policy, bytes_per_s=1e5)
    for number in range(3):
        assert send(made, f"r{number}", chain((f"doc {number}", 20)), now=1.0).prefill == "p"
    assert policy.egress.utilisation(made.question(request()), [(THERE, HERE)], 1.0) == pytest.approx(0.96)
    assert policy.abundant
    control(made, policy, 6.0)
    assert not policy.abundant
    assert policy.threshold.tokens == 125
    control(made, policy, 12.0)
    assert len(policy.egress) == 0, "ten seconds later nothing of it is left"
    assert policy.abundant
    assert policy.threshold.tokens == 100


@pytest.mark.parametrize(("far_s", "near_s", "tokens"), [(3, 1, 125), (3, 2, 100), (1, 3, 80), (1.9, 0, 100)])
def test_a_surging_queue_moves_the_threshold(far_s, near_s, tokens):
    """Beyond two seconds, and twice that of the other stage."""
    policy = two_loops()
    made = clusters(policy)
    busy(made, "p", far_s)
    busy(made, "q", near_s)
    control(made, policy, 0.0)
    assert policy.threshold.tokens == tokens


def test_within_a_period_nothing_is_moved():
    policy = two_loops()
    made = clusters(policy)
    busy(made, "p", 9.0)
    for now in (0.0, 1.0, 4.9):
        control(made, policy, now)
    assert policy.threshold.tokens == 125
    control(made, policy, 5.0)
    assert policy.threshold.tokens == 125 * 1.25


def test_the_base_is_searched_anew_every_minute():
    policy = two_loops()
    made = clusters(policy)
    for length in range(1, LENGTHS_MIN + 1):
        policy.threshold.note(length)
    control(made, policy, 59.0)
    assert policy.threshold.base_tokens == 100
    control(made, policy, 65.0)
    assert policy.threshold.base_tokens == search(range(1, LENGTHS_MIN + 1), bytes_per_s=0.8e8)


def test_full_decoders_wish_for_a_prefill_node():
    policy = two_loops()
    assert isinstance(policy, Rebalancing)
    made = clusters(policy, prefill="qs", requests_max=10)
    occupy(made, "d", 9)
    made.fleet.charge(RequestId("x"), Charge(memory=((WorkerId("q"), 1),)), 0.0)
    for now in (0.0, 10.0):
        control(made, policy, now)
    assert policy.wishes(299.0) == []
    assert policy.wishes(300.0) == [], "nine of ten slots are not more than nine of ten"
    made = clusters(policy, prefill="qs", requests_max=10)
    occupy(made, "d", 10)
    for number in range(40):
        control(made, policy, 20.0 + 10 * number)
    ((node, role, why),) = policy.wishes(600.0)
    assert (node, role) == ("q", Role.DECODE)
    assert why.startswith("decode slots 100% used, prefill queue 0.00 s")
    assert policy.wishes(601.0) == []


def test_idle_decoders_are_wished_back_but_never_the_last():
    for decode, expected in (("de", [("e", Role.PREFILL)]), ("d", [])):
        policy = two_loops()
        made = clusters(policy, decode=decode, requests_max=10)
        occupy(made, "d", 1)
        busy(made, "q", 1000.0)
        control(made, policy, 0.0)
        assert [(node, role) for node, role, _ in policy.wishes(300.0)] == expected

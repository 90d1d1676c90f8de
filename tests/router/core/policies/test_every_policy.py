"""Each baseline's rule, alone and in a fleet of prefill and decode workers."""

from collections import Counter
from random import Random

import pytest

from homing.router.core.errors import ConfigError
from homing.router.core.events import RequestArrived, WorkerDraining
from homing.router.core.policies import POLICIES, make_policy
from homing.router.core.types import PlanKind, RequestId, WorkerId

from ..fleets import busy, load, request, scheduler, stored, worker
from .asking import KEYS, apart, choose, chosen, fleet

BASELINES = sorted(set(POLICIES) - {"homing"})
HOLDS_BACK = {"skywalker"}
"""Policies by which a request may wait beside room."""


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_every_policy_knows_its_name_and_says_nothing_when_nobody_can(name):
    assert make_policy(name).name == name
    assert choose(name, scheduler()) == []
    assert choose(name, fleet("a", kv_blocks_max=5)) == []
    made = fleet("a")
    made.handle(WorkerDraining(worker_id=WorkerId("a")), 0.0)
    assert choose(name, made) == []


def test_an_unknown_policy_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"policy\.name: unknown policy 'best'; known are dynamo-kv, gorgo, homing, "):
        make_policy("best")


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_a_policy_only_chooses(name):
    """Asking books nothing: the same question has the same answer, but for the turn of round robin."""
    made = fleet("a", "b", "c")
    choose(name, made)
    assert len(made.fleet.ledger) == 0
    if name != "round-robin":
        assert choose(name, made) == choose(name, made)


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_moves_no_cache(name):
    made = fleet("a", "b")
    made.handle(stored("a", KEYS), 0.0)
    for seed in range(5):
        (plan,) = choose(name, made, seed=seed)
        assert (plan.kind, plan.moves) == (PlanKind.LOCAL, ())


def test_random_reaches_everybody_equally():
    made, policy, random = fleet(*"abcd"), make_policy("random"), Random(1)
    counts = Counter(policy.choose(made.question(request(tokens=10)), random)[0].decode for _ in range(800))
    assert set(counts) == set("abcd")
    assert min(counts.values()) > 150


@pytest.mark.parametrize("name", ["random", "power-of-two"])
def test_a_seed_decides_what_is_drawn(name):
    made = fleet(*"abcdef")
    drawn = [[chosen(name, made, seed=seed) for seed in range(20)] for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) > 2


def test_round_robin_takes_turns():
    made, policy = fleet(*"abc"), make_policy("round-robin")
    assert [chosen("", made, policy=policy) for _ in range(7)] == list("abcabca")


def test_round_robin_leaves_out_who_has_no_room():
    made, policy = fleet(*"abc"), make_policy("round-robin")
    made.handle(load("b", running=64), 0.0)
    assert {chosen("", made, policy=policy) for _ in range(6)} == {"a", "c"}


def test_least_loaded_counts_requests_wherever_they_came_from():
    made = scheduler(*(worker(name) for name in "abc"), policy=make_policy("least-loaded"))
    made.handle(load("a", running=2), 0.0)
    assert chosen("least-loaded", made) == "b"
    for number in range(2):
        made.handle(RequestArrived(request=request(f"x{number}", tokens=10)), 0.0)
    assert sorted(made.fleet.running(state) for state in made.fleet) == [1, 1, 2]
    made.handle(load("c", running=5), 0.0)
    assert chosen("least-loaded", made) == "b"


def test_least_loaded_is_blind_to_length():
    made = fleet(*"ab")
    busy(made, "a", 100.0)
    assert chosen("least-loaded", made) == "a"


def test_longest_prefix_goes_where_most_is_however_busy():
    made = fleet(*"abc")
    made.handle(stored("b", KEYS[:10]), 0.0)
    made.handle(stored("c", KEYS[:9]), 0.0)
    busy(made, "b", 100.0)
    made.handle(load("b", running=60), 0.0)
    assert chosen("longest-prefix", made) == "b"
    assert choose("longest-prefix", made)[0].estimate.hit_tokens == 160


def test_longest_prefix_among_equals_takes_the_calmer():
    made = fleet(*"ab")
    made.handle(load("a", running=1), 0.0)
    assert chosen("longest-prefix", made) == "b"


def test_power_of_two_prefers_the_calmer_of_two():
    """Of two workers both are drawn: the busier one is never chosen; of four it sometimes is not even drawn."""
    made = fleet(*"ab")
    made.handle(load("a", running=1), 0.0)
    assert {chosen("power-of-two", made, seed=seed) for seed in range(20)} == {"b"}
    made = fleet(*"abcd")
    for busy_one in "abc":
        made.handle(load(busy_one, running=1), 0.0)
    counts = Counter(chosen("power-of-two", made, seed=seed) for seed in range(200))
    assert 70 < counts["d"] < 130, "drawn with chance one half"


def test_power_of_two_of_one():
    assert chosen("power-of-two", fleet("a")) == "a"


def test_a_session_stays_where_it_is():
    made = fleet(*"abcde")
    homes = {f"s{i}": chosen("session-hash", made, request("r", session=f"s{i}", tokens=10)) for i in range(200)}
    assert set(homes.values()) == set("abcde")
    assert homes["s3"] == chosen("session-hash", made, request("another", session="s3", tokens=99))
    made.handle(WorkerDraining(worker_id=WorkerId("c")), 0.0)
    moved = {s for s in homes if chosen("session-hash", made, request("r", session=s, tokens=10)) != homes[s]}
    assert moved == {s for s, home in homes.items() if home == "c"}, "only its own sessions move"


def test_requests_without_a_session_are_spread():
    made = fleet(*"abcd")
    counts = Counter(chosen("session-hash", made, request(f"r{i}", tokens=10)) for i in range(200))
    assert min(counts.values()) > 25


# -- disaggregated fleets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BASELINES)
def test_apart_one_computes_and_another_decodes(name):
    (plan,) = choose(name, apart())
    assert plan.kind is PlanKind.REMOTE
    assert plan.prefill in "pq"
    assert plan.decode in "de"
    (move,) = plan.moves
    assert (move.source, move.target) == (plan.prefill, plan.decode)


@pytest.mark.parametrize("name", BASELINES)
def test_apart_a_full_cache_is_handed_over_directly(name):
    made = apart("p", "d")
    made.handle(stored("p", KEYS), 0.0)
    (plan,) = choose(name, made)
    assert (plan.kind, plan.prefill, plan.decode) == (PlanKind.DIRECT, "d", "d")


@pytest.mark.parametrize("name", BASELINES)
def test_apart_a_decode_worker_that_has_all_needs_nobody(name):
    made = apart("p", "d")
    made.handle(stored("d", KEYS), 0.0)
    (plan,) = choose(name, made)
    assert (plan.kind, plan.decode) == (PlanKind.LOCAL, "d")


@pytest.mark.parametrize("name", BASELINES)
def test_apart_a_prompt_shorter_than_a_block_needs_nobody(name):
    (plan,) = choose(name, apart("p", "d"), request("r", (), 10))
    assert (plan.kind, plan.decode) == (PlanKind.LOCAL, "d")


@pytest.mark.parametrize("name", sorted(POLICIES))
@pytest.mark.parametrize(("prefill", "decode"), [("", "d"), ("p", "")])
def test_half_a_fleet_answers_nothing(name, prefill, decode):
    assert choose(name, apart(prefill, decode)) == []


@pytest.mark.parametrize("name", BASELINES)
def test_a_plan_of_a_baseline_can_be_carried_out(name):
    """Booked and released by the scheduler like any other."""
    made = scheduler(*(worker(n) for n in "ab"), policy=make_policy(name))
    for number in range(6):
        sent = made.handle(RequestArrived(request=request(f"r{number}", KEYS)), 0.0)
        assert sent or name in HOLDS_BACK
        made.check()
    assert made.in_flight[RequestId("r0")].decision.policy == name

"""The routers of papers: Mooncake, LMetric, SkyWalker, against cases worked out by hand.

A worker takes 10 ms and 1 ms per token; a prompt of KEYS has 321 tokens in 20 full blocks, 320,000 bytes of KV.
"""

import pytest

from homing.router.core.events import FirstToken, RequestFinished, WorkerLost
from homing.router.core.policies import make_policy
from homing.router.core.preparation import Source
from homing.router.core.types import Outcome, PlanKind, RequestId, Role, WorkerId

from ..fleets import HERE, THERE, both_ways, busy, chain, link, load, request, scheduler, stored, worker
from .asking import KEYS, apart, choose, chosen, fleet, occupy, send, state

# -- mooncake-alg1 -----------------------------------------------------------------------------------------------------

NEAR_S = 3 * 2e-4 + 320_000 / 1.25e9
"""All 20 blocks within one site: three round trips of 0.2 ms, then 10 Gbit/s."""


def test_mooncake_fetches_where_waiting_takes_longer():
    made = fleet(*"ab")
    made.handle(stored("a", KEYS), 0.0)
    busy(made, "a", 1.0)
    (plan,) = choose("mooncake-alg1", made)
    assert (plan.kind, plan.decode) == (PlanKind.FETCH, "b")
    (move,) = plan.moves
    assert (move.source, move.block_first, move.block_end) == ("a", 0, 20)


def test_mooncake_adds_transfer_queue_and_prefill():
    made, policy = fleet(*"ab"), make_policy("mooncake-alg1")
    made.handle(stored("a", KEYS), 0.0)
    busy(made, "a", 1.0)
    busy(made, "b", 0.5)
    question = made.question(request("r", KEYS))
    a, b = state(made, "a"), state(made, "b")
    (plan,) = policy.choose(question, None)
    assert plan.decode == "b"
    assert policy.ttft_s(question, a, None) == pytest.approx(1.0 + 0.011)
    assert policy.ttft_s(question, b, Source(a, 20)) == pytest.approx(NEAR_S + 0.5 + 0.011)
    assert policy.ttft_s(question, b, None) == pytest.approx(0.5 + 0.331)


@pytest.mark.parametrize(("own", "threshold", "kind"), [(9, 2, "fetch"), (10, 2, "local"), (15, 1.25, "fetch")])
def test_mooncake_fetches_beyond_the_balancing_threshold(own, threshold, kind):
    """20 / 9 > 2, 20 / 10 is not, 20 / 15 > 1.25."""
    made = fleet(*"ab")
    made.handle(stored("a", KEYS), 0.0)
    made.handle(stored("b", KEYS[:own]), 0.0)
    busy(made, "a", 9.0)
    policy = make_policy("mooncake-alg1", {"balancing_threshold": threshold})
    (plan,) = choose("", made, policy=policy)
    assert (plan.decode, plan.kind.value) == ("b", kind)
    assert [move.block_first for move in plan.moves] == ([own] if kind == "fetch" else [])


def test_mooncake_fetches_from_the_nearest_of_the_longest():
    made = scheduler(
        worker("a", THERE), worker("b", HERE), worker("c", HERE), links=both_ways(link(HERE, THERE, 1, 1e6))
    )
    for holder in "ab":
        made.handle(stored(holder, KEYS), 0.0)
        busy(made, holder, 9.0)
    (plan,) = choose("mooncake-alg1", made)
    assert (plan.decode, plan.moves[0].source) == ("c", "b")


def test_mooncake_hands_over_to_the_least_loaded():
    made = apart("pq", "de")
    made.handle(stored("p", KEYS[:15]), 0.0)
    busy(made, "p", 1.0)
    made.handle(load("d", running=1), 0.0)
    (plan,) = choose("mooncake-alg1", made)
    assert (plan.kind, plan.prefill, plan.decode) == (PlanKind.REMOTE, "q", "e")
    assert [(move.source, move.target) for move in plan.moves] == [("p", "q"), ("q", "e")]


# -- lmetric -----------------------------------------------------------------------------------------------------------


def test_lmetric_multiplies_tokens_by_requests():
    made = fleet(*"ab")
    made.handle(stored("a", KEYS[:10]), 0.0)
    occupy(made, "a", 2)
    occupy(made, "b", 1)
    assert chosen("lmetric", made) == "b", "161 * 2 = 322 against 321 * 1"
    made.handle(stored("a", KEYS[:11]), 0.0)
    assert chosen("lmetric", made) == "a", "145 * 2 = 290"
    made.handle(load("a", queued=16, running=2, used=2), 0.0)
    assert chosen("lmetric", made) == "b", "(145 + 16) * 2 = 322 again"


def test_lmetric_takes_fewer_tokens_where_nobody_runs_anything():
    made = fleet(*"ab")
    made.handle(stored("b", KEYS[:3]), 0.0)
    assert chosen("lmetric", made) == "b"


# -- skywalker ---------------------------------------------------------------------------------------------------------


def regions(**facts):
    """Two replicas here, one 100 ms away."""
    return scheduler(
        worker("a"),
        worker("b"),
        worker("c", THERE),
        links=both_ways(link(HERE, THERE, 0.1, 1e8)),
        policy=make_policy("skywalker", facts),
    )


def first_token(made, name, now=1.0):
    return made.handle(FirstToken(request_id=RequestId(name), ttft_s=0.1), now)


def finish(made, name, now=2.0):
    event = RequestFinished(request_id=RequestId(name), outcome=Outcome.FINISHED, output_tokens=1)
    return made.handle(event, now)


def test_skywalker_pushes_near_then_far_then_nowhere():
    """One prompt is in the batch, the second is pending; a replica with one pending gets nothing more."""
    made = regions()
    went = [send(made, f"r{i}", chain((f"doc {i}", 20))) for i in range(6)]
    assert [plan.decode for plan in went] == ["a", "b", "a", "b", "c", "c"]
    assert send(made, "r6", KEYS) is None
    assert len(made.admission) == 1
    (dispatch,) = first_token(made, "r1")
    assert (dispatch.decision.request.id, dispatch.decision.plan.decode) == ("r6", "b")


def test_skywalker_waits_for_what_others_sent_too():
    made = regions()
    for name in "abc":
        made.handle(load(name, queued=100, running=1), 0.0)
    assert send(made, "r", KEYS) is None


def test_skywalker_takes_the_longest_match_unless_it_is_short():
    made = regions()
    policy = made.policy
    policy.replicas.sent("b", KEYS[:11])
    occupy(made, "b", 3)
    assert chosen("", made, policy=policy) == "b", "176 of 321 tokens: 55 %"
    assert chosen("", made, request("r", KEYS, tokens=353), policy=policy) == "a", "176 of 353: 49.9 %"
    assert chosen("", made, policy=make_policy("skywalker")) == "a", "it knows nothing but what it sent"


def test_skywalker_knows_regions_by_what_it_sent_there():
    elsewhere = "elsewhere"
    made = scheduler(
        *(worker(name, site) for name, site in zip("abc", (HERE, THERE, elsewhere), strict=True)),
        links=[*both_ways(link(HERE, THERE, 0.1, 1e8)), *both_ways(link(HERE, elsewhere, 0.2, 1e8))],
        policy=make_policy("skywalker"),
    )
    for number in range(2):
        assert send(made, f"r{number}", chain((f"doc {number}", 20))).decode == "a"
    made.policy.regions.sent(elsewhere, KEYS)
    assert send(made, "r2", KEYS).decode == "c"
    assert send(made, "r3", chain(("new", 20))).decode == "b", "the less used region"
    assert chosen("", made, request("r", KEYS, origin=THERE), policy=made.policy) == "b", "its own region first"


def test_skywalker_stays_in_a_region_without_room_only_while_it_has_some():
    made = regions()
    for name in "ab":
        made.handle(load(name, running=64), 0.0)
    assert send(made, "r", KEYS).decode == "c"


def test_skywalker_waits_for_those_who_do_all_where_there_are_any():
    """A worker that only prefills is not asked beside them, so that it is available changes nothing."""
    made = scheduler(worker("a"), worker("p", role=Role.PREFILL), policy=make_policy("skywalker"))
    assert [send(made, f"r{i}", KEYS).decode for i in range(2)] == ["a", "a"]
    assert send(made, "r2", KEYS) is None


def test_skywalker_forgets_who_is_gone():
    made = regions()
    for number in range(5):
        send(made, f"r{number}", KEYS)
    assert made.policy.replicas.size("c") == 20
    made.handle(WorkerLost(worker_id=WorkerId("c"), reason="gone"), 0.0)
    assert made.policy.replicas.size("c") == 0
    assert made.policy.regions.size(THERE) == 0
    assert made.policy.regions.size(HERE) == 20

"""The routers of engines: Dynamo, SGLang, SMG and llm-d, against cases worked out by hand.

A prompt of KEYS has 20 full blocks and one token: 321 tokens, 20.0625 blocks.
"""

from collections import Counter
from random import Random

import pytest

from homing.router.core.events import BlocksStored, FirstToken, RequestFinished
from homing.router.core.ledger import Charge
from homing.router.core.policies import make_policy
from homing.router.core.types import Outcome, PlanKind, RequestId, Tier, WorkerId

from ..fleets import busy, chain, load, request, stored
from .asking import KEYS, apart, choose, chosen, fleet, occupy, send, state

# -- dynamo-kv ---------------------------------------------------------------------------------------------------------


def on_tier(name, tier, keys, parent=None):
    return BlocksStored(worker_id=WorkerId(name), keys=tuple(keys), parent=parent, tier=tier)


def cost(policy, made, name, asked=None):
    return policy.cost_blocks(made.question(asked or request("r", KEYS)), state(made, name))


def test_dynamo_credits_each_tier_by_its_weight():
    made, policy = fleet(*"abcd"), make_policy("dynamo-kv")
    made.handle(stored("a", KEYS[:10]), 0.0)
    made.handle(on_tier("b", Tier.HOST, KEYS[:10]), 0.0)
    made.handle(stored("c", KEYS[:4]), 0.0)
    made.handle(on_tier("c", Tier.HOST, KEYS[4:8], KEYS[3]), 0.0)
    made.handle(on_tier("c", Tier.DISK, KEYS[8:12], KEYS[7]), 0.0)
    made.handle(on_tier("c", Tier.STORE, KEYS[12:14], KEYS[11]), 0.0)
    assert cost(policy, made, "a") == 20.0625 - 10 + 20
    assert cost(policy, made, "b") == 20.0625 - 7.5 + 20
    assert cost(policy, made, "c") == 20.0625 - (4 + 3 + 1 + 1) + 20
    assert cost(policy, made, "d") == 40.0625
    assert chosen("dynamo-kv", made) == "a"


def test_dynamo_adds_what_is_queued_and_what_is_decoded():
    policy = make_policy("dynamo-kv")
    made = fleet(*"ab", policy=policy)
    assert send(made, "r1", chain(("other", 5))).decode in "ab"
    (busy_one,) = (name for name in "ab" if made.fleet.ledger.running(WorkerId(name)))
    assert cost(policy, made, busy_one) == 81 / 16 + 20.0625 + 25
    made.handle(FirstToken(request_id=RequestId("r1"), ttft_s=0.1), 0.1)
    assert cost(policy, made, busy_one) == 20.0625 + 25
    made.handle(RequestFinished(request_id=RequestId("r1"), outcome=Outcome.FINISHED, output_tokens=1), 0.2)
    assert cost(policy, made, busy_one) == 40.0625
    assert len(policy.active) == 0


def test_dynamo_counts_blocks_that_siblings_share_once():
    policy = make_policy("dynamo-kv")
    made = fleet("a", policy=policy)
    send(made, "r1", KEYS[:15])
    made.handle(FirstToken(request_id=RequestId("r1"), ttft_s=0.1), 0.1)
    assert policy.active.blocks_with(WorkerId("a"), KEYS) == 20
    assert policy.active.blocks_with(WorkerId("a"), chain(("other", 3))) == 18


def test_dynamo_follows_prompts_shorter_than_a_block():
    policy = make_policy("dynamo-kv")
    made = fleet("a", policy=policy)
    for number in range(2):
        send(made, f"r{number}", ())
    for number in range(2):
        event = RequestFinished(request_id=RequestId(f"r{number}"), outcome=Outcome.FINISHED, output_tokens=1)
        made.handle(event, 1.0)
    assert len(policy.active) == 0


def test_dynamo_never_owes_anything():
    made, policy = fleet("a"), make_policy("dynamo-kv", {"device_credit": 3})
    made.handle(stored("a", KEYS), 0.0)
    assert cost(policy, made, "a") == 20


def test_dynamo_draws_ties_and_with_temperature_more():
    made = fleet(*"ab")
    assert {chosen("dynamo-kv", made, seed=seed) for seed in range(20)} == {"a", "b"}
    made.handle(stored("b", KEYS[:10]), 0.0)
    assert {chosen("dynamo-kv", made, seed=seed) for seed in range(20)} == {"b"}
    warm = make_policy("dynamo-kv", {"temperature": 1.0})
    counts = Counter(chosen("", made, policy=warm, seed=seed) for seed in range(400))
    assert 250 < counts["b"] < 330, "e / (e + 1) = 73 %"


def test_dynamo_decodes_where_least_is_decoded():
    made, policy = apart("p", "de"), make_policy("dynamo-kv")
    policy.active.add(RequestId("x"), (WorkerId("d"),), chain(("other", 3)))
    made.handle(stored("d", KEYS[:10]), 0.0)
    (plan,) = choose("", made, policy=policy)
    assert (plan.prefill, plan.decode) == ("p", "e"), "the prefix on d is worth nothing there"


# -- sglang-cache-aware ------------------------------------------------------------------------------------------------


def test_sglang_follows_what_it_sent_and_else_the_smallest_tree():
    policy = make_policy("sglang-cache-aware")
    made = fleet(*"ab", policy=policy)
    assert send(made, "r0", KEYS).decode == "a"
    assert send(made, "r1", chain(("other", 5))).decode == "b", "an empty tree is the smallest"
    assert send(made, "r2", KEYS[:7] + chain(("x", 13))).decode == "a", "112 of 321 tokens: 35 %"
    assert (policy.tree.size("a"), policy.tree.size("b")) == (33, 5)
    assert send(made, "r3", KEYS[:6] + chain(("y", 14))).decode == "b", "96 of 321 tokens: 29.9 %"


def test_sglang_wants_more_than_the_threshold_where_smg_wants_as_much():
    asked = request("r", KEYS[:6] + chain(("y", 14)), tokens=320)
    for name, expected in (("sglang-cache-aware", "b"), ("smg-cache-aware", "a")):
        policy = make_policy(name)
        made = fleet(*"ab", policy=policy)
        policy.tree.sent("a", KEYS)
        occupy(made, "a", 1)
        assert chosen("", made, asked, policy=policy) == expected, name


@pytest.mark.parametrize(
    ("loads", "expected"), [((2, 0), "b"), ((2, 1), "a"), ((3, 1), "b"), ((6, 4), "a"), ((7, 4), "b")]
)
def test_sglang_balances_beyond_both_thresholds(loads, expected):
    """More than 1 apart, and the fullest more than one and a half times the emptiest."""
    policy = make_policy("sglang-cache-aware", {"balance_absolute": 1, "balance_relative": 1.5})
    made = fleet(*"ab", policy=policy)
    policy.tree.sent("a", KEYS)
    for name, count in zip("ab", loads, strict=True):
        occupy(made, name, count)
    assert chosen("", made, policy=policy) == expected


def test_sglang_hears_neither_caches_nor_reports():
    made = fleet(*"ab")
    made.handle(stored("b", KEYS), 0.0)
    made.handle(load("a", running=60), 0.0)
    assert chosen("sglang-cache-aware", made) == "a"


# -- smg-cache-aware ---------------------------------------------------------------------------------------------------


def test_smg_pins_until_the_holder_is_beyond_the_mean():
    policy = make_policy("smg-cache-aware", {"balance_absolute": 2, "balance_relative": 1.5})
    made = fleet(*"abc", policy=policy)
    policy.tree.sent("a", KEYS)
    occupy(made, "a", 3)
    assert chosen("", made, policy=policy) == "a", "mean 1: three are two above it, not more"
    made.fleet.charge(RequestId("x"), Charge(memory=((WorkerId("a"), 1),)), 0.0)
    assert chosen("", made, policy=policy) == "b", "mean 4/3: four are 2.7 above it, and three times it"


def test_smg_breaks_ties_of_holders_by_load():
    policy = make_policy("smg-cache-aware")
    made = fleet(*"abc", policy=policy)
    policy.tree.sent("a", KEYS)
    policy.tree.sent("b", KEYS)
    occupy(made, "a", 1)
    assert chosen("", made, policy=policy) == "b"
    occupy(made, "b", 2)
    assert chosen("", made, request("r", chain(("new", 20))), policy=policy) == "c", "no match: the least loaded"


# -- llm-d -------------------------------------------------------------------------------------------------------------


def scores(made, options=None, names="ab"):
    policy = make_policy("llm-d-precise", options)
    return policy.scores(made.question(request("r", KEYS)), [state(made, name) for name in names])


def test_llm_d_adds_three_scores():
    made = fleet(*"ab", kv_blocks_max=100)
    assert scores(made) == [2.0, 2.0]
    made.handle(stored("a", KEYS[:10]), 0.0)
    assert scores(made) == [2.5, 2.0]
    made.handle(on_tier("b", Tier.HOST, KEYS[:10]), 0.0)
    assert scores(made) == [2.5, 2.4]
    busy(made, "a", 1.0)
    assert scores(made) == pytest.approx([1.5, 2.4]), "the longest queue scores 0, the shortest 1"
    made.handle(load("b", used=60), 0.0)
    assert scores(made) == pytest.approx([1.5, 1.8])
    assert scores(made, {"prefix_weight": 3}) == pytest.approx([2.5, 2.6])
    assert chosen("llm-d-precise", made) == "b"


def test_llm_d_draws_ties():
    made = fleet(*"ab")
    assert {chosen("llm-d-precise", made, seed=seed) for seed in range(20)} == {"a", "b"}


LONG = chain(("book", 200))


@pytest.mark.parametrize(("lead_tokens", "is_pulled"), [(2048, True), (3200, True), (3201, False)])
def test_llm_d_pulls_from_a_peer_that_leads_by_enough(lead_tokens, is_pulled):
    """The scorers send the prompt to b, since a is busy; a has 200 blocks of 16 tokens of it."""
    made = fleet(*"ab")
    made.handle(stored("a", LONG), 0.0)
    busy(made, "a", 1.0)
    policy = make_policy("llm-d-p2p", {"prefix_weight": 0.5, "lead_tokens": lead_tokens})
    (plan,) = choose("", made, request("r", LONG), policy=policy)
    assert plan.decode == "b"
    assert plan.kind is (PlanKind.FETCH if is_pulled else PlanKind.LOCAL)
    if is_pulled:
        (move,) = plan.moves
        assert (move.source, move.block_first, move.block_end) == ("a", 0, 200)
        assert plan.estimate.computed_tokens == 1


def test_llm_d_draws_the_peer_among_near_ties_by_its_queue():
    made = fleet(*"abcd")
    for name, blocks in zip("abc", (200, 199, 198), strict=True):
        made.handle(stored(name, LONG[:blocks]), 0.0)
    busy(made, "a", 1.0)
    policy = make_policy("llm-d-p2p")
    question, random = made.question(request("r", LONG)), Random(0)
    drawn = Counter(policy._peer(question, state(made, "d"), random).state.worker.id for _ in range(300))
    assert set(drawn) == {"a", "b"}, "c is two blocks behind"
    assert 70 < drawn["a"] < 130, "one waiting request: half the weight, a third of the draws"


def test_llm_d_pulls_for_the_one_who_prefills():
    made = apart("pq", "d")
    made.handle(stored("p", LONG[:150]), 0.0)
    busy(made, "p", 1.0)
    policy = make_policy("llm-d-p2p", {"prefix_weight": 0.5})
    (plan,) = choose("", made, request("r", LONG), policy=policy)
    assert (plan.kind, plan.prefill, plan.decode) == (PlanKind.REMOTE, "q", "d")
    fetch, ship = plan.moves
    assert (fetch.source, fetch.target, fetch.block_end) == ("p", "q", 150)
    assert (ship.source, ship.target, ship.block_end) == ("q", "d", 200)

"""Preble: its account of prefixes by hand and in storms, exploiting, exploring, evening out."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homing.router.core.events import DecodeMeasured, FirstToken, RequestFinished, WorkerLost
from homing.router.core.policies import make_policy
from homing.router.core.policies.preble_load import TPOT_FIRST_S, Histogram
from homing.router.core.rates import PrefillRate
from homing.router.core.types import Outcome, RequestId, WorkerId

from ..fleets import BLOCK, PRIOR, chain, request
from .asking import KEYS, chosen, fleet, send

A, B = WorkerId("a"), WorkerId("b")
RATE = PrefillRate(PRIOR)


def visit(histogram, name, keys, worker=A, now=0.0, output_tokens=10):
    return histogram.visit(
        RequestId(name),
        keys,
        worker,
        prompt_tokens=len(keys) * BLOCK + 1,
        block_tokens=BLOCK,
        output_tokens=output_tokens,
        rate=RATE,
        now=now,
    )


def made_histogram(**facts):
    return Histogram(**{"window_s": 180.0, "requests_max": 1000, **facts})


# -- the account -------------------------------------------------------------------------------------------------------


def test_a_prefix_costs_its_misses_and_its_answers():
    """20 blocks take 0.33 s; the second time 320 of 642 tokens were there."""
    histogram = made_histogram()
    visit(histogram, "r0", KEYS)
    assert histogram.load_s(A) == pytest.approx(0.33 + 10 * TPOT_FIRST_S)
    visit(histogram, "r1", KEYS)
    assert histogram.load_s(A) == pytest.approx((1 - 320 / 642) * 2 * 0.33 + 20 * TPOT_FIRST_S)
    histogram.end(RequestId("r0"), 5)
    histogram.end(RequestId("r1"), 5)
    assert histogram.load_s(A) == pytest.approx((1 - 320 / 642) * 2 * 0.33)
    histogram.check()


def test_what_many_workers_have_costs_each_a_part():
    histogram = made_histogram()
    prefix = visit(histogram, "r0", KEYS)
    histogram.end(RequestId("r0"))
    histogram.allocate(prefix, B)
    assert histogram.load_s(A) == histogram.load_s(B) == pytest.approx(0.165)
    histogram.move(prefix, B)
    assert (histogram.load_s(A), histogram.load_s(B)) == pytest.approx((0.0, 0.33))
    histogram.check()


def test_small_prefixes_are_counted_by_the_large_one_above():
    histogram = made_histogram()
    large = visit(histogram, "r0", KEYS)
    assert visit(histogram, "r1", KEYS + chain(("x", 5))) is large, "80 tokens after 320"
    own = visit(histogram, "r2", KEYS + chain(("y", 21)))
    assert own is not large, "336 tokens after 320"
    assert histogram.find(KEYS + chain(("y", 30))) == (41, own)
    assert large.requests == 2
    histogram.check()


def test_answers_and_tokens_are_learned_from_what_ended():
    histogram = made_histogram()
    visit(histogram, "r0", KEYS)
    histogram.end(RequestId("r0"), 40)
    visit(histogram, "r1", KEYS)
    histogram.decoded(A, 0.02)
    histogram.decoded(A, 0.04)
    histogram.decoded(A, 9.0)
    assert histogram.load_s(A) == pytest.approx((1 - 320 / 642) * 2 * 0.33 + 40 * 0.04)


def test_the_window_takes_everything_with_it():
    histogram = made_histogram(window_s=10.0)
    visit(histogram, "r0", KEYS, now=0.0)
    visit(histogram, "r1", KEYS + chain(("x", 5)), now=5.0)
    histogram.end(RequestId("r0"))
    histogram.end(RequestId("r1"))
    histogram.expire(11.0)
    histogram.check()
    assert histogram.find(KEYS) == (20, histogram.find(KEYS)[1]), "the later one hangs below it"
    histogram.expire(16.0)
    histogram.check()
    assert histogram.find(KEYS) == (0, None)
    assert len(histogram) == 0
    assert histogram.load_s(A) == pytest.approx(0.0)


def test_an_overload_is_a_ttft_that_doubled():
    histogram = made_histogram(window_s=100.0)
    prefix = visit(histogram, "r0", KEYS)
    for now, ttft_s in ((10.0, 1.0), (20.0, 1.0), (80.0, 1.9)):
        histogram.first_token(RequestId("r0"), ttft_s, now)
    assert not histogram.is_overloaded(prefix, A, 90.0)
    histogram.first_token(RequestId("r0"), 2.1, 85.0)
    assert histogram.is_overloaded(prefix, A, 90.0)
    assert not histogram.is_overloaded(prefix, A, 200.0), "all of it is in the earlier half"


prompts = st.builds(
    lambda parts: chain(*parts), st.lists(st.tuples(st.sampled_from("xyz"), st.integers(1, 4)), min_size=1, max_size=3)
)
steps = st.lists(
    st.tuples(
        st.sampled_from(["visit", "visit", "visit", "end", "wait", "move", "allocate", "lose", "token"]),
        st.integers(0, 9),
        st.sampled_from("ab"),
        prompts,
    ),
    max_size=40,
)


@settings(max_examples=100, deadline=None)
@given(steps=steps)
def test_it_stays_consistent_and_forgets_all(steps):
    histogram, now = made_histogram(window_s=10.0, requests_max=6), 0.0
    for what, number, name, keys in steps:
        request_id, worker = RequestId(f"r{number}"), WorkerId(name)
        _, prefix = histogram.find(keys)
        match what:
            case "visit":
                visit(histogram, request_id, keys, worker, now)
            case "end":
                histogram.end(request_id, number)
            case "wait":
                now += number
                histogram.expire(now)
            case "token":
                histogram.first_token(request_id, 0.5, now)
            case "lose":
                histogram.lose(worker)
            case _ if prefix is not None:
                getattr(histogram, what)(prefix, worker)
            case _:
                pass
        histogram.check()
    for number in range(10):
        histogram.end(RequestId(f"r{number}"))
    histogram.expire(now + 11.0)
    histogram.check()
    assert len(histogram) == 0
    assert not histogram._owner
    assert not histogram._hot
    assert histogram.load_s(A) == pytest.approx(0.0)


# -- the policy --------------------------------------------------------------------------------------------------------


def finish(made, name, now=1.0, tokens=1):
    made.handle(RequestFinished(request_id=RequestId(name), outcome=Outcome.FINISHED, output_tokens=tokens), now)


@pytest.mark.parametrize(("new_blocks", "expected"), [(19, "a"), (20, "b"), (21, "b")])
def test_it_exploits_what_matches_more_than_it_misses(new_blocks, expected):
    """320 tokens match; 304 and one new ones are fewer, 321 are not."""
    policy = make_policy("preble")
    made = fleet(*"ab", policy=policy)
    assert send(made, "r0", KEYS).decode == "a"
    assert chosen("", made, request("r", KEYS + chain(("own", new_blocks))), policy=policy) == expected


def test_it_explores_where_as_much_matches_as_misses():
    policy = make_policy("preble")
    made = fleet(*"ab", policy=policy)
    send(made, "r0", KEYS)
    for tokens, expected in ((639, "a"), (640, "b")):
        asked = request("r", KEYS + chain(("own", 19)), tokens)
        assert chosen("", made, asked, policy=policy) == expected


def test_it_exploits_the_least_loaded_of_those_that_have_it():
    policy = make_policy("preble")
    made = fleet(*"abc", policy=policy)
    prefix = visit(policy.histogram, "x0", KEYS, B)
    policy.histogram.allocate(prefix, WorkerId("c"))
    visit(policy.histogram, "x1", chain(("other", 30)), B)
    assert chosen("", made, policy=policy) == "c"


def test_explorers_spread_by_load():
    made = fleet(*"abc", policy=make_policy("preble"))
    went = [send(made, f"r{i}", chain((f"doc {i}", 10 + i))).decode for i in range(3)]
    assert went == ["a", "b", "c"]
    assert send(made, "r3", chain(("doc 3", 10))).decode == "a", "the shortest prompt is there"


def test_hot_prefixes_move_to_the_lightest():
    """Two prefixes of two requests each on a, nothing on b: the cheaper one moves."""
    made = fleet(*"ab", policy=make_policy("preble", {"rebalance_after": 1000}))
    histogram = made.policy.histogram
    small, large = chain(("small", 10)), chain(("large", 40))
    for number, keys in enumerate((small, large, small, large)):
        visit(histogram, f"x{number}", keys)
        histogram.end(RequestId(f"x{number}"))
    made.policy._even_out(1.0)
    assert list(histogram.find(small)[1].workers) == ["b"]
    assert list(histogram.find(large)[1].workers) == ["a"]
    assert chosen("", made, request("r", small), policy=made.policy) == "b"
    histogram.check()


def test_a_single_hot_prefix_is_shared_once_it_is_overloaded():
    made = fleet(*"ab", policy=make_policy("preble", {"rebalance_after": 1}))
    histogram = made.policy.histogram
    for number, ttft_s in enumerate((0.1, 0.1)):
        send(made, f"r{number}", KEYS, now=number)
        made.handle(FirstToken(request_id=RequestId(f"r{number}"), ttft_s=ttft_s), number)
    assert list(histogram.find(KEYS)[1].workers) == ["a"]
    send(made, "r2", KEYS, now=100.0)
    made.handle(FirstToken(request_id=RequestId("r2"), ttft_s=0.5), 100.0)
    send(made, "r3", KEYS, now=101.0)
    assert list(histogram.find(KEYS)[1].workers) == ["a", "b"]
    histogram.check()


def test_without_rebalancing_nothing_moves():
    made = fleet(*"ab", policy=make_policy("preble", {"rebalance": False, "rebalance_after": 1}))
    for number in range(6):
        send(made, f"r{number}", KEYS if number % 2 else chain(("other", 30)))
    histogram = made.policy.histogram
    assert len(histogram.find(KEYS)[1].workers) == 1


def test_it_hears_of_tokens_answers_and_ends():
    made = fleet(*"ab", policy=make_policy("preble"))
    send(made, "r0", KEYS, max_output_tokens=100)
    histogram = made.policy.histogram
    assert histogram.load_s(A) == pytest.approx(0.33 + 100 * TPOT_FIRST_S)
    made.handle(DecodeMeasured(worker_id=A, tokens=10, seconds=0.1), 0.5)
    assert histogram.load_s(A) == pytest.approx(0.33 + 100 * 0.01)
    finish(made, "r0", tokens=30)
    assert histogram.load_s(A) == pytest.approx(0.33)
    assert list(histogram.find(KEYS)[1].output_tokens) == [30]
    made.handle(WorkerLost(worker_id=A, reason="gone"), 2.0)
    assert histogram.load_s(A) == 0
    assert chosen("", made, policy=made.policy) == "b"

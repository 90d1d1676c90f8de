"""Each formula by hand, on numbers that can be checked in one's head."""

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from homing.router.core.ledger import Charge, Flow
from homing.router.core.preparation import Source
from homing.router.core.price import PASS_TOKENS, SETUP_ROUND_TRIPS, SPLIT_TOKENS_MIN, meeting_point
from homing.router.core.rates import PrefillRate
from homing.router.core.tolls import Tolls
from homing.router.core.topology import Topology
from homing.router.core.types import Estimate, MoveKind, PlanKind, PrefillPrior, RequestId, WorkerId

from .fleets import BLOCK, HERE, PRIOR, PROFILE, THERE, both_ways, busy, chain, link, request, scheduler, worker

KEYS = chain(("doc", 100))
RTT_S, SPEED = 0.02, 1e6
"""A link of 20 ms and 1 MB/s; a block of the test's model is 16 kB, so 16 ms of link and 16 ms of compute."""
LINKS = [link(HERE, HERE, 0.001, 1e9), link(THERE, THERE, 0.001, 1e9), *both_ways(link(HERE, THERE, RTT_S, SPEED))]
OVERHEAD_S = 0.005
NEAR, FAR = WorkerId("near"), WorkerId("far")


def pricer_of(tokens=1601, *, profile=PROFILE, links=LINKS, keys=KEYS, **facts):
    """A question between a near and a far worker, of 100 blocks and one token unless told otherwise."""
    made = scheduler(worker(NEAR, HERE), worker(FAR, THERE), links=links, profiles=[profile], **facts)
    pricer = made.question(request("r", keys, tokens)).pricer
    return pricer, made.fleet.get(NEAR), made.fleet.get(FAR), made


def test_the_estimate_adds_only_what_is_exposed():
    """Queue and transfer run side by side: the longer one counts."""
    terms = {"network_s": 1.0, "prefill_s": 4.0, "ship_s": 8.0, "toll_s": 16.0}
    waits, fetches = Estimate(queue_s=3.0, fetch_s=2.0, **terms), Estimate(queue_s=2.0, fetch_s=3.0, **terms)
    assert waits.ttft_s == fetches.ttft_s == 16.0
    assert waits.score_s == 32.0


def test_local():
    pricer, near, _, _ = pricer_of()
    plan = pricer.plan(pricer.compute(near, 60, 1601))
    estimate = plan.estimate
    assert estimate.network_s == pytest.approx(0.001 + OVERHEAD_S)
    assert estimate.prefill_s == pytest.approx(0.01 + (1601 - 960) * 1e-3)
    assert plan.prefill_compute_s == estimate.prefill_s
    assert (estimate.queue_s, estimate.fetch_s, estimate.ship_s, estimate.toll_s) == (0, 0, 0, 0)
    assert (estimate.hit_tokens, estimate.computed_tokens, estimate.moved_bytes) == (960, 641, 0)
    assert (plan.kind, plan.moves, plan.workers) == (PlanKind.LOCAL, (), (NEAR,))


def test_the_queue_is_what_was_promised_before():
    pricer, near, _, made = pricer_of()
    busy(made, NEAR, 3.0)
    assert pricer.plan(pricer.compute(near, 0, 1601)).estimate.queue_s == pytest.approx(3.0)


def test_at_least_the_last_token_is_computed():
    """1,600 tokens are 100 full blocks, of which 99 can be reused."""
    pricer, near, _, _ = pricer_of(1600)
    assert pricer.reusable == 99
    assert pricer.plan(pricer.compute(near, 100, 1600)).estimate.computed_tokens == 16


def test_fetch():
    pricer, near, far, _ = pricer_of()
    plan = pricer.plan(pricer.fetch(near, 20, Source(far, 80), 1601))
    assert plan.estimate.fetch_s == pytest.approx(SETUP_ROUND_TRIPS * RTT_S + 60 * BLOCK * 1000 / SPEED)
    assert plan.estimate.prefill_s == pytest.approx(0.01 + (1601 - 1280) * 1e-3)
    (move,) = plan.moves
    assert (move.kind, move.source, move.target) == (MoveKind.FETCH, FAR, NEAR)
    assert (move.block_first, move.block_end, move.bytes) == (20, 80, 960_000)
    assert (plan.estimate.hit_tokens, plan.estimate.moved_bytes) == (1280, 960_000)


def test_flows_in_flight_take_their_share():
    pricer, near, far, made = pricer_of()
    flow = Flow(source=FAR, target=NEAR, link=(THERE, HERE), bytes=1)
    made.fleet.charge(RequestId("x"), Charge(flows=(flow, flow)), 0.0)
    assert pricer.fetch(near, 0, Source(far, 10), 1601).fetch_s == pytest.approx(3 * RTT_S + 3 * 0.16)


def test_the_fixed_state_of_a_hybrid_model_travels_along():
    """And it cannot be met half way: it fits one length only."""
    profile = replace(PROFILE, state_bytes=500_000)
    assert profile.moved_bytes(10) == 510_000
    assert profile.moved_bytes(0) == 0
    pricer, near, far, _ = pricer_of(profile=profile)
    assert pricer.fetch(near, 0, Source(far, 10), 1601).moved_bytes == 500_000 + 160_000
    assert pricer.split(near, 0, Source(far, 100), 1601) is None


def test_split_by_hand():
    """Transfer and computer are equally quick and begin together but for 60 ms and 10 ms: they meet in the middle.

    10 ms + 1 ms x = 60 ms + 1 ms (1600 - x), so x = 825 tokens, or block 52 of 100.
    """
    pricer, near, far, _ = pricer_of()
    plan = pricer.plan(pricer.split(near, 0, Source(far, 100), 1601))
    (move,) = plan.moves
    assert (move.kind, move.block_first, move.block_end) == (MoveKind.MEET, 52, 100)
    arrives_s, computed_s = 0.06 + 48 * 0.016, 0.01 + 52 * 0.016
    assert plan.estimate.prefill_s == pytest.approx(max(arrives_s, computed_s) + 0.011)
    assert plan.prefill_compute_s == pytest.approx(computed_s + 0.011)
    assert plan.estimate.fetch_s == 0, "the maximum is inside the prefill"
    assert (plan.estimate.hit_tokens, plan.estimate.computed_tokens) == (48 * 16, 52 * 16 + 1)


def test_a_busy_worker_meets_the_transfer_further_in_front():
    """While it waits, blocks arrive."""
    pricer, near, far, made = pricer_of()
    busy(made, NEAR, 0.8)
    (move,) = pricer.split(near, 0, Source(far, 100), 1601).moves
    assert move.block_first == pytest.approx(52 - 25, abs=1)


def test_a_split_of_little_is_none():
    """A source that has 12 blocks more cannot be met in the middle with 8 blocks on each side."""
    pricer, near, far, _ = pricer_of()
    assert SPLIT_TOKENS_MIN == 8 * BLOCK
    assert pricer.split(near, 0, Source(far, 12), 1601) is None
    slow = [link(THERE, HERE, 1.0, 1e9)]
    pricer, near, far, _ = pricer_of(links=slow)
    assert pricer.split(near, 0, Source(far, 100), 1601) is None, "all is computed before the first byte arrives"


def test_remote():
    """100 blocks computed far away in 1.61 s, 1.6 MB shipped at 1 MB/s in four layers."""
    pricer, near, far, _ = pricer_of()
    prepared = pricer.compute(far, 0, 1600)
    plan = pricer.remote(prepared, near, 0)
    estimate = plan.estimate
    sending_s, computing_s = 1.6, 1.61
    assert estimate.ship_s == pytest.approx(RTT_S / 2 + max(sending_s / 4, sending_s - computing_s * 3 / 4))
    assert estimate.prefill_s == pytest.approx(1.61 + 0.011), "the decode worker computes the last token itself"
    assert estimate.network_s == pytest.approx((RTT_S + 0.001) / 2 + OVERHEAD_S), "there by one way, back by another"
    assert plan.decode_compute_s == pytest.approx(0.011)
    (move,) = plan.moves
    assert (move.kind, move.source, move.target) == (MoveKind.SHIP, FAR, NEAR)
    assert (move.block_first, move.block_end, move.bytes) == (0, 100, 1_600_000)
    assert (estimate.computed_tokens, estimate.moved_bytes) == (1601, 1_600_000)
    assert plan.workers == (FAR, NEAR)


def test_a_slow_link_exposes_what_the_compute_does_not_hide():
    slow = [link(THERE, HERE, RTT_S, 1e5)]
    pricer, near, far, _ = pricer_of(links=slow)
    ship_s = pricer.remote(pricer.compute(far, 0, 1600), near, 0).estimate.ship_s
    assert ship_s == pytest.approx(RTT_S / 2 + 16.0 - 1.61 * 3 / 4)


def test_one_layer_hides_nothing():
    pricer, near, far, _ = pricer_of(profile=replace(PROFILE, layers=1))
    assert pricer.remote(pricer.compute(far, 0, 1600), near, 0).estimate.ship_s == pytest.approx(RTT_S / 2 + 1.6)


def test_what_is_shipped_as_a_whole_is_exposed_as_a_whole():
    """Asked for when the prefill is over: three round trips, and all bytes after all computation."""
    pricer, near, far, _ = pricer_of()
    near.worker = replace(near.worker, ships_whole=True)
    prepared = pricer.compute(far, 0, 1600)
    plan = pricer.remote(prepared, near, 0)
    assert plan.estimate.ship_s == pytest.approx(SETUP_ROUND_TRIPS * RTT_S + 1.6)
    assert pricer.remote_score_s(prepared, near, 0) == pytest.approx(plan.estimate.score_s)


def test_a_handover_ships_what_the_other_lacks():
    pricer, near, far, _ = pricer_of()
    (move,) = pricer.remote(pricer.compute(far, 0, 1600), near, 70).moves
    assert (move.block_first, move.block_end, move.bytes) == (70, 100, 480_000)


def test_a_handover_cannot_begin_before_it_was_asked_for():
    """A computer that is done before the link is set up waits for it."""
    keys, quick = KEYS[:1], PrefillPrior(a_s=0.0, b_s=1e-6)
    made = scheduler(worker(NEAR, HERE), worker(FAR, THERE, prior=quick), links=[link(THERE, HERE, 1.0, 1e9)])
    pricer = made.question(request("r", keys, 17)).pricer
    prepared = pricer.compute(made.fleet.get(FAR), 0, 16)
    ship_s = pricer.remote(prepared, made.fleet.get(NEAR), 0).estimate.ship_s
    assert ship_s == pytest.approx(0.5 + 3.0, rel=1e-3)


def test_direct_is_a_fetch_by_another_name():
    pricer, near, far, _ = pricer_of()
    prepared = pricer.fetch(near, 0, Source(far, 100), 1601)
    assert pricer.plan(prepared, PlanKind.DIRECT).kind is PlanKind.DIRECT
    assert pricer.plan(prepared, PlanKind.DIRECT).estimate == pricer.plan(prepared).estimate


def test_the_origin_pays_the_way():
    pricer, near, far, made = pricer_of()
    assert pricer.network_s(far) == pytest.approx(RTT_S + OVERHEAD_S)
    other = made.question(request("r", KEYS, origin=THERE)).pricer
    assert other.network_s(far) == pytest.approx(0.001 + OVERHEAD_S)
    assert other.network_s(near) == pytest.approx(RTT_S + OVERHEAD_S)


# -- tolls ---------------------------------------------------------------------------------------------------------


def test_tolls_add_up():
    """A second of compute, a second of the link, and money in seconds: nothing is paid twice."""
    tolls = Tolls(dollars_per_s=0.01)
    tolls.set_worker(NEAR, 2.0)
    tolls.set_link(THERE, HERE, 3.0)
    costly = [*LINKS[:2], *both_ways(link(HERE, THERE, RTT_S, SPEED, price_per_gb=0.05))]
    pricer, near, far, _ = pricer_of(tolls=tolls, links=costly)
    compute = pricer.compute(near, 0, 1601)
    assert compute.toll_s == pytest.approx(2.0 * compute.compute_s)
    fetch = pricer.fetch(near, 0, Source(far, 50), 1601)
    assert fetch.toll_s == pytest.approx(2.0 * fetch.compute_s + 3.0 * 0.8 + 0.05 * 0.8e-3 / 0.01)
    assert pricer.plan(fetch).estimate.score_s == pytest.approx(pricer.plan(fetch).estimate.ttft_s + fetch.toll_s)
    prepared = pricer.compute(far, 0, 1600)
    remote = pricer.remote(prepared, near, 0)
    assert prepared.toll_s == 0
    assert remote.estimate.toll_s == pytest.approx(3.0 * 1.6 + 0.05 * 1.6e-3 / 0.01 + 2.0 * remote.decode_compute_s)


def test_without_prices_there_are_no_tolls():
    tolls, topology = Tolls(), Topology([link(HERE, THERE, 0.1, 1e6, price_per_gb=9.0)])
    assert tolls.compute_s(NEAR, 5.0) == 0
    assert tolls.link_s(topology, HERE, THERE, 10**9) == 0
    assert Tolls(dollars_per_s=1.0).link_s(topology, HERE, THERE, 10**9) == pytest.approx(9.0)
    with pytest.raises(AssertionError):
        tolls.set_worker(NEAR, -1.0)
    with pytest.raises(AssertionError):
        tolls.set_link(HERE, THERE, -1.0)


# -- properties ----------------------------------------------------------------------------------------------------

rates = st.builds(
    PrefillPrior, a_s=st.floats(0, 0.1), b_s=st.floats(1e-6, 1e-2), q_s=st.sampled_from([0.0, 1e-10, 1e-8, 1e-6])
)


@given(
    prior=rates,
    held=st.integers(0, 5000),
    gap=st.integers(1, 5000),
    head_start_s=st.floats(-5, 5),
    seconds_per_token=st.floats(1e-7, 1e-1),
)
def test_the_meeting_point_solves_its_equation(prior, held, gap, head_start_s, seconds_per_token):
    """Where they meet, both have taken equally long; where they do not, one side does all."""
    rate, have = PrefillRate(prior), held + gap

    def computed_s(x):
        return prior.a_s + prior.b_s * (x - held) + prior.q_s * (x * x - held * held)

    def arrived_s(x):
        return head_start_s + seconds_per_token * (have - x)

    x = meeting_point(rate, held, have, head_start_s=head_start_s, seconds_per_token=seconds_per_token)
    assert held <= x <= have
    scale = computed_s(have) + arrived_s(held) + abs(head_start_s)
    if x == held:
        assert computed_s(held) >= arrived_s(held) - 1e-6 * scale
    elif x == have:
        assert computed_s(have) <= arrived_s(have) + 1e-6 * scale
    else:
        assert computed_s(x) == pytest.approx(arrived_s(x), abs=1e-6 * abs(scale) + 1e-9)


@given(
    prior=rates,
    held=st.integers(0, 60),
    more=st.integers(1, 100),
    rtt_s=st.floats(0, 0.5),
    speed=st.floats(1e4, 1e9),
    queue_s=st.floats(0, 3),
)
def test_a_split_is_no_worse_than_both_of_its_parts(prior, held, more, rtt_s, speed, queue_s):
    """Up to half a block of compute, by which the meeting point is rounded to blocks."""
    have = min(held + more, 100)
    assume(have > held)
    made = scheduler(worker(NEAR, HERE, prior=prior), worker(FAR, THERE), links=[link(THERE, HERE, rtt_s, speed)])
    if queue_s:
        busy(made, NEAR, queue_s)
    pricer, near = made.question(request("r", KEYS, 1601)).pricer, made.fleet.get(NEAR)
    source = Source(made.fleet.get(FAR), have)
    split = pricer.split(near, held, source, 1601)
    if split is None:
        return
    fetch, local = pricer.fetch(near, held, source, 1601), pricer.compute(near, held, 1601)
    half_block_s = (prior.b_s + 2 * 1601 * prior.q_s) * BLOCK / 2
    assert split.ready_s <= max(fetch.ready_s, local.ready_s) + half_block_s + 1e-9
    (move,) = split.moves
    assert held < move.block_first < move.block_end == have
    assert split.ready_s >= fetch.prefill_s, "the rest after the source's blocks is computed last"


@given(rates, st.integers(0, 100), st.integers(0, 100), st.floats(0, 3), st.floats(0, 0.2), st.floats(1e4, 1e9))
def test_the_bound_from_below_is_one(prior, held, source_blocks, queue_s, rtt_s, speed):
    """The planner stops by it: no preparation may be quicker."""
    made = scheduler(worker(NEAR, HERE, prior=prior), worker(FAR, THERE), links=[link(THERE, HERE, rtt_s, speed)])
    if queue_s:
        busy(made, NEAR, queue_s)
    pricer, near = made.question(request("r", KEYS, 1601)).pricer, made.fleet.get(NEAR)
    first_byte_s = pricer.way(THERE, HERE).latency_s
    for end_tokens in (1600, 1601):
        least_s = pricer.least_score_s(near, held, source_blocks, first_byte_s, end_tokens)
        ways = [pricer.compute(near, held, end_tokens)]
        for blocks in {b for b in (held + 1, source_blocks) if held < b <= source_blocks}:
            source = Source(made.fleet.get(FAR), blocks)
            ways += [pricer.fetch(near, held, source, end_tokens), pricer.split(near, held, source, end_tokens)]
        assert all(way is None or way.score_s >= least_s - 1e-9 for way in ways)


def test_asking_prices_counts_them():
    pricer, near, far, _ = pricer_of()
    assert pricer.priced == 0
    pricer.plan(pricer.compute(near, 0, 1601))
    pricer.remote(pricer.compute(far, 0, 1600), near, 0)
    assert pricer.priced == 3, "two preparations and a handover; a plan is made of what was priced"
    assert PRIOR.q_s == 0, "the numbers of these tests assume a linear prefill"


# -- what others lose ------------------------------------------------------------------------------------------------


def tolled(tolls, tokens=1601, queued=()):
    """A question about two workers, of which the near one has prompts of so many tokens in its queue."""
    pricer, near, far, made = pricer_of(tokens, tolls=tolls)
    for number, waiting in enumerate(queued):
        made.fleet.charge(RequestId(f"x{number}"), Charge(compute=((NEAR, 1.0, waiting),)), 0.0)
    return pricer, near, far


@pytest.mark.parametrize(
    ("queued", "beside"),
    [((), 0), ((100,), 1), ((100, 100, 100), 3), ((PASS_TOKENS,) * 2, 1), ((2 * PASS_TOKENS,) * 2, 0.5)],
)
def test_those_who_share_the_last_pass_end_together(queued, beside):
    """Of what is queued as many prompts as fit into one pass, and by no more than this prompt takes."""
    pricer, near, _ = tolled(Tolls(together=0.5), queued=queued)
    assert pricer.compute(near, 0, 1601).toll_s == pytest.approx(0.5 * beside * 1.611)


def test_a_long_prompt_delays_them_by_one_pass():
    pricer, near, _ = tolled(Tolls(together=0.5), queued=(10,))
    assert pricer.compute(near, 0, 50_000).toll_s == pytest.approx(0.5 * (0.01 + PASS_TOKENS * 1e-3))


def test_all_that_is_not_held_takes_a_place_computed_or_moved():
    tolls = Tolls()
    tolls.set_place(NEAR, 1e-3)
    pricer, near, far = tolled(tolls)
    assert pricer.compute(near, 60, 1601).toll_s == pytest.approx(0.641)
    assert pricer.fetch(near, 60, Source(far, 100), 1601).toll_s == pytest.approx(0.641)
    assert pricer.split(near, 0, Source(far, 100), 1601).toll_s == pytest.approx(1.601)
    assert pricer.compute(far, 60, 1601).toll_s == 0.0


def test_a_handover_takes_places_and_adds_an_answer_where_it_is_decoded():
    """And places for the full blocks where it is computed."""
    tolls = Tolls(crowd_s=0.01)
    tolls.set_place(NEAR, 1e-3)
    tolls.set_place(FAR, 2e-3)
    pricer, near, far, made = pricer_of(tolls=tolls)
    made.fleet.charge(RequestId("x"), Charge(memory=((NEAR, 1),)), 0.0)
    plan = pricer.remote(pricer.compute(far, 0, 1600), near, 10)
    assert plan.estimate.toll_s == pytest.approx(3.2 + 1.441 + 0.01)
    assert pricer.remote_score_s(pricer.compute(far, 0, 1600), near, 10) == pytest.approx(plan.estimate.score_s)

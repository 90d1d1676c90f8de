"""What is learned of speeds: from a wrong prior to the truth, past outliers and noise, and never to nonsense."""

from math import exp, inf, nan
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homing.router.core.rates import HOPE_HALF_S, MEMORY, LearnedScale, LinkRate, PrefillRate, solve
from homing.router.core.types import PrefillPrior

TRUTH = (0.02, 2e-4, 3e-9)
PROMPTS = (64, 256, 1024, 4096, 16384, 32768)


def true_s(cached, end, truth=TRUTH):
    a, b, q = truth
    return a + b * (end - cached) + q * (end**2 - cached**2)


def prior(factor):
    a, b, q = TRUTH
    return PrefillPrior(a_s=a * factor, b_s=b * factor, q_s=q * factor)


def taught(rate, samples, seed=0, noise=0.0, truth=TRUTH):
    """Prompts of all lengths with parts of them cached, measured with log-normal noise."""
    random = Random(seed)
    for _ in range(samples):
        end = random.choice(PROMPTS)
        cached = random.choice([0, 0, end // 4, end // 2])
        rate.learn(cached, end, true_s(cached, end, truth) * exp(random.gauss(0, noise)))
    return rate


def worst(rate, truth=TRUTH):
    """The largest factor by which any length is believed wrong."""
    ratios = [rate.prefill_s(c, n) / true_s(c, n, truth) for n in PROMPTS for c in (0, n // 2)]
    return max(max(ratio, 1 / ratio) for ratio in ratios)


# -- one number --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.001, 0.1, 1.0, 10.0, 1000.0])
def test_a_wrong_prior_is_left_at_once(factor):
    scale = LearnedScale(factor)
    scale.learn(1.0)
    assert 1 / 2 < scale.value < 2
    for _ in range(9):
        scale.learn(1.0)
    assert scale.value == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize("outlier", [1e-9, 1e-3, 1e3, 1e9])
def test_one_absurd_measurement_moves_a_settled_belief_by_little(outlier):
    scale = LearnedScale(1.0)
    for _ in range(20):
        scale.learn(1.0)
    scale.learn(outlier)
    assert scale.value == pytest.approx(1.0, rel=0.12)


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_several_in_a_row_are_believed(factor):
    scale = LearnedScale(1.0)
    for _ in range(50):
        scale.learn(1.0)
    steps = 0
    while not 0.8 < scale.value / factor < 1.25:
        scale.learn(factor)
        steps += 1
    assert steps <= 50, "each step is at most a factor of two, weighed against ten remembered ones"


@pytest.mark.parametrize("nothing", [0.0, -1.0, inf, nan, -inf])
def test_what_is_no_measurement_teaches_nothing(nothing):
    scale = LearnedScale(3.0)
    scale.learn(nothing)
    assert (scale.value, scale.samples) == (pytest.approx(3.0), 0)


def test_noise_is_averaged():
    random = Random(1)
    scale = LearnedScale(100.0)
    for _ in range(100):
        scale.learn(exp(random.gauss(0, 0.3)))
    assert scale.value == pytest.approx(1.0, rel=0.3)


@given(prior_value=st.floats(1e-9, 1e9), seen=st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=30))
def test_a_scale_stays_positive_and_finite(prior_value, seen):
    scale = LearnedScale(prior_value)
    for measured in seen:
        scale.learn(measured)
        assert 0 < scale.value < inf


def test_a_scale_needs_a_positive_prior():
    with pytest.raises(AssertionError):
        LearnedScale(0.0)


# -- prefill -----------------------------------------------------------------------------------------------------------


def test_the_formula():
    rate = PrefillRate(PrefillPrior(a_s=0.5, b_s=0.01, q_s=0.001))
    assert rate.prefill_s(10, 30) == pytest.approx(0.5 + 0.01 * 20 + 0.001 * (900 - 100))
    assert rate.prefill_s(30, 30) == 0.0
    assert rate.prefill_s(31, 30) == 0.0


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_one_measurement_corrects_a_prior_ten_times_off_for_prompts_like_it(factor):
    rate = PrefillRate(prior(factor))
    rate.learn(0, 1024, true_s(0, 1024))
    assert rate.prefill_s(0, 1024) == pytest.approx(true_s(0, 1024), rel=0.01)
    for like_it in (512, 2048):
        assert rate.prefill_s(0, like_it) == pytest.approx(true_s(0, like_it), rel=0.15)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_five_measurements_correct_it_for_all_prompts(factor, seed):
    assert worst(taught(PrefillRate(prior(factor)), 5, seed)) < 1.15


@pytest.mark.parametrize("factor", [0.1, 1.0, 10.0])
def test_coefficients_are_recovered_from_spread_lengths(factor):
    rate = taught(PrefillRate(prior(factor)), 60)
    assert rate.coefficients == pytest.approx(TRUTH, rel=0.05)
    assert worst(rate) < 1.02


@pytest.mark.parametrize("wrong", [(1.0, 1e-4, 0.0), (0.0, 2e-6, 1e-7), (0.001, 1e-2, 3e-12)])
def test_a_prior_of_the_wrong_shape_is_corrected(wrong):
    a, b, q = wrong
    rate = taught(PrefillRate(PrefillPrior(a_s=a, b_s=b, q_s=q)), 80)
    assert worst(rate) < 1.1


@pytest.mark.parametrize("seed", range(5))
def test_noise_of_a_fifth_costs_less_than_a_third(seed):
    rate = taught(PrefillRate(prior(3.0)), 150, seed, noise=0.2)
    assert worst(rate) < 1.35


def test_one_outlier_moves_a_settled_fit_by_little():
    """A worker that was suspended for a moment is not slow."""
    rate = taught(PrefillRate(prior(1.0)), 60)
    rate.learn(0, 4096, true_s(0, 4096) * 100)
    assert worst(rate) < 1.25


def test_a_worker_that_got_slower_is_noticed():
    rate = taught(PrefillRate(prior(1.0)), 60)
    slower = tuple(4 * coefficient for coefficient in TRUTH)
    taught(rate, 60, seed=1, truth=slower)
    assert worst(rate, slower) < 1.1


@pytest.mark.parametrize(
    ("cached", "end", "seconds"),
    [(10, 10, 1.0), (11, 10, 1.0), (0, 100, 0.0), (0, 100, -1.0), (0, 100, nan), (0, 100, inf), (0, 100, 1e9)],
)
def test_nothing_computed_and_broken_clocks_teach_nothing(cached, end, seconds):
    rate = PrefillRate(prior(1.0))
    rate.learn(cached, end, seconds)
    assert rate.samples == 0
    assert rate.coefficients == TRUTH


lengths = st.tuples(st.integers(0, 100_000), st.integers(1, 100_000)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(seen=st.lists(st.tuples(lengths, st.floats(1e-6, 1e4)), max_size=40), asked=lengths)
@settings(deadline=None)
def test_no_coefficient_is_ever_negative(seen, asked):
    """Whatever is measured, more tokens never take less time."""
    rate = PrefillRate(prior(1.0))
    for (cached, end), seconds in seen:
        rate.learn(cached, end, seconds)
        assert all(0 <= coefficient < inf for coefficient in rate.coefficients)
    cached, end = asked
    assert 0 <= rate.prefill_s(cached, end) <= rate.prefill_s(cached, end + 1)


# -- links -------------------------------------------------------------------------------------------------------------


def test_a_flow_that_shared_its_link_tells_of_the_whole_link():
    rate = LinkRate(0.01, 1e9)
    for _ in range(30):
        rate.learn_bytes_per_s(25e6, 4.0, 0.0)
    assert rate.bytes_per_s == pytest.approx(1e8, rel=0.05)
    assert rate.samples == 30


def test_fewer_flows_than_one_are_one():
    rate = LinkRate(0.01, 1e8)
    rate.learn_bytes_per_s(1e8, 0.1, 0.0)
    assert rate.bytes_per_s == pytest.approx(1e8)


def test_one_measurement_that_a_link_is_slow_is_believed_by_half_and_two_that_agree_are_believed():
    rate = LinkRate(0.01, 1e9)
    rate.learn_bytes_per_s(1e7, 1.0, 0.0)
    assert rate.bytes_per_s == pytest.approx(1e8, rel=0.3)
    rate.learn_bytes_per_s(1e7, 1.0, 0.0)
    assert rate.bytes_per_s == pytest.approx(1e7, rel=0.3)


def test_a_link_that_was_found_slow_is_hoped_to_be_as_told_with_time():
    rate = LinkRate(0.01, 1e9)
    assert rate.hoped_bytes_per_s(1e6) == 1e9
    for _ in range(30):
        rate.learn_bytes_per_s(1e7, 1.0, 100.0)
    assert rate.hoped_bytes_per_s(100.0) == rate.bytes_per_s == pytest.approx(1e7, rel=0.01)
    assert rate.hoped_bytes_per_s(100.0 + HOPE_HALF_S) == pytest.approx(1e8, rel=0.01), "half the way"
    assert rate.hoped_bytes_per_s(100.0 + 20 * HOPE_HALF_S) == pytest.approx(1e9, rel=0.01)
    rate.learn_bytes_per_s(1e7, 1.0, 1e6)
    assert rate.hoped_bytes_per_s(1e6) == pytest.approx(1e7, rel=0.01), "it was tried, and is not hoped for any more"


def test_a_link_that_was_found_quicker_than_told_is_believed_at_once_and_stays_so():
    rate = LinkRate(0.01, 1e7)
    rate.learn_bytes_per_s(1e9, 1.0, 0.0)
    assert rate.bytes_per_s == pytest.approx(1e9, rel=0.4)
    for _ in range(30):
        rate.learn_bytes_per_s(1e9, 1.0, 0.0)
    assert rate.hoped_bytes_per_s(1e6) == rate.bytes_per_s == pytest.approx(1e9, rel=0.01)


def test_a_shorter_round_trip_is_believed_sooner_than_a_longer_one():
    shorter, longer = LinkRate(0.1, 1e8), LinkRate(0.1, 1e8)
    for rate, measured in ((shorter, 0.05), (longer, 0.2)):
        rate.learn_rtt_s(0.1)
        rate.learn_rtt_s(measured)
    assert 0.1 / shorter.rtt_s > longer.rtt_s / 0.1


def test_a_route_that_got_longer_for_good_is_learned():
    rate = LinkRate(0.01, 1e8)
    for _ in range(10):
        rate.learn_rtt_s(0.01)
    for _ in range(200):
        rate.learn_rtt_s(0.08)
    assert rate.rtt_s == pytest.approx(0.08, rel=0.05)


def test_a_round_trip_of_no_time_as_prior_can_be_learned():
    rate = LinkRate(0.0, 1e8)
    rate.learn_rtt_s(0.02)
    assert rate.rtt_s == pytest.approx(0.02, rel=0.7)


@pytest.mark.parametrize("nothing", [0.0, -0.1, nan, inf])
def test_a_round_trip_that_cannot_be_teaches_nothing(nothing):
    """Also once something was learned, when a longer one is weighed."""
    rate = LinkRate(0.01, 1e8)
    rate.learn_rtt_s(0.01)
    believed = rate.rtt_s
    rate.learn_rtt_s(nothing)
    assert rate.rtt_s == believed


# -- the solver --------------------------------------------------------------------------------------------------------


@given(
    matrix=st.lists(st.lists(st.floats(-3, 3), min_size=3, max_size=3), min_size=3, max_size=3),
    expected=st.lists(st.floats(-5, 5), min_size=3, max_size=3),
)
def test_solve_finds_what_was_put_in(matrix, expected):
    """A symmetric positive definite system: the square of a random matrix, lifted off zero."""
    normal = [[sum(matrix[k][i] * matrix[k][j] for k in range(3)) + (i == j) for j in range(3)] for i in range(3)]
    rows = [[*normal[i], sum(normal[i][j] * expected[j] for j in range(3))] for i in range(3)]
    assert solve(rows) == pytest.approx(expected, abs=1e-6)


def test_memory_is_about_ten_measurements():
    assert sum(MEMORY**i for i in range(1000)) == pytest.approx(10.0)


def test_a_link_that_breaks_is_feared_and_tried_again_with_time():
    rate = LinkRate(0.01, 1e9)
    assert rate.risk_s(0.0) == 0.0
    rate.broke(10.0, now=100.0)
    once_s = rate.risk_s(100.0)
    rate.broke(10.0, now=101.0)
    assert 0 < once_s < rate.risk_s(101.0) < 10.0
    assert rate.risk_s(101.0 + 300.0) < 0.02, "it fades, so that the link is tried again"
    rate.worked(now=102.0)
    assert rate.risk_s(102.0) < once_s, "each success halves it"


@given(
    seen=st.lists(st.tuples(st.booleans(), st.floats(0, 100), st.floats(0, 60)), max_size=30),
)
def test_risk_is_never_more_than_the_last_loss(seen):
    rate, now, lost_s = LinkRate(0.01, 1e9), 0.0, 0.0
    for is_broken, after_s, seconds in seen:
        now += after_s
        if is_broken:
            lost_s = seconds
            rate.broke(seconds, now)
        else:
            rate.worked(now)
        assert 0 <= rate.risk_s(now) <= lost_s

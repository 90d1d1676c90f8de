"""Intervals cover what they should, and pairing finds a difference that noise hides."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homing.sim.measure.bootstrap import differences, intervals, mean, mean_and_quantiles
from homing.sim.measure.compare import compare
from homing.sim.measure.schema import Slo

from .runs import finished, noisy_run, result

SLO = Slo(ttft_s=1.0, tpot_s=0.05)
spread = mean_and_quantiles(0.5, 0.9)


def generator(seed=0):
    return np.random.default_rng(seed)


@settings(max_examples=30)
@given(st.lists(st.lists(st.floats(-1e3, 1e3), max_size=20), max_size=4))
def test_an_estimate_is_the_statistic_of_all_and_its_interval_lies_within_the_values(lists):
    samples = [np.array(values, dtype=float) for values in lists]
    found = intervals(samples, spread, generator(), resamples=50)
    whole = np.concatenate([*samples, np.array([])])
    if not len(whole):
        assert found == []
        return
    assert [one.estimate for one in found] == pytest.approx([whole.mean(), *np.quantile(whole, [0.5, 0.9])], abs=1e-9)
    for one in found:
        assert whole.min() - 1e-9 <= one.low <= one.high <= whole.max() + 1e-9


def test_intervals_of_independent_values_cover_the_truth_about_as_often_as_they_say():
    """200 samples of 200 exponential values: 95 % nominal; the percentile method is known to be a little short."""
    random = generator(1)
    covered = {"mean": 0, "p50": 0}
    for _ in range(200):
        low_high = intervals([random.exponential(size=200)], mean_and_quantiles(0.5), random, resamples=200)
        for name, one, truth in zip(covered, low_high, (1.0, np.log(2)), strict=True):
            covered[name] += one.low <= truth <= one.high
    assert 175 <= covered["mean"] <= 200, covered
    assert 175 <= covered["p50"] <= 200, covered


def test_the_standard_error_of_a_mean_is_the_known_one():
    values = generator(2).normal(size=4000)
    one = intervals([values], mean, generator(3), resamples=800)[0]
    assert (one.high - one.low) / (2 * 1.96) == pytest.approx(1 / np.sqrt(4000), rel=0.15)


def test_neighbours_that_wait_together_make_the_interval_wider():
    """A queue is autocorrelated; drawing requests one by one would not see it."""
    busy = np.repeat(generator(4).normal(size=100), 40)
    shuffled = generator(5).permutation(busy)
    together, apart = (intervals([values], mean, generator(6), resamples=300)[0] for values in (busy, shuffled))
    assert together.high - together.low > 2 * (apart.high - apart.low)


def test_seeds_that_differ_make_the_interval_wider():
    level = [generator(seed).normal(loc=0.0, size=300) for seed in range(4)]
    uneven = [values + offset for values, offset in zip(level, (-3, -1, 1, 3), strict=True)]
    narrow, wide = (intervals(samples, mean, generator(), resamples=300)[0] for samples in (level, uneven))
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low)


def test_pairing_sees_through_what_both_sides_share():
    base = generator(7).exponential(10.0, size=500)
    one = differences([base + 0.1], [base], mean, generator(), resamples=200)[0]
    assert one.estimate == pytest.approx(0.1)
    assert (one.low, one.high) == pytest.approx((0.1, 0.1))
    alone = intervals([base], mean, generator(), resamples=200)[0]
    assert alone.high - alone.low > 0.5


def test_sides_of_a_pair_are_equally_long():
    with pytest.raises(ValueError, match="equally many"):
        differences([np.ones(3)], [np.ones(2)], mean, generator())


def test_a_comparison_is_repeatable_and_pairs_by_request():
    runs = [
        noisy_run(policy, seed, slowness) for policy, slowness in (("homing", 1.0), ("random", 2.0)) for seed in (1, 2)
    ]
    one, two = (compare(runs, SLO, generator(), resamples=60) for _ in range(2))
    assert one == two
    assert (one.baseline, one.seeds, [score.policy for score in one.scores]) == ("homing", [1, 2], ["homing", "random"])
    ours, theirs = one.scores
    assert ours.differences == {}
    for metric, interval in theirs.differences.items():
        expected = theirs.metrics[metric].estimate - ours.metrics[metric].estimate
        assert interval.estimate == pytest.approx(expected), metric
    assert theirs.differences["ttft_p50_s"].low > 0
    assert theirs.differences["goodput_share"].high < 0


def test_requests_that_one_policy_never_finished_count_against_its_goodput():
    ours = result([finished(n, at_s=0.1 * n) for n in range(10)])
    theirs = result([finished(n, at_s=0.1 * n) for n in range(6)], policy="random", unfinished=4)
    score = compare([ours, theirs], SLO, generator(), resamples=20).scores[1]
    assert score.metrics["goodput_share"].estimate == pytest.approx(0.6)
    assert score.differences["goodput_share"].estimate == pytest.approx(-0.4)
    assert score.differences["ttft_mean_s"].estimate == 0.0


def test_requests_are_paired_by_id_however_they_ended_up_in_the_log():
    records = [finished(n, at_s=0.1 * n, ttft_s=0.1 + n) for n in range(8)]
    runs = [result(records), result(records[::-1], policy="random")]
    differing = compare(runs, SLO, generator(), resamples=30).scores[1].differences
    assert {(one.estimate, one.low, one.high) for one in differing.values()} == {(0.0, 0.0, 0.0)}


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([], "at least one run"),
        ([result(), result()], "one run of 'little' per policy and seed"),
        ([result(), result(policy="random", seed=2)], "the same seeds for every policy"),
        ([result(), result(policy="random", scenario="other")], "one run of 'little'"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(runs, message):
    with pytest.raises(ValueError, match=message):
        compare(runs, SLO, generator())


def test_an_unknown_baseline_is_refused():
    with pytest.raises(ValueError, match="expected one of homing, got 'best'"):
        compare([result()], SLO, generator(), baseline="best")


def test_empty_runs_have_no_metrics():
    assert compare([result()], SLO, generator()).scores[0].metrics == {}

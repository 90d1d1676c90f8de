"""Weighted quantiles are as near as they say, whatever goes in."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from homing.sim.measure.histogram import ERROR, LARGEST, SMALLEST, WeightedHistogram

SHARES = (0.0, 0.01, 0.5, 0.9, 0.99, 1.0)


def filled(pairs):
    histogram = WeightedHistogram()
    for value, weight in pairs:
        histogram.add(value, weight)
    return histogram


@settings(max_examples=150)
@given(st.lists(st.tuples(st.floats(SMALLEST, LARGEST), st.integers(1, 100)), min_size=1, max_size=60))
@example([(SMALLEST, 1), (LARGEST, 1)])
def test_a_quantile_is_within_the_stated_error_of_the_true_one(pairs):
    histogram = filled(pairs)
    values = np.repeat([value for value, _ in pairs], [weight for _, weight in pairs])
    for share in SHARES:
        true = float(np.quantile(values, share, method="inverted_cdf"))
        assert histogram.quantile(share) == pytest.approx(true, rel=ERROR * 1.0001)
    assert histogram.mean() == pytest.approx(values.mean())
    assert (histogram.smallest, histogram.largest) == (values.min(), values.max())


def test_values_outside_join_the_outermost_bins():
    histogram = filled([(SMALLEST / 1e6, 1), (LARGEST * 1e6, 1)])
    assert histogram.weight == 2
    assert histogram.quantile(0.0) < SMALLEST * 1.01
    assert histogram.quantile(1.0) > LARGEST * 0.99


@pytest.mark.parametrize(("value", "weight"), [(0.0, 1.0), (-1.0, 1.0), (1.0, 0.0), (1.0, -1.0), (float("nan"), 1.0)])
def test_what_is_no_time_or_no_weight_is_refused(value, weight):
    histogram = WeightedHistogram()
    with pytest.raises(ValueError, match="expected positive numbers"):
        histogram.add(value, weight)
    assert (histogram.weight, histogram.quantile(0.5), histogram.mean()) == (0.0, None, None)

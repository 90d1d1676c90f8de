"""Rows and columns of a timeline, and that it stays small."""

from math import isnan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homing.sim.measure.timeline import Timeline


@given(st.lists(st.dictionaries(st.sampled_from("abcd"), st.floats(-1e6, 1e6), max_size=4), max_size=12))
def test_every_series_has_a_value_or_a_gap_per_row(rows):
    timeline = Timeline(every_s=2.0)
    for number, row in enumerate(rows):
        assert timeline.sample(2.0 * number, row)
    timeline.check()
    for name in timeline.names():
        values = [None if isnan(value) else value for value in timeline.series(name)]
        assert values == [row.get(name) for row in rows]


@given(st.integers(2, 9), st.integers(0, 200))
def test_memory_is_bounded_and_the_rows_that_stay_are_even(rows_max, samples):
    timeline = Timeline(every_s=1.0, rows_max=rows_max)
    for number in range(samples):
        timeline.sample(float(number), {"x": float(number)})
        timeline.check()
    assert list(timeline.series("x")) == list(timeline.times_s) if samples else timeline.names() == []
    assert all(at_s % timeline.every_s == 0 for at_s in timeline.times_s)


def test_a_row_before_its_time_is_left_out():
    timeline = Timeline(every_s=0.1)
    assert timeline.sample(0.0, {"x": 1.0})
    assert not timeline.sample(0.05, {"x": 2.0})
    assert timeline.sample(timeline.next_s, {"x": 3.0})
    assert list(timeline.series("x")) == [1.0, 3.0]


def test_names_are_found_by_kind():
    timeline = Timeline(every_s=1.0)
    timeline.sample(0.0, {"queued_requests/b": 1, "queued_requests/a": 1, "hit_ratio": 0.5, "queued_requests_x/a": 1})
    assert timeline.names("queued_requests") == ["queued_requests/a", "queued_requests/b"]
    assert timeline.names("hit_ratio") == ["hit_ratio"]


@pytest.mark.parametrize("every_s", [0.0, -1.0, float("inf"), float("nan")])
def test_the_time_between_rows_is_a_time(every_s):
    with pytest.raises(ValueError, match="every_s"):
        Timeline(every_s=every_s)

"""Plots: the same bytes each time, nothing global, labels that do not overlap, units as people say them."""

from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from homing.router.core.errors import ConfigError
from homing.sim.measure.bootstrap import Interval
from homing.sim.measure.records import Mark
from homing.sim.report.plots.flows import Flow, flow_map
from homing.sim.report.plots.heat import SweepPoint, heat_maps
from homing.sim.report.plots.latency import prediction, ttft_cdf
from homing.sim.report.plots.policies import policies
from homing.sim.report.plots.times import Panel, plan_kinds, timeline
from homing.sim.report.style import bytes_text, save, seconds, spread_out, svg

ONE = Interval(estimate=0.5, low=0.4, high=0.6)
EMPTY = {
    "cdf": lambda: ttft_cdf({}, 1.0),
    "cdf of nothing": lambda: ttft_cdf({"homing": [], "random": [0.5]}, 1.0),
    "prediction": lambda: prediction([], []),
    "prediction of unknown": lambda: prediction([float("nan")], [1.0]),
    "policies": lambda: policies({}),
    "policies without metrics": lambda: policies({"homing": {}}),
    "one policy": lambda: policies({"homing": {"ttft_p50_s": ONE, "goodput_share": ONE}}),
    "timeline": lambda: timeline([]),
    "timeline of gaps": lambda: timeline(
        [Panel(title="a", kind="k", lines=(("x", [0.0, 1.0], [float("nan")] * 2),))], [Mark(at_s=1.0, text="!")]
    ),
    "plans": lambda: plan_kinds([], []),
    "one plan": lambda: plan_kinds([1.0], ["local"]),
    "flows": lambda: flow_map([]),
    "one site": lambda: flow_map([Flow(source="a", target="a", bytes=5, utilisation=0.1)], {"a": (0.0, 0.0)}),
    "sites at one place": lambda: flow_map(
        [Flow(source="a", target="b", bytes=5, utilisation=2.0)], {"a": (0.0, 0.0), "b": (0.0, 0.0)}
    ),
    "heat": lambda: heat_maps([]),
    "one cell": lambda: heat_maps([SweepPoint(bandwidth_bytes_per_s=1e9, rtt_s=0.1, policy="homing", value_s=0.0)]),
}


@pytest.mark.parametrize("draw", EMPTY.values(), ids=EMPTY.keys())
def test_next_to_nothing_is_drawn_too_and_the_same_every_time(draw):
    assert svg(draw()) == svg(draw())


def test_the_style_of_the_process_is_neither_used_nor_changed():
    plain = svg(ttft_cdf({"homing": [0.5, 1.0]}, 1.0))
    with mpl.rc_context({"font.size": 40, "lines.linewidth": 9, "svg.hashsalt": None}):
        before = dict(mpl.rcParams)
        assert svg(ttft_cdf({"homing": [0.5, 1.0]}, 1.0)) == plain
        assert dict(mpl.rcParams) == before


def test_figures_are_saved_as_png_and_svg(tmp_path):
    figure = ttft_cdf({"homing": np.linspace(0.1, 2.0, 50)}, 1.0)
    save(figure, tmp_path / "a.png")
    save(figure, tmp_path / "a.svg")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "a.svg").read_text().startswith("<svg")
    with pytest.raises(ConfigError, match=r"ends in \.png or \.svg, got '\.pdf'"):
        save(figure, tmp_path / "a.pdf")


@given(st.lists(st.floats(-0.5, 1.5), max_size=12), st.floats(0.01, 0.2))
def test_labels_keep_their_order_and_their_distance(wanted, gap):
    places = spread_out(wanted, gap)
    gap = min(gap, 1.0 / max(1, len(wanted) - 1))
    order = sorted(range(len(wanted)), key=lambda place: (wanted[place], place))
    for below, above in pairwise(order):
        assert places[above] - places[below] >= gap - 1e-9
    assert all(-1e-9 <= place <= 1 + 1e-9 for place in places)


def test_labels_with_room_stay_where_they_are():
    assert spread_out([0.9, 0.1, 0.5], 0.1) == [0.9, 0.1, 0.5]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (5e-6, "5 µs"),
        (0.25, "250 ms"),
        (0.9999, "1 s"),
        (1.5, "1.5 s"),
        (90, "90 s"),
        (180, "3 min"),
        (-0.02, "-20 ms"),
    ],
)
def test_times_are_written_as_people_say_them(value, text):
    assert seconds(value) == text


@pytest.mark.parametrize(("value", "text"), [(0, "0 B"), (1500, "1.5 kB"), (2e12, "2 TB"), (7.25e15, "7.25 PB")])
def test_bytes_have_decimal_units(value, text):
    assert bytes_text(value) == text

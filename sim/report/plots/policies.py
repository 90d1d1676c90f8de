"""Policies beside each other: a row each, a dot per number, and how sure one may be of it."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ...measure.bootstrap import Interval
from ..style import FAINT, SOFT, WIDTH, colours, percent, seconds_axis, styled

QUANTILES = (("ttft_p50_s", "p50", 6.5), ("ttft_p90_s", "p90", 8.5), ("ttft_p99_s", "p99", 10.5))
"""Metric, what it is called, size of its dot: the further out, the larger."""
ROW_INCHES = 0.52


@styled
def policies(metrics: Mapping[str, Mapping[str, Interval]], title: str = "Policies compared") -> Figure:
    """TTFT quantiles and goodput per policy, with intervals as bars; policies from top to bottom as handed in."""
    rows = max(1, len(metrics))
    height = 1.55 + ROW_INCHES * rows
    figure = Figure(figsize=(WIDTH, height))
    left, right = figure.subplots(1, 2, width_ratios=(1.9, 1.0), sharey=True)
    figure.subplots_adjust(left=0.17, right=0.965, top=1 - 0.62 / height, bottom=0.75 / height, wspace=0.13)
    hues = colours(metrics)
    for row, (name, found) in enumerate(metrics.items()):
        _latencies(left, row, found, hues[name])
        if share := found.get("goodput_share"):
            _dot(right, row, share, hues[name], 8.5)
            right.text(
                share.estimate, row - 0.3, percent(round(share.estimate, 3)), ha="center", fontsize=11, color=hues[name]
            )
    left.set(xscale="log", xlabel="time to first token, log scale", ylim=(rows - 0.4, -0.75))
    seconds_axis(left.xaxis)
    right.set(xlabel="requests within both SLOs")
    right.xaxis.set_major_formatter(FuncFormatter(percent))
    right.set_xlim(0, 1.06)
    left.set_yticks(range(len(metrics)), list(metrics))
    for tick, name in zip(left.get_yticklabels(), metrics, strict=True):
        tick.set(color=hues[name], fontsize=13)
    for axes in (left, right):
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    figure.text(0.17, 1 - 0.34 / height, title, fontsize=15, fontweight="bold", ha="left", va="center")
    return figure


def _latencies(axes: Axes, row: int, found: Mapping[str, Interval], hue: str) -> None:
    there = [(found[metric], label, size) for metric, label, size in QUANTILES if metric in found]
    if not there:
        axes.text(
            0.5, row, "no request finished", color=SOFT, transform=axes.get_yaxis_transform(), ha="center", va="center"
        )
        return
    estimates = np.array([interval.estimate for interval, _, _ in there])
    axes.plot([estimates.min(), estimates.max()], [row, row], color=FAINT, linewidth=2, zorder=1)
    for interval, label, size in there:
        _dot(axes, row, interval, hue, size)
        if row == 0:
            axes.text(interval.estimate, row - 0.36, label, ha="center", fontsize=11, color=SOFT)


def _dot(axes: Axes, row: int, interval: Interval, hue: str, size: float) -> None:
    axes.plot([interval.low, interval.high], [row, row], color=hue, linewidth=5, alpha=0.35, zorder=2)
    axes.plot([interval.estimate], [row], "o", color=hue, markersize=size, markeredgecolor="white", zorder=3)

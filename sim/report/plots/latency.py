"""Latency: how TTFT is distributed under each policy, and how well the router knew it beforehand."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...measure.sample import Column
from ..style import BLUE, FAINT, HEIGHT, INK, SOFT, WIDTH, colours, label_ends, percent, seconds, seconds_axis, styled

CURVE_POINTS = 400
END_S = 1e9
"""Beyond every axis: a curve stays at 100 %."""
SCATTER_POINTS = 2000
BAND = 0.2
"""What counts as a good prediction: within a fifth of what was measured."""


@styled
def ttft_cdf(
    ttft_s: Mapping[str, Sequence[float] | Column], slo_s: float, title: str = "Time to first token"
) -> Figure:
    """Share of requests with a first token after x seconds, a line per policy, the first one foremost.

    Each name stands at the height at which its line crosses the SLO. Policies without values have no line.
    """
    figure, axes = _frame()
    drawn = {name: np.sort(np.asarray(values, dtype=float)) for name, values in ttft_s.items() if len(values)}
    hues, ends = colours(ttft_s), []
    for place, (name, values) in enumerate(drawn.items()):
        shares = np.linspace(0.0, 1.0, min(CURVE_POINTS, len(values) + 1))
        first = name == next(iter(ttft_s))
        axes.plot(
            np.append(np.maximum(np.quantile(values, shares), 1e-6), END_S),
            np.append(shares, 1.0),
            color=hues[name],
            linewidth=3.4 if first else 1.9,
            zorder=20 - place,
        )
        kept = float(np.searchsorted(values, slo_s, side="right") / len(values))
        ends.append((kept, f"{name}  {percent(round(kept, 3))}", hues[name]))
    axes.set_xscale("log")
    axes.axvline(slo_s, color=INK, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
    axes.text(slo_s, 1.015, f"SLO: {seconds(slo_s)}", ha="center", va="bottom", fontsize=11.5, color=INK)
    axes.set(ylim=(0, 1), xlabel="time to first token, log scale", ylabel="requests answered by then")
    axes.yaxis.set_major_formatter(percent)
    _set_limits(axes, list(drawn.values()), slo_s)
    seconds_axis(axes.xaxis)
    label_ends(axes, ends)
    axes.text(1.015, 1.06, f"within {seconds(slo_s)}", transform=axes.transAxes, fontsize=11.5, color=SOFT)
    axes.set_title(title, pad=26)
    return figure


@styled
def prediction(
    predicted_s: Sequence[float] | Column,
    measured_s: Sequence[float] | Column,
    title: str = "Predicted and measured TTFT",
) -> Figure:
    """A point per request, log by log, with the band of good predictions. Thinned evenly to SCATTER_POINTS."""
    figure, axes = _frame(width=7.4, right=0.97, height=6.9)
    predicted, measured = np.asarray(predicted_s, dtype=float), np.asarray(measured_s, dtype=float)
    there = (predicted > 0) & (measured > 0)
    predicted, measured = predicted[there], measured[there]
    low, high = (0.01, 10.0) if not len(measured) else _limits(np.concatenate([predicted, measured]))
    edge = np.array([low, high])
    axes.fill_between(edge, edge * (1 - BAND), edge * (1 + BAND), color=FAINT, linewidth=0, zorder=0)
    axes.plot(edge, edge, color=SOFT, linewidth=1.0, zorder=1)
    step = max(1, -(-len(measured) // SCATTER_POINTS))
    axes.plot(measured[::step], predicted[::step], ".", color=BLUE, markersize=4, alpha=0.35, markeredgewidth=0)
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), aspect="equal")
    axes.set(xlabel="measured TTFT, log scale", ylabel="predicted at dispatch")
    seconds_axis(axes.xaxis)
    seconds_axis(axes.yaxis)
    if len(measured):
        error = (predicted - measured) / measured
        text = (
            f"median error {percent(round(float(np.median(np.abs(error))), 3))}\n"
            f"bias {100 * float(np.median(error)):+.1f} %\n"
            f"{percent(round(float(np.mean(np.abs(error) <= BAND)), 3))} within ±{percent(BAND)}"
        )
        axes.text(0.04, 0.96, text, transform=axes.transAxes, va="top", fontsize=13, linespacing=1.5)
    axes.set_title(title)
    return figure


def _frame(width: float = WIDTH, right: float = 0.75, height: float = HEIGHT) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(
        left=0.1 if right < 0.9 else 0.14,
        right=right,
        top=0.86 if right < 0.9 else 0.92,
        bottom=0.13 if right < 0.9 else 0.09,
    )
    return figure, figure.add_subplot()


def _limits(values: Column) -> tuple[float, float]:
    """The middle 99.8 %, so that one outlier does not push all others into a corner."""
    low, high = np.quantile(values, (0.001, 0.999))
    return float(low) * 0.8, float(high) * 1.25


def _set_limits(axes: Axes, columns: list[Column], slo_s: float) -> None:
    low, high = slo_s / 10, slo_s * 10
    if columns:
        low, high = _limits(np.concatenate(columns))
    axes.set_xlim(min(low, slo_s * 0.5), max(high, slo_s * 2))

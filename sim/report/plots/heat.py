"""Bandwidth by latency: which policy is best where, and how good it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm, to_rgb
from matplotlib.figure import Figure

from ..style import INK, PAPER, SOFT, WIDTH, colours, seconds, styled

SHADES = LinearSegmentedColormap.from_list("seconds", ["#e8f1f8", "#56B4E9", "#0072B2", "#08305c"])


TIMES = "\u00d7"


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPoint:
    """One policy at one bandwidth and latency of the links between sites; the smaller `value_s` the better."""

    bandwidth_bytes_per_s: float
    rtt_s: float
    policy: str
    value_s: float


@styled
def heat_maps(
    points: Sequence[SweepPoint], metric: str = "TTFT p90", title: str = "What the network decides"
) -> Figure:
    """Left the best policy per cell and by how much it beats the next one, right its metric in seconds."""
    figure = Figure(figsize=(WIDTH, 5.8))
    left, right = figure.subplots(1, 2, sharey=True)
    figure.subplots_adjust(left=0.1, right=0.98, top=0.8, bottom=0.14, wspace=0.06)
    bandwidths = sorted({point.bandwidth_bytes_per_s for point in points})
    rtts = sorted({point.rtt_s for point in points})
    hues = colours(dict.fromkeys(point.policy for point in points))
    for axes in (left, right):
        _grid(axes, bandwidths, rtts)
    left.set_ylabel("round trip between sites")
    values = [point.value_s for point in points if point.value_s > 0]
    scale = LogNorm(min(values, default=0.1), max(max(values, default=1.0), 1.001 * min(values, default=0.1)))
    for column, bandwidth in enumerate(bandwidths):
        for row, rtt in enumerate(rtts):
            here = [point for point in points if (point.bandwidth_bytes_per_s, point.rtt_s) == (bandwidth, rtt)]
            if not here:
                continue
            best, *rest = sorted(here, key=lambda point: (point.value_s, point.policy))
            lead = f"{rest[0].value_s / best.value_s:.2f}{TIMES}" if rest and best.value_s > 0 else ""
            _cell(left, column, row, hues[best.policy], lead)
            _cell(right, column, row, SHADES(scale(best.value_s)), seconds(best.value_s))
    figure.text(0.1, 0.945, title, fontsize=15, fontweight="bold", va="center")
    _heading(left, "best policy, and its lead over the next")
    _heading(right, f"{metric} of the best policy")
    _names(figure, hues, {min(here, key=lambda p: (p.value_s, p.policy)).policy for here in _cells(points)})
    return figure


def _cells(points: Sequence[SweepPoint]) -> list[list[SweepPoint]]:
    cells: dict[tuple[float, float], list[SweepPoint]] = {}
    for point in points:
        cells.setdefault((point.bandwidth_bytes_per_s, point.rtt_s), []).append(point)
    return list(cells.values())


def _grid(axes: Axes, bandwidths: Sequence[float], rtts: Sequence[float]) -> None:
    axes.set(xlim=(-0.5, max(1, len(bandwidths)) - 0.5), ylim=(-0.5, max(1, len(rtts)) - 0.5))
    axes.set_xticks(range(len(bandwidths)), [f"{8 * rate / 1e9:.3g}" for rate in bandwidths])
    axes.set_yticks(range(len(rtts)), [seconds(rtt) for rtt in rtts])
    axes.set_xlabel("bandwidth of each link, Gbit/s")
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _cell(axes: Axes, column: int, row: int, colour: Any, text: str) -> None:
    axes.bar(column, 0.94, width=0.94, bottom=row - 0.47, color=colour, linewidth=0)
    dark = float(np.dot(to_rgb(colour), (0.299, 0.587, 0.114))) < 0.55
    axes.text(column, row, text, ha="center", va="center", fontsize=11.5, color=PAPER if dark else INK)


def _heading(axes: Axes, text: str) -> None:
    axes.text(0, 1.025, text, transform=axes.transAxes, fontsize=12, color=SOFT)


def _names(figure: Figure, hues: dict[str, str], winners: set[str]) -> None:
    x = 0.1
    for name in [name for name in hues if name in winners]:
        figure.text(x, 0.885, f"■ {name}", fontsize=12.5, color=hues[name], va="center")
        x += 0.045 + 0.0125 * len(name)

"""What happened when: small multiples of queues, links and hit ratio, and the kinds of plans over time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...measure.records import Mark
from ...measure.sample import Column
from ..style import BLUE, FAINT, HEIGHT, INK, PALETTE, SOFT, WIDTH, label_ends, percent, styled

COLUMNS = 4
HEAD, MARKS, BLOCK, ROW, FOOT = 0.6, 0.3, 0.36, 1.42, 0.3
"""Inches: the title, the list of marks, the name of a block, one row of panels, the foot."""
GREY, DARK_GREY = "#b0b0b0", "#808080"
Series = Sequence[float] | Column


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One small plot of lines, of which the last is foremost. Panels of one `kind` share a scale."""

    title: str
    kind: str
    lines: tuple[tuple[str, Series, Series], ...]
    """(label, times in seconds, values)."""
    is_share: bool = False


@styled
def timeline(panels: Sequence[Panel], marks: Sequence[Mark] = (), title: str = "Over time") -> Figure:
    """Small multiples, a block of rows per kind, time in minutes; marks are numbered lines through all of them."""
    blocks: dict[str, list[Panel]] = {}
    for panel in panels:
        blocks.setdefault(panel.kind, []).append(panel)
    rows = sum(-(-len(block) // COLUMNS) for block in blocks.values())
    height = HEAD + (MARKS if marks else 0.0) + BLOCK * len(blocks) + ROW * rows + FOOT
    figure = Figure(figsize=(WIDTH, height))
    left, width = 0.62, (WIDTH - 0.62 - 0.2) / COLUMNS
    y = height - HEAD - (MARKS if marks else 0.0)
    for kind, block in blocks.items():
        figure.text(left / WIDTH, (y - 0.2) / height, kind, fontsize=12.5, fontweight="bold", va="center")
        y -= BLOCK
        top = max((_top(panel) for panel in block), default=0.0)
        for place, panel in enumerate(block):
            row, column = divmod(place, COLUMNS)
            box = (left + column * width, y - (row + 1) * ROW + 0.3, width - 0.2, ROW - 0.56)
            axes = figure.add_axes((box[0] / WIDTH, box[1] / height, box[2] / WIDTH, box[3] / height))
            _panel(axes, panel, top, is_leftmost=column == 0, is_lowest=place + COLUMNS >= len(block))
            _marks(axes, marks)
        y -= ROW * -(-len(block) // COLUMNS)
    _head(figure, title, panels, marks)
    figure.text(1 - 0.2 / WIDTH, 0.12 / height, "time, minutes", fontsize=11, color=SOFT, ha="right", va="bottom")
    return figure


@styled
def plan_kinds(at_s: Series, kinds: Sequence[str], bins: int = 48, title: str = "How requests were answered") -> Figure:
    """Shares of the kinds of plans over the time of arrival, on top of each other; `kinds` has one per request."""
    figure = Figure(figsize=(WIDTH, HEIGHT))
    figure.subplots_adjust(left=0.1, right=0.82, top=0.88, bottom=0.13)
    axes = figure.add_subplot()
    times, names = np.asarray(at_s, dtype=float), sorted(set(kinds))
    if len(times):
        edges = np.linspace(times.min(), times.max() + 1e-9, max(2, min(bins, len(times))) + 1)
        held = np.asarray(kinds, dtype=object)
        counts = {name: np.histogram(times[held == name], edges)[0] for name in names}
        names.sort(key=lambda name: (-counts[name].sum(), name))
        whole = np.maximum(1, sum(counts.values()))
        shares = [counts[name] / whole for name in names]
        middles = (edges[1:] + edges[:-1]) / 120.0
        axes.stackplot(middles, shares, colors=PALETTE, linewidth=0.6, edgecolor="white")
        axes.set_xlim(middles[0], middles[-1])
        _name_layers(axes, names, shares, len(times), {name: int(counts[name].sum()) for name in names})
    axes.set(ylim=(0, 1), xlabel="time of arrival, minutes", ylabel="requests")
    axes.yaxis.set_major_formatter(percent)
    axes.grid(visible=False)
    axes.set_title(title)
    return figure


def _name_layers(
    axes: Axes, names: Sequence[str], shares: Sequence[Column], requests: int, counts: Mapping[str, int]
) -> None:
    ends, floor = [], 0.0
    axes.set_ylim(0, 1)
    for place, (name, share) in enumerate(zip(names, shares, strict=True)):
        last = float(share[-4:].mean())
        label = f"{name}  {percent(round(counts[name] / requests, 3))}"
        ends.append((floor + last / 2, label, PALETTE[place % len(PALETTE)]))
        floor += last
    label_ends(axes, ends)


def _top(panel: Panel) -> float:
    return max((float(np.nanmax(values)) for _, _, values in panel.lines if np.any(np.isfinite(values))), default=0.0)


def _panel(axes: Axes, panel: Panel, top: float, *, is_leftmost: bool, is_lowest: bool) -> None:
    for place, (_, times, values) in enumerate(panel.lines):
        last = place == len(panel.lines) - 1
        minutes, heights = np.asarray(times, dtype=float) / 60.0, np.asarray(values, dtype=float)
        axes.plot(
            minutes, heights, color=BLUE if last else GREY, linewidth=1.5 if last else 1.1, zorder=3 if last else 2
        )
        if last:
            axes.fill_between(minutes, 0, heights, color=BLUE, alpha=0.12, linewidth=0)
    axes.set_ylim(0, 1.02 if panel.is_share else 1.08 * top or 1.0)
    axes.locator_params(nbins=3)
    axes.tick_params(labelsize=9.5, length=2, pad=2)
    if panel.is_share:
        axes.yaxis.set_major_formatter(percent)
        axes.set_yticks([0, 0.5, 1])
    if not is_leftmost:
        axes.set_yticklabels([])
    if not is_lowest:
        axes.set_xticklabels([])
    axes.set_title(panel.title, fontsize=10.5, fontweight="normal", color=SOFT, pad=4)
    axes.grid(color=FAINT, linewidth=0.5)


def _marks(axes: Axes, marks: Sequence[Mark]) -> None:
    for number, mark in enumerate(marks, 1):
        axes.axvline(mark.at_s / 60, color=INK, linewidth=0.9, linestyle=(0, (2, 2)), zorder=4)
        axes.annotate(
            f"{number}",
            (mark.at_s / 60, 1),
            xycoords=axes.get_xaxis_transform(),
            xytext=(2.5, -1),
            textcoords="offset points",
            fontsize=8,
            va="top",
            color=INK,
            zorder=5,
        )


def _head(figure: Figure, title: str, panels: Sequence[Panel], marks: Sequence[Mark]) -> None:
    """The title, what the marks are, and the names of the lines in their colours."""
    height = figure.get_figheight()
    figure.text(0.062, 1 - 0.34 / height, title, fontsize=15, fontweight="bold", va="center")
    labels = list(dict.fromkeys(label for panel in panels for label, _, _ in panel.lines))
    for place, label in enumerate(reversed(labels)):
        colour, weight = (BLUE, "bold") if place == 0 else (DARK_GREY, "normal")
        x = 0.98 - 0.17 * place
        figure.text(
            x, 1 - 0.34 / height, label, color=colour, fontweight=weight, fontsize=12.5, ha="right", va="center"
        )
    text = "     ".join(f"{number}  {mark.text}" for number, mark in enumerate(marks, 1))
    figure.text(0.062, 1 - 0.68 / height, text, fontsize=11, color=SOFT, va="center")

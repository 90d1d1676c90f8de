"""KV between sites, as a map: an arrow per link and direction, as wide as the bytes that went over it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import cos, hypot, pi, sin
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from ..style import INK, PAPER, SOFT, WIDTH, bytes_text, percent, styled

Point = tuple[float, float]

BEND = 0.2
NAME_OFF = 0.09
LABELS_MAX = 8
NEAREST = 0.12
"""Sites that would lie closer than this share of the map are put on a circle, all of them."""
HEAT = LinearSegmentedColormap.from_list("use", ["#a9cbe6", "#0072B2", "#D55E00"])
"""Idle, busy, full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """Bytes over one link; one with equal ends went around inside a site."""

    source: str
    target: str
    bytes: int
    utilisation: float


@styled
def flow_map(
    flows: Sequence[Flow], places: Mapping[str, Point] | None = None, title: str = "KV between sites"
) -> Figure:
    """Sites at their places (longitude, latitude) or on a circle, and what flowed between them."""
    figure = Figure(figsize=(WIDTH, 6.2))
    axes = figure.add_axes((0.03, 0.09, 0.94, 0.8))
    axes.set(xlim=(-1.3, 1.3), ylim=(-0.686, 0.686), aspect="equal")
    axes.axis("off")
    sites = sorted({site for flow in flows for site in (flow.source, flow.target)} | set(places or {}))
    points = _points(sites, places or {})
    between = [flow for flow in flows if flow.source != flow.target and flow.bytes]
    inside = {flow.source: flow.bytes for flow in flows if flow.source == flow.target and flow.bytes}
    between.sort(key=lambda flow: (flow.bytes, flow.source, flow.target))
    most = max((flow.bytes for flow in between), default=1)
    for flow in between:
        _arrow(axes, points[flow.source], points[flow.target], flow.bytes / most, HEAT(min(1.0, flow.utilisation)))
    _labels(axes, points, between[-LABELS_MAX:][::-1])
    for site, point in points.items():
        axes.plot(*point, "o", color=INK, markersize=13, markeredgecolor=PAPER, markeredgewidth=2, zorder=6)
        _site(axes, point, site + (f"\n{bytes_text(inside[site])} inside" if site in inside else ""))
    figure.text(0.04, 0.945, title, fontsize=15, fontweight="bold", va="center")
    _key(figure)
    return figure


def _points(sites: Sequence[str], places: Mapping[str, Point]) -> dict[str, Point]:
    """Within -1..1 by -0.48..0.48."""
    if sites and all(site in places for site in sites):
        found = _scaled({site: places[site] for site in sites})
        pairs = [(a, b) for number, a in enumerate(sites) for b in sites[:number]]
        if all(hypot(found[a][0] - found[b][0], found[a][1] - found[b][1]) > NEAREST for a, b in pairs):
            return found
    angles = {site: pi / 2 - 2 * pi * place / max(1, len(sites)) for place, site in enumerate(sites)}
    return {site: (0.95 * cos(angle), 0.48 * sin(angle)) for site, angle in angles.items()}


def _scaled(places: Mapping[str, Point]) -> dict[str, Point]:
    def fit(values: Mapping[str, float], reach: float) -> dict[str, float]:
        low, high = min(values.values()), max(values.values())
        return {
            site: reach * (2 * (value - low) / (high - low) - 1) if high > low else 0.0
            for site, value in values.items()
        }

    across = fit({site: place[0] for site, place in places.items()}, 1.0)
    up = fit({site: place[1] for site, place in places.items()}, 0.48)
    return {site: (across[site], up[site]) for site in places}


def _arrow(axes: Axes, start: Point, end: Point, share: float, colour: Any) -> None:
    width = 0.8 + 8.0 * share
    style = f"simple,tail_width={width:.2f},head_width={5 + 1.7 * width:.2f},head_length={6 + 1.3 * width:.2f}"
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            connectionstyle=f"arc3,rad={BEND}",
            arrowstyle=style,
            mutation_scale=1,
            facecolor=colour,
            edgecolor=PAPER,
            linewidth=0.6,
            shrinkA=10,
            shrinkB=10,
            zorder=2 + share,
        )
    )


def _labels(axes: Axes, points: Mapping[str, Point], flows: Sequence[Flow]) -> None:
    """Bytes on their arrows, the largest first, each where along its arrow it is furthest from what is there."""
    taken = [(x, y + (-NAME_OFF if y <= 0 else NAME_OFF)) for x, y in points.values()] + list(points.values())

    def clear(point: Point) -> float:
        """How far from the nearest text, which is about three times as wide as high; far enough is far enough."""
        return min(0.3, *(hypot((point[0] - x) / 3, point[1] - y) for x, y in taken))

    for flow in flows:
        spots = [_along(points[flow.source], points[flow.target], along) for along in (0.5, 0.4, 0.6, 0.3, 0.7)]
        spot = max(spots, key=lambda spot: round(min(clear(spot), 0.09), 3))
        taken.append(spot)
        box = {"boxstyle": "round,pad=0.15", "facecolor": PAPER, "edgecolor": "none", "alpha": 0.8}
        axes.text(*spot, bytes_text(flow.bytes), fontsize=11, ha="center", va="center", color=INK, bbox=box, zorder=5)


def _along(start: Point, end: Point, along: float) -> Point:
    """A point of the quadratic curve that `arc3` draws: its handle lies BEND times the length right of the middle."""
    handle = (
        (start[0] + end[0]) / 2 + BEND * (end[1] - start[1]),
        (start[1] + end[1]) / 2 - BEND * (end[0] - start[0]),
    )
    rest = 1 - along
    x, y = (
        rest * rest * a + 2 * rest * along * b + along * along * c for a, b, c in zip(start, handle, end, strict=True)
    )
    return x, y


def _site(axes: Axes, point: Point, text: str) -> None:
    below = point[1] <= 0
    axes.annotate(
        text,
        point,
        xytext=(0, -14 if below else 14),
        textcoords="offset points",
        fontsize=13,
        ha="center",
        va="top" if below else "bottom",
        zorder=7,
        bbox={"boxstyle": "round,pad=0.12", "facecolor": PAPER, "edgecolor": "none", "alpha": 0.85},
    )


def _key(figure: Figure) -> None:
    figure.text(0.04, 0.035, "width: bytes", fontsize=11, color=SOFT, va="center")
    for place, use in enumerate((0.0, 0.5, 1.0)):
        text = f"{percent(use)} used" if place == 2 else percent(use)
        figure.text(0.2 + 0.07 * place, 0.035, f"● {text}", fontsize=11, color=HEAT(use), va="center")

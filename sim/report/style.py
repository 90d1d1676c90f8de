"""How every plot looks: one set of fonts, colours and lines, readable from the last row of a lecture hall.

Rule 1: colours are those of Okabe and Ito (Color Universal Design, 2008), which stay apart for the colour-blind; a
policy keeps its colour in every plot. Labels stand at the line that they name, not in a legend.
Rule 2: equal data give equal bytes (I5): the font comes with matplotlib, ids are hashed with a fixed salt, no date.
Rule 3: no global state: figures are made without pyplot, and the style holds only while one is drawn.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from io import BytesIO
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from homing.router.core.errors import ConfigError

P = ParamSpec("P")

BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, YELLOW = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#B8A800",
)
INK, SOFT, FAINT, PAPER = "#1a1a1a", "#6b6b6b", "#dcdcdc", "#ffffff"
PALETTE = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, YELLOW, SOFT)
WIDTH, HEIGHT = 10.0, 5.6
"""Inches; 16:9, as a slide."""

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 13,
    "axes.titlesize": 15,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 14,
    "axes.labelsize": 13,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": SOFT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelsize": 12,
    "ytick.labelsize": 12,
    "xtick.minor.visible": False,
    "lines.linewidth": 2.2,
    "lines.solid_capstyle": "round",
    "text.color": INK,
    "figure.facecolor": PAPER,
    "figure.dpi": 100,
    "savefig.facecolor": PAPER,
    "svg.hashsalt": "homing",
    "svg.fonttype": "path",
    "path.simplify": True,
}


@contextmanager
def _style() -> Iterator[None]:
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """A plot that is drawn in this style, whatever the process has set."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with _style():
            return draw(*args, **kwargs)

    return drawn


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour per name, in order; the first is the one that the eye goes to. They repeat after eight."""
    return {name: PALETTE[place % len(PALETTE)] for place, name in enumerate(names)}


def svg(figure: Figure, name: str = "") -> str:
    """A figure as an SVG element; `name` goes before its ids, so that many fit into one page."""
    buffer = BytesIO()
    with _style():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue().decode()
    text = text[text.index("<svg") :]
    prefix = f"{name}-" if name else ""
    return re.sub(r'(\bid="|href="#|url\(#)', lambda found: found[0] + prefix, text)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG (for slides, 200 dpi) or SVG, by the file's ending; ConfigError for another one."""
    if path.suffix == ".svg":
        path.write_text(svg(figure), encoding="utf-8")
    elif path.suffix == ".png":
        with _style():
            figure.savefig(path, dpi=200, metadata={"Software": None})
    else:
        raise ConfigError(f"{path}: a plot ends in .png or .svg, got {path.suffix!r}")


def seconds(value: float, _: object = None) -> str:
    """A time as people say it: 250 ms, 1.5 s, 3 min."""
    if value == 0:
        return "0"
    size = abs(value)
    for unit, factor, above in (("min", 60.0, 120.0), ("s", 1.0, 0.9995), ("ms", 1e-3, 0.9995e-3), ("µs", 1e-6, 0.0)):
        if size >= above:
            return f"{value / factor:.3g} {unit}"
    raise AssertionError(value)


def bytes_text(value: float, _: object = None) -> str:
    """Bytes in decimal units, as links are sold."""
    for unit, factor in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.0f} B"


def percent(value: float, _: object = None) -> str:
    """A share."""
    return f"{100 * value:.3g} %"


def seconds_axis(axis: Axis) -> None:
    """Write a log axis of seconds with its units at each tick: 1, 10, 100, and 2 and 5 too where there is room."""
    low, high = axis.get_view_interval()
    if low > 0 and high < 300 * low:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(seconds))
    axis.set_minor_formatter(NullFormatter())


def spread_out(wanted: Sequence[float], gap: float, low: float = 0.0, high: float = 1.0) -> list[float]:
    """Places near the wanted ones, in their order, at least `gap` apart and within the limits as far as they fit."""
    order = sorted(range(len(wanted)), key=lambda place: (wanted[place], place))
    gap = min(gap, (high - low) / max(1, len(wanted) - 1))
    places = [0.0] * len(wanted)
    floor = low
    for place in order:
        places[place] = floor = max(floor, wanted[place])
        floor += gap
    ceiling = high
    for place in reversed(order):
        places[place] = ceiling = min(ceiling, places[place])
        ceiling -= gap
    return places


def label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]], gap: float = 0.065, size: float = 12) -> None:
    """Name lines at the right of the axes: (height in data, text, colour), moved apart where they would overlap."""
    heights = [float(axes.transAxes.inverted().transform(axes.transData.transform((0, end[0])))[1]) for end in ends]
    for height, (_, text, colour) in zip(spread_out(heights, gap), ends, strict=True):
        axes.text(1.015, height, text, color=colour, transform=axes.transAxes, va="center", fontsize=size)

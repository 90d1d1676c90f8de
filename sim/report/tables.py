"""The tables of a report: numbers as people read them, with their intervals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..measure.bootstrap import Interval
from ..measure.compare import Comparison, Score
from ..measure.schema import Summary
from .style import colours, percent, seconds

NOTHING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
HEADLINES = (
    "TTFT p50",
    "TTFT p90",
    "TTFT p99",
    "TPOT p50",
    "ITL p99",
    "goodput",
    "hit ratio",
    "rejected",
    "$ / M tokens",
)
DIFFERENCES = (
    ("ttft_p50_s", "TTFT p50"),
    ("ttft_p90_s", "TTFT p90"),
    ("ttft_p99_s", "TTFT p99"),
    ("goodput_share", "goodput"),
)
"""Metric and what it is called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A number, and the interval in which it lies if one is known."""

    text: str
    interval: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One policy in a table."""

    policy: str
    colour: str
    cells: tuple[Cell, ...]


def rows(comparison: Comparison, summaries: Sequence[Summary]) -> list[Row]:
    """The headline numbers of each policy, as HEADLINES."""
    hues = colours(score.policy for score in comparison.scores)
    return [
        Row(
            policy=score.policy,
            colour=hues[score.policy],
            cells=_headlines(score, [summary for summary in summaries if summary.policy == score.policy]),
        )
        for score in comparison.scores
    ]


def differences(comparison: Comparison) -> list[Row]:
    """Each policy less the baseline, as DIFFERENCES; without the baseline itself."""
    hues = colours(score.policy for score in comparison.scores)
    return [
        Row(
            policy=score.policy,
            colour=hues[score.policy],
            cells=tuple(
                _within(score.differences.get(metric), _points if metric == "goodput_share" else _signed_seconds)
                for metric, _ in DIFFERENCES
            ),
        )
        for score in comparison.scores
        if score.policy != comparison.baseline
    ]


def share(value: float | None) -> str:
    """A share to three digits, or a dash."""
    return NOTHING if value is None else percent(value)


def time(value: float | None) -> str:
    """Seconds to three digits, or a dash."""
    return NOTHING if value is None else seconds(value)


def _headlines(score: Score, runs: Sequence[Summary]) -> tuple[Cell, ...]:
    """Intervals where the comparison has them, else means over seeds."""
    dollars = _mean([run.cost.dollars_per_million_output_tokens for run in runs])
    rejected = [run.requests.rejected / run.requests.arrived if run.requests.arrived else None for run in runs]
    return (
        *(_within(score.metrics.get(f"ttft_{name}_s"), seconds) for name in ("p50", "p90", "p99")),
        *(
            Cell(text=time(_mean(values)))
            for values in ([run.tpot_s.p50 for run in runs], [run.itl_s.p99 for run in runs])
        ),
        _within(score.metrics.get("goodput_share"), percent),
        Cell(text=share(_mean([run.tokens.hit_ratio for run in runs]))),
        Cell(text=share(_mean(rejected))),
        Cell(text=f"{dollars:,.2f}" if dollars else NOTHING),
    )


def _within(interval: Interval | None, write: Callable[[float], str]) -> Cell:
    if interval is None:
        return Cell(text=NOTHING)
    return Cell(text=write(interval.estimate), interval=f"{write(interval.low)} … {write(interval.high)}")


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _signed_seconds(value: float) -> str:
    return _signed(value, seconds(abs(value)))


def _points(value: float) -> str:
    """A difference of shares, in percentage points."""
    return _signed(value, f"{100 * abs(value):.3g} pp")


def _signed(value: float, text: str) -> str:
    return f"{MINUS if value < 0 else '+'}{text}"

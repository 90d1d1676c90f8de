"""How sure one may be of a number out of a few simulated runs: percentile bootstrap; part of the extra `sim`.

Rule 1: a run is one draw, not a thousand. Seeds are drawn with replacement, and within each drawn seed its requests
(two-stage: Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8).
Rule 2: requests that arrive together wait in the same queue. They are drawn in circular blocks of neighbours, n^(1/3)
long (Politis and Romano 1992; Hall, Horowitz and Jing 1995), not one by one.
Rule 3: two policies are compared on the same seeds and requests: both see the same draws, so that what the workload
does to both cancels out.
Rule 4: an interval is the percentile one: quantiles of the statistic over the draws (Efron and Tibshirani, An
Introduction to the Bootstrap, 1993, chapter 13). With one seed it says nothing of other seeds.
"""

from collections.abc import Callable, Iterator, Sequence

import msgspec
import numpy as np

from .sample import Column

Statistic = Callable[[Column], Column]
"""Several numbers of the same values, which are computed together because drawing and sorting is what costs."""

RESAMPLES = 1000
RESAMPLES_MIN = 200
DRAWS_MAX = 100_000_000
"""Large runs are drawn fewer times, and need it less: no more single values than this, but RESAMPLES_MIN times."""


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """A number and where it would lie, with probability `level`, were the runs repeated."""

    estimate: float
    low: float
    high: float
    level: float = 0.95


def mean(values: Column) -> Column:
    """The mean alone."""
    return np.array([values.mean()])


def mean_and_quantiles(*shares: float) -> Statistic:
    """The mean, and numpy's linear quantiles."""
    assert all(0.0 <= share <= 1.0 for share in shares), shares
    return lambda values: np.concatenate([mean(values), np.quantile(values, shares)])


def intervals(
    samples: Sequence[Column],
    statistic: Statistic,
    random: np.random.Generator,
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> list[Interval]:
    """An interval per number of the statistic of the values of all seeds together; none when there are no values.

    `samples`: one column per seed, in the order of arrival.
    """
    return _percentiles([samples], statistic, random, resamples, level)


def differences(
    ours: Sequence[Column],
    theirs: Sequence[Column],
    statistic: Statistic,
    random: np.random.Generator,
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> list[Interval]:
    """An interval per number of statistic(ours) - statistic(theirs), drawn in pairs; none when there are no values.

    One column per seed on each side, in the order of arrival; ValueError when they are not equally long.
    """
    if [len(one) for one in ours] != [len(one) for one in theirs]:
        raise ValueError("paired samples: expected equally many values per seed on both sides")
    return _percentiles([ours, theirs], statistic, random, resamples, level)


def _percentiles(
    sides: list[Sequence[Column]], statistic: Statistic, random: np.random.Generator, resamples: int, level: float
) -> list[Interval]:
    sides = [[values for values in side if len(values)] for side in sides]
    if not sides[0]:
        return []
    lengths = [len(values) for values in sides[0]]

    def measure(picks: list[tuple[int, Column]]) -> Column:
        numbers = [statistic(np.concatenate([side[seed][rows] for seed, rows in picks])) for side in sides]
        return numbers[0] - sum(numbers[1:])

    estimates = measure([(seed, np.arange(length)) for seed, length in enumerate(lengths)])
    draws = np.array([measure(picks) for picks in _draws(lengths, random, resamples)])
    lows, highs = np.quantile(draws, ((1.0 - level) / 2.0, (1.0 + level) / 2.0), axis=0)
    return [
        Interval(estimate=float(estimate), low=float(low), high=float(high), level=level)
        for estimate, low, high in zip(estimates, lows, highs, strict=True)
    ]


def _draws(lengths: list[int], random: np.random.Generator, resamples: int) -> Iterator[list[tuple[int, Column]]]:
    """Seeds with replacement, and rows of each drawn seed with replacement, in blocks of neighbours."""
    affordable = max(RESAMPLES_MIN, DRAWS_MAX // sum(lengths))
    for _ in range(min(resamples, affordable)):
        seeds = random.integers(len(lengths), size=len(lengths))
        yield [(int(seed), _rows(lengths[seed], random)) for seed in seeds]


def _rows(length: int, random: np.random.Generator) -> Column:
    block = max(1, round(length ** (1 / 3)))
    starts = random.integers(length, size=-(-length // block))
    rows: Column = (starts[:, None] + np.arange(block)).ravel()[:length] % length
    return rows

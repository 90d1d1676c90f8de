"""How long one decode pass takes: a token for each sequence of a batch.

Rule 1: it never falls when a sequence is added at the same mean context, nor when a context grows.
Rule 2: `context_tokens` is the sum over the batch; measured tables name the context of each of their equal sequences.
Rule 3: hot path: plain floats, two bisections, no allocation.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

GridPoint = tuple[int, int, float]
"""Sequences, context tokens of each of them, and the seconds of one pass."""

FAR = 1e12
"""Beyond every batch and context there will be: the outer edge of an extrapolated table."""
FALL_MAX = 0.1
"""Measured tables fall by up to 2 % where they should rise. More is a wrong number, not noise."""


class DecodeSteps(Protocol):
    """The time of decode passes."""

    def step_s(self, batch: int, context_tokens: int) -> float:
        """One pass of `batch` sequences, at least one, with so many tokens of context among them."""
        ...


class LinearDecode:
    """`a_s + b_s*batch + c_s*context`: reading the weights, a share per sequence, reading the KV."""

    __slots__ = ("_a_s", "_b_s", "_c_s")

    def __init__(self, *, a_s: float, b_s: float = 0.0, c_s: float = 0.0) -> None:
        if a_s <= 0 or b_s < 0 or c_s < 0:
            raise ValueError(f"expected a_s above 0 and b_s and c_s of at least 0, got {a_s}, {b_s} and {c_s}")
        self._a_s, self._b_s, self._c_s = a_s, b_s, c_s

    def step_s(self, batch: int, context_tokens: int) -> float:
        """One pass of `batch` sequences with so many tokens of context among them."""
        return self._a_s + self._b_s * batch + self._c_s * context_tokens


class DecodeGrid:
    """A measured table over batch and mean context, bilinear between its points.

    At a measured point it is what was measured. Beyond the edges the nearest cells go on as straight lines, but below
    the smallest batch, which costs what the smallest batch costs. Where a measured table falls it is noise of the
    measurement, and the grid is raised to what a smaller batch or context took.
    """

    __slots__ = ("_batches", "_contexts", "_rows", "_widths")

    def __init__(self, points: Sequence[GridPoint]) -> None:
        batches, contexts, rows = _table(points)
        _refuse_falls(batches, contexts, rows)
        rows = [_extended(contexts, row) for row in rows]
        if min(row[0] for row in rows) <= 0:
            raise ValueError("the straight lines through the first two contexts reach 0 s; add points near context 0")
        if contexts[0] > 0:
            contexts = [0.0, *contexts]
        else:
            rows = [row[1:] for row in rows]
        columns = [_extended(batches, list(column)) for column in zip(*rows, strict=True)]
        rows = [list(row) for row in zip(*columns, strict=True)]
        rows[0] = rows[1]
        self._batches = [0.0, *batches, FAR]
        self._contexts = [*contexts, FAR]
        self._rows = [tuple(row) for row in _raised(rows)]
        self._widths = [high - low for low, high in pairwise(self._contexts)]

    def step_s(self, batch: int, context_tokens: int) -> float:
        """One pass of `batch` sequences with so many tokens of context among them."""
        context = context_tokens / batch
        i = bisect_right(self._batches, batch) - 1
        j = bisect_right(self._contexts, context) - 1
        across = (context - self._contexts[j]) / self._widths[j]
        low_row, high_row = self._rows[i], self._rows[i + 1]
        low = low_row[j] + (low_row[j + 1] - low_row[j]) * across
        high = high_row[j] + (high_row[j + 1] - high_row[j]) * across
        low_batch = self._batches[i]
        return low + (high - low) * (batch - low_batch) / (self._batches[i + 1] - low_batch)


def _table(points: Sequence[GridPoint]) -> tuple[list[float], list[float], list[list[float]]]:
    """The batches, the contexts, and a row of seconds for each batch."""
    seconds = {(batch, context): value for batch, context, value in points}
    batches, contexts = sorted({batch for batch, _ in seconds}), sorted({context for _, context in seconds})
    if len(batches) < 2 or len(contexts) < 2:
        raise ValueError(f"expected two batches and two contexts or more, got {len(batches)} and {len(contexts)}")
    missing = [(b, c) for b in batches for c in contexts if (b, c) not in seconds]
    if missing or len(points) != len(seconds):
        raise ValueError(
            f"expected each batch with each context once, got {len(points)} points of which {len(seconds)} differ; "
            f"missing: {missing[:3]}"
        )
    if batches[0] < 1 or contexts[0] < 0 or min(seconds.values()) <= 0:
        raise ValueError("expected batches of at least 1, contexts of at least 0 and seconds above 0")
    rows = [[seconds[batch, context] for context in contexts] for batch in batches]
    return [float(batch) for batch in batches], [float(context) for context in contexts], rows


def _refuse_falls(batches: list[float], contexts: list[float], rows: list[list[float]]) -> None:
    for i, (row, raised) in enumerate(zip(rows, _raised(rows), strict=True)):
        for j, (value, floor) in enumerate(zip(row, raised, strict=True)):
            if value < (1 - FALL_MAX) * floor:
                raise ValueError(
                    f"batch {batches[i]:.0f}, context {contexts[j]:.0f}: {value} s is more than {FALL_MAX:.0%} less"
                    f" than the {floor} s of a smaller batch or context"
                )


def _extended(at: list[float], values: list[float]) -> list[float]:
    """With a value at 0 before the first and one at FAR behind the last, on the straight lines of the outer cells."""
    first_slope = (values[1] - values[0]) / (at[1] - at[0])
    last_slope = max(0.0, (values[-1] - values[-2]) / (at[-1] - at[-2]))
    return [values[0] - first_slope * at[0], *values, values[-1] + last_slope * (FAR - at[-1])]


def _raised(rows: list[list[float]]) -> list[list[float]]:
    """The least table above this one that falls nowhere."""
    raised: list[list[float]] = []
    for row in rows:
        least = list(raised[-1]) if raised else [0.0] * len(row)
        floor = 0.0
        for j, value in enumerate(row):
            floor = least[j] = max(floor, least[j], value)
        raised.append(least)
    return raised

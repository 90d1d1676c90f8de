"""Named series over time: queues, running requests, links, tolls.

Rule 1: one row per sample, one column per series; a series that begins late or ends early has gaps.
Rule 2: bounded memory: when it is full, every second row goes and the time between two doubles.
"""

from array import array
from collections.abc import Mapping
from math import inf, nan

ROWS_MAX = 4096


class Timeline:
    """Samples of series whose names are `kind/of what`, such as `queued_requests/tokyo`; a kind ends in its unit."""

    def __init__(self, every_s: float, rows_max: int = ROWS_MAX) -> None:
        if not 0.0 < every_s < inf:
            raise ValueError(f"every_s: expected a positive number of seconds, got {every_s}")
        assert rows_max >= 2, rows_max
        self.every_s = every_s
        """The time between two rows; it doubles when `rows_max` is reached."""
        self.rows_max = rows_max
        self.times_s = array("d")
        self._series: dict[str, array[float]] = {}

    def __len__(self) -> int:
        return len(self.times_s)

    @property
    def next_s(self) -> float:
        """When the next row is due; at once when there is none."""
        return self.times_s[-1] + self.every_s if self.times_s else -inf

    def sample(self, at_s: float, values: Mapping[str, float]) -> bool:
        """Append a row; a row before `next_s` is left out, so that whoever calls too often does no harm."""
        if at_s < self.next_s - 1e-9 * self.every_s:
            return False
        if len(self.times_s) >= self.rows_max:
            self._thin()
            return self.sample(at_s, values)
        rows = len(self.times_s)
        self.times_s.append(at_s)
        for name, value in values.items():
            if name not in self._series:
                self._series[name] = array("d", [nan]) * rows
            self._series[name].append(value)
        for series in self._series.values():
            if len(series) == rows:
                series.append(nan)
        return True

    def kinds(self) -> list[str]:
        """What is sampled, in the order in which it first was."""
        return list(dict.fromkeys(name.partition("/")[0] for name in self._series))

    def names(self, kind: str = "") -> list[str]:
        """Names of all series, or of those of one kind, sorted."""
        return sorted(name for name in self._series if not kind or name.partition("/")[0] == kind)

    def series(self, name: str) -> "array[float]":
        """The values of one series, as many as there are `times_s`; NaN where it has none. KeyError if unknown."""
        return self._series[name]

    def check(self) -> None:
        """Assert that rows are whole, in order, and no more than there may be."""
        assert all(len(series) == len(self.times_s) for series in self._series.values())
        assert all(early < late for early, late in zip(self.times_s, self.times_s[1:], strict=False))
        assert len(self.times_s) <= self.rows_max

    def _thin(self) -> None:
        self.every_s *= 2
        self.times_s = self.times_s[::2]
        self._series = {name: series[::2] for name, series in self._series.items()}

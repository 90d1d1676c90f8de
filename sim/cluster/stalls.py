"""The longest decode pass since a given time, without a look at every pass.

A pass is kept only as long as no later one is longer, so that durations fall along the list and the first pass at or
after a time is the longest since.
"""

from bisect import bisect_right

KEPT_MAX = 4096
"""Beyond this the oldest are forgotten: passes grow longer by far more often than so many get shorter in a row."""


class Stalls:
    """A staircase of passes. `add` is amortised O(1), `worst_since` O(log n)."""

    def __init__(self) -> None:
        self._ended_s: list[float] = []
        self._lasted_s: list[float] = []

    def add(self, ended_s: float, lasted_s: float) -> None:
        """One more pass, later than all before."""
        while self._lasted_s and self._lasted_s[-1] <= lasted_s:
            self._lasted_s.pop()
            self._ended_s.pop()
        self._lasted_s.append(lasted_s)
        self._ended_s.append(ended_s)
        if len(self._lasted_s) > KEPT_MAX:
            del self._lasted_s[: KEPT_MAX // 2], self._ended_s[: KEPT_MAX // 2]

    def worst_since(self, since_s: float) -> float:
        """The longest pass that ended after `since_s`; 0 when none did."""
        first = bisect_right(self._ended_s, since_s)
        return self._lasted_s[first] if first < len(self._lasted_s) else 0.0

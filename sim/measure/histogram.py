"""Quantiles of more values than one can keep: a histogram with bins that grow geometrically.

A token's latency is the time of the pass that made it, so a pass is one value that weighs as much as it made tokens.
"""

from array import array
from math import ceil, exp, log

ERROR = 0.005
"""A quantile is off by at most this share of itself."""
SMALLEST = 1e-6
LARGEST = 1e4


class WeightedHistogram:
    """Weights of values between 1 µs and 10⁴ s, in bins of bounded relative width; what is outside joins the outermost.

    Bin i holds (γ^(i-1), γ^i] and is read as 2γ^i/(γ+1) with γ = (1+ERROR)/(1-ERROR), so that no value in it is
    further away than ERROR times itself: DDSketch (Masson, Rim and Lee, VLDB 2019, section 2.1).
    """

    __slots__ = ("_first", "_scale", "_weights", "largest", "smallest", "total", "weight")

    def __init__(self) -> None:
        self._scale = 1.0 / log((1.0 + ERROR) / (1.0 - ERROR))
        self._first = ceil(log(SMALLEST) * self._scale)
        self._weights = array("d", bytes(8 * (ceil(log(LARGEST) * self._scale) - self._first + 1)))
        self.weight = 0.0
        """The sum of all weights."""
        self.total = 0.0
        """The sum of values times their weights."""
        self.smallest = LARGEST
        self.largest = 0.0

    def add(self, value: float, weight: float = 1.0) -> None:
        """Count a value so often; ValueError for a value or a weight that is not positive."""
        if not (value > 0.0 and weight > 0.0):
            raise ValueError(f"value and weight: expected positive numbers, got {value} and {weight}")
        place = ceil(log(value) * self._scale) - self._first
        self._weights[min(max(place, 0), len(self._weights) - 1)] += weight
        self.weight += weight
        self.total += value * weight
        self.smallest = min(self.smallest, value)
        self.largest = max(self.largest, value)

    def mean(self) -> float | None:
        """The weighted mean, exact; None when nothing was counted."""
        return self.total / self.weight if self.weight else None

    def quantile(self, share: float) -> float | None:
        """The smallest value below which `share` of the weight lies, to within ERROR of itself; None when empty."""
        assert 0.0 <= share <= 1.0, share
        wanted, passed = share * self.weight, 0.0
        for place, weight in enumerate(self._weights):
            passed += weight
            if weight and passed >= wanted:
                return min(max(self._middle(place), self.smallest), self.largest)
        return self.largest if self.weight else None

    def _middle(self, place: int) -> float:
        """Where a bin is read: as far from its lower as from its upper end, relative to each."""
        return (1.0 - ERROR) * exp((place + self._first) / self._scale)

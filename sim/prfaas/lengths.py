"""Prompt lengths as a truncated log-normal distribution, in closed form: no sampling, so no noise.

With Z standard normal, `ln L = mu + sigma*Z` under the condition `low <= L <= high`. Shares and means of a part of it
follow from the normal distribution function.
"""

from dataclasses import dataclass
from math import exp, log
from statistics import NormalDist

_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True, kw_only=True)
class TruncatedLogNormal:
    """Lengths in tokens between `low_tokens` and `high_tokens`."""

    mu: float
    sigma: float
    low_tokens: float
    high_tokens: float

    def __post_init__(self) -> None:
        assert self.sigma > 0 and 0 < self.low_tokens < self.high_tokens, self

    def above(self, tokens: float) -> float:
        """The share of prompts that are longer."""
        return self._mass(max(tokens, self.low_tokens), self.high_tokens) / self._mass(
            self.low_tokens, self.high_tokens
        )

    def mean(self, low_tokens: float | None = None, high_tokens: float | None = None) -> float:
        """The mean length of the prompts between two lengths, of all without them; 0 when there are none between."""
        low = self.low_tokens if low_tokens is None else max(low_tokens, self.low_tokens)
        high = self.high_tokens if high_tokens is None else min(high_tokens, self.high_tokens)
        mass = self._mass(low, high)
        if mass <= 0:
            return 0.0
        shifted = _NORMAL.cdf(self._z(high) - self.sigma) - _NORMAL.cdf(self._z(low) - self.sigma)
        return exp(self.mu + self.sigma**2 / 2) * shifted / mass

    def quantile(self, share: float) -> float:
        """The length that this share of prompts does not exceed; `share` is strictly between 0 and 1."""
        below = _NORMAL.cdf(self._z(self.low_tokens))
        return exp(
            self.mu + self.sigma * _NORMAL.inv_cdf(below + share * self._mass(self.low_tokens, self.high_tokens))
        )

    def _z(self, tokens: float) -> float:
        return (log(tokens) - self.mu) / self.sigma

    def _mass(self, low: float, high: float) -> float:
        return _NORMAL.cdf(self._z(high)) - _NORMAL.cdf(self._z(low)) if low < high else 0.0

"""Distributions of lengths in tokens, and of ranks. Each draws once per call from a handed-in Random."""

from bisect import bisect_right
from itertools import accumulate
from math import exp, log
from random import Random
from statistics import NormalDist
from typing import Annotated

from msgspec import Meta

from ..section import NotNegative, Section, Tokens


class Constant(Section, frozen=True, kw_only=True, tag="constant"):
    """Always the same."""

    tokens: Tokens

    def draw(self, random: Random) -> int:  # one signature for all
        """One length in tokens."""
        return self.tokens


class Uniform(Section, frozen=True, kw_only=True, tag="uniform"):
    """Every length between two, both included, equally often."""

    min_tokens: Tokens
    max_tokens: Tokens

    def __post_init__(self) -> None:
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"max_tokens: expected at least min_tokens {self.min_tokens}, got {self.max_tokens}")

    def draw(self, random: Random) -> int:
        """One length in tokens."""
        return random.randint(self.min_tokens, self.max_tokens)


class LogNormal(Section, frozen=True, kw_only=True, tag="lognormal"):
    """exp of a normal distribution, truncated: what lies outside is not moved to the bounds but does not occur.

    `mu` and `sigma` are of the logarithm of the length in tokens. Drawn by inverting the truncated distribution.
    """

    mu: Annotated[float, Meta(ge=-50, le=50)]
    sigma: Annotated[float, Meta(gt=0, le=20)]
    min_tokens: Tokens = 1
    max_tokens: Tokens = 131_072

    def __post_init__(self) -> None:
        if self.min_tokens >= self.max_tokens:
            raise ValueError(f"max_tokens: expected more than min_tokens {self.min_tokens}, got {self.max_tokens}")

    def draw(self, random: Random) -> int:
        """One length in tokens."""
        normal = NormalDist(self.mu, self.sigma)
        low, high = normal.cdf(log(self.min_tokens)), normal.cdf(log(self.max_tokens))
        share = low + (high - low) * random.random()
        tokens = exp(normal.inv_cdf(share)) if 0 < share < 1 else float(self.min_tokens)
        return min(self.max_tokens, max(self.min_tokens, round(tokens)))


class Empirical(Section, frozen=True, kw_only=True, tag="empirical"):
    """Lengths as they were seen, each as often as its weight says; without weights equally often."""

    tokens: Annotated[tuple[Tokens, ...], Meta(min_length=1)]
    weights: tuple[NotNegative, ...] = ()

    def __post_init__(self) -> None:
        if self.weights and (len(self.weights) != len(self.tokens) or not sum(self.weights)):
            raise ValueError(
                f"weights: expected one for each of {len(self.tokens)} lengths, not all 0, got {len(self.weights)}"
            )

    def draw(self, random: Random) -> int:
        """One length in tokens. Runtime complexity: O(lengths) with weights."""
        return random.choices(self.tokens, self.weights or None)[0]


class Zipf:
    """Ranks from 0 on, the rank r in proportion to 1 / (r + 1) ** exponent; 0 makes them equally likely."""

    def __init__(self, ranks: int, exponent: float) -> None:
        self._bounds = list(accumulate((rank + 1) ** -exponent for rank in range(ranks)))

    def draw(self, random: Random) -> int:
        """One rank. Runtime complexity: O(log ranks)."""
        place = bisect_right(self._bounds, random.random() * self._bounds[-1])
        return min(place, len(self._bounds) - 1)


Length = Constant | Uniform | LogNormal | Empirical

"""Poisson arrivals: memoryless, the standard against which others are bursty."""

from random import Random

from ..section import Positive, Section
from .moments import Moments


class Poisson(Section, frozen=True, kw_only=True, tag="poisson"):
    """Independent exponential gaps with a mean of 1 / `rate_per_s`."""

    rate_per_s: Positive = 1.0

    def moments(self, random: Random) -> Moments:
        """Moments in order, without end."""
        at_s = 0.0
        while True:
            at_s += random.expovariate(self.rate_per_s)
            yield at_s, None

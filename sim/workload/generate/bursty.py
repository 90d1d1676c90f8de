"""Bursty arrivals: Gamma gaps with a given coefficient of variation, and a Markov-modulated Poisson process."""

from math import inf
from random import Random
from typing import Annotated

import msgspec
from msgspec import Meta

from ..section import NotNegative, Positive, Section
from .moments import Moments


class Gamma(Section, frozen=True, kw_only=True, tag="gamma"):
    """Gamma-distributed gaps: `cv` is standard deviation / mean. 1 is Poisson, above it is bursty, below it is regular.

    Shape 1 / cv^2 and scale cv^2 / rate give mean 1 / rate and the wanted cv; BurstGPT (arXiv 2401.17644) fits
    conversation services so.
    """

    rate_per_s: Positive = 1.0
    cv: Annotated[float, Meta(gt=0, le=100)] = 2.0

    def moments(self, random: Random) -> Moments:
        """Moments in order, without end."""
        square = self.cv * self.cv
        at_s = 0.0
        while True:
            at_s += random.gammavariate(1 / square, square / self.rate_per_s)
            yield at_s, None


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A state of a modulated process: its rate, and how long it lasts on average (exponentially distributed)."""

    rate_per_s: NotNegative
    mean_s: Positive


class Mmpp(Section, frozen=True, kw_only=True, tag="mmpp"):
    """A Markov-modulated Poisson process that goes through its states in turn; two make the usual calm and burst.

    The mean rate is the average of the states' rates, weighted by how long they last.
    """

    states: Annotated[tuple[State, ...], Meta(min_length=1)] = (
        State(rate_per_s=0.5, mean_s=60.0),
        State(rate_per_s=5.0, mean_s=10.0),
    )

    def __post_init__(self) -> None:
        if not any(state.rate_per_s for state in self.states):
            raise ValueError("states: expected a rate_per_s above 0 in at least one, got none")

    def moments(self, random: Random) -> Moments:
        """Moments in order, without end. What is left of a gap when the state changes is drawn anew (memoryless)."""
        began_s = 0.0
        while True:
            for state in self.states:
                ends_s = began_s + random.expovariate(1 / state.mean_s)
                at_s = began_s
                while (at_s := at_s + self._gap_s(state, random)) < ends_s:
                    yield at_s, None
                began_s = ends_s

    @staticmethod
    def _gap_s(state: State, random: Random) -> float:
        return random.expovariate(state.rate_per_s) if state.rate_per_s else inf

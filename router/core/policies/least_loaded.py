"""Least loaded: the worker with the fewest requests."""

from random import Random

from ..question import Question
from ..types import Plan
from .baseline import place


class LeastLoaded:
    """Counts requests, as most balancers do; blind to their length and to caches."""

    name = "least-loaded"

    def choose(self, question: Question, random: Random) -> list[Plan]:
        """The worker with the fewest requests, promised or reported."""
        return place(question, lambda workers: min(workers, key=lambda w: (question.fleet.running(w), w.bit)))

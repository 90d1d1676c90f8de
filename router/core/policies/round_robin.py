"""Round robin: each worker in its turn."""

from collections.abc import Sequence
from random import Random

from ..fleet import WorkerState
from ..question import Question
from ..types import Plan
from .baseline import place


class RoundRobin:
    """Blind to load and cache; the turn is its only memory."""

    name = "round-robin"

    def __init__(self) -> None:
        self._turn = 0

    def choose(self, question: Question, random: Random) -> list[Plan]:
        """The next worker after the last, among those that may take the request."""
        plans = place(question, self._next)
        self._turn += 1
        return plans

    def _next(self, workers: Sequence[WorkerState]) -> WorkerState:
        return workers[self._turn % len(workers)]

"""Power of two choices: draw two workers, send to the one with fewer requests."""

from collections.abc import Sequence
from random import Random

from ..fleet import WorkerState
from ..question import Question
from ..types import Plan
from .baseline import place


class PowerOfTwo:
    """Nearly the balance of asking everyone, for the price of asking two (Mitzenmacher, 2001)."""

    name = "power-of-two"

    def choose(self, question: Question, random: Random) -> list[Plan]:
        """The less loaded of two drawn workers."""

        def pick(workers: Sequence[WorkerState]) -> WorkerState:
            drawn = random.sample(workers, k=min(2, len(workers)))
            return min(drawn, key=lambda w: (question.fleet.running(w), w.bit))

        return place(question, pick)

"""Random: any worker, with equal chance."""

from random import Random

from ..question import Question
from ..types import Plan
from .baseline import place


class Randomly:
    """Blind to load and cache."""

    name = "random"

    def choose(self, question: Question, random: Random) -> list[Plan]:
        """A worker drawn from those that may take the request."""
        return place(question, random.choice)

"""Longest prefix: the worker that holds most of the prompt; among equals the one with the fewest requests."""

from random import Random

from ..question import Question
from ..types import Plan
from .baseline import place


class LongestPrefix:
    """Cache-aware and nothing else: it drowns the holder of a hot prefix, which is what it is compared for."""

    name = "longest-prefix"

    def choose(self, question: Question, random: Random) -> list[Plan]:
        """The holder of the longest prefix."""
        return place(
            question,
            lambda workers: min(workers, key=lambda w: (-question.held(w), question.fleet.running(w), w.bit)),
        )

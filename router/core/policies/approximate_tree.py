"""What the rules of SGLang's and SMG's routers share: a tree of what was sent to whom, and their thresholds."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from random import Random

from ..commands import Command
from ..events import Event
from ..fleet import WorkerState
from ..question import Question
from ..types import Plan
from .baseline import fewest_requests, place
from .options import AtLeastOne, Count, NotNegative, Share
from .remembered import TREE_BLOCKS_MAX, Remembered
from .watching import gone, sent


class ApproximateTree(ABC):
    """A rule over what this router sent before; `_pick` is the rule."""

    def __init__(
        self,
        *,
        cache_threshold: Share = 0.3,
        balance_absolute: NotNegative = 64,
        balance_relative: AtLeastOne = 1.5,
        tree_blocks_max: Count = TREE_BLOCKS_MAX,
    ) -> None:
        self._cache_threshold = cache_threshold
        self._balance_absolute = balance_absolute
        self._balance_relative = balance_relative
        self.tree = Remembered(tree_blocks_max)

    def choose(self, question: Question, random: Random) -> list[Plan]:
        """The worker that the rule picks; decode workers: the fewest requests."""
        return place(question, lambda workers: self._pick(question, workers), pick_decode=fewest_requests(question))

    def observe(self, event: Event, commands: Sequence[Command], now: float) -> None:
        """Remember what was sent to whom, and forget who is gone."""
        for worker in gone(event, commands):
            self.tree.forget(worker)
        for decision in sent(commands):
            self.tree.sent(decision.plan.prefill, decision.request.block_keys)

    @abstractmethod
    def _pick(self, question: Question, workers: Sequence[WorkerState]) -> WorkerState:
        """One of the workers that may compute the prompt."""

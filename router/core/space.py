"""What a place in a cache is worth: who puts blocks in pushes others out, which somebody may want again.

Blocks that were pushed out are remembered for a while by their keys alone. Of those, some are asked for again when
nobody holds them any more: that share is what a place saves, in tokens of computation per token. Copies of what others
hold take places as everything does, which is why they are not free even where bytes are.

Rule 1: only workers that evict have a price; a cache with room gives places away.
Rule 2: what was regretted and what was evicted fade together, so that their ratio follows the workload.
Rule 3: bounded: at most `GHOSTS_MAX` keys are remembered, the oldest go first.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from .types import BlockKey, WorkerId

GHOSTS_MAX: Final = 65_536
FADE_BLOCKS: Final = 16_384
"""After so many evicted blocks, both counts are halved."""
EVICTS_FOR_S: Final = 120.0
"""A worker counts as full for so long after its last eviction."""


class CacheSpace:
    """Learns how often what was pushed out is wanted again, and who pushes out."""

    def __init__(self) -> None:
        self._ghosts: OrderedDict[BlockKey, None] = OrderedDict()
        self._regretted_blocks = 0.0
        self._evicted_blocks = 0.0
        self._evicted_s: dict[WorkerId, float] = {}

    def __len__(self) -> int:
        """How many evicted blocks are remembered."""
        return len(self._ghosts)

    def evicted(self, worker: WorkerId, keys: Iterable[BlockKey], now: float) -> None:
        """A worker pushed these out."""
        self._evicted_s[worker] = now
        ghosts = self._ghosts
        for key in keys:
            ghosts[key] = None
            self._evicted_blocks += 1
        while len(ghosts) > GHOSTS_MAX:
            ghosts.popitem(last=False)
        if self._evicted_blocks > FADE_BLOCKS:
            self._evicted_blocks /= 2
            self._regretted_blocks /= 2

    def wanted(self, keys: Iterable[BlockKey]) -> None:
        """A prompt wants these blocks, and nobody holds them."""
        ghosts = self._ghosts
        if not ghosts:
            return
        for key in keys:
            if key in ghosts:
                del ghosts[key]
                self._regretted_blocks += 1

    def left(self, worker: WorkerId) -> None:
        """A worker is gone."""
        self._evicted_s.pop(worker, None)

    def uses_per_token(self, worker: WorkerId, now: float) -> float:
        """How many tokens of computation a token's place on this worker saves."""
        evicted_s = self._evicted_s.get(worker)
        if evicted_s is None or now - evicted_s > EVICTS_FOR_S or not self._evicted_blocks:
            return 0.0
        return min(1.0, self._regretted_blocks / self._evicted_blocks)

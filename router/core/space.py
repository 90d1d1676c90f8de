"""What a place in a cache is worth: who puts blocks in pushes others out, which somebody would have used again.

A worker whose cache is full evicts a block for each that it takes in. What was taken in so far has been used again
`hits / inserted` times per token, so that a token's place saves that many tokens of computation, on average. A copy of
what others hold already takes a place as everything does, which is why copies are not free even where bytes are.

Rule 1: only workers that evict have a price; an empty cache gives places away.
Rule 2: hits and insertions fade together, so that their ratio follows the workload.
"""

from typing import Final

from .types import WorkerId

FADE_TOKENS: Final = 4_000_000
"""After so many inserted tokens, both counts are halved."""
EVICTS_FOR_S: Final = 120.0
"""A worker counts as full for so long after its last eviction."""


class CacheSpace:
    """Learns how often what is cached is used again, and who evicts."""

    def __init__(self) -> None:
        self._hit_tokens = 0.0
        self._inserted_tokens = 0.0
        self._evicted_s: dict[WorkerId, float] = {}

    def hit(self, tokens: int) -> None:
        """So many tokens of a prompt came out of a cache."""
        self._hit_tokens += tokens

    def inserted(self, tokens: int) -> None:
        """So many were put into one."""
        self._inserted_tokens += tokens
        if self._inserted_tokens > FADE_TOKENS:
            self._inserted_tokens /= 2
            self._hit_tokens /= 2

    def evicted(self, worker: WorkerId, now: float) -> None:
        """A worker pushed something out."""
        self._evicted_s[worker] = now

    def left(self, worker: WorkerId) -> None:
        """A worker is gone."""
        self._evicted_s.pop(worker, None)

    def uses_per_token(self, worker: WorkerId, now: float) -> float:
        """How many tokens of computation a token's place on this worker saves."""
        evicted_s = self._evicted_s.get(worker)
        if evicted_s is None or now - evicted_s > EVICTS_FOR_S or not self._inserted_tokens:
            return 0.0
        return self._hit_tokens / self._inserted_tokens

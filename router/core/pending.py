"""Prefixes that are being computed: who will hold them soon, so that siblings wait for one computation.

A request that was dispatched will leave its prompt's blocks on its prefill worker. Until it has, the index does not
know; here it stands, from the dispatch until the prefill is over, however it ends.

Rule 1: what stands here is a promise of blocks, not blocks: they can be counted on by who is computed behind it on the
same worker, and moved by nobody.
Rule 2: bounded: one entry per request in flight.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from .types import BlockKey, RequestId, WorkerId


@dataclass(frozen=True, slots=True)
class _Pending:
    worker: WorkerId
    keys: tuple[BlockKey, ...]
    first: int
    """The first block that is computed: the worker holds those before it already."""
    end: int


class PendingPrefixes:
    """The prompts that workers were told to compute and have not been seen to have computed."""

    def __init__(self) -> None:
        self._pending: dict[RequestId, _Pending] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def begin(self, request: RequestId, worker: WorkerId, keys: tuple[BlockKey, ...], first: int, end: int) -> None:
        """A worker is told to compute blocks `[first, end)` of a prompt with these keys."""
        if first < end:
            self._pending[request] = _Pending(worker, keys, first, end)

    def end(self, request: RequestId) -> None:
        """The prefill is over: the blocks are there, or never will be. Unknown requests are no error."""
        self._pending.pop(request, None)

    def coming(self, keys: tuple[BlockKey, ...]) -> Iterator[tuple[WorkerId, int]]:
        """Workers that are computing a prefix of this prompt, and how many of its leading blocks they will hold.

        Runtime complexity: O(pending), and O(log blocks) for each that shares a prefix.
        """
        length = len(keys)
        for pending in self._pending.values():
            first = pending.first
            if first < length and keys[first] == pending.keys[first]:
                yield pending.worker, _common(keys, pending.keys, first + 1, min(length, pending.end))


def _common(keys: tuple[BlockKey, ...], others: tuple[BlockKey, ...], low: int, high: int) -> int:
    """How long the common prefix is, known to be at least `low` and at most `high`: chained keys part only once."""
    while low < high:
        middle = (low + high) // 2
        if keys[middle] == others[middle]:
            low = middle + 1
        else:
            high = middle
    return low

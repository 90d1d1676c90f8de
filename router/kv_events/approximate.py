"""What an engine without events probably holds: what was sent there, as long as there was room.

Rule 1: a prompt that is sent is held. When there are more blocks than fit, the ones used least recently go, and of one
prompt the last block first: that is how engines evict (vLLM, "Automatic Prefix Caching", gives a request's blocks back
in reverse). So a block never outlives the one before it.
Rule 2: an engine's answer says how many tokens of the prompt it had cached (`usage.prompt_tokens_details`). Blocks that
were believed there and were not had been evicted, and so had been all below them; those go. What was sent after the
request may have brought them back, and what is still being computed was never believed: both stay.
Rule 3: every such surprise lowers the capacity believed in by a tenth, every answer that agrees raises it by a
hundredth, never above what the engine has. An engine that caches nothing is soon believed to hold nothing.
Rule 4: all of it is a guess: trust is DEGRADED, always.
"""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from ..core.types import BlockKey, Tier, Trust, WorkerId
from .writer import CacheEvent, EventWriter

SHRINK = 0.9
GROW = 1.01


class _Node:
    """A block that is believed to be held. `known_s` is when an answer first showed that it was computed."""

    __slots__ = ("children", "known_s", "parent", "used_s")

    def __init__(self, parent: BlockKey | None, used_s: float) -> None:
        self.parent = parent
        self.children: set[BlockKey] = set()
        self.used_s = used_s
        self.known_s: float | None = None

    def is_known(self, by_s: float) -> bool:
        return self.known_s is not None and self.known_s < by_s


class ApproximateCache:
    """The guess for one worker. Methods return the router's events: `sent`, `confirmed`, `clear`."""

    trust = Trust.DEGRADED

    def __init__(self, worker: WorkerId, kv_blocks_max: int, block_tokens: int) -> None:
        assert kv_blocks_max > 0 and block_tokens > 0, (kv_blocks_max, block_tokens)
        self.surprises = 0
        """Answers that said less than was believed; only grows."""
        self._worker = worker
        self._blocks_max = kv_blocks_max
        self._block_tokens = block_tokens
        self._capacity = float(kv_blocks_max)
        self._nodes: OrderedDict[BlockKey, _Node] = OrderedDict()
        """Least recently used first, and a block always before its parent."""

    def __len__(self) -> int:
        """How many blocks are believed to be held."""
        return len(self._nodes)

    @property
    def capacity_blocks(self) -> int:
        """How many blocks the engine is believed to keep."""
        return int(self._capacity)

    def sent(self, keys: Sequence[BlockKey], now: float) -> list[CacheEvent]:
        """A prompt, named by the keys of its full blocks, goes to the engine. Runtime complexity: O(blocks)."""
        out = EventWriter(self._worker)
        kept = keys[: self.capacity_blocks]
        for parent, key in pairwise((None, *kept)):
            assert key is not None
            node = self._nodes.get(key)
            if node is None:
                self._nodes[key] = _Node(parent, now)
                if parent is not None:
                    self._nodes[parent].children.add(key)
                out.stored(Tier.DEVICE, key, parent)
            else:
                node.used_s = now
        for key in reversed(kept):
            self._nodes.move_to_end(key)
        self._evict(out)
        return out.take()

    def confirmed(
        self, keys: Sequence[BlockKey], cached_tokens: int, dispatched_s: float, now: float
    ) -> list[CacheEvent]:
        """An engine answered a prompt that was sent at `dispatched_s`: it had `cached_tokens` of it then.

        The last block of a prompt says nothing: engines compute the last token anew, and with it its block.
        """
        out = EventWriter(self._worker)
        cached_blocks = cached_tokens // self._block_tokens
        believed = self._believed(keys, dispatched_s)
        if cached_blocks < min(believed, len(keys) - 1):
            self.surprises += 1
            self._drop_below(keys[cached_blocks], frozenset(keys), dispatched_s, out)
            self._capacity *= SHRINK
        elif believed or cached_blocks:
            grown = max(self._capacity * GROW, float(cached_blocks))
            self._capacity = min(float(self._blocks_max), grown)
        for key in keys:
            node = self._nodes.get(key)
            if node is not None and node.known_s is None:
                node.known_s = now
        self._evict(out)
        return out.take()

    def clear(self) -> list[CacheEvent]:
        """The engine restarted: nothing is held, and its capacity is what it says."""
        self._nodes.clear()
        self._capacity = float(self._blocks_max)
        out = EventWriter(self._worker)
        out.cleared()
        return out.take()

    def _believed(self, keys: Sequence[BlockKey], at_s: float) -> int:
        """How many leading blocks were known to be computed at a time and are still believed in."""
        for depth, key in enumerate(keys):
            node = self._nodes.get(key)
            if node is None or not node.is_known(at_s):
                return depth
        return len(keys)

    def _drop_below(self, key: BlockKey, path: frozenset[BlockKey], dispatched_s: float, out: EventWriter) -> None:
        """Rule 2: deepest first, and no block whose child stays."""
        below = [key]
        for one in below:
            below += sorted(self._nodes[one].children)
        for one in reversed(below):
            node = self._nodes[one]
            stays = one in path or node.used_s > dispatched_s or not node.is_known(dispatched_s)
            if not stays and not node.children:
                self._drop(one, out)

    def _evict(self, out: EventWriter) -> None:
        while len(self._nodes) > self.capacity_blocks:
            self._drop(next(iter(self._nodes)), out)

    def _drop(self, key: BlockKey, out: EventWriter) -> None:
        node = self._nodes.pop(key)
        if node.parent is not None:
            self._nodes[node.parent].children.discard(key)
        out.removed(Tier.DEVICE, key)

    def check(self) -> None:
        """Assert every invariant. Runtime complexity: O(blocks)."""
        seen: set[BlockKey] = set()
        for key, node in self._nodes.items():
            assert node.children <= seen, f"block {key:#x} would be evicted before its child"
            assert node.parent is None or key in self._nodes[node.parent].children
            assert all(self._nodes[child].parent == key for child in node.children)
            seen.add(key)
        assert len(self._nodes) <= self.capacity_blocks <= self._blocks_max

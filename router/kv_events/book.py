"""One engine's cache, from the engine's hashes to the router's keys.

Rule 1: a block's key comes from its tokens and its parent's key; the engine's hash only says which block is meant.
Rule 2: a block is held at a place as often as it was stored there less as often as it was removed: engines keep copies
and announce them apart. A tier holds a key while any of its places holds a block of that key, and what is told are the
changes of that. So nothing that is told contradicts itself, and the index equals the replay (I10).
Rule 3: the router's block is the engine's block. On the device another size is an error; in lower tiers, where
connectors keep chunks of their own, it is left out and counted.
Rule 4: a block below a parent that is not known is an orphan: it has no key until its parent gets one. Orphans are
bounded, the oldest goes first.
Rule 5: a block of more than text (rule 4 of `decode`) has no key, and none below it has.
Rule 6: a block that no place holds is forgotten, at the end of the batch that removed it: what an engine drops on its
device and names in its host memory in one step is still known. Blocks are bounded too, because some stores never tell
what they drop.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ..core.blocks import TOKEN_BYTES, block_keys, group_seed
from ..core.types import BlockKey, Tier, WorkerId
from .events import EngineBatch, EngineCleared, EngineHash, EngineRemoved, EngineStored, KvEventError, Place
from .places import Groups, Places, natural_tier
from .writer import CacheEvent, EventWriter

_COUNT_BITS = 32
_COUNT_MASK = (1 << _COUNT_BITS) - 1


@dataclass(slots=True)
class BookCounts:
    """What was left out, and why; all only grow."""

    unknown_removed: int = 0
    """Removals of blocks that were not held."""
    unknown_named: int = 0
    """Blocks that were only named and were not known."""
    other_groups: int = 0
    """Blocks of KV cache groups that are no prefixes."""
    other_media: int = 0
    """Blocks at places that are unknown."""
    other_sizes: int = 0
    """Blocks of another size in lower tiers."""
    not_text: int = 0
    """Blocks of more than text."""
    orphans_dropped: int = 0
    """Orphans that gave way to younger ones."""
    forgotten: int = 0
    """Blocks that gave way because there were too many."""


class _Block:
    """A block that a place holds. Without a key it is more than text. `copies` counts per place, 32 bits each."""

    __slots__ = ("copies", "key", "parent_key", "seed")

    def __init__(self, key: BlockKey | None, parent_key: BlockKey | None, seed: int) -> None:
        self.key = key
        self.parent_key = parent_key
        self.seed = seed
        self.copies = 0

    def copies_at(self, place: int) -> int:
        return self.copies >> (place * _COUNT_BITS) & _COUNT_MASK


class _Orphan(_Block):
    """A block whose parent is not known yet, and the tokens it will get its key from."""

    __slots__ = ("packed_tokens", "waits_for")

    def __init__(self, waits_for: EngineHash, packed_tokens: bytes) -> None:
        super().__init__(None, None, 0)
        self.waits_for = waits_for
        self.packed_tokens = packed_tokens


class CacheBook:
    """The cache of one worker: batches of its engine in, the router's events out.

    Methods: `apply`, `clear`, `len()`, `orphans`, `check`; `counts` is for metrics.
    """

    def __init__(
        self,
        worker: WorkerId,
        block_tokens: int,
        *,
        merge_host: bool = False,
        orphans_max: int = 16_384,
        blocks_max: int = 1_000_000,
    ) -> None:
        self.counts = BookCounts()
        self._worker = worker
        self._block_tokens = block_tokens
        self._merge_host = merge_host
        self._orphans_max = orphans_max
        self._blocks_max = blocks_max
        self._forget_all()

    def _forget_all(self) -> None:
        self._places = Places(merge_host=self._merge_host)
        self._groups = Groups()
        self._blocks: dict[EngineHash, _Block] = {}
        self._held: dict[Tier, dict[BlockKey, int]] = {tier: {} for tier in Tier}
        self._orphans: dict[EngineHash, None] = {}
        self._waiting: dict[EngineHash, dict[EngineHash, None]] = {}
        self._unheld: dict[EngineHash, None] = {}

    def __len__(self) -> int:
        """How many blocks the engine holds, of whatever kind, as far as is known."""
        return len(self._blocks)

    @property
    def orphans(self) -> int:
        """How many of them wait for their parent."""
        return len(self._orphans)

    def apply(self, batch: EngineBatch) -> list[CacheEvent]:
        """What a batch changes. Raises KvEventError when it cannot be used; the book has to be cleared then."""
        out = EventWriter(self._worker)
        for event in batch.events:
            match event:
                case EngineStored():
                    self._stored(event, out)
                case EngineRemoved():
                    self._removed(event, out)
                case EngineCleared():
                    self._forget_all()
                    out.cleared()
        self._forget_unheld()
        self._keep_bounds(out)
        return out.take()

    def clear(self) -> list[CacheEvent]:
        """Forget everything."""
        self._forget_all()
        out = EventWriter(self._worker)
        out.cleared()
        return out.take()

    def _stored(self, event: EngineStored, out: EventWriter) -> None:
        self._groups.learn(event)
        if not self._groups.speaks_of_prefixes(event.group, event.kind):
            self.counts.other_groups += len(event.hashes)
            return
        place = self._places.number(event.place)
        if place is None:
            self.counts.other_media += len(event.hashes)
        elif event.names_only:
            self._store_named(event.hashes, place, out)
        elif self._fits(event):
            parent = event.parent
            for index, name in enumerate(event.hashes):
                block = self._blocks.get(name)
                if block is None:
                    block = self._add(name, parent, event, index)
                self._hold(block, place, out)
                if name in self._waiting and not isinstance(block, _Orphan):
                    self._adopt(name, out)
                parent = name

    def _store_named(self, names: tuple[EngineHash, ...], place: int, out: EventWriter) -> None:
        for name in names:
            block = self._blocks.get(name)
            if block is None:
                self.counts.unknown_named += 1
            else:
                self._hold(block, place, out)

    def _fits(self, event: EngineStored) -> bool:
        """Rule 3."""
        if event.block_tokens != self._block_tokens:
            if natural_tier(event.place) is Tier.DEVICE:
                raise KvEventError(
                    f"{self._worker}: the engine's blocks have {event.block_tokens} tokens, the router counts in "
                    f"blocks of {self._block_tokens}: give the worker block_tokens: {event.block_tokens}"
                )
            self.counts.other_sizes += len(event.hashes)
            return False
        if not event.is_whole:
            raise KvEventError(
                f"{self._worker}: BlockStored has {len(event.hashes)} blocks of {event.block_tokens} tokens and "
                f"{len(event.packed_tokens) // TOKEN_BYTES} token_ids: it must have all tokens of its blocks"
            )
        return True

    def _add(self, name: EngineHash, parent: EngineHash | None, event: EngineStored, index: int) -> _Block:
        """Make a block that is not known, with its key if it has one."""
        size = self._block_tokens * TOKEN_BYTES
        packed = event.packed_tokens[index * size : (index + 1) * size]
        above = None if parent is None else self._blocks.get(parent)
        block: _Block
        if index >= event.text_blocks:
            block = _Block(None, None, 0)
        elif parent is None:
            seed = group_seed(lora=event.lora, tenant_salt=event.salt)
            block = _Block(block_keys(packed, self._block_tokens, seed=seed)[0], None, seed)
        elif above is None or isinstance(above, _Orphan):
            block = _Orphan(parent, packed)
            self._orphans[name] = None
            self._waiting.setdefault(parent, {})[name] = None
        else:
            block = self._below(above, packed)
        if block.key is None and not isinstance(block, _Orphan):
            self.counts.not_text += 1
        self._blocks[name] = block
        return block

    def _below(self, above: _Block, packed: bytes) -> _Block:
        if above.key is None:
            return _Block(None, None, 0)
        key = block_keys(packed, self._block_tokens, seed=above.seed, parent=above.key)[0]
        return _Block(key, above.key, above.seed)

    def _adopt(self, name: EngineHash, out: EventWriter) -> None:
        """A block that orphans wait for is known: they get their keys, and so do those that wait for them."""
        pending = [name]
        while pending:
            known = pending.pop()
            for child in self._waiting.pop(known, ()):
                orphan = self._blocks[child]
                assert isinstance(orphan, _Orphan), child
                del self._orphans[child]
                block = self._blocks[child] = self._below(self._blocks[known], orphan.packed_tokens)
                block.copies = orphan.copies
                self.counts.not_text += block.key is None
                for tier in self._tiers_of(block):
                    self._count_up(tier, block, out)
                pending.append(child)

    def _removed(self, event: EngineRemoved, out: EventWriter) -> None:
        if not self._groups.speaks_of_prefixes(event.group):
            self.counts.other_groups += len(event.hashes)
            return
        places = range(len(self._places)) if event.place is None else self._places_of(event.place)
        for name in event.hashes:
            block = self._blocks.get(name)
            held = [place for place in places if block is not None and block.copies_at(place)]
            if block is None or not held:
                self.counts.unknown_removed += 1
                continue
            for place in held:
                self._drop(block, place, out)
            if not block.copies:
                self._unheld[name] = None

    def _places_of(self, place: Place) -> range:
        number = self._places.number(place)
        return range(0) if number is None else range(number, number + 1)

    def _hold(self, block: _Block, place: int, out: EventWriter) -> None:
        block.copies += 1 << (place * _COUNT_BITS)
        if block.copies_at(place) == 1:
            self._count_up(self._places.tier(place), block, out)

    def _drop(self, block: _Block, place: int, out: EventWriter) -> None:
        block.copies -= 1 << (place * _COUNT_BITS)
        if not block.copies_at(place):
            self._count_down(self._places.tier(place), block, out)

    def _count_up(self, tier: Tier, block: _Block, out: EventWriter) -> None:
        if block.key is None:
            return
        held = self._held[tier]
        held[block.key] = held.get(block.key, 0) + 1
        if held[block.key] == 1:
            out.stored(tier, block.key, block.parent_key)

    def _count_down(self, tier: Tier, block: _Block, out: EventWriter) -> None:
        if block.key is None:
            return
        held = self._held[tier]
        held[block.key] -= 1
        if not held[block.key]:
            del held[block.key]
            out.removed(tier, block.key)

    def _forget_unheld(self) -> None:
        """Rule 6."""
        for name in self._unheld:
            if not self._blocks[name].copies:
                self._forget(name)
        self._unheld.clear()

    def _forget(self, name: EngineHash) -> None:
        block = self._blocks.pop(name)
        if isinstance(block, _Orphan):
            del self._orphans[name]
            siblings = self._waiting[block.waits_for]
            del siblings[name]
            if not siblings:
                del self._waiting[block.waits_for]

    def _keep_bounds(self, out: EventWriter) -> None:
        while len(self._orphans) > self._orphans_max:
            self._forget(next(iter(self._orphans)))
            self.counts.orphans_dropped += 1
        while len(self._blocks) > self._blocks_max:
            name, block = next(iter(self._blocks.items()))
            for tier in self._tiers_of(block):
                self._count_down(tier, block, out)
            self._forget(name)
            self.counts.forgotten += 1

    def _tiers_of(self, block: _Block) -> Iterator[Tier]:
        """The tier of every place that holds a block, a tier of two places twice."""
        return (self._places.tier(place) for place in range(len(self._places)) if block.copies_at(place))

    def check(self) -> None:
        """Assert every invariant of the book. Runtime complexity: O(blocks)."""
        held: dict[Tier, dict[BlockKey, int]] = {tier: {} for tier in Tier}
        for name, block in self._blocks.items():
            assert block.copies, f"block {name!r} is held nowhere"
            assert isinstance(block, _Orphan) == (name in self._orphans)
            if isinstance(block, _Orphan):
                assert name in self._waiting[block.waits_for]
                above = self._blocks.get(block.waits_for)
                assert above is None or isinstance(above, _Orphan), f"the parent of {name!r} is known"
            elif block.key is not None:
                for tier in self._tiers_of(block):
                    held[tier][block.key] = held[tier].get(block.key, 0) + 1
        assert held == self._held, "a tier's keys are miscounted"
        assert sum(map(len, self._waiting.values())) == len(self._orphans) and all(self._waiting.values())
        assert not self._unheld
        assert len(self._orphans) <= self._orphans_max and len(self._blocks) <= self._blocks_max

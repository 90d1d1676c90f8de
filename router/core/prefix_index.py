"""Who holds which prefix: a hash map of chained keys to sets of holders, exact at every moment.

A chained key stands for a whole prefix, so no radix tree is needed: the map says who holds block `i`, and a bit set of
holder numbers (one Python integer) is intersected where a tree would be walked.

If a holder has block `i` it has every block before it, unless an eviction tore a hole. As long as a holder has no torn
block, "holds block i" is monotone in `i` and the depth is found by binary search, for all such holders at once. Holders
with torn blocks are walked block by block. Both are exact; `check()` and the property tests hold them to a naive model.

Rule 1: the index equals the replay of the events (I10). It guesses nothing and ages nothing.
Rule 2: an event that is heard twice changes nothing the second time.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from .errors import EventError
from .types import BlockKey


class _Node:
    """One block. `parent_known` is false while only a child has spoken of this block.

    Nearly every block has one child, so the first is kept apart and a set is made only for its siblings.
    """

    __slots__ = ("_child", "_siblings", "holders", "key", "parent", "parent_known")

    def __init__(self, key: BlockKey) -> None:
        self.key = key
        self.parent: _Node | None = None
        self.parent_known = False
        self.holders = 0
        self._child: _Node | None = None
        self._siblings: set[_Node] | None = None

    @property
    def is_dead(self) -> bool:
        """Whether nobody has this block or speaks of it as a parent."""
        return not self.holders and self._child is None and not self._siblings

    def add_child(self, child: "_Node") -> None:
        if self._child is None:
            self._child = child
        elif self._siblings is None:
            self._siblings = {child}
        else:
            self._siblings.add(child)

    def remove_child(self, child: "_Node") -> None:
        if self._child is child:
            self._child = None
        elif self._siblings is not None:
            self._siblings.discard(child)

    def children(self) -> Iterator["_Node"]:
        if self._child is not None:
            yield self._child
        if self._siblings:
            yield from self._siblings

    def is_above(self, other: "_Node") -> bool:
        """Whether `other` is this block or below it; a block without children has only itself to ask about."""
        if self._child is None and not self._siblings:
            return other is self
        walked: _Node | None = other
        while walked is not None and walked is not self:
            walked = walked.parent
        return walked is self

    def children_of(self, holder_bit: int) -> int:
        """How many children a holder has."""
        if self._siblings is None:
            return 1 if self._child is not None and self._child.holders & holder_bit else 0
        return sum(1 for child in self.children() if child.holders & holder_bit)


@dataclass(frozen=True, slots=True)
class Level:
    """The holders (a bit set) that have exactly the first `depth` blocks of a prompt."""

    depth: int
    holders: int


class PrefixIndex:
    """The global index of cached prefixes.

    Holders are small integers that the caller hands out (bit positions). Methods by purpose:

    * telling: `stored`, `removed`, `cleared`
    * asking: `match`, `holds`, `blocks_of`, `torn_blocks_of`, `len()`
    * truth: `check`
    """

    def __init__(self) -> None:
        self._nodes: dict[BlockKey, _Node] = {}
        self._blocks: dict[int, set[BlockKey]] = {}
        self._torn: dict[int, int] = {}
        self._torn_mask = 0

    def __len__(self) -> int:
        """How many (holder, block) pairs are known."""
        return sum(len(keys) for keys in self._blocks.values())

    def stored(self, holder: int, keys: Iterable[BlockKey], parent: BlockKey | None = None) -> None:
        """Holder now has `keys`, a chain below `parent` (None: the first is a prompt's first block).

        Runtime complexity: O(number of keys). Raises EventError when a key was known under another parent, or would
        be its own ancestor: two prefixes cannot have one key, so one of the tellers is wrong.

        >>> index = PrefixIndex()
        >>> index.stored(0, [BlockKey(7), BlockKey(8)])
        >>> index.match([BlockKey(7), BlockKey(8), BlockKey(9)])
        [Level(depth=2, holders=1)]
        """
        above = None if parent is None else self._node(parent)
        nodes, bit = self._nodes, 1 << holder
        held = self._blocks.setdefault(holder, set())
        torn = 0
        try:
            for key in keys:
                node = nodes.get(key)
                if node is None:
                    node = nodes[key] = _Node(key)
                    node.parent_known = True
                    node.parent = above
                    if above is not None:
                        above.add_child(node)
                elif not node.parent_known or node.parent is not above:
                    self._attach(node, above)
                if not node.holders & bit:
                    torn += (above is not None and not above.holders & bit) - node.children_of(bit)
                    node.holders |= bit
                    held.add(key)
                above = node
        finally:
            if torn:
                self._set_torn(holder, self._torn.get(holder, 0) + torn)
        if above is not None and above.is_dead:
            self._prune(above)

    def removed(self, holder: int, keys: Iterable[BlockKey]) -> None:
        """Holder no longer has `keys`; unknown ones are ignored. Runtime complexity: O(keys and their children)."""
        held = self._blocks.get(holder)
        if held is None:
            return
        nodes, bit = self._nodes, 1 << holder
        torn = 0
        for key in keys:
            if key in held:
                held.discard(key)
                node = nodes[key]
                parent = node.parent
                torn += node.children_of(bit) - (parent is not None and not parent.holders & bit)
                node.holders ^= bit
                if not node.holders:
                    self._prune(node)
        if torn:
            self._set_torn(holder, self._torn.get(holder, 0) + torn)

    def cleared(self, holder: int) -> int:
        """Holder has nothing; returns how many blocks that were. Runtime complexity: O(its blocks)."""
        held = self._blocks.pop(holder, set())
        bit = 1 << holder
        for key in held:
            self._nodes[key].holders &= ~bit
        self._set_torn(holder, 0)
        for key in held:
            node = self._nodes.get(key)
            if node is not None:
                self._prune(node)
        return len(held)

    def match(self, keys: Sequence[BlockKey], among: int = -1) -> list[Level]:
        """How many leading blocks of a prompt each holder has, deepest first; holders of none are not listed.

        `among` is the bit set of holders that count. Runtime complexity: O(d log keys) for d different depths, and
        O(keys) when a holder with torn blocks has the first one.
        """
        if not keys:
            return []
        present = self._holders(keys[0]) & among
        whole = present & ~self._torn_mask
        depths: dict[int, int] = {}
        if whole:
            self._search(keys, 0, len(keys), whole, depths)
        torn = present & self._torn_mask
        if torn:
            self._walk(keys, torn, depths)
        return [Level(depth, depths[depth]) for depth in sorted(depths, reverse=True)]

    def holds(self, holder: int, key: BlockKey) -> bool:
        """Whether holder has this block, whatever is before it."""
        return key in self._blocks.get(holder, ())

    def blocks_of(self, holder: int) -> int:
        """How many blocks holder has."""
        return len(self._blocks.get(holder, ()))

    def torn_blocks_of(self, holder: int) -> int:
        """How many of holder's blocks lack the block before them."""
        return self._torn.get(holder, 0)

    def check(self) -> None:
        """Assert every invariant of the structure. Runtime complexity: O(n)."""
        torn: dict[int, int] = {}
        for key, node in self._nodes.items():
            assert node.key == key
            assert not node.is_dead, f"block {key:#x} has neither holder nor child"
            assert all(child.parent is node for child in node.children())
            assert node.parent is None or (node.parent_known and node in node.parent.children())
            above = -1 if node.parent is None else node.parent.holders
            for holder in iter_bits(node.holders):
                assert key in self._blocks[holder]
                torn[holder] = torn.get(holder, 0) + (not above >> holder & 1)
        assert sum(node.holders.bit_count() for node in self._nodes.values()) == len(self)
        assert {h: n for h, n in torn.items() if n} == self._torn, "torn blocks are miscounted"
        assert set(iter_bits(self._torn_mask)) == set(self._torn)

    def _node(self, key: BlockKey) -> _Node:
        node = self._nodes.get(key)
        if node is None:
            node = self._nodes[key] = _Node(key)
        return node

    def _holders(self, key: BlockKey) -> int:
        node = self._nodes.get(key)
        return 0 if node is None else node.holders

    def _attach(self, node: _Node, above: _Node | None) -> None:
        if node.parent_known:
            if node.parent is not above:
                raise self._contradiction(node, above)
            return
        if above is not None and node.is_above(above):
            raise self._contradiction(node, above)
        node.parent_known = True
        node.parent = above
        if above is not None:
            above.add_child(node)

    def _contradiction(self, node: _Node, above: _Node | None) -> EventError:
        if not node.parent_known:
            known = "not its own descendant"
        else:
            known = "none" if node.parent is None else f"{node.parent.key:#x}"
        told = "none" if above is None else f"{above.key:#x}"
        if above is not None:
            self._prune(above)
        return EventError(f"block {node.key:#x}: its parent is {known}, an event says {told}")

    def _set_torn(self, holder: int, count: int) -> None:
        if count:
            self._torn[holder] = count
            self._torn_mask |= 1 << holder
        else:
            self._torn.pop(holder, None)
            self._torn_mask &= ~(1 << holder)

    def _prune(self, node: _Node | None) -> None:
        while node is not None and node.is_dead:
            if self._nodes.pop(node.key, None) is None:
                return
            if node.parent is not None:
                node.parent.remove_child(node)
            node = node.parent

    def _search(self, keys: Sequence[BlockKey], low: int, high: int, holders: int, depths: dict[int, int]) -> None:
        """`holders` have block `low`; none is known to have block `high`. Depth is where each one stops."""
        pending = [(low, high, holders)]
        while pending:
            low, high, holders = pending.pop()
            if high - low == 1:
                depths[high] = depths.get(high, 0) | holders
                continue
            middle = (low + high) // 2
            further = self._holders(keys[middle]) & holders
            if further:
                pending.append((middle, high, further))
            if further != holders:
                pending.append((low, middle, holders & ~further))

    def _walk(self, keys: Sequence[BlockKey], holders: int, depths: dict[int, int]) -> None:
        for depth, key in enumerate(keys):
            further = self._holders(key) & holders
            if further != holders:
                depths[depth] = depths.get(depth, 0) | (holders & ~further)
                holders = further
                if not holders:
                    return
        depths[len(keys)] = depths.get(len(keys), 0) | holders


def iter_bits(bits: int) -> Iterator[int]:
    """The positions of the set bits, smallest first.

    >>> list(iter_bits(0b10110))
    [1, 2, 4]
    """
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest

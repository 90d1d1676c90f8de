"""I10: the index equals the replay of the events, held to a model that anybody can check by eye."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from homing.router.core.errors import EventError
from homing.router.core.prefix_index import Level, PrefixIndex
from homing.router.core.types import BlockKey

from .fleets import chain

HOLDERS = 4
BLOCKS = 14
holders = st.integers(0, HOLDERS - 1)
blocks = st.integers(0, BLOCKS - 1)


class NaiveIndex:
    """A set of blocks per holder, and a walk."""

    def __init__(self):
        self.held = {holder: set() for holder in range(HOLDERS)}

    def depth(self, holder, keys):
        for position, key in enumerate(keys):
            if key not in self.held[holder]:
                return position
        return len(keys)


class IndexMachine(RuleBasedStateMachine):
    """A forest of prompts, told in pieces by holders who evict what they please."""

    @initialize(parents=st.lists(st.integers(-1, BLOCKS - 2), min_size=BLOCKS, max_size=BLOCKS))
    def plant(self, parents):
        # Block i's parent is an earlier block, or none: any forest can be drawn.
        self.parent = {i: (p if p < i and p >= 0 else None) for i, p in enumerate(parents)}
        self.parent = {self.key(i): None if p is None else self.key(p) for i, p in self.parent.items()}
        self.index, self.naive = PrefixIndex(), NaiveIndex()
        self.told, self.alive = {}, set()

    @staticmethod
    def key(block):
        return BlockKey(1000 + block)

    def prompt(self, block):
        path = [self.key(block)]
        while (above := self.parent[path[-1]]) is not None:
            path.append(above)
        return path[::-1]

    def note(self, keys):
        """What is known of parents, until nobody has the block or a block below it."""
        self.told |= {key: self.parent[key] for key in keys}
        self.forget_dead()

    def forget_dead(self):
        alive = set().union(*self.naive.held.values())
        reached = list(alive)
        while reached:
            above = self.told.get(reached.pop())
            if above is not None and above not in alive:
                alive.add(above)
                reached.append(above)
        self.alive = alive
        self.told = {key: above for key, above in self.told.items() if key in alive}

    @rule(holder=holders, block=blocks, first=st.integers(0, BLOCKS), again=st.booleans())
    def store(self, holder, block, first, again):
        """From anywhere in a prompt to anywhere further: beginnings, ends and middles whose parent nobody has."""
        keys = self.prompt(block)[min(first, len(self.prompt(block)) - 1) :]
        for _ in range(1 + again):
            self.index.stored(holder, keys, self.parent[keys[0]])
        self.naive.held[holder] |= set(keys)
        self.note(keys)

    @rule(holder=holders, gone=st.lists(st.integers(0, BLOCKS + 2), max_size=4))
    def remove(self, holder, gone):
        """In any order, with holes, twice, and blocks that nobody ever had."""
        keys = [self.key(block) for block in gone]
        self.index.removed(holder, keys)
        self.naive.held[holder] -= set(keys)
        self.forget_dead()

    @rule(holder=holders)
    def clear(self, holder):
        assert self.index.cleared(holder) == len(self.naive.held[holder])
        self.naive.held[holder] = set()
        self.forget_dead()

    @rule(holder=holders, block=blocks, other=st.integers(-1, BLOCKS + 1), below=st.integers(0, 3))
    def contradict(self, holder, block, other, below):
        """A block that is known under one parent is told under another: refused, and the structure stays sound."""
        key, wrong = self.key(block), None if other < 0 else self.key(other)
        if key not in self.told or self.told[key] == wrong:
            return
        # A few sound blocks before the bad one: they are held until the caller starts over.
        sound = [] if wrong not in self.told else self.prompt(other)[-below:] if below else []
        parent = wrong if not sound else self.parent[sound[0]]
        with pytest.raises(EventError, match=f"block {key:#x}"):
            self.index.stored(holder, [*sound, key], parent)
        self.index.check()
        self.told |= {one: self.parent[one] for one in sound}
        self.clear_after_error(holder)

    @rule(holder=holders, block=blocks, under=blocks)
    def ring(self, holder, block, under):
        """A block below itself: no chain of hashes can make one, and it would never be forgotten."""
        key, below = self.key(block), self.key(under)
        if key in self.told or below not in self.alive | {key} or key not in self.known_path(below):
            return
        with pytest.raises(EventError):
            self.index.stored(holder, [key], below)
        self.index.check()
        self.clear_after_error(holder)

    def known_path(self, key):
        path = [key]
        while (above := self.told.get(path[-1])) is not None:
            path.append(above)
        return path

    def clear_after_error(self, holder):
        self.index.cleared(holder)
        self.naive.held[holder] = set()
        self.forget_dead()

    @rule(block=blocks, unknown=st.integers(0, 2), among=st.integers(-1, 2**HOLDERS - 1))
    def match(self, block, unknown, among):
        keys = [*self.prompt(block), *(BlockKey(i) for i in range(unknown))]
        levels = self.index.match(keys, among)
        assert [level.depth for level in levels] == sorted({level.depth for level in levels}, reverse=True)
        for holder in range(HOLDERS):
            found = [level.depth for level in levels if level.holders >> holder & 1]
            expected = self.naive.depth(holder, keys) if among >> holder & 1 else 0
            assert found == ([expected] if expected else [])

    @invariant()
    def holds_what_was_told(self):
        self.index.check()
        for holder, held in self.naive.held.items():
            assert self.index.blocks_of(holder) == len(held)
            assert all(self.index.holds(holder, key) == (key in held) for key in self.parent)
            torn = [key for key in held if self.told[key] is not None and self.told[key] not in held]
            assert self.index.torn_blocks_of(holder) == len(torn)
        assert len(self.index) == sum(map(len, self.naive.held.values()))
        assert set(self.index._nodes) == self.alive

    def teardown(self):
        """Nothing is left of a fleet that is gone."""
        if hasattr(self, "index"):
            for holder, held in self.naive.held.items():
                self.index.removed(holder, sorted(held, key=lambda key: key * 2654435761 % 97))
                self.index.check()
            assert len(self.index) == 0
            assert not self.index._nodes


TestIndexMachine = IndexMachine.TestCase
TestIndexMachine.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


def test_levels_say_who_has_how_much():
    index, keys = PrefixIndex(), chain(("doc", 6))
    index.stored(0, keys[:2])
    index.stored(1, keys)
    index.stored(2, keys[:2])
    index.stored(3, chain(("other", 3)))
    assert index.match(keys) == [Level(6, 0b0010), Level(2, 0b0101)]
    assert index.match(keys, among=0b1100) == [Level(2, 0b0100)]
    assert index.match([]) == []


def test_a_hole_ends_what_can_be_reused_and_filling_it_heals():
    """Blocks behind a hole are still there: when the hole is filled they count at once."""
    index, keys = PrefixIndex(), chain(("doc", 8))
    index.stored(0, keys)
    index.removed(0, [keys[3]])
    assert index.torn_blocks_of(0) == 1
    assert index.match(keys) == [Level(3, 1)]
    index.stored(0, [keys[3]], keys[2])
    assert index.torn_blocks_of(0) == 0
    assert index.match(keys) == [Level(8, 1)]


def test_a_large_chain_is_forgotten_whole():
    """Bounded memory: a prefix that all holders dropped leaves nothing, however long it was."""
    index, keys = PrefixIndex(), chain(("book", 2000))
    for holder in range(3):
        index.stored(holder, keys)
    for holder in range(3):
        index.removed(holder, keys)
    assert len(index) == 0
    assert not index._nodes


def test_an_event_without_blocks_leaves_nothing_behind():
    index = PrefixIndex()
    index.stored(0, [], parent=BlockKey(5))
    index.check()
    assert not index._nodes


def test_the_last_child_of_a_wide_block_counts():
    """Siblings are kept apart from the first child: each of them tears when the block above goes."""
    index, root = PrefixIndex(), BlockKey(1)
    index.stored(0, [root])
    for child in range(2, 12):
        index.stored(0, [BlockKey(child)], root)
    index.removed(0, [root])
    assert index.torn_blocks_of(0) == 10
    index.removed(0, [BlockKey(child) for child in range(2, 12)])
    assert index.torn_blocks_of(0) == 0
    assert not index._nodes

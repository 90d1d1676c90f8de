"""The store against a naive model: the same keys, the same pins, the same block gives way."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from homing.workers.vllm.store import BlockStore

KEYS = st.integers(0, 12)


class StoreMachine(RuleBasedStateMachine):
    @initialize(blocks=st.integers(1, 6))
    def start(self, blocks):
        self.blocks = blocks
        self.store = BlockStore(blocks)
        self.held: list[int] = []  # least recently used first
        self.filling: set[int] = set()
        self.pins: dict[int, int] = {}
        self.told: set[int] = set()

    def idle(self):
        return [key for key in self.held if not self.pins.get(key)]

    @rule(key=KEYS)
    def reserve(self, key):
        slot = self.store.reserve(key)
        if key in self.held or key in self.filling:
            assert slot is None
        elif len(self.held) + len(self.filling) < self.blocks:
            assert slot is not None
            self.filling.add(key)
        elif self.idle():
            assert slot is not None
            self.held.remove(self.idle()[0])
            self.filling.add(key)
        else:
            assert slot is None

    @precondition(lambda self: self.filling)
    @rule(data=st.data(), pinned=st.booleans())
    def commit(self, data, pinned):
        key = data.draw(st.sampled_from(sorted(self.filling)))
        slot = self.store.slot(key)
        self.store.commit(key, pinned=pinned)
        assert self.store.slot(key) == slot
        self.filling.remove(key)
        self.held.append(key)
        if pinned:
            self.pins[key] = 1

    @precondition(lambda self: self.filling)
    @rule(data=st.data())
    def abort(self, data):
        key = data.draw(st.sampled_from(sorted(self.filling)))
        self.store.abort(key)
        self.filling.remove(key)

    @rule(keys=st.lists(KEYS, max_size=4, unique=True))
    def pin_leading(self, keys):
        leading = keys[: self.store.match(keys)]
        expected = 0
        while expected < len(keys) and keys[expected] in self.held:
            expected += 1
        assert len(leading) == expected
        self.store.pin(leading)
        for key in leading:
            self.pins[key] = self.pins.get(key, 0) + 1

    @precondition(lambda self: any(self.pins.values()))
    @rule(data=st.data())
    def unpin(self, data):
        key = data.draw(st.sampled_from(sorted(k for k, n in self.pins.items() if n)))
        self.store.unpin([key])
        self.pins[key] -= 1
        if not self.pins[key]:
            self.held.remove(key)
            self.held.append(key)

    @rule(keys=st.lists(KEYS, max_size=5, unique=True))
    def touch(self, keys):
        self.store.touch(keys)
        for key in reversed(keys):
            if key in self.idle():
                self.held.remove(key)
                self.held.append(key)

    @rule()
    def clear(self):
        self.store.clear()
        self.held = [key for key in self.held if self.pins.get(key)]

    @rule()
    def tell(self):
        came, went = self.store.take_changes()
        assert set(came) == set(self.held) - self.told
        assert set(went) == self.told - set(self.held)
        self.told = set(self.held)

    @invariant()
    def agrees(self):
        self.store.check()
        assert len(self.store) == len(self.held)
        assert all(key in self.store for key in self.held)
        assert self.store.pinned == sum(1 for count in self.pins.values() if count)


StoreMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestStore = StoreMachine.TestCase


def test_of_a_prompt_the_last_block_gives_way_first():
    store = BlockStore(4)
    for key in (1, 2, 3, 4):
        store.reserve(key)
        store.commit(key)
    store.touch([1, 2, 3, 4])
    store.reserve(9)
    assert [key in store for key in (1, 2, 3, 4)] == [True, True, True, False]

"""What a place in a cache is worth, against a model that keeps a plain list."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homing.router.core import space
from homing.router.core.space import EVICTS_FOR_S, FADE_BLOCKS, GHOSTS_MAX, CacheSpace
from homing.router.core.types import WorkerId

A, B = WorkerId("a"), WorkerId("b")

some_keys = st.lists(st.integers(0, 30), max_size=6)
steps = st.lists(st.tuples(st.sampled_from(["evicted", "evicted", "wanted"]), some_keys), max_size=40)


class Naive:
    """Evicted keys, the oldest first, and two counts that fade."""

    def __init__(self, ghosts_max, fade_blocks):
        self.ghosts, self.evicted_blocks, self.regretted_blocks = [], 0.0, 0.0
        self.ghosts_max, self.fade_blocks = ghosts_max, fade_blocks

    def evicted(self, keys):
        self.evicted_blocks += len(keys)
        self.ghosts += [key for key in dict.fromkeys(keys) if key not in self.ghosts]
        self.ghosts = self.ghosts[-self.ghosts_max :]
        if self.evicted_blocks > self.fade_blocks:
            self.evicted_blocks, self.regretted_blocks = self.evicted_blocks / 2, self.regretted_blocks / 2

    def wanted(self, keys):
        regretted = {key for key in keys if key in self.ghosts}
        self.regretted_blocks += len(regretted)
        self.ghosts = [key for key in self.ghosts if key not in regretted]

    def ratio(self):
        return min(1.0, self.regretted_blocks / self.evicted_blocks) if self.evicted_blocks else 0.0


@given(steps, st.integers(1, 12), st.integers(4, 30))
def test_it_equals_the_model(steps, ghosts_max, fade_blocks):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(space, "GHOSTS_MAX", ghosts_max)
        patch.setattr(space, "FADE_BLOCKS", fade_blocks)
        learned, model, full = CacheSpace(), Naive(ghosts_max, fade_blocks), False
        for what, keys in steps:
            if what == "evicted":
                learned.evicted(A, keys, 0.0)
                model.evicted(keys)
                full = True
            else:
                learned.wanted(keys)
                model.wanted(keys)
            assert len(learned) == len(model.ghosts) <= ghosts_max
            assert learned.uses_per_token(A, 0.0) == pytest.approx(model.ratio() if full else 0.0)


def test_the_share_of_what_is_wanted_again():
    learned = CacheSpace()
    learned.evicted(A, range(100), 0.0)
    learned.wanted(range(80, 500))
    assert learned.uses_per_token(A, 0.0) == 0.2
    learned.wanted(range(80, 500))
    assert learned.uses_per_token(A, 0.0) == 0.2, "what was asked for again is regretted once"


def test_only_who_pushes_out_has_a_price():
    learned = CacheSpace()
    learned.evicted(A, range(10), 5.0)
    learned.wanted(range(10))
    assert learned.uses_per_token(A, 5.0 + EVICTS_FOR_S) == 1.0
    assert learned.uses_per_token(A, 5.1 + EVICTS_FOR_S) == 0.0, "there is room again"
    assert learned.uses_per_token(B, 5.0) == 0.0
    learned.left(A)
    learned.left(A)
    assert learned.uses_per_token(A, 5.0) == 0.0


def test_it_is_bounded():
    learned = CacheSpace()
    learned.evicted(A, range(GHOSTS_MAX + 100), 0.0)
    assert len(learned) == GHOSTS_MAX
    learned.wanted(range(100))
    assert len(learned) == GHOSTS_MAX, "the oldest went first"


def test_it_follows_the_workload():
    """All is regretted at first, and later nothing: after four times as much as is remembered a tenth is left."""
    learned = CacheSpace()
    for first in range(0, FADE_BLOCKS, 64):
        learned.evicted(A, range(first, first + 64), 0.0)
        learned.wanted(range(first, first + 64))
    assert learned.uses_per_token(A, 0.0) > 0.99
    for first in range(FADE_BLOCKS, 5 * FADE_BLOCKS, 64):
        learned.evicted(A, range(first, first + 64), 0.0)
    assert learned.uses_per_token(A, 0.0) < 0.1

"""Guessing what an engine without events holds, against a model of such an engine."""

from collections import OrderedDict
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from homing.router.core.types import Trust
from homing.router.kv_events.approximate import ApproximateCache

from .engines import BLOCK, WORKER, Mirror, keys_of


def cache(blocks=100):
    return ApproximateCache(WORKER, blocks, BLOCK)


def test_what_was_sent_is_held():
    one, mirror = cache(), Mirror()
    mirror.hear(one.sent(keys_of((1, 2, 3)), 0.0))
    mirror.hear(one.sent(keys_of((1, 2, 4)), 1.0))
    assert mirror.held() == set(keys_of((1, 2, 3))) | set(keys_of((1, 2, 4)))
    assert one.sent(keys_of((1, 2, 3)), 2.0) == []
    assert one.trust is Trust.DEGRADED


def test_the_oldest_prompts_last_block_goes_first():
    one, mirror = cache(5), Mirror()
    mirror.hear(one.sent(keys_of((1, 2, 3)), 0.0))
    mirror.hear(one.sent(keys_of((5, 6, 7)), 1.0))
    assert mirror.held() == set(keys_of((1, 2))) | set(keys_of((5, 6, 7)))
    mirror.hear(one.sent(keys_of((1, 2)), 2.0))
    mirror.hear(one.sent(keys_of((8,)), 3.0))
    assert mirror.held() == set(keys_of((1, 2))) | set(keys_of((5, 6))) | set(keys_of((8,)))
    one.check()


def test_a_prompt_longer_than_the_cache_keeps_its_beginning():
    one, mirror = cache(2), Mirror()
    mirror.hear(one.sent(keys_of((1, 2, 3)), 0.0))
    assert mirror.held() == set(keys_of((1, 2)))


def confirmed_chain(one, mirror, path, now, cached_blocks=0):
    mirror.hear(one.sent(keys_of(path), now))
    mirror.hear(one.confirmed(keys_of(path), cached_blocks * BLOCK, now, now + 0.5))


def test_an_answer_that_says_less_takes_the_branches_below():
    """The prompt itself was just computed and is held; what else was below its missing block is gone."""
    one, mirror = cache(), Mirror()
    confirmed_chain(one, mirror, (1, 2, 3, 4), 0.0)
    confirmed_chain(one, mirror, (1, 2, 9), 1.0, cached_blocks=2)
    confirmed_chain(one, mirror, (1, 2, 5, 6), 2.0, cached_blocks=1)
    assert mirror.held() == set(keys_of((1, 2, 5, 6)))
    assert (one.surprises, one.capacity_blocks) == (1, 90)
    confirmed_chain(one, mirror, (1, 2, 5, 6), 3.0, cached_blocks=1)
    assert mirror.held() == set(keys_of((1, 2, 5, 6))), "all of it is computed anew"


def test_what_was_sent_after_the_request_stays():
    one, mirror = cache(), Mirror()
    confirmed_chain(one, mirror, (1, 2, 3), 0.0)
    confirmed_chain(one, mirror, (1, 2, 7), 1.0, cached_blocks=2)
    mirror.hear(one.sent(keys_of((1, 2, 4)), 2.0))
    mirror.hear(one.sent(keys_of((1, 2, 3)), 3.0))
    mirror.hear(one.confirmed(keys_of((1, 2, 4)), 0, 2.0, 4.0))
    assert mirror.held() == set(keys_of((1, 2, 3))) | set(keys_of((1, 2, 4)))


def test_what_is_still_being_computed_is_no_surprise():
    """Two requests of one prompt at once: the second finds nothing, because the first has not finished."""
    one, mirror = cache(), Mirror()
    mirror.hear(one.sent(keys_of((1, 2, 3)), 0.0))
    mirror.hear(one.sent(keys_of((1, 2, 3)), 0.1))
    mirror.hear(one.confirmed(keys_of((1, 2, 3)), 0, 0.0, 1.0))
    mirror.hear(one.confirmed(keys_of((1, 2, 3)), 0, 0.1, 1.1))
    assert one.surprises == 0


def test_the_last_block_is_always_computed():
    one, mirror = cache(), Mirror()
    confirmed_chain(one, mirror, (1, 2, 3), 0.0)
    confirmed_chain(one, mirror, (1, 2, 3), 1.0, cached_blocks=2)
    assert one.surprises == 0


def test_an_engine_that_caches_nothing_is_believed_to_hold_nothing():
    one, mirror = cache(50), Mirror()
    for step in range(80):
        confirmed_chain(one, mirror, (1, 2, 3), float(step))
    assert mirror.held() == set()
    confirmed_chain(one, mirror, (1, 2, 3), 100.0, cached_blocks=2)
    confirmed_chain(one, mirror, (1, 2, 3), 101.0, cached_blocks=2)
    assert mirror.held() == set(keys_of((1, 2))), "and believed again when it does"


def test_a_restart_forgets():
    one, mirror = cache(), Mirror()
    mirror.hear(one.sent(keys_of((1, 2)), 0.0))
    mirror.hear(one.clear())
    assert not mirror.held() and not len(one)


class Engine:
    """A cache of blocks, least recently used first, that gives a prompt's last blocks back first."""

    def __init__(self, blocks):
        self.blocks, self.held = blocks, OrderedDict()

    def serve(self, keys):
        """How many leading blocks were cached; then all are, as far as there is room."""
        cached = 0
        while cached < len(keys) and keys[cached] in self.held:
            cached += 1
        for key in reversed(keys):
            self.held[key] = None
            self.held.move_to_end(key)
        while len(self.held) > self.blocks:
            self.held.popitem(last=False)
        return min(cached, len(keys) - 1)


def serve(random, one, engine, mirror, now):
    path = tuple(random.randrange(3) for _ in range(random.randint(1, 5)))
    keys = keys_of(path)
    mirror.hear(one.sent(keys, now))
    mirror.hear(one.confirmed(keys, engine.serve(keys) * BLOCK, now, now + 0.5))
    one.check()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(5, 60))
def test_an_engine_of_the_same_size_is_guessed_exactly(seed, blocks):
    random, one, engine, mirror = Random(seed), cache(blocks), Engine(blocks), Mirror()
    for step in range(60):
        serve(random, one, engine, mirror, float(step))
        assert mirror.held() == set(engine.held)
    assert one.surprises == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_a_smaller_engine_is_found_out(seed):
    """The guess begins with 200 blocks where there are 40, and ends near the truth."""
    random, one, engine, mirror = Random(seed), cache(200), Engine(40), Mirror()
    for step in range(400):
        serve(random, one, engine, mirror, float(step))
    wrong = mirror.held() - set(engine.held)
    assert one.surprises and one.capacity_blocks <= 100
    assert len(wrong) <= 60, "without what the answers say it would be 124 at the least"

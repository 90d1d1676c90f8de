"""One cache's book against a naive one, and against real indexes that hear what it tells (I10)."""

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homing.router.core.events import BlocksRemoved, BlocksStored, CacheCleared
from homing.router.core.types import Tier
from homing.router.kv_events.book import CacheBook
from homing.router.kv_events.events import EngineCleared, EngineRemoved, EngineStored, KvEventError, Place
from homing.router.kv_events.places import natural_tier

from .engines import BLOCK, CPU, GPU, WORKER, Mirror, batch, keys_of, name_of, named, removed, stored

DISK = Place(medium="STORAGE", owner="fs")


def book(**options):
    return CacheBook(WORKER, BLOCK, **options)


def test_a_chain_becomes_the_routers_keys():
    one = book()
    assert one.apply(batch(stored((1, 2, 3)))) == [BlocksStored(worker_id=WORKER, keys=keys_of((1, 2, 3)))]
    told = one.apply(batch(stored((1, 2, 3, 4), first=3)))
    assert told == [BlocksStored(worker_id=WORKER, keys=keys_of((1, 2, 3, 4))[3:], parent=keys_of((1, 2, 3))[2])]
    told = one.apply(batch(removed((1, 2, 3, 4)), removed((1, 2, 3))))
    assert told == [BlocksRemoved(worker_id=WORKER, keys=(keys_of((1, 2, 3, 4))[3], keys_of((1, 2, 3))[2]))]
    one.check()


@pytest.mark.parametrize(("salt", "lora"), [("tenant", ""), ("", "adapter"), ("tenant", "adapter")])
def test_salt_and_adapter_go_down_the_chain(salt, lora):
    """Only the first block tells of its salt; keys of everything below are other ones than without."""
    one, mirror = book(), Mirror()
    mirror.hear(one.apply(batch(stored((1, 2), salt=salt, lora=lora))))
    mirror.hear(one.apply(batch(stored((1, 2, 3), 2, salt=salt, lora=lora))))
    assert mirror.held() == set(keys_of((1, 2, 3), salt, lora))
    assert mirror.depth(keys_of((1, 2, 3))) == 0


def test_a_copy_keeps_a_block_alive():
    one, mirror = book(), Mirror()
    mirror.hear(one.apply(batch(stored((1,)), stored((1,)))))
    assert one.apply(batch(removed((1,)))) == []
    mirror.hear(one.apply(batch(removed((1,)))))
    assert not mirror.held() and not len(one)
    assert one.apply(batch(removed((1,)))) == []
    assert one.counts.unknown_removed == 1


def test_tiers_are_apart_and_named_blocks_are_resolved():
    one, mirror = book(), Mirror()
    mirror.hear(one.apply(batch(stored((1, 2)), named((1,), (1, 2)), named((1,), place=DISK), named((9,)))))
    assert one.counts.unknown_named == 1
    mirror.hear(one.apply(batch(removed((1,), (1, 2)))))
    assert mirror.held(Tier.DEVICE) == set()
    assert mirror.held(Tier.HOST) == set(keys_of((1, 2)))
    assert mirror.held(Tier.DISK) == set(keys_of((1,)))


def test_a_block_dropped_and_offloaded_in_one_step_is_known():
    """vLLM tells of the device first and of the connector after it."""
    one, mirror = book(), Mirror()
    mirror.hear(one.apply(batch(stored((1, 2)))))
    mirror.hear(one.apply(batch(removed((1, 2)), named((1, 2)))))
    assert mirror.held(Tier.HOST) == set(keys_of((1, 2))[1:])
    mirror.hear(one.apply(batch(removed((1,)))))
    assert one.apply(batch(named((1,)))) == [], "the step after, it is forgotten"


def test_host_memory_may_count_as_the_device():
    one, mirror = book(merge_host=True), Mirror()
    mirror.hear(one.apply(batch(stored((1,)), named((1,)))))
    assert one.apply(batch(removed((1,)))) == []
    assert mirror.held(Tier.DEVICE) == set(keys_of((1,)))
    mirror.hear(one.apply(batch(removed((1,), place=CPU))))
    assert not mirror.held(Tier.DEVICE)


def test_orphans_wait_for_their_parent_over_several_events():
    one, mirror = book(), Mirror()
    mirror.hear(one.apply(batch(stored((1, 2, 3, 4), first=3, salt="s"), named((1, 2, 3, 4), salt="s"))))
    mirror.hear(one.apply(batch(stored((1, 2, 3), first=1, salt="s"))))
    assert (mirror.held(), one.orphans) == (set(), 3)
    mirror.hear(one.apply(batch(stored((1,), salt="s"))))
    assert (mirror.held(), one.orphans) == (set(keys_of((1, 2, 3, 4), "s")), 0)
    assert mirror.held(Tier.HOST) == set(keys_of((1, 2, 3, 4), "s")[3:])
    one.check()


def test_an_orphan_that_is_removed_stays_away():
    one, mirror = book(), Mirror()
    mirror.hear(one.apply(batch(stored((1, 2, 3), first=1))))
    mirror.hear(one.apply(batch(removed((1, 2, 3)))))
    mirror.hear(one.apply(batch(stored((1,)))))
    assert mirror.held() == set(keys_of((1, 2)))


def test_orphans_are_bounded_and_the_oldest_goes():
    one, mirror = book(orphans_max=4), Mirror()
    for number in range(10):
        mirror.hear(one.apply(batch(stored((number, 77), first=1))))
        one.check()
    assert (one.orphans, one.counts.orphans_dropped, len(one)) == (4, 6, 4)
    mirror.hear(one.apply(batch(stored((9,)), stored((0,)))))
    assert mirror.held() == set(keys_of((9, 77))) | set(keys_of((0,)))


def test_a_child_outlives_its_parent():
    one, mirror = book(), Mirror()
    mirror.hear(one.apply(batch(stored((1, 2)))))
    mirror.hear(one.apply(batch(removed((1,)))))
    mirror.hear(one.apply(batch(stored((1, 2, 3), first=2), named((1, 2)))))
    mirror.hear(one.apply(batch(stored((1,)))))
    assert mirror.held() == set(keys_of((1, 2, 3)))
    assert mirror.depth(keys_of((1, 2, 3))) == 3


def test_more_than_text_has_no_key_nor_has_what_is_below():
    one, mirror = book(), Mirror()
    mirror.hear(one.apply(batch(stored((1, 2, 3), text_blocks=1))))
    mirror.hear(one.apply(batch(stored((1, 2, 3, 4), first=3))))
    assert (mirror.held(), one.orphans, one.counts.not_text) == (set(keys_of((1,))), 0, 3)
    mirror.hear(one.apply(batch(removed((1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)))))
    assert (mirror.held(), len(one)) == (set(), 0)


def test_only_full_attention_counts():
    one, mirror = book(), Mirror()
    window = stored((1, 2), group=0, kind="sliding_window", packed_tokens=b"", block_tokens=0)
    told = [window, stored((1, 2), group=1, kind="full_attention"), stored((8,), group=2, kind="mla_attention")]
    mirror.hear(one.apply(batch(*told, removed((1,), group=0), removed((1,), group=2))))
    assert (mirror.held(), one.counts.other_groups) == (set(keys_of((1, 2))), 5)
    mirror.hear(one.apply(batch(removed((1, 2), group=1))))
    assert mirror.held() == set(keys_of((1,)))


def test_the_blocks_must_be_of_the_same_size_on_the_device():
    with pytest.raises(KvEventError, match=r"w0: the engine's blocks have 8 tokens.*block_tokens: 8"):
        book(merge_host=True).apply(batch(stored((1, 2), block_tokens=8)))
    one = book(merge_host=True)
    assert one.apply(batch(stored((1, 2), block_tokens=8, place=CPU))) == []
    assert one.counts.other_sizes == 2


def test_all_tokens_must_be_there():
    with pytest.raises(KvEventError, match="must have all tokens"):
        book().apply(batch(stored((1, 2), packed_tokens=b"abcd")))


def test_unknown_places_are_left_out():
    one = book()
    assert one.apply(batch(stored((1,), place=Place(medium="TAPE")), removed((1,), place=Place(medium="TAPE")))) == []
    assert one.counts.other_media == 1
    for number in range(30):
        one.apply(batch(stored((1,), place=Place(medium="CPU", owner=str(number)))))
    assert one.counts.other_media > 1, "places are bounded"


def test_no_place_means_everywhere():
    one, mirror = book(), Mirror()
    mirror.hear(one.apply(batch(stored((1,)), named((1,)))))
    mirror.hear(one.apply(batch(EngineRemoved(hashes=(name_of((1,)),)))))
    assert not mirror.held() and not mirror.held(Tier.HOST)


def test_a_store_that_never_tells_what_it_drops_does_not_fill_the_memory():
    one, mirror = book(blocks_max=5), Mirror()
    for number in range(20):
        mirror.hear(one.apply(batch(stored((number,), place=Place(medium="cpu")))))
        one.check()
    assert (len(one), one.counts.forgotten) == (5, 15)
    assert mirror.held(Tier.HOST) == {keys_of((number,))[0] for number in range(15, 20)}


def test_a_clear_in_a_batch_undoes_what_was_before_it():
    one, mirror = book(), Mirror()
    told = one.apply(batch(stored((1,)), EngineCleared(), stored((2,))))
    assert [type(event) for event in told] == [CacheCleared, BlocksStored]
    mirror.hear(told)
    assert mirror.held() == set(keys_of((2,)))
    mirror.hear(one.clear())
    assert not mirror.held() and not len(one)


def test_two_hashes_of_one_key_are_one_block():
    """An adapter that was loaded anew from another path has another hash for the same text."""
    one, mirror = book(), Mirror()
    again = stored((1,), hashes=(5,))
    mirror.hear(one.apply(batch(stored((1,)), again)))
    assert one.apply(batch(removed((1,)))) == []
    mirror.hear(one.apply(batch(EngineRemoved(hashes=(5,), place=GPU))))
    assert not mirror.held()


class NaiveBook:
    """Counts per hash and place, and looks everything up anew after each event."""

    def __init__(self):
        self.copies = Counter()
        self.told = {}
        self.keys = {}

    def apply(self, told):
        """`told` are (event, path, salt, first) of one batch."""
        for event, path, salt, first in told:
            match event:
                case EngineCleared():
                    self.__init__()
                case EngineRemoved():
                    for name in event.hashes:
                        self.copies[name, event.place] -= self.copies[name, event.place] > 0
                case EngineStored(packed_tokens=b""):
                    for name in event.hashes:
                        self.copies[name, event.place] += name in self.told
                case EngineStored():
                    for end in range(first, len(path)):
                        name = name_of(path[: end + 1], salt)
                        self.copies[name, event.place] += 1
                        self.told.setdefault(name, (path[: end + 1], salt))
                    self._learn()
        for name in [name for name in self.told if not self._is_held(name)]:
            del self.told[name]
            self.keys.pop(name, None)

    def _learn(self):
        """A block has a key when it is a first one or its parent has one."""
        before = -1
        while before != len(self.keys):
            before = len(self.keys)
            for name, (path, salt) in self.told.items():
                if len(path) == 1 or name_of(path[:-1], salt) in self.keys:
                    self.keys.setdefault(name, keys_of(path, salt)[-1])

    def _is_held(self, name):
        return any(count for (one, _), count in self.copies.items() if one == name)

    def held(self, tier):
        return {
            self.keys[name]
            for (name, place), count in self.copies.items()
            if count and name in self.keys and natural_tier(place) is tier
        }


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 60))
def test_a_storm_equals_its_replay(seed, steps):
    """I10: whatever an engine tells in whatever order, the indexes hold what a naive replay holds."""
    random, one, naive, mirror = Random(seed), book(), NaiveBook(), Mirror()
    for _ in range(steps):
        told = []
        for _ in range(random.randint(1, 4)):
            path = tuple(random.randrange(2) for _ in range(random.randint(1, 4)))
            salt, place, draw = random.choice(["", "s"]), random.choice([GPU, GPU, CPU, DISK]), random.random()
            first = random.choice([0, 0, random.randrange(len(path))])
            if draw < 0.45:
                event = stored(path, first, salt=salt, place=place)
            elif draw < 0.98:
                event = (removed if draw < 0.85 else named)(path, salt=salt, place=place)
            else:
                event = EngineCleared()
            told.append((event, path, salt, first))
        mirror.hear(one.apply(batch(*(event for event, *_ in told))))
        naive.apply(told)
        one.check()
        for tier in (Tier.DEVICE, Tier.HOST, Tier.DISK):
            assert mirror.held(tier) == naive.held(tier)

"""Caches forget, never lie and keep to their bounds; remembered keys are the computed ones."""

from collections import OrderedDict

from hypothesis import given, settings
from hypothesis import strategies as st

from homing.router.core.blocks import block_keys
from homing.router.tokens.keys import KeyMemo
from homing.router.tokens.lru import ENTRY_BYTES, BoundedCache, ExactCache


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.integers(0, 300))))
def test_a_cache_forgets_what_was_used_least_recently(steps):
    bytes_max = 8 * (ENTRY_BYTES + 250)
    cache, model = BoundedCache(bytes_max), OrderedDict()
    for is_put, key, size in steps:
        if not is_put:
            assert cache.get(key) == model.get(key, (None,))[0]
            if key in model:
                model.move_to_end(key)
            continue
        cache.put(key, (key, size), size)
        if size <= 250:
            model.pop(key, None)
            model[key] = ((key, size), size + ENTRY_BYTES)
        while sum(held for _, held in model.values()) > bytes_max:
            model.popitem(last=False)
        cache.check()
        assert len(cache) == len(model)


def test_a_hash_that_two_share_gives_no_wrong_answer(monkeypatch):
    monkeypatch.setattr("homing.router.tokens.lru.xxh3_64_intdigest", lambda data, seed: seed)
    cache = ExactCache(100_000)
    cache.put(b"a", b"1")
    assert cache.get(b"a") == b"1"
    assert cache.get(b"b") is None
    assert cache.get(b"a", kind=1) is None
    cache.put(b"b", b"2")
    assert (cache.get(b"a"), cache.get(b"b")) == (None, b"2")
    cache.check()


@given(
    prompts=st.lists(
        st.tuples(st.integers(0, 700) | st.integers(2000, 2200), st.integers(0, 2), st.binary(max_size=40)), max_size=8
    ),
    block_tokens=st.sampled_from([1, 3, 16, 100]),
    seed=st.sampled_from([1337, 7]),
    bytes_max=st.sampled_from([0, 3000, 1 << 20]),
)
@settings(deadline=None)
def test_remembered_keys_are_the_computed_ones(prompts, block_tokens, seed, bytes_max):
    memo = KeyMemo(bytes_max)
    for words, fill, end in prompts:
        packed = bytes([fill, 1, 0, 0]) * words * 4 + end[: len(end) // 4 * 4]
        for _ in range(2):
            assert memo.keys(packed, block_tokens, seed=seed) == block_keys(packed, block_tokens, seed=seed)
        memo.check()
        assert memo.used_bytes <= bytes_max

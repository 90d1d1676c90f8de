"""Block keys: equal keys, equal prefixes, in every process, in bounded memory."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homing.sim.workload.keys import MASK_64, ChainTable, KeySpace, KeyTable

IDS = st.lists(st.integers(0, 2**64 - 1), unique=True, max_size=30)
TREE = st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=12)


@given(IDS, st.integers(1, 5), st.sampled_from([None, "a"]))
def test_different_blocks_have_different_keys(ids, pieces, namespace):
    keys = KeyTable(namespace, pieces=pieces).keys(ids, len(ids) * pieces)
    assert len(set(keys)) == len(keys) == len(ids) * pieces
    assert all(0 <= key <= MASK_64 for key in keys)


@given(IDS, st.integers(1, 5), st.integers(0, 200))
def test_fewer_keys_are_the_first_of_more(ids, pieces, count):
    table = KeyTable("a", pieces=pieces)
    assert table.keys(ids, count) == table.keys(ids, 10_000)[:count]


def test_namespaces_do_not_meet():
    ids = range(10_000)
    assert not set(KeyTable("a").keys(ids, 10_000)) & set(KeyTable("b").keys(ids, 10_000))
    assert not set(KeyTable("a", pieces=2).keys(ids, 20_000)) & set(KeySpace("a").take(20_000))


@given(st.lists(IDS, max_size=8), st.integers(1, 3))
def test_what_a_table_forgot_it_makes_again(prompts, pieces):
    small, large = KeyTable("a", pieces=pieces, kept_max=4), KeyTable("a", pieces=pieces)
    for ids in prompts:
        assert small.keys(ids, 99) == large.keys(ids, 99)
        assert len(small._recent) + len(small._recent.elder) <= 2 * (4 + 30)


def test_equal_blocks_share_one_object():
    table = KeyTable("a")
    (first,), (again,) = table.keys([7], 1), table.keys([7], 1)
    assert first is again


@given(TREE, st.integers(1, 3))
def test_chained_keys_are_equal_exactly_where_prefixes_are(prompts, pieces):
    table = ChainTable("a", pieces=pieces)
    found = {}
    for ids in prompts:
        keys = table.keys(ids, len(ids) * pieces)
        for end in range(len(ids)):
            prefix, key = tuple(ids[: end + 1]), keys[end * pieces]
            assert found.setdefault(key, prefix) == prefix
    assert len(found) == len({tuple(ids[: end + 1]) for ids in prompts for end in range(len(ids))})


@given(st.lists(st.integers(-2, 20), max_size=20))
def test_a_space_gives_each_key_once(takes):
    space = KeySpace("a")
    keys = [key for blocks in takes for key in space.take(blocks)]
    assert len(set(keys)) == len(keys) == sum(max(0, blocks) for blocks in takes)


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_keys_are_the_same_in_every_process(hash_seed):
    """I5, golden values."""
    code = (
        "from homing.sim.workload.keys import *;"
        "print(KeyTable('a').keys([7], 1)[0], ChainTable('a').keys([7], 1)[0], KeySpace('a').take(1)[0])"
    )
    env = {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)}
    found = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=True
    )
    assert found.stdout.split() == GOLDEN


GOLDEN = ["12833435752675302722", "11757733762104865817", "8314517215945369359"]

"""The worker's half with real paged caches: kept, given to another, loaded, and given up."""

import time

import torch

from homing.workers.vllm.host import Loaded
from homing.workers.vllm.orders import LoadOrder, SaveOrder, StepOrders
from homing.workers.vllm.settings import ConnectorSettings
from homing.workers.vllm.worker_side import WorkerSide

from .engines import BLOCK_TOKENS, caches, keys_of, prompt, source


def worker(kv, **options):
    side = WorkerSide(ConnectorSettings(**{"store_bytes": 1 << 20, **options}), block_tokens=BLOCK_TOKENS, weights="w")
    side.register(kv)
    return side


def finished(side, timeout_s=10.0):
    until_s = time.monotonic() + timeout_s
    while time.monotonic() < until_s:
        ended = side.finish_loads()
        if ended:
            return ended
        time.sleep(0.005)
    raise AssertionError("the load did not end")


def order(keys, block_ids, *sources, first=0):
    return LoadOrder(
        request_id="r", ticket="", first=first, keys=tuple(keys), block_ids=tuple(block_ids), sources=sources
    )


def test_what_one_engine_computed_another_loads():
    kv, other = caches(seed=1), caches(seed=2)
    before = {name: layer.clone() for name, layer in other.items()}
    keys = keys_of(prompt(1, 24))
    giver, taker = worker(kv), worker(other)
    try:
        giver.save(StepOrders(saves=(SaveOrder(keys=keys, first=0, block_ids=(9, 3, 4, 5, 6, 7)),)))
        assert giver.take_report().stored == keys
        taker.begin_loads(StepOrders(loads=(order(keys, (0, 1, 2, 8, 10, 11), source(giver.address, 0, 6)),)))
        assert finished(taker) == {"r"}
        assert taker.take_failed_blocks() == set()
        for name, layer in kv.items():
            assert torch.equal(other[name][[0, 1, 2, 8, 10, 11]], layer[[9, 3, 4, 5, 6, 7]])
            assert torch.equal(other[name][3:8], before[name][3:8])
        report = taker.take_report()
        assert report.results[0].blocks == 6
        assert report.stored == keys, "what came stays, for others"
        assert taker.take_report() is None
    finally:
        giver.close()
        taker.close()
    giver.host.shelf.check()
    taker.host.shelf.check()


def test_what_did_not_come_is_told_by_its_blocks():
    kv, other = caches(seed=1), caches(seed=2)
    keys = keys_of(prompt(1, 24))
    giver, taker = worker(kv), worker(other)
    try:
        giver.save(StepOrders(saves=(SaveOrder(keys=keys[:4], first=0, block_ids=(0, 1, 2, 3)),)))
        taker.begin_loads(StepOrders(loads=(order(keys, (10, 11, 12, 13, 14, 15), source(giver.address, 0, 6)),)))
        assert finished(taker) == {"r"}
        assert taker.take_failed_blocks() == {14, 15}
        assert taker.take_failed_blocks() == set()
    finally:
        giver.close()
        taker.close()


def test_evicted_blocks_are_computed():
    kv = caches(seed=3)
    keys = keys_of(prompt(3, 24))
    block_bytes = 3 * 2 * BLOCK_TOKENS * 8 * 4
    side = worker(kv, store_bytes=3 * block_bytes)
    try:
        side.save(StepOrders(saves=(SaveOrder(keys=keys, first=0, block_ids=tuple(range(6))),)))
        side.begin_loads(StepOrders(loads=(order(keys, range(10, 16)),)))
        finished(side)
        failed = side.take_failed_blocks()
        loaded = side.take_report().results[0].blocks
        assert failed == set(range(10 + loaded, 16))
        for name, layer in kv.items():
            assert torch.equal(layer[10 : 10 + loaded], layer[:loaded]), name
    finally:
        side.close()


def test_a_cleared_store_is_empty():
    kv = caches(seed=4)
    keys = keys_of(prompt(4, 24))
    side = worker(kv)
    try:
        side.save(StepOrders(saves=(SaveOrder(keys=keys, first=0, block_ids=tuple(range(6))),)))
        side.take_report()
        side.save(StepOrders(clear=True))
        assert set(side.take_report().removed) == set(keys)
    finally:
        side.close()


def test_a_cache_that_cannot_be_moved_leaves_the_engine_alone():
    side = worker({"mla": torch.zeros(4, 4, 8)})
    keys = keys_of(prompt(5, 24))
    assert side.address == ""
    side.save(StepOrders(saves=(SaveOrder(keys=keys, first=0, block_ids=tuple(range(6))),)))
    side.begin_loads(StepOrders(loads=(order(keys, range(6)),), cancelled=("r",)))
    assert side.finish_loads() == {"r"}
    assert side.take_failed_blocks() == set(range(6))
    side.close()


def test_a_closed_door_gives_loads_up():
    side = worker(caches(seed=6))
    side.close()
    side.close()
    keys = keys_of(prompt(6, 24))
    side.begin_loads(StepOrders(loads=(order(keys, range(6)),)))
    assert side.finish_loads() == {"r"}
    assert side.take_failed_blocks() == set(range(6))


def test_saves_that_cannot_work_do_not_raise():
    side = worker(caches(4, seed=7))
    keys = keys_of(prompt(7, 24))
    try:
        side.save(StepOrders(saves=(SaveOrder(keys=keys, first=0, block_ids=(0, 1, 2, 3, 4, 99)),)))
        side.host.shelf.check()
        assert side.host.shelf.pin_leading(keys) == []
    finally:
        side.close()


def test_a_load_that_never_ends_is_given_up(monkeypatch):
    """Whatever holds it up: the engine's request must go on."""
    monkeypatch.setattr("homing.workers.vllm.worker_side.GRACE_S", 0.2)
    monkeypatch.setattr("homing.workers.vllm.pulling.ASK_TIMEOUT_S", 60.0)
    keys = keys_of(prompt(8, 24))
    side = worker(caches(seed=8))
    try:
        lost = order(keys, range(6))
        side.host.begin = lambda _: None
        side.begin_loads(StepOrders(loads=(lost,)))
        assert side.finish_loads() == set()
        assert finished(side, 2.0) == {"r"}
        assert side.take_failed_blocks() == set(range(6))
        assert side.take_report().results[0].blocks == 0
        # What comes after all is put back, and nothing is told twice.
        side.save(StepOrders(saves=(SaveOrder(keys=keys, first=0, block_ids=tuple(range(6))),)))
        pinned = tuple(side.host.shelf.pin_leading(keys))
        side.host._done.append(Loaded(order=lost, pinned=pinned, transfers=()))
        assert side.finish_loads() == set()
        side.host.shelf.clear()
        assert side.host.shelf.pin_leading(keys) == []
    finally:
        side.close()


def test_blocks_without_room_are_told():
    kv = caches(seed=9)
    keys = keys_of(prompt(9, 24))
    side = worker(kv, store_bytes=2 * 3 * 2 * BLOCK_TOKENS * 8 * 4)
    try:
        side.save(StepOrders(saves=(SaveOrder(keys=keys[:1], first=0, block_ids=(0,), lease_s=60.0),)))
        side.save(StepOrders(saves=(SaveOrder(keys=keys, first=1, block_ids=(1, 2, 3, 4, 5)),)))
        report = side.take_report()
        assert set(report.stored) == set(keys[:2])
        assert set(report.dropped) == set(keys[2:])
    finally:
        side.close()

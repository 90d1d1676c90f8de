"""Two stores on loopback with the real mover between them: blocks arrive byte for byte, or the load says why not."""

import asyncio
import random
import socket
import threading
import time

import pytest
import torch

from homing.workers.transfer.sockets import connect_tcp
from homing.workers.vllm.asking import AskReport
from homing.workers.vllm.orders import LoadOrder
from homing.workers.vllm.pulling import question
from homing.workers.vllm.settings import host_and_port
from homing.workers.vllm.shelf import Claim

from .engines import awaited, bad_wire, caches, host, keep, keys_of, load, prompt, same_blocks, source


def test_a_named_prefix_is_fetched():
    kv, keys = caches(seed=1), keys_of(prompt(1, 40))
    ids = random.Random(1).sample(range(16), len(keys))
    with host() as giver, host() as taker:
        keep(giver, keys, kv, ids)
        done = load(taker, keys, source(giver.address, 0, len(keys)))
        assert done.pinned == keys
        assert same_blocks(taker, done.pinned, kv, ids)
        (transfer,) = done.transfers
        assert (transfer.complete, transfer.blocks, transfer.address) == (True, len(keys), giver.address)
        assert transfer.bytes == len(keys) * taker.memory.layers * taker.memory.layer_block_bytes
        assert transfer.rtt_s > 0
        taker.shelf.unpin(done.pinned)


def test_what_is_here_is_not_pulled():
    kv, keys = caches(seed=2), keys_of(prompt(2, 40))
    with host() as giver, host() as taker:
        keep(giver, keys, kv, range(len(keys)))
        keep(taker, keys[:4], kv, range(4))
        done = load(taker, keys, source(giver.address, 0, len(keys)))
        assert done.pinned == keys
        assert done.transfers[0].blocks == len(keys) - 4
        assert same_blocks(taker, done.pinned, kv, range(len(keys)))
        taker.shelf.unpin(done.pinned)
        again = load(taker, keys)
        assert (again.pinned, again.transfers) == (keys, ())
        taker.shelf.unpin(again.pinned)


def test_positions_count_from_the_prompts_start():
    """A load begins where the device's own blocks end; its sources speak of the whole prompt."""
    kv, keys = caches(seed=3), keys_of(prompt(3, 40))
    with host() as giver, host() as taker:
        keep(giver, keys[:8], kv, range(8))
        done = load(taker, keys[3:], source(giver.address, 1, 8), first=3)
        assert done.pinned == keys[3:8]
        taker.shelf.unpin(done.pinned)


def test_two_holders_complete_each_other():
    kv, keys = caches(seed=4), keys_of(prompt(4, 40))
    with host() as one, host() as other, host() as taker:
        keep(one, keys[:5], kv, range(5))
        keep(other, keys[5:], kv, range(5, 10))
        done = load(taker, keys, source(one.address, 0, 5), source(other.address, 5, 10))
        assert done.pinned == keys
        assert same_blocks(taker, done.pinned, kv, range(10))
        assert [t.complete for t in done.transfers] == [True, True]
        taker.shelf.unpin(done.pinned)


def test_a_holder_that_lost_the_back_gives_the_front():
    kv, keys = caches(seed=5), keys_of(prompt(5, 40))
    with host() as giver, host() as taker:
        keep(giver, keys[:6], kv, range(6))
        done = load(taker, keys, source(giver.address, 0, 10))
        assert done.pinned == keys[:6]
        assert not done.transfers[0].complete
        assert "6 of 10" in done.transfers[0].reason
        taker.shelf.unpin(done.pinned)


def test_blocks_are_shipped_while_they_are_computed():
    kv, keys = caches(seed=6), keys_of(prompt(6, 40))
    with host() as giver, host() as taker:
        keep(giver, keys[:2], kv, range(2))
        thread = threading.Thread(target=_compute_slowly, args=(giver, keys, kv))
        thread.start()
        done = load(taker, keys, source(giver.address, 0, 10, ships=True))
        thread.join()
        assert done.pinned == keys
        assert same_blocks(taker, done.pinned, kv, range(10))
        assert done.transfers[0].complete
        taker.shelf.unpin(done.pinned)


def _compute_slowly(giver, keys, kv):
    for first in range(2, len(keys), 2):
        time.sleep(0.05)
        keep(giver, keys[first : first + 2], kv, range(first, first + 2))


def test_shipping_ends_when_the_computation_stops():
    kv, keys = caches(seed=7), keys_of(prompt(7, 40))
    with host(ship_idle_s=1.5) as giver, host() as taker:
        keep(giver, keys[:3], kv, range(3))
        done = load(taker, keys, source(giver.address, 0, 10, ships=True))
        assert done.pinned == keys[:3]
        assert "no progress" in done.transfers[0].reason
        taker.shelf.unpin(done.pinned)
        _nothing_pinned(giver)


def test_siblings_pull_a_prefix_once():
    kv, keys = caches(seed=8), keys_of(prompt(8, 40))
    with host() as giver, host() as taker, bad_wire(giver, _slowly(0.01)) as address:
        keep(giver, keys, kv, range(len(keys)))
        for name in ("one", "two", "three"):
            taker.begin(
                LoadOrder(
                    request_id=name,
                    ticket=name,
                    first=0,
                    keys=keys,
                    block_ids=tuple(range(len(keys))),
                    sources=(source(address, 0, len(keys)),),
                )
            )
        loads = []
        until_s = time.monotonic() + 10
        while len(loads) < 3 and time.monotonic() < until_s:
            loads += taker.take_loaded()
            time.sleep(0.005)
        assert [done.pinned for done in loads] == [keys] * 3
        total = sum(transfer.bytes for done in loads for transfer in done.transfers)
        assert total == len(keys) * giver.memory.layers * giver.memory.layer_block_bytes
        for done in loads:
            taker.shelf.unpin(done.pinned)


def test_siblings_do_not_all_wait_for_a_dead_holder():
    keys = keys_of(prompt(20, 40))
    with socket.create_server(("127.0.0.1", 0)) as mute, host() as taker:
        giver = source(f"127.0.0.1:{mute.getsockname()[1]}", 0, 10, timeout_s=0.5)
        began_s = time.monotonic()
        for name in ("one", "two", "three", "four", "five"):
            ids = tuple(range(len(keys)))
            taker.begin(LoadOrder(request_id=name, ticket=name, first=0, keys=keys, block_ids=ids, sources=(giver,)))
        loads = []
        while len(loads) < 5 and time.monotonic() - began_s < 10:
            loads += taker.take_loaded()
            time.sleep(0.005)
        assert len(loads) == 5
        assert time.monotonic() - began_s < 1.5
        assert all(done.pinned == () for done in loads)


def _slowly(seconds):
    def tamper(offset, chunk):
        time.sleep(seconds)
        return chunk

    return tamper


def test_nobody_listens():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        with host() as taker:
            done = load(taker, keys_of(prompt(9, 40)), source(address, 0, 10))
            assert done.pinned == ()
            assert "could not be asked" in done.transfers[0].reason


def test_a_holder_that_says_nothing_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as mute, host() as taker:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        began_s = time.monotonic()
        done = load(taker, keys_of(prompt(9, 40)), source(address, 0, 10, timeout_s=0.4))
        assert time.monotonic() - began_s < 2
        assert done.pinned == ()
        assert done.transfers[0].reason


def test_a_flipped_bit_is_found_and_asked_for_again():
    kv, keys = caches(seed=10), keys_of(prompt(10, 40))
    flipped = []

    def tamper(offset, chunk):
        if offset > 1000 and not flipped:
            flipped.append(offset)
            return chunk[:-1] + bytes([chunk[-1] ^ 1])
        return chunk

    with host() as giver, host() as taker, bad_wire(giver, tamper) as address:
        keep(giver, keys, kv, range(len(keys)))
        done = load(taker, keys, source(address, 0, 10))
        assert flipped
        assert done.pinned == keys
        assert same_blocks(taker, done.pinned, kv, range(len(keys)))
        taker.shelf.unpin(done.pinned)


def test_bytes_that_stay_wrong_are_not_kept():
    kv, keys = caches(seed=11), keys_of(prompt(11, 40))

    def tamper(offset, chunk):
        return bytes([chunk[0]]) + bytes(byte ^ 255 for byte in chunk[1:]) if offset > 200 else chunk

    with host() as giver, host() as taker, bad_wire(giver, tamper) as address:
        keep(giver, keys, kv, range(len(keys)))
        done = load(taker, keys, source(address, 0, 10))
        assert not done.transfers[0].complete
        assert same_blocks(taker, done.pinned, kv, range(len(done.pinned)))
        assert len(done.pinned) < len(keys)
        taker.shelf.unpin(done.pinned)


def test_a_holder_that_dies_leaves_what_came():
    kv, keys = caches(64, seed=12, width=2048), keys_of(prompt(12, 200))
    died = []

    def tamper(offset, chunk):
        died.append(offset)
        return None if offset > 3_000_000 else chunk

    with host(blocks=64, width=2048) as giver, host(blocks=64, width=2048) as taker, bad_wire(giver, tamper) as address:
        keep(giver, keys, kv, range(len(keys)))
        done = load(taker, keys, source(address, 0, 50))
        assert died
        assert 0 < len(done.pinned) < len(keys)
        assert not done.transfers[0].complete
        assert same_blocks(taker, done.pinned, kv, range(len(done.pinned)))
        taker.shelf.unpin(done.pinned)


@pytest.mark.parametrize(
    "other", [{"weights": "v"}, {"dtype": torch.bfloat16}, {"layers": 2}], ids=["weights", "dtype", "layers"]
)
def test_kv_of_another_kind_is_refused(other):
    keys = keys_of(prompt(13, 40))
    kv = caches(seed=13, dtype=other.get("dtype", torch.float32), layers=other.get("layers", 3))
    with host(**other) as giver, host() as taker:
        keep(giver, keys, kv, range(len(keys)))
        done = load(taker, keys, source(giver.address, 0, 10))
        assert done.pinned == ()
        assert "KV moves only between engines of equal weights" in done.transfers[0].reason


def test_a_store_that_is_full_takes_what_fits():
    kv, keys = caches(seed=14), keys_of(prompt(14, 40))
    with host() as giver, host(blocks=4) as taker:
        keep(giver, keys, kv, range(len(keys)))
        done = load(taker, keys, source(giver.address, 0, 10))
        assert done.pinned == keys[:4]
        assert same_blocks(taker, done.pinned, kv, range(4))
        taker.shelf.unpin(done.pinned)


def test_a_load_that_nobody_wants_ends_at_once():
    keys = keys_of(prompt(15, 40))
    with host() as giver, host() as taker:
        order = LoadOrder(
            request_id="r",
            ticket="",
            first=0,
            keys=keys,
            block_ids=tuple(range(10)),
            sources=(source(giver.address, 0, 10, ships=True),),
        )
        taker.begin(order)
        time.sleep(0.1)
        taker.cancel("r")
        assert awaited(taker, 2).pinned == ()
        _nothing_pinned(giver)


def test_a_lease_keeps_blocks_and_ends():
    kv, keys = caches(seed=16), keys_of(prompt(16, 16))
    other = keys_of(prompt(17, 64))
    with host(blocks=8) as giver:
        keep(giver, keys, kv, range(4))
        assert giver.shelf.lease(keys, 0.3) == 4
        for key in other[:8]:
            if giver.shelf.claim(key) is Claim.MINE:
                giver.shelf.commit((key,))
        assert giver.shelf.pin_leading(keys) == list(keys)
        giver.shelf.unpin(keys)
        assert giver.shelf.lease(other[:4], 0.3) == 0, "half of the store at most is leased"
        _nothing_pinned(giver)


def test_reports_can_be_asked_for_by_ticket():
    async def asked(address, ticket):
        sock = await connect_tcp(*host_and_port(address))
        with sock:
            return (await question(sock, AskReport(ticket=ticket))).report

    kv, keys = caches(seed=18), keys_of(prompt(18, 40))
    with host() as giver, host() as taker:
        keep(giver, keys, kv, range(len(keys)))
        done = load(taker, keys, source(giver.address, 0, 10), request_id="ticket-1")
        report = asyncio.run(asked(taker.address, "ticket-1"))
        assert report["loaded_blocks"] == 10
        assert report["transfers"][0]["bytes"] == done.transfers[0].bytes
        assert asyncio.run(asked(taker.address, "another")) is None
        taker.shelf.unpin(done.pinned)


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"HOMINGAS",
        b"HOMINGAS\xff\xff\xff\xff",
        b"HOMINGAS\x02\0\0\0\xc1\xc1",
        b"HOMING",
    ],
)
def test_the_door_survives_garbage(garbage):
    kv, keys = caches(seed=19), keys_of(prompt(19, 40))
    with host() as giver, host() as taker:
        keep(giver, keys, kv, range(len(keys)))
        address, port = giver.address.split(":")
        with socket.create_connection((address, int(port))) as sock:
            sock.sendall(garbage)
            sock.shutdown(socket.SHUT_WR)
            sock.settimeout(3)
            while sock.recv(4096):
                pass
        done = load(taker, keys, source(giver.address, 0, 10))
        assert done.pinned == keys
        taker.shelf.unpin(done.pinned)


def _nothing_pinned(cache, timeout_s=3.0):
    until_s = time.monotonic() + timeout_s
    while cache.shelf._store.pinned and time.monotonic() < until_s:
        time.sleep(0.02)
    assert cache.shelf._store.pinned == 0

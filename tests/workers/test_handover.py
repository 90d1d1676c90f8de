"""Handovers: blocks that one prefill keeps for one taker, for a time; whatever happens, nothing stays pinned."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from homing.router.core.types import BlockKey
from homing.workers import handover as module
from homing.workers.engine.kvcache import KvCache
from homing.workers.engine.tokens import TokenSequence
from homing.workers.handover import Handover, Handovers
from homing.workers.transfer import BufferMemory, Export, Piece, RefusedError

LAYERS, LAYER_BLOCK_BYTES, TOTAL, BLOCK = 3, 64, 12, 16


class Site:
    """A cache, its memory, and the handovers out of it."""

    def __init__(self) -> None:
        self.cache = KvCache(TOTAL)
        data = bytearray(TOTAL * LAYERS * LAYER_BLOCK_BYTES)
        memory = BufferMemory(data, format="f", layers=LAYERS, layer_block_bytes=LAYER_BLOCK_BYTES)
        self.handovers = Handovers(self.cache, memory)

    def prefill(self, request_id: str = "r", blocks: int = 4, seed: int = 1) -> TokenSequence:
        """A sequence that has its blocks, as the batcher leaves it when the handover begins."""
        tokens = range(seed, seed + blocks * BLOCK + 1)
        sequence = TokenSequence(request_id, tokens, block_tokens=BLOCK, key_seed=1, max_output_tokens=0)
        taken = self.cache.allocate(blocks)
        assert taken is not None
        sequence.blocks = taken
        return sequence

    def ended(self, sequence: TokenSequence) -> None:
        """The prefill gives its own pins back."""
        self.cache.unpin(sequence.blocks)

    def begin(self, sequence: TokenSequence, lease_s: float = 30.0) -> Handover:
        return self.handovers.begin(sequence, range(len(sequence.blocks)), lease_s)

    def asking(self, sequence: TokenSequence) -> Coroutine[Any, Any, tuple[Export, Callable[[], None]]]:
        return self.handovers.take(sequence.request_id, sequence.keys[: len(sequence.blocks)])

    def assert_nothing_kept(self) -> None:
        assert self.cache.used == 0
        assert not self.handovers._kept and not self.handovers._coming
        self.cache.check()


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 10))


async def asked(site: Site, sequence: TokenSequence) -> "asyncio.Task[tuple[Export, Callable[[], None]]]":
    """Somebody who asks and already waits."""
    task = asyncio.create_task(site.asking(sequence))
    await asyncio.sleep(0)
    return task


def test_who_comes_in_time_gets_the_blocks_and_gives_them_back() -> None:
    async def check() -> None:
        site = Site()
        sequence = site.prefill()
        site.begin(sequence)
        site.ended(sequence)
        assert site.cache.used == 4, "kept although the prefill is over"
        export, release = await site.asking(sequence)
        assert list(export.blocks) == sequence.blocks
        assert site.cache.used == 4, "kept while it is read"
        release()
        site.assert_nothing_kept()

    run(check())


def test_who_comes_before_the_prefill_waits_for_it() -> None:
    async def check() -> None:
        site = Site()
        sequence = site.prefill()
        task = await asked(site, sequence)
        assert not task.done()
        site.begin(sequence)
        export, release = await task
        assert list(export.blocks) == sequence.blocks
        site.ended(sequence)
        release()
        site.assert_nothing_kept()

    run(check())


def test_a_handover_is_taken_once() -> None:
    async def check() -> None:
        site = Site()
        sequence = site.prefill()
        site.begin(sequence)
        _, release = await site.asking(sequence)
        with pytest.raises(RefusedError, match="was taken before"):
            await site.asking(sequence)
        site.ended(sequence)
        release()
        site.assert_nothing_kept()

    run(check())


def test_of_two_who_wait_one_gets_it_and_one_is_refused() -> None:
    async def check() -> None:
        site = Site()
        sequence = site.prefill()
        takers = [await asked(site, sequence) for _ in range(2)]
        site.begin(sequence)
        site.ended(sequence)
        results = await asyncio.gather(*takers, return_exceptions=True)
        got = [result for result in results if isinstance(result, tuple)]
        refused = [result for result in results if isinstance(result, RefusedError)]
        assert len(got) == len(refused) == 1
        got[0][1]()
        site.assert_nothing_kept()

    run(check())


def test_the_lease_ends_and_the_blocks_are_free() -> None:
    async def check() -> None:
        site = Site()
        sequence = site.prefill()
        site.begin(sequence, lease_s=0.02)
        site.ended(sequence)
        assert site.cache.used == 4
        await asyncio.sleep(0.05)
        site.assert_nothing_kept()

    run(check())


def test_the_lease_does_not_take_from_who_reads() -> None:
    """Blocks that are being sent must not be given to another sequence, however long sending takes."""

    async def check() -> None:
        site = Site()
        sequence = site.prefill()
        site.begin(sequence, lease_s=0.02)
        site.ended(sequence)
        _, release = await site.asking(sequence)
        await asyncio.sleep(0.05)
        assert site.cache.used == 4
        release()
        site.assert_nothing_kept()

    run(check())


def test_a_second_prefill_of_the_same_id_frees_the_first() -> None:
    """Senders use ids again: the blocks that nobody came for must not stay pinned behind the new ones."""

    async def check() -> None:
        site = Site()
        for _ in range(2):
            sequence = site.prefill()
            site.begin(sequence)
            site.ended(sequence)
        assert site.cache.used == 4
        export, release = await site.asking(sequence)
        assert list(export.blocks) == sequence.blocks
        release()
        site.assert_nothing_kept()

    run(check())


def test_an_old_lease_leaves_a_newer_handover_of_the_same_id_alone() -> None:
    async def check() -> None:
        site = Site()
        for lease_s in (0.02, 30.0):
            sequence = site.prefill()
            site.begin(sequence, lease_s)
            site.ended(sequence)
        await asyncio.sleep(0.05)
        _, release = await site.asking(sequence)
        release()
        site.assert_nothing_kept()

    run(check())


def test_who_asks_for_other_blocks_is_refused_and_takes_nothing() -> None:
    """An id alone is no proof: with other keys another prompt's KV would be computed on."""

    async def check() -> None:
        site = Site()
        sequence = site.prefill()
        site.begin(sequence)
        site.ended(sequence)
        with pytest.raises(RefusedError, match="another prompt or other blocks"):
            await site.handovers.take("r", [BlockKey(7)] * 4)
        _, release = await site.asking(sequence)
        release()
        site.assert_nothing_kept()

    run(check())


@pytest.mark.parametrize("begun", [False, True], ids=["waited for", "begun"])
def test_what_is_given_up_is_refused_and_free(begun: bool) -> None:
    async def check() -> None:
        site = Site()
        sequence = site.prefill()
        if begun:
            site.begin(sequence)
            site.handovers.drop("r", "the prefill broke")
        else:
            task = await asked(site, sequence)
            site.handovers.drop("r", "the prefill broke")
            with pytest.raises(RefusedError, match="the prefill broke"):
                await task
        with pytest.raises(RefusedError, match="the prefill broke"):
            await asyncio.wait_for(site.asking(sequence), 1)
        site.ended(sequence)
        site.assert_nothing_kept()

    run(check())


@pytest.mark.parametrize("announced", [False, True], ids=["begun again", "announced again"])
def test_an_id_that_ended_can_come_again(announced: bool) -> None:
    """Also while its prefill waits for room: who asks then must wait for it, not hear how an earlier one ended."""

    async def check() -> None:
        site = Site()
        site.handovers.drop("r", "the prefill broke")
        sequence = site.prefill()
        if announced:
            site.handovers.announce("r")
            task = await asked(site, sequence)
            site.begin(sequence)
        else:
            site.begin(sequence)
            task = await asked(site, sequence)
        _, release = await task
        site.ended(sequence)
        release()
        site.assert_nothing_kept()

    run(check())


def test_ends_are_remembered_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENDS_MAX", 3)
    monkeypatch.setattr(module, "WAIT_S", 0.02)

    async def check() -> None:
        site = Site()
        for number in range(5):
            site.handovers.drop(str(number), "the prefill broke")
        assert list(site.handovers._ended) == ["2", "3", "4"]
        with pytest.raises(RefusedError, match="came within"):
            await site.handovers.take("1", [])

    run(check())


def test_a_taker_that_leaves_early_leaves_nothing_and_takes_nothing() -> None:
    """Otherwise every decode that is cancelled while it waits would leave an entry for ever."""

    async def check() -> None:
        site = Site()
        sequence = site.prefill()
        task = await asked(site, sequence)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert not site.handovers._coming
        site.begin(sequence)
        site.ended(sequence)
        _, release = await site.asking(sequence)
        release()
        site.assert_nothing_kept()

    run(check())


def test_a_prefill_that_never_comes_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_S", 0.02)

    async def check() -> None:
        site = Site()
        with pytest.raises(RefusedError, match=r"no prefill of request 'r' came within 0\.02 s"):
            await site.handovers.take("r", [])
        site.assert_nothing_kept()

    run(check())


def test_each_layer_of_each_block_is_announced_once() -> None:
    """The forward pass tells layers, the cache tells whole blocks; a block told by both must be sent once."""

    async def check() -> None:
        site = Site()
        sequence = site.prefill(blocks=6)
        handover = site.handovers.begin(sequence, range(1, 5), 30.0)
        handover.whole(range(2))
        for layer in range(LAYERS):
            handover.layer_done(layer, range(2, 4))
        handover.whole(range(6))
        handover.export.finish()
        sent: list[tuple[int, int]] = []
        async for piece in handover.export.pieces():
            sent += cells(piece)
        assert sorted(sent) == [(layer, position) for layer in range(LAYERS) for position in range(4)]

    run(check())


def cells(piece: Piece) -> list[tuple[int, int]]:
    layers = range(piece.layer_first, piece.layer_first + piece.layer_count)
    return [(layer, position) for layer in layers for position in piece.positions]

"""Exports hand out each (layer, position) once, in the promised order, in pieces of bounded size."""

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homing.workers.transfer import CachedExport, HandoverExport, Order, Piece
from homing.workers.transfer.errors import SourceFailedError
from homing.workers.transfer.export import PIECE_BYTES


def cells(pieces: list[Piece]) -> list[tuple[int, int]]:
    return [(b, x) for p in pieces for b in p.positions for x in range(p.layer_first, p.layer_end)]


def drained(export: CachedExport | HandoverExport) -> list[Piece]:
    return list(iter(export.poll, None))


@given(st.integers(1, 70), st.integers(1, 9), st.sampled_from([1, 1000, 300_000, 2**21]), st.sampled_from(Order))
def test_cached_blocks_go_out_once_in_order(blocks: int, layers: int, size: int, order: Order) -> None:
    export = CachedExport(range(blocks), order, layers, size)
    pieces = drained(export)
    sent = cells(pieces)
    assert sorted(sent) == [(b, x) for b in range(blocks) for x in range(layers)]
    assert all(p.layer_count * p.block_count * size <= max(PIECE_BYTES, size) for p in pieces)
    firsts = [p.block_first for p in pieces]
    assert firsts == sorted(firsts, reverse=order is Order.BACK_TO_FRONT)
    # The blocks of a piece are whole unless one block alone is larger than a piece.
    assert all(p.layer_count == layers or p.block_count == 1 for p in pieces)
    assert export.exhausted


@given(st.permutations([(x, b) for x in range(3) for b in range(0, 8, 2)]), st.sampled_from([10, 2**20]))
def test_handover_hands_out_what_is_ready(order: list[tuple[int, int]], size: int) -> None:
    async def check() -> None:
        export = HandoverExport(range(8), 3, size)
        for layer, block in order:
            assert not export.exhausted
            export.ready(layer, 1, block, 2)
            assert cells(drained(export)) == [(block, layer), (block + 1, layer)]
        assert export.exhausted
        export.finish()
        assert export.poll() is None

    asyncio.run(check())


def test_handover_wakes_every_waiting_connection(run: Callable[..., None]) -> None:
    """Two wait, one gets the last piece; the other must learn that nothing more comes."""

    async def check() -> None:
        export = HandoverExport([5], 1, 100)

        async def drain() -> list[Piece]:
            return [piece async for piece in export.pieces()]

        tasks = [asyncio.create_task(drain()) for _ in range(2)]
        await asyncio.sleep(0.01)
        export.ready(0, 1, 0, 1)
        assert sorted(map(len, await asyncio.gather(*tasks))) == [0, 1]

    run(check(), 2.0)


def test_handover_refuses_what_was_announced_or_is_outside(run: Callable[..., None]) -> None:
    async def check() -> None:
        export = HandoverExport(range(4), 2, 100)
        export.ready(0, 2, 0, 2)
        with pytest.raises(ValueError, match="ready before"):
            export.ready(1, 1, 1, 2)
        with pytest.raises(ValueError, match="this export has 2 layers and 4 blocks"):
            export.ready(0, 1, 3, 2)

    run(check())


def test_handover_fails_once_and_drops_what_waits(run: Callable[..., None]) -> None:
    async def check() -> None:
        export = HandoverExport(range(4), 2, 100)
        export.ready(0, 1, 0, 4)
        export.fail("out of memory")
        export.fail("later")
        export.ready(1, 1, 0, 4)
        with pytest.raises(SourceFailedError, match="out of memory"):
            export.poll()
        assert not export.exhausted

    run(check())


def test_an_early_finish_is_a_failure(run: Callable[..., None]) -> None:
    """A prefill that ends without all its blocks must not look like a short, complete transfer."""

    async def check() -> None:
        export = HandoverExport(range(4), 2, 100)
        export.ready(0, 2, 0, 3)
        export.finish()
        with pytest.raises(SourceFailedError, match="before all blocks"):
            export.poll()

    run(check())


def test_empty_exports_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one block"):
        CachedExport([], Order.FRONT_TO_BACK, 2, 100)

"""Movers: resume where it helps, stop where it does not, and never raise."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homing.workers.transfer import (
    Failure,
    FrameMessage,
    FrameStream,
    Layout,
    MemorySink,
    Mover,
    Offer,
    Order,
    OutcomeStatus,
    Piece,
    PullRequest,
    RefusedError,
    RetryPolicy,
    SocketMover,
    SocketSettings,
    Status,
    StreamMover,
    messages_of,
)
from homing.workers.transfer.resume import ResumingSink

KEYS = tuple(range(100, 112))
QUICK = RetryPolicy(backoff_s=0.01, offer_timeout_s=0.3)


class Source:
    """The control plane's end: opens an export for a request, and keeps what was asked."""

    def __init__(self, pair: Any, export: Any = None) -> None:
        self.pair, self.export, self.asked = pair, export, list[PullRequest]()

    async def open_offer(self, request: PullRequest) -> Offer:
        self.asked.append(request)
        offer: Offer = self.pair.open(self.export or self.exported(request))
        return offer

    def exported(self, request: PullRequest) -> Any:
        return self.pair.cached(request.order, [self.pair.source_blocks[key - 100] for key in request.keys])

    async def open_stream(self, request: PullRequest) -> FrameStream:
        self.asked.append(request)
        export = self.export or self.exported(request)
        return FrameStream(layout=layout(self.pair, len(export.blocks)), messages=messages_of(export, self.pair.source))


def layout(pair: Any, blocks: int) -> Layout:
    return Layout(
        format=pair.source.format, blocks=blocks, layers=pair.layers, layer_block_bytes=pair.layer_block_bytes
    )


def request(**changes: Any) -> PullRequest:
    return PullRequest(**{"source": "w1:50051", "keys": KEYS} | changes)


@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize("connections", [1, 3])
def test_a_broken_fetch_goes_on_with_what_is_missing(
    run: Callable[..., Any], Pair: Any, Proxy: Any, order: Order, connections: int
) -> None:
    breaks = iter([1_500_000, 3_000_000])
    limit = next(breaks)

    def cut(offset: int, data: bytes) -> bytes | None:
        nonlocal limit
        if offset < limit:
            return data
        limit = next(breaks, 10**12)
        return None

    async def check() -> None:
        async with Pair() as pair, Proxy(cut) as proxy:
            source, sink = Source(pair), CountingSink(pair.target, pair.target_blocks)
            mover = SocketMover(
                source.open_offer,
                pair.target,
                settings=SocketSettings(connections=connections),
                retry=QUICK,
                connect=proxy.connect_to(pair.server.port),
            )
            report = await mover.pull(request(order=order), sink)
            assert report.status is Status.COMPLETE, report.reason
            # Several connections pass the second limit together and may be done before it breaks one of them.
            assert report.attempts == len(source.asked) >= (3 if connections == 1 else 2)
            sizes = [len(asked.keys) for asked in source.asked]
            assert sizes[0] == 12
            assert sizes == sorted(sizes, reverse=True)
            assert sizes[-1] < 12 or connections > 1
            assert report.payload_bytes == 12 * 4 * 96 * 1024
            assert sink.cells_arrived == 48
            assert pair.all_same()
            assert pair.rest_untouched()

    run(check())


class CountingSink(MemorySink):
    """Fails on a cell that arrives twice or is handed out after it arrived."""

    cells_arrived = 0

    def buffers(self, piece: Piece) -> list[memoryview]:
        assert not self.arrivals.overlaps(piece), "a cell that a worker may be using must not be written again"
        return super().buffers(piece)

    def arrived(self, piece: Piece) -> None:
        assert not self.arrivals.overlaps(piece), "a piece arrives once"
        self.cells_arrived += piece.layer_count * piece.block_count
        super().arrived(piece)


def test_attempts_run_out(run: Callable[..., Any], Pair: Any, Proxy: Any) -> None:
    async def check() -> None:
        async with Pair() as pair, Proxy(lambda offset, data: data if offset < 1_000_000 else None) as proxy:
            source = Source(pair)
            connect = proxy.connect_to(pair.server.port)
            mover = SocketMover(source.open_offer, pair.target, retry=QUICK, connect=connect)
            report = await mover.pull(request(), pair.sink())
            assert (report.status, report.failure) == (Status.FAILED, Failure.CONNECTION)
            assert report.attempts == len(source.asked) == 3

    run(check())


def test_a_handover_is_not_resumed(run: Callable[..., Any], Pair: Any) -> None:
    async def check() -> None:
        async with Pair() as pair:
            source = Source(pair, pair.handover())
            mover = SocketMover(source.open_offer, pair.target, retry=QUICK)
            sink = pair.sink()
            pulling = asyncio.create_task(mover.pull(request(keys=(), handover="request-7"), sink))
            await asyncio.sleep(0.05)
            source.export.ready(0, 4, 0, 3)
            await asyncio.sleep(0.1)
            await pair.server.close()
            report = await pulling
            assert (report.status, report.failure) == (Status.FAILED, Failure.CONNECTION)
            assert (report.blocks, sink.arrivals.front_blocks, len(source.asked)) == (3, 3, 1)

    run(check())


async def refusing(_: PullRequest) -> Any:
    raise RefusedError("the blocks are no longer cached")


async def crashing(_: PullRequest) -> Any:
    raise OSError("source is gone")


async def hanging(_: PullRequest) -> Any:
    await asyncio.sleep(60)


@pytest.mark.parametrize("kind", [SocketMover, StreamMover])
@pytest.mark.parametrize(
    ("opener", "failure", "attempts"),
    [
        (refusing, Failure.REFUSED, 1),
        (crashing, Failure.CONNECTION, 2),
        (hanging, Failure.TIMEOUT, 2),
    ],
)
def test_a_source_that_cannot_be_asked(
    run: Callable[..., Any],
    Pair: Any,
    kind: type[SocketMover] | type[StreamMover],
    opener: Callable[[PullRequest], Awaitable[Any]],
    failure: Failure,
    attempts: int,
) -> None:
    async def check() -> None:
        pair = Pair()
        mover: Mover = kind(opener, pair.target, retry=QUICK)
        report = await mover.pull(request(attempts=2), pair.sink())
        assert (report.status, report.failure, report.attempts) == (Status.FAILED, failure, attempts)
        assert report.payload_bytes == 0

    run(check())


def test_stop_ends_the_wait_for_an_offer(run: Callable[..., Any], Pair: Any) -> None:
    async def check() -> None:
        pair, stop = Pair(), asyncio.Event()
        mover = SocketMover(hanging, pair.target, retry=RetryPolicy(offer_timeout_s=30.0))
        pulling = asyncio.create_task(mover.pull(request(), pair.sink(), stop))
        await asyncio.sleep(0.02)
        stop.set()
        assert (await asyncio.wait_for(pulling, 5)).status is Status.STOPPED

    run(check())


def test_a_source_that_lost_the_back_sends_the_front(run: Callable[..., Any], Pair: Any) -> None:
    """Evictions take blocks from the back; what is left is worth having, but it is not what was asked for."""

    async def check() -> None:
        async with Pair() as pair:
            source = Source(pair, pair.cached(Order.FRONT_TO_BACK, pair.source_blocks[:5]))
            report = await SocketMover(source.open_offer, pair.target).pull(request(), pair.sink())
            assert (report.status, report.failure) == (Status.FAILED, Failure.REFUSED)
            assert "only 5 of 12 blocks" in report.reason
            assert report.blocks == 5
            assert all(pair.same(i) for i in range(5))

    run(check())


def test_kv_of_another_format_is_not_received(run: Callable[..., Any], Pair: Any) -> None:
    async def check() -> None:
        async with Pair() as pair:
            source = Source(pair)
            pair.source.format = "test-f32"
            report = await SocketMover(source.open_offer, pair.target).pull(request(), pair.sink())
            assert report.failure is Failure.REFUSED
            assert "'test-f32'" in report.reason
            assert not any(pair.target_bytes)

    run(check())


@pytest.mark.parametrize("order", Order)
def test_streams_carry_the_same_frames(run: Callable[..., Any], Pair: Any, order: Order) -> None:
    async def check() -> None:
        pair = Pair()
        mover = StreamMover(Source(pair).open_stream, pair.target)
        report = await mover.pull(request(order=order), pair.sink())
        assert report.status is Status.COMPLETE, report.reason
        assert pair.all_same()
        assert pair.rest_untouched()

    run(check())


def test_a_broken_stream_goes_on_with_what_is_missing(run: Callable[..., Any], Pair: Any) -> None:
    async def check() -> None:
        pair = Pair()
        source = Source(pair)

        async def breaking(part: PullRequest) -> FrameStream:
            stream = await source.open_stream(part)

            async def some() -> AsyncIterator[FrameMessage]:
                for _ in range(2):
                    yield await anext(stream.messages)
                raise ConnectionResetError("the channel is gone")

            return FrameStream(layout=stream.layout, messages=some())

        sink = CountingSink(pair.target, pair.target_blocks)
        report = await StreamMover(breaking, pair.target, retry=QUICK).pull(request(), sink)
        assert (report.status, report.attempts, report.blocks) == (Status.COMPLETE, 3, 12)
        assert pair.all_same()

    run(check())


def test_a_handover_over_a_stream_tells_its_failure(run: Callable[..., Any], Pair: Any) -> None:
    async def check() -> None:
        pair = Pair()
        source = Source(pair, pair.handover())
        mover = StreamMover(source.open_stream, pair.target)
        pulling = asyncio.create_task(mover.pull(request(keys=(), handover="request-7"), pair.sink()))
        source.export.ready(0, 4, 0, 4)
        await asyncio.sleep(0.05)
        source.export.fail("worker is draining")
        report = await pulling
        assert (report.status, report.failure, report.blocks) == (Status.FAILED, Failure.SOURCE, 4)
        assert "draining" in report.reason

    run(check())


def test_the_source_learns_of_a_stop_through_the_mover(run: Callable[..., Any], Pair: Any) -> None:
    async def check() -> None:
        async with Pair() as pair:
            source, stop = Source(pair, pair.handover()), asyncio.Event()
            mover = SocketMover(source.open_offer, pair.target)
            pulling = asyncio.create_task(mover.pull(request(keys=(), handover="request-7"), pair.sink(), stop))
            await asyncio.sleep(0.05)
            stop.set()
            assert (await pulling).status is Status.STOPPED
            await asyncio.sleep(0.05)
            assert [outcome.status for outcome in pair.outcomes] == [OutcomeStatus.STOPPED]

    run(check())


def test_a_request_for_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="keys to fetch or a handover"):
        PullRequest(source="w1:50051")


@given(st.integers(0, 2**32), st.integers(1, 4))
def test_resuming_writes_each_cell_once(seed: int, attempts: int) -> None:
    """Attempts that deliver random subsets in random pieces: each cell reaches the sink once, with its own bytes."""
    rng, blocks, layers = random.Random(seed), 7, 3
    inner = RecordingSink(blocks, layers)
    sink = ResumingSink(inner, blocks=blocks, layers=layers, layer_block_bytes=1)
    for _ in range(attempts):
        part = sink.next_part()
        for piece in random_pieces(rng, len(part), layers):
            if rng.random() < 0.4:
                continue
            buffers = sink.buffers(piece)
            values = [cell(b + part.start, x) for b in piece.positions for x in layer_range(piece)]
            assert sum(map(len, buffers)) == len(values)
            data = iter(values)
            for buffer in buffers:
                buffer[:] = bytes(next(data) for _ in buffer)
            sink.arrived(piece)
    assert sink.payload_bytes == len(inner.seen)
    assert all(inner.memory[b * layers + x] == cell(b, x) for b, x in inner.seen)


def cell(block: int, layer: int) -> int:
    return 1 + block * 10 + layer


def layer_range(piece: Piece) -> range:
    return range(piece.layer_first, piece.layer_end)


def random_pieces(rng: random.Random, blocks: int, layers: int) -> list[Piece]:
    """A random cut of the whole into pieces, in random order."""
    pieces, block = [], 0
    while block < blocks:
        count, layer = rng.randint(1, blocks - block), 0
        while layer < layers:
            run = rng.randint(1, layers - layer)
            pieces.append(Piece(layer_first=layer, layer_count=run, block_first=block, block_count=count))
            layer += run
        block += count
    rng.shuffle(pieces)
    return pieces


class RecordingSink:
    def __init__(self, blocks: int, layers: int) -> None:
        self.layers = layers
        self.memory = bytearray(blocks * layers)
        self.seen: set[tuple[int, int]] = set()

    def wanted(self, piece: Piece) -> bool:
        return True

    def buffers(self, piece: Piece) -> list[memoryview]:
        view = memoryview(self.memory)
        assert not self.seen & self._cells(piece)
        starts = [b * self.layers + piece.layer_first for b in piece.positions]
        return [view[start : start + piece.layer_count] for start in starts]

    def arrived(self, piece: Piece) -> None:
        assert not self.seen & self._cells(piece)
        self.seen |= self._cells(piece)

    def _cells(self, piece: Piece) -> set[tuple[int, int]]:
        return {(b, x) for b in piece.positions for x in layer_range(piece)}

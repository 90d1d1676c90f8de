"""Whole transfers over loopback: every byte, every order, every way to end early on purpose."""

import asyncio
import random
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from homing.workers.transfer import (
    Failure,
    MemorySink,
    Order,
    OutcomeStatus,
    Piece,
    SocketSettings,
    Status,
    pull,
)

slow_examples = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@slow_examples
@given(
    blocks=st.integers(1, 40),
    layers=st.integers(1, 5),
    layer_block_bytes=st.sampled_from([1, 777, 65_536, 400_000]),
    order=st.sampled_from(Order),
    connections=st.integers(1, 4),
    checksum=st.booleans(),
)
def test_cached_blocks_arrive_byte_for_byte(
    run: Callable[..., Any],
    Pair: Any,
    blocks: int,
    layers: int,
    layer_block_bytes: int,
    order: Order,
    connections: int,
    checksum: bool,
) -> None:
    async def check() -> None:
        async with Pair(blocks, layers, layer_block_bytes) as pair:
            sink = pair.sink()
            chosen = SocketSettings(connections=connections, checksum=checksum)
            report = await pull(pair.open(pair.cached(order)), sink, settings=chosen)
            assert (report.status, report.reason) == (Status.COMPLETE, "")
            assert report.payload_bytes == blocks * layers * layer_block_bytes
            assert report.blocks == blocks
            assert sink.arrivals.complete
            assert pair.all_same()
            assert pair.rest_untouched()
            assert [outcome.status for outcome in pair.outcomes] == [OutcomeStatus.SENT]
            assert pair.outcomes[0].payload_bytes == report.payload_bytes

    run(check())


@slow_examples
@given(seed=st.integers(0, 999), connections=st.integers(1, 3))
def test_handover_in_any_order_arrives_byte_for_byte(
    run: Callable[..., Any], Pair: Any, seed: int, connections: int
) -> None:
    async def check() -> None:
        async with Pair(9, 3, 5000) as pair:
            export, sink, rng = pair.handover(), pair.sink(), random.Random(seed)
            offer = pair.open(export)
            pulling = asyncio.create_task(pull(offer, sink, settings=SocketSettings(connections=connections)))
            steps = [(layer, block) for layer in range(3) for block in range(0, 9, 3)]
            rng.shuffle(steps)
            for layer, block in steps:
                await asyncio.sleep(rng.choice([0, 0.001]))
                export.ready(layer, 1, block, 3)
            export.finish()
            assert (await pulling).status is Status.COMPLETE
            assert pair.all_same()
            assert [outcome.status for outcome in pair.outcomes] == [OutcomeStatus.SENT]

    run(check())


def test_handover_pieces_arrive_while_the_prefill_goes_on(run: Callable[..., Any], Pair: Any) -> None:
    """Layer by layer: each piece is at the target before the next is computed."""

    async def check() -> None:
        async with Pair() as pair:
            export, sink = pair.handover(), pair.sink()
            pulling = asyncio.create_task(pull(pair.open(export), sink))
            for layer in range(pair.layers):
                export.ready(layer, 1, 0, 12)
                whole = Piece(layer_first=layer, layer_count=1, block_first=0, block_count=12)
                while not all(runs == [(range(layer, layer + 1), True)] for runs in layer_runs(sink, whole)):
                    await asyncio.sleep(0.005)
                assert all(pair.same(i, layer) for i in range(12))
                assert not pulling.done() or layer == pair.layers - 1
            assert (await pulling).status is Status.COMPLETE

    run(check())


def layer_runs(sink: MemorySink, piece: Piece) -> list[list[tuple[range, bool]]]:
    return [sink.arrivals.layer_runs(piece, position) for position in piece.positions]


def test_keepalives_carry_a_handover_over_long_pauses(run: Callable[..., Any], Pair: Any) -> None:
    """The prefill pauses for longer than the receiver's idle time-out; the pause does not count as a slow link."""

    async def check() -> None:
        async with Pair() as pair:
            export = pair.handover()
            chosen = SocketSettings(idle_timeout_s=1.4)
            pulling = asyncio.create_task(pull(pair.open(export), pair.sink(), settings=chosen))
            export.ready(0, 2, 0, 12)
            await asyncio.sleep(2.6)
            export.ready(2, 2, 0, 12)
            report = await pulling
            assert report.status is Status.COMPLETE
            assert report.seconds > 2.5
            assert report.receiving_s < 0.5
            assert pair.all_same()

    run(check())


def test_back_to_front_stops_where_the_sink_says(run: Callable[..., Any], Pair: Any) -> None:
    """A split plan: the target computed the first 57 of 64 blocks meanwhile, so nothing below is wanted.

    The rest is more than the kernel's buffers hold, so the source cannot have sent it all.
    """

    async def check() -> None:
        class MeetingSink(MemorySink):
            def wanted(self, piece: Piece) -> bool:
                return piece.block_first >= 57

        async with Pair(64, 4, 256 * 1024) as pair:
            sink = MeetingSink(pair.target, pair.target_blocks)
            report = await pull(pair.open(pair.cached(Order.BACK_TO_FRONT)), sink)
            assert (report.status, report.failure) == (Status.STOPPED, None)
            assert (report.blocks, sink.arrivals.back_blocks) == (7, 7)
            assert all(pair.same(i) for i in range(57, 64))
            untouched = bytes(4 * 256 * 1024)
            assert all(pair.target.view(pair.target_blocks[i], 0, 4) == untouched for i in range(57))
            await until(lambda: pair.outcomes)
            assert pair.outcomes[0].status is OutcomeStatus.STOPPED

    run(check())


@pytest.mark.parametrize("connections", [1, 3])
def test_stop_event_ends_a_transfer_at_once(run: Callable[..., Any], Pair: Any, connections: int) -> None:
    async def check() -> None:
        async with Pair() as pair:
            export, sink, stop = pair.handover(), pair.sink(), asyncio.Event()
            chosen = SocketSettings(connections=connections)
            pulling = asyncio.create_task(pull(pair.open(export), sink, settings=chosen, stop=stop))
            export.ready(0, 4, 0, 6)
            await until(lambda: sink.arrivals.blocks_complete == 6)
            asked_s = asyncio.get_running_loop().time()
            stop.set()
            report = await pulling
            assert asyncio.get_running_loop().time() - asked_s < 0.2
            assert (report.status, report.blocks) == (Status.STOPPED, 6)
            await until(lambda: pair.outcomes)
            assert [outcome.status for outcome in pair.outcomes] == [OutcomeStatus.STOPPED]
            assert asyncio.get_running_loop().time() - asked_s < 0.5

    run(check())


def test_a_cancelled_pull_raises_and_leaves_nothing_open(run: Callable[..., Any], Pair: Any) -> None:
    async def check() -> None:
        async with Pair() as pair:
            pulling = asyncio.create_task(pull(pair.open(pair.handover()), pair.sink()))
            await asyncio.sleep(0.05)
            before = asyncio.all_tasks()
            pulling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await pulling
            await until(lambda: pair.outcomes)
            await asyncio.sleep(0.05)
            assert len(asyncio.all_tasks()) < len(before)

    run(check())


def test_a_failed_prefill_is_told_to_the_target(run: Callable[..., Any], Pair: Any) -> None:
    async def check() -> None:
        async with Pair() as pair:
            export, sink = pair.handover(), pair.sink()
            pulling = asyncio.create_task(pull(pair.open(export), sink))
            export.ready(0, 4, 0, 5)
            await until(lambda: sink.arrivals.blocks_complete == 5)
            export.fail("out of blocks")
            report = await pulling
            assert (report.status, report.failure) == (Status.FAILED, Failure.SOURCE)
            assert "out of blocks" in report.reason
            assert report.blocks == 5
            assert [outcome.status for outcome in pair.outcomes] == [OutcomeStatus.FAILED]

    run(check())


def test_a_sink_that_raises_ends_the_transfer_and_is_named(run: Callable[..., Any], Pair: Any) -> None:
    async def check() -> None:
        async with Pair() as pair:
            sink = MemorySink(pair.target, pair.target_blocks[:3])
            report = await pull(pair.open(), sink)
            assert (report.status, report.failure) == (Status.FAILED, Failure.SINK)
            assert "IndexError" in report.reason

    run(check())


@pytest.mark.parametrize("connections", [1, 2])
def test_the_speed_of_a_slow_link_is_learned(run: Callable[..., Any], Pair: Any, Proxy: Any, connections: int) -> None:
    """Two connections share nothing in this proxy, so the link they feel is twice as wide."""

    async def check() -> None:
        speed = 8_000_000.0
        async with Pair(16, 4, 96 * 1024) as pair, Proxy(lambda _, data: data, bytes_per_s=speed) as proxy:
            offer = pair.open()
            chosen = SocketSettings(connections=connections)
            report = await pull(offer, pair.sink(), settings=chosen, connect=proxy.connect_to(offer.port))
            assert report.status is Status.COMPLETE
            assert report.link_bytes_per_s == pytest.approx(speed * connections, rel=0.25)

    run(check())


def test_a_slow_receiver_holds_the_sender_back(run: Callable[..., Any], Pair: Any, Proxy: Any) -> None:
    """64 MiB into a link of 4 MB/s: the sender may fill the kernel's buffers and nothing of its own."""

    async def check() -> None:
        async with Pair(64, 1, 1024 * 1024) as pair, Proxy(lambda _, data: data, bytes_per_s=4e6) as proxy:
            offer, stop = pair.open(), asyncio.Event()
            tracemalloc.start()
            pulling = asyncio.create_task(pull(offer, pair.sink(), connect=proxy.connect_to(offer.port), stop=stop))
            await asyncio.sleep(0.5)
            _, peak_bytes = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            stop.set()
            report = await pulling
            await until(lambda: pair.outcomes)
            assert peak_bytes < 2_000_000
            assert 0 < report.payload_bytes < 8_000_000
            assert pair.outcomes[0].payload_bytes < 32_000_000

    run(check())


def test_a_missing_congestion_control_is_no_failure(
    run: Callable[..., Any], Pair: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def check() -> None:
        async with Pair() as pair:
            report = await pull(pair.open(), pair.sink(), settings=SocketSettings(congestion="nosuch"))
            assert report.status is Status.COMPLETE

    run(check())
    assert sum("'nosuch' is not available" in record.message for record in caplog.records) == 1


def test_settings_refuse_what_cannot_work() -> None:
    with pytest.raises(ValueError, match="keepalive"):
        SocketSettings(idle_timeout_s=0.5)
    with pytest.raises(ValueError, match="such as 'bbr'"):
        SocketSettings(congestion="a name that is too long")
    with pytest.raises(ValueError, match=r"1\.\.64"):
        SocketSettings(connections=65)


async def until(condition: Callable[[], object], timeout_s: float = 3.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)

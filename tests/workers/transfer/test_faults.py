"""Broken networks and lying sources: what arrived is right, what is wrong is named, nothing is written elsewhere."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from homing.workers.transfer import Failure, Offer, Piece, SocketSettings, Status, TransferReport, pull
from homing.workers.transfer.frames import HELLO_BYTES, encode_end, encode_keepalive, encode_piece

LAYER_BLOCK = 1000


@pytest.mark.parametrize("connections", [1, 3])
def test_a_flipped_bit_is_found_and_its_piece_named(
    run: Callable[..., Any], Pair: Any, Proxy: Any, connections: int
) -> None:
    def flip(offset: int, data: bytes) -> bytes:
        if offset <= 3_000_000 < offset + len(data) and connections == 1:
            at = 3_000_000 - offset
            return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]
        if connections > 1 and offset > 2_000_000:
            return data[:-1] + bytes([data[-1] ^ 4])
        return data

    async def check() -> None:
        async with Pair() as pair, Proxy(flip) as proxy:
            offer, sink = pair.open(), pair.sink()
            chosen = SocketSettings(connections=connections)
            report = await pull(offer, sink, settings=chosen, connect=proxy.connect_to(offer.port))
            assert report.status is Status.FAILED
            assert report.failure in {Failure.CORRUPT, Failure.PROTOCOL}
            if connections == 1:
                assert "checksum of the piece with layers 0..3 of blocks 6..7" in report.reason
                assert report.blocks == 6
            complete = [i for i in range(12) if arrived(sink, i)]
            assert all(pair.same(i) for i in complete)
            assert pair.rest_untouched()

    run(check())


def arrived(sink: Any, position: int) -> bool:
    whole = Piece(layer_first=0, layer_count=4, block_first=position, block_count=1)
    return bool(sink.arrivals.layer_runs(whole, position) == [(range(4), True)])


@pytest.mark.parametrize("ending", [b"", None], ids=["truncated", "reset"])
def test_a_stream_cut_mid_frame_fails_with_what_arrived(
    run: Callable[..., Any], Pair: Any, Proxy: Any, ending: bytes | None
) -> None:
    def cut(offset: int, data: bytes) -> bytes | None:
        return data if offset < 2_000_000 else ending

    async def check() -> None:
        async with Pair() as pair, Proxy(cut) as proxy:
            offer, sink = pair.open(), pair.sink()
            report = await pull(offer, sink, connect=proxy.connect_to(offer.port))
            assert (report.status, report.failure) == (Status.FAILED, Failure.CONNECTION)
            assert report.blocks == sink.arrivals.front_blocks < 12
            assert all(pair.same(i) for i in range(report.blocks))

    run(check())


def test_a_silent_source_times_out(run: Callable[..., Any], Pair: Any) -> None:
    report = run(pull_from_liar(Pair, [], hang_s=3.0))
    assert (report.status, report.failure) == (Status.FAILED, Failure.TIMEOUT)
    assert "no byte arrived for 1.1 s" in report.reason


def test_endless_keepalives_end_at_the_total_time_out(run: Callable[..., Any], Pair: Any) -> None:
    report = run(pull_from_liar(Pair, [encode_keepalive()] * 5, hang_s=3.0, timeout_s=0.5))
    assert (report.status, report.failure) == (Status.FAILED, Failure.TIMEOUT)
    assert "within 0.5 s" in report.reason


def test_nobody_listening_is_a_failure_and_no_exception(run: Callable[..., Any], Pair: Any) -> None:
    async def check() -> None:
        pair = Pair()
        offer = Offer(host="127.0.0.1", port=1, token=bytes(16), format="x", blocks=1, layers=1, layer_block_bytes=1)
        report = await pull(offer, pair.sink())
        assert (report.status, report.failure) == (Status.FAILED, Failure.CONNECTION)
        assert "127.0.0.1:1" in report.reason

    run(check())


def piece_frame(extent: tuple[int, int, int, int], payload: bytes, announced: int | None = None) -> bytes:
    piece = Piece(layer_first=extent[0], layer_count=extent[1], block_first=extent[2], block_count=extent[3])
    size = len(payload) if announced is None else announced
    return encode_piece(piece, [memoryview(payload)], size, after_pause=False, checksum=True) + payload


GOOD = piece_frame((0, 2, 0, 1), b"g" * 2 * LAYER_BLOCK)


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([piece_frame((0, 2, 3, 2), b"x" * 4 * LAYER_BLOCK)], "outside the offer"),
        ([piece_frame((1, 2, 0, 1), b"x" * 2 * LAYER_BLOCK)], "outside the offer"),
        ([piece_frame((0, 2, 0, 1), b"x" * 3 * LAYER_BLOCK)], "announced with 3000 bytes; it has 2000"),
        ([piece_frame((0, 2, 0, 1), b"x", announced=2**62)], "announced with"),
        ([piece_frame((0, 2, 0, 1), b"", announced=0)], "announced with 0 bytes"),
        ([GOOD, GOOD], "sent before"),
        ([GOOD, encode_end()], "3 of 4 blocks missing"),
        ([b"\xff" * 36], "unknown frame"),
        ([GOOD[:4] + b"\0" * 32], "without layers or blocks"),
    ],
)
def test_a_lying_source_is_caught_before_it_writes(
    run: Callable[..., Any], Pair: Any, frames: list[bytes], reason: str
) -> None:
    report = run(pull_from_liar(Pair, frames))
    assert (report.status, report.failure) == (Status.FAILED, Failure.PROTOCOL)
    assert reason in report.reason
    assert report.blocks == (1 if GOOD in frames else 0)


async def pull_from_liar(Pair: Any, frames: list[bytes], hang_s: float = 0.0, timeout_s: float = 5.0) -> TransferReport:
    """Pull 4 blocks x 2 layers from a server that answers any handshake with `frames`; check the guard blocks."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(HELLO_BYTES)
        writer.write(b"".join(frames))
        await asyncio.sleep(hang_s)
        writer.close()

    pair = Pair(4, 2, LAYER_BLOCK)
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    offer = Offer(
        host="127.0.0.1",
        port=server.sockets[0].getsockname()[1],
        token=bytes(16),
        format="test-f16",
        blocks=4,
        layers=2,
        layer_block_bytes=LAYER_BLOCK,
    )
    chosen = SocketSettings(idle_timeout_s=1.1, timeout_s=timeout_s)
    report = await pull(offer, pair.sink(), settings=chosen)
    server.close()
    assert pair.rest_untouched()
    assert b"x" not in pair.target_bytes
    return report

"""The data server against strangers, and `on_done` exactly once on every path."""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from homing.workers.transfer import (
    BufferMemory,
    DataServer,
    Failure,
    Offer,
    OutcomeStatus,
    RefusedError,
    ServerLimits,
    SocketSettings,
    Status,
    pull,
)
from homing.workers.transfer.frames import HEADER_BYTES, Header, Hello, Kind

QUICK = ServerLimits(handshake_timeout_s=0.2, send_stall_timeout_s=0.3, idle_timeout_s=2.0)


async def until(condition: Callable[[], object], timeout_s: float = 3.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


async def connected(offer: Offer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(offer.host, offer.port)


def hello(offer: Offer, **changes: Any) -> bytes:
    return replace(Hello(token=offer.token, format_digest=offer.layout.format_digest), **changes).encode()


async def first_header(reader: asyncio.StreamReader) -> Header:
    return Header.decode(await reader.readexactly(HEADER_BYTES))


def test_a_wrong_token_is_refused(run: Callable[..., Any], Pair: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        async with Pair() as pair:
            offer = pair.open()
            report = await pull(replace(offer, token=bytes(16)), pair.sink())
            assert (report.status, report.failure) == (Status.FAILED, Failure.REFUSED)
            assert "unknown token" in report.reason
            assert not pair.outcomes
            assert offer.token.hex() not in caplog.text

    run(check())
    assert "unknown token" in caplog.text


def test_an_offer_expires(run: Callable[..., Any], Pair: Any) -> None:
    async def check() -> None:
        async with Pair() as pair:
            offer = pair.open(ttl_s=0.05)
            await until(lambda: pair.outcomes)
            report = await pull(offer, pair.sink())
            assert report.failure is Failure.REFUSED
            assert [outcome.status for outcome in pair.outcomes] == [OutcomeStatus.EXPIRED]
            assert pair.server.exports_open == 0

    run(check())


def test_a_transfer_outlives_its_offers_ttl(run: Callable[..., Any], Pair: Any) -> None:
    """The ttl counts until the first connection, not until the last byte."""

    async def check() -> None:
        async with Pair() as pair:
            export = pair.handover()
            pulling = asyncio.create_task(pull(pair.open(export, ttl_s=0.1), pair.sink()))
            await asyncio.sleep(0.3)
            export.ready(0, 4, 0, 12)
            assert (await pulling).status is Status.COMPLETE

    run(check())


def test_a_token_serves_once(run: Callable[..., Any], Pair: Any) -> None:
    async def check() -> None:
        async with Pair() as pair:
            offer = pair.open()
            assert (await pull(offer, pair.sink())).status is Status.COMPLETE
            again = await pull(offer, pair.sink())
            assert (again.status, again.failure) == (Status.FAILED, Failure.REFUSED)
            assert len(pair.outcomes) == 1

    run(check())


def test_a_token_in_use_is_refused_to_others(run: Callable[..., Any], Pair: Any) -> None:
    async def check() -> None:
        async with Pair() as pair:
            export = pair.handover()
            offer = pair.open(export)
            pulling = asyncio.create_task(pull(offer, pair.sink()))
            await asyncio.sleep(0.05)
            intruder = await pull(offer, pair.sink())
            assert intruder.failure is Failure.REFUSED
            export.ready(0, 4, 0, 12)
            assert (await pulling).status is Status.COMPLETE

    run(check())


def test_another_kv_format_is_refused_and_ends_the_export(run: Callable[..., Any], Pair: Any) -> None:
    async def check() -> None:
        async with Pair() as pair:
            report = await pull(replace(pair.open(), format="other"), pair.sink())
            assert report.failure is Failure.REFUSED
            assert "format" in report.reason
            assert [outcome.status for outcome in pair.outcomes] == [OutcomeStatus.FAILED]

    run(check())


def test_withdraw_ends_a_running_transfer(run: Callable[..., Any], Pair: Any) -> None:
    async def check() -> None:
        async with Pair() as pair:
            export, sink = pair.handover(), pair.sink()
            offer = pair.open(export)
            pulling = asyncio.create_task(pull(offer, sink))
            export.ready(0, 4, 0, 5)
            await until(lambda: sink.arrivals.blocks_complete == 5)
            pair.server.withdraw(offer.token)
            assert [outcome.status for outcome in pair.outcomes] == [OutcomeStatus.WITHDRAWN]
            report = await pulling
            assert (report.status, report.blocks) == (Status.FAILED, 5)
            pair.server.withdraw(offer.token)
            assert len(pair.outcomes) == 1

    run(check())


def test_close_mid_transfer_ends_every_export_once(run: Callable[..., Any], Pair: Any) -> None:
    async def check() -> None:
        async with Pair() as pair:
            exports = [pair.handover() for _ in range(3)]
            offers = [pair.open(export) for export in exports]
            pulls = [asyncio.create_task(pull(offer, pair.sink())) for offer in offers[:2]]
            for export in exports:
                export.ready(0, 2, 0, 12)
            await asyncio.sleep(0.05)
            await pair.server.close()
            assert [outcome.status for outcome in pair.outcomes] == [OutcomeStatus.CLOSED] * 3
            reports = await asyncio.gather(*pulls)
            assert {report.failure for report in reports} == {Failure.CONNECTION}
            await pair.server.close()
            assert len(pair.outcomes) == 3
            with pytest.raises(RuntimeError, match="not listening"):
                pair.open()

    run(check())


def test_no_block_is_read_after_on_done(run: Callable[..., Any], Pair: Any) -> None:
    """The caller reuses the blocks as soon as `on_done` says so; nothing sent later may show it."""

    async def check() -> None:
        async with Pair(64, 1, 1024 * 1024) as pair:
            reads_after = 0
            view = pair.source.view

            def counted(block: int, first: int, count: int) -> memoryview:
                nonlocal reads_after
                reads_after += bool(pair.outcomes)
                return view(block, first, count)

            pair.source.view = counted
            offer = pair.open()
            pulling = asyncio.create_task(pull(offer, pair.sink()))
            await asyncio.sleep(0.005)
            pair.server.withdraw(offer.token)
            await pulling
            assert pair.outcomes[0].status is OutcomeStatus.WITHDRAWN
            assert reads_after == 0

    run(check())


def test_a_receiver_that_vanishes_is_noticed(run: Callable[..., Any], Pair: Any) -> None:
    """While the source waits for compute, without anything to send that could fail."""

    async def check() -> None:
        async with Pair() as pair:
            offer = pair.open(pair.handover())
            _, writer = await connected(offer)
            writer.write(hello(offer))
            await asyncio.sleep(0.05)
            writer.close()
            await until(lambda: pair.outcomes, 0.5)
            assert pair.outcomes[0].status is OutcomeStatus.RECEIVER_GONE

    run(check())


def test_a_receiver_that_takes_nothing_is_dropped(run: Callable[..., Any], Pair: Any) -> None:
    async def check() -> None:
        async with Pair(64, 1, 1024 * 1024, limits=QUICK) as pair:
            offer = pair.open()
            with socket.create_connection((offer.host, offer.port)) as sock:
                sock.sendall(hello(offer))
                await until(lambda: pair.outcomes)
                assert pair.outcomes[0].status is OutcomeStatus.RECEIVER_GONE
                assert "took no byte for 0.3 s" in pair.outcomes[0].reason

    run(check())


def test_a_stuck_prefill_is_given_up(run: Callable[..., Any], Pair: Any) -> None:
    async def check() -> None:
        async with Pair(limits=QUICK) as pair:
            report = await pull(pair.open(pair.handover()), pair.sink())
            assert report.failure is Failure.SOURCE
            assert "no progress for 2.0 s" in report.reason
            assert pair.outcomes[0].status is OutcomeStatus.FAILED

    run(check())


def test_a_silent_connection_is_closed(run: Callable[..., Any], Pair: Any) -> None:
    """Byte by byte does not help: the limit is on the whole handshake."""

    async def check() -> None:
        async with Pair(limits=QUICK) as pair:
            reader, writer = await connected(pair.open())
            for byte in b"HOM":
                writer.write(bytes([byte]))
                await asyncio.sleep(0.05)
            assert await asyncio.wait_for(reader.read(), 0.5) == b""
            writer.close()

    run(check())


def test_connections_beyond_the_limit_are_closed(run: Callable[..., Any], Pair: Any) -> None:
    async def check() -> None:
        async with Pair(limits=ServerLimits(connections_max=1)) as pair:
            export = pair.handover()
            offer = pair.open(export)
            pulling = asyncio.create_task(pull(offer, pair.sink()))
            await asyncio.sleep(0.05)
            reader, writer = await connected(offer)
            assert await reader.read() == b""
            writer.close()
            export.ready(0, 4, 0, 12)
            assert (await pulling).status is Status.COMPLETE

    run(check())


def test_too_many_stripes_or_exports_are_refused(run: Callable[..., Any], Pair: Any) -> None:
    async def check() -> None:
        async with Pair(limits=ServerLimits(connections_per_export_max=2, exports_max=1)) as pair:
            offer = pair.open()
            with pytest.raises(RefusedError, match="1 exports are open"):
                pair.open()
            report = await pull(offer, pair.sink(), settings=SocketSettings(connections=3))
            assert report.failure is Failure.REFUSED
            assert "at most 2 connections" in report.reason
            assert (await pull(offer, pair.sink())).status is Status.COMPLETE

    run(check())


def test_a_late_stripe_finds_the_end(run: Callable[..., Any], Pair: Any) -> None:
    """The first connection has sent everything before the second says hello: both must end well."""

    async def check() -> None:
        async with Pair() as pair:
            offer = pair.open()
            one_reader, one = await connected(offer)
            one.write(hello(offer, stripe=0, stripes=2))
            reading = asyncio.create_task(one_reader.read())
            await until(lambda: pair.outcomes)
            two_reader, two = await connected(offer)
            two.write(hello(offer, stripe=1, stripes=2))
            header = await first_header(two_reader)
            assert (header.kind, header.failed) == (Kind.END, False)
            one.close()
            two.close()
            assert len(await reading) > 12 * 4 * 96 * 1024
            assert [outcome.status for outcome in pair.outcomes] == [OutcomeStatus.SENT]

    run(check())


def test_an_on_done_that_raises_hurts_nobody(run: Callable[..., Any], Pair: Any) -> None:
    async def check() -> None:
        async with Pair() as pair:

            def broken(_: object) -> None:
                raise RuntimeError("a bug of the caller")

            offer = pair.server.open(pair.cached(), ttl_s=5.0, on_done=broken)
            assert (await pull(offer, pair.sink())).status is Status.COMPLETE
            assert (await pull(pair.open(), pair.sink())).status is Status.COMPLETE

    run(check())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rubbish=st.binary(max_size=200),
    magic=st.booleans(),
    token=st.booleans(),
)
def test_random_bytes_never_stop_the_server(
    run: Callable[..., Any], Pair: Any, rubbish: bytes, magic: bool, token: bool
) -> None:
    """Rubbish alone, behind the magic, and behind a good handshake; then an honest transfer still works."""

    async def check() -> None:
        async with Pair(2, 1, 1000, limits=QUICK) as pair:
            offer = pair.open()
            start = hello(pair.open()) if token else b"HOMINGKV\x01\x00" * magic
            reader, writer = await connected(offer)
            writer.write(start + rubbish)
            writer.write_eof()
            # Bytes that the server did not read turn its close into a reset.
            with contextlib.suppress(ConnectionError):
                await asyncio.wait_for(reader.read(), 2.0)
            writer.close()
            assert (await pull(offer, pair.sink())).status is Status.COMPLETE
            assert len(pair.outcomes) <= 2

    run(check())


def test_memory_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(ValueError, match="whole number of blocks"):
        BufferMemory(bytearray(100), format="f", layers=3, layer_block_bytes=11)
    with pytest.raises(ValueError, match="writable"):
        BufferMemory(memoryview(bytes(33)), format="f", layers=3, layer_block_bytes=11)
    with pytest.raises(IndexError):
        BufferMemory(bytearray(33), format="f", layers=3, layer_block_bytes=11).view(1, 0, 1)


def test_an_export_of_other_layers_is_refused(run: Callable[..., Any], Pair: Any) -> None:
    async def check() -> None:
        async with Pair() as pair:
            pair.layers = 7
            with pytest.raises(ValueError, match="7 layers"):
                pair.open()

    run(check())


def test_the_server_listens_on_loopback_unless_told(run: Callable[..., Any], Pair: Any) -> None:
    async def check() -> None:
        async with Pair() as pair:
            assert pair.open().host == "127.0.0.1"
            everywhere = DataServer(pair.source, "0.0.0.0", advertise_host="10.1.2.3")
            await everywhere.start()
            offer = everywhere.open(pair.cached(), ttl_s=1.0, on_done=pair.outcomes.append)
            assert offer.host == "10.1.2.3"
            await everywhere.close()

    run(check())

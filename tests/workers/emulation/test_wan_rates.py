"""The emulated network with real sockets: rates, delays, shares, and how far a sender gets ahead."""

import asyncio
import hashlib
import random
import socket
import statistics
from itertools import combinations

import pytest

from homing.workers.emulation import Wan

from .sites import JITTER_S, MB, Sink, background, echo, listening, make_links, network, pour, read_to_end


@pytest.mark.parametrize(("rate", "total_bytes"), [(2 * MB, 2_000_000), (20 * MB, 20_000_000), (100 * MB, 100_000_000)])
def test_the_receiver_sees_the_rate_of_the_link(rate: float, total_bytes: int) -> None:
    async def main() -> float:
        sink = Sink()
        async with network(sink, make_links(rate=rate, delay_s=0.01)) as (wan, address):
            async with background(pour(address, total_bytes=total_bytes)):
                while wan.bytes_carried("a", "b") < total_bytes:
                    await asyncio.sleep(0.02)
                await asyncio.sleep(0.03)
            return sink.rate()

    assert asyncio.run(main()) == pytest.approx(rate, rel=0.1)


def test_a_small_message_pays_both_delays_and_little_more() -> None:
    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        async with network(echo, make_links(delay_s=0.03, back_delay_s=0.05)) as (_, address):
            reader, writer = await asyncio.open_connection(*address)
            round_trips_s = []
            for _ in range(10):
                began_s = loop.time()
                writer.write(b"ping")
                await reader.readexactly(4)
                round_trips_s.append(loop.time() - began_s)
            writer.close()
            return round_trips_s[1:]

    round_trips_s = asyncio.run(main())
    assert min(round_trips_s) >= 0.08
    assert statistics.median(round_trips_s) < 0.08 + JITTER_S / 2


def test_the_handshake_costs_a_round_trip_before_the_first_byte() -> None:
    """The target's greeting is there after one round trip, the answer to the client's word after two."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        await echo(reader, writer)

    async def main() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        async with network(greet, make_links(delay_s=0.04, back_delay_s=0.06)) as (_, address):
            began_s = loop.time()
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"x")
            await reader.readexactly(5)
            greeted_s = loop.time() - began_s
            await reader.readexactly(1)
            writer.close()
            return greeted_s, loop.time() - began_s

    greeted_s, answered_s = asyncio.run(main())
    assert 0.1 <= greeted_s < 0.1 + JITTER_S
    assert 0.2 <= answered_s < 0.2 + 2 * JITTER_S


def test_flows_of_two_gateways_share_one_link_and_never_exceed_it() -> None:
    """I9: over any window at most rate x window + one chunk (2 ms of the rate) is carried."""
    rate = 10 * MB
    samples: list[tuple[float, int, float]] = []

    async def main() -> Sink:
        loop = asyncio.get_running_loop()
        sink, pauses = Sink(), random.Random(7)
        async with network(sink, make_links(rate=rate, delay_s=0.01)) as (wan, first), listening(sink) as target:
            second = await wan.open_gateway("a", "b", *target)
            async with background(pour(first), pour(second)):
                ends_s = loop.time() + 1.5
                while loop.time() < ends_s:
                    before_s = loop.time()
                    samples.append((before_s, wan.bytes_carried("a", "b"), loop.time()))
                    await asyncio.sleep(pauses.uniform(0.0, 0.03))
            return sink

    sink = asyncio.run(main())
    for (from_s, first_bytes, _), (_, last_bytes, to_s) in combinations(samples, 2):
        assert last_bytes - first_bytes <= rate * (to_s - from_s) + rate * 0.002 + 1
    one, other = sink.received_bytes
    assert one == pytest.approx(other, rel=0.25)
    assert sum(sink.received_bytes) > 0.9 * rate * 1.4


def test_the_two_directions_are_independent() -> None:
    async def main() -> tuple[float, float]:
        here, there = Sink(), Sink()
        async with network(there, make_links(rate=10 * MB, back_rate=4 * MB)) as (wan, to_there), listening(here) as h:
            to_here = await wan.open_gateway("b", "a", *h)
            async with background(pour(to_there), pour(to_here)):
                await asyncio.sleep(1.2)
            return there.rate(), here.rate()

    there_rate, here_rate = asyncio.run(main())
    assert there_rate == pytest.approx(10 * MB, rel=0.1)
    assert here_rate == pytest.approx(4 * MB, rel=0.1)


def test_a_ping_is_not_stuck_behind_bulk_flows() -> None:
    """Six bulk flows keep 48 ms queued before this link: a fair share waits for 2 ms of each at most."""

    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        links = make_links(rate=10 * MB, delay_s=0.005)
        async with network(echo, links) as (wan, address), listening(Sink()) as target:
            bulk = await wan.open_gateway("a", "b", *target)
            async with background(*(pour(bulk) for _ in range(6))):
                await asyncio.sleep(0.3)
                reader, writer = await asyncio.open_connection(*address)
                round_trips_s = []
                for _ in range(30):
                    began_s = loop.time()
                    writer.write(b"ping")
                    await reader.readexactly(4)
                    round_trips_s.append(loop.time() - began_s)
                    await asyncio.sleep(0.005)
                writer.close()
            return round_trips_s[1:]

    round_trips_s = asyncio.run(main())
    assert statistics.median(round_trips_s) < 0.01 + 6 * 0.002 + 0.015
    assert max(round_trips_s) < 0.2


def test_rate_and_delay_can_change_under_a_connection() -> None:
    async def main() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        sink = Sink()
        async with network(sink, make_links(rate=1 * MB)) as (wan, address), listening(echo) as target:
            second = await wan.open_gateway("a", "b", *target)
            async with background(pour(address)):
                await asyncio.sleep(0.1)
                wan.set_rate("a", "b", 40 * MB)
                await asyncio.sleep(0.1)
                before, began_s = wan.bytes_carried("a", "b"), loop.time()
                await asyncio.sleep(0.5)
                rate = (wan.bytes_carried("a", "b") - before) / (loop.time() - began_s)
            reader, writer = await asyncio.open_connection(*second)
            writer.write(b"x")
            await reader.readexactly(1)
            wan.set_delay("b", "a", 0.15)
            began_s = loop.time()
            writer.write(b"x")
            await reader.readexactly(1)
            writer.close()
            return rate, loop.time() - began_s

    rate, round_trip_s = asyncio.run(main())
    assert rate == pytest.approx(40 * MB, rel=0.1)
    assert 0.15 <= round_trip_s < 0.15 + JITTER_S


def test_a_sender_is_blocked_and_what_it_sent_arrives_when_the_receiver_wakes() -> None:
    """Accepted without a reader: the window of 70 KB and the small kernel buffers of four sockets."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        wake, digest = asyncio.Event(), loop.create_future()
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * 1024)
            server.bind(("127.0.0.1", 0))
            server.listen()
            server.setblocking(False)

            async def sleep_then_read() -> None:
                taken, _ = await loop.sock_accept(server)
                with taken:
                    taken.setblocking(False)
                    await wake.wait()
                    digest.set_result(hashlib.sha256(await read_to_end(taken)).digest())

            async with Wan(make_links(rate=2 * MB, delay_s=0.02)) as wan, background(sleep_then_read()):
                address = await wan.open_gateway("a", "b", *server.getsockname())
                with socket.socket() as sock:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32 * 1024)
                    sock.setblocking(False)
                    await loop.sock_connect(sock, address)
                    data = random.Random(3).randbytes(2_000_000)
                    accepted_bytes = 0

                    async def send() -> None:
                        nonlocal accepted_bytes
                        while accepted_bytes < len(data):
                            piece = data[accepted_bytes : accepted_bytes + 4096]
                            await loop.sock_sendall(sock, piece)
                            accepted_bytes += len(piece)

                    sending = asyncio.ensure_future(send())
                    # Long enough for the whole of the data at the rate of the link.
                    await asyncio.sleep(1.2)
                    assert 70_000 <= accepted_bytes <= 600_000
                    wake.set()
                    await sending
                    sock.shutdown(socket.SHUT_WR)
                    assert await asyncio.wait_for(digest, 5) == hashlib.sha256(data).digest()

    asyncio.run(main())


def test_a_sender_feels_the_rate_soon() -> None:
    """A sender with a small buffer of its own is ahead of the link by less than 0.1 s at 2 MB/s."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with network(Sink(), make_links(rate=2 * MB, delay_s=0.02)) as (wan, address):
            with socket.socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32 * 1024)
                sock.setblocking(False)
                await loop.sock_connect(sock, address)
                for sent_bytes in range(0, 1_500_000, 4096):
                    await loop.sock_sendall(sock, bytes(4096))
                    assert sent_bytes - wan.bytes_carried("a", "b") < 200_000

    asyncio.run(main())

"""The emulated network with real sockets: what TCP promises its users, cuts, limits and clean ends."""

import asyncio
import errno
import gc
import hashlib
import random
import socket
import warnings
from pathlib import Path

import pytest

from homing.workers.emulation import EmulatedLink, Wan
from homing.workers.emulation import gateway as gateway_module

from .sites import (
    JITTER_S,
    LINGER_ZERO,
    MB,
    Address,
    background,
    connect,
    connect_and_read,
    echo,
    expect_reset,
    listening,
    make_links,
    network,
    pour,
    read_to_end,
    reset,
)


def test_concurrent_connections_carry_their_own_bytes_unchanged() -> None:
    async def main() -> None:
        async def exchange(address: Address, seed: int) -> None:
            data = random.Random(seed).randbytes(300_000 + 7919 * seed)
            reader, writer = await asyncio.open_connection(*address)
            writer.write(data)
            writer.write_eof()
            received = await reader.read()
            writer.close()
            assert hashlib.sha256(received).digest() == hashlib.sha256(data).digest()

        async with network(echo, make_links(rate=20 * MB, delay_s=0.005)) as (_, address):
            await asyncio.gather(*(exchange(address, seed) for seed in range(6)))

    asyncio.run(main())


def test_a_half_close_passes_and_leaves_the_other_direction_open() -> None:
    async def answer_after_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        question = await reader.read()
        writer.write(question[::-1])
        await writer.drain()

    async def main() -> bytes:
        async with network(answer_after_the_end, make_links(delay_s=0.02)) as (_, address):
            sock = await connect(address)
            with sock:
                await asyncio.get_running_loop().sock_sendall(sock, b"abc")
                sock.shutdown(socket.SHUT_WR)
                return await asyncio.wait_for(read_to_end(sock), 5)

    assert asyncio.run(main()) == b"cba"


def test_a_reset_by_the_client_reaches_the_target_after_the_delay() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        greeted, broken = asyncio.Event(), loop.create_future()

        async def wait_for_reset(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
            await reader.readexactly(2)
            greeted.set()
            try:
                await reader.read()
            except ConnectionResetError:
                broken.set_result(loop.time())
            else:
                broken.set_exception(AssertionError("the end looked orderly"))

        async with network(wait_for_reset, make_links(delay_s=0.05)) as (_, address):
            sock = await connect(address)
            await loop.sock_sendall(sock, b"hi")
            await greeted.wait()
            began_s = loop.time()
            reset(sock)
            return float(await asyncio.wait_for(broken, 5)) - began_s

    assert 0.05 <= asyncio.run(main()) < 0.05 + JITTER_S


def test_a_reset_by_the_target_reaches_the_client_after_its_words() -> None:
    async def speak_and_break(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        writer.write(b"bye")
        await writer.drain()
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
        writer.transport.abort()

    async def main() -> None:
        async with network(speak_and_break, make_links(delay_s=0.02)) as (_, address):
            sock = await connect(address)
            with sock:
                loop = asyncio.get_running_loop()
                await loop.sock_sendall(sock, b"?")
                assert await loop.sock_recv(sock, 100) == b"bye"
                await expect_reset(sock, within_s=5)

    asyncio.run(main())


def test_a_target_that_does_not_listen_resets_after_a_round_trip() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            async with Wan(make_links(delay_s=0.04)) as wan:
                began_s = loop.time()
                sock = await connect(await wan.open_gateway("a", "b", *unused.getsockname()))
                with sock:
                    await expect_reset(sock, within_s=5)
                return loop.time() - began_s

    assert 0.08 <= asyncio.run(main()) < 0.08 + JITTER_S


@pytest.mark.parametrize("direction", [("a", "b"), ("b", "a")])
def test_a_cut_of_either_direction_breaks_at_once_refuses_and_heals(direction: tuple[str, str]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        links = make_links(rate=5 * MB, delay_s=0.3)
        links += [
            EmulatedLink(source=source, target=target, bytes_per_s=MB, delay_s=0.0)
            for source, target in [("a", "c"), ("c", "a")]
        ]
        async with network(echo, links) as (wan, address), listening(echo) as target:
            elsewhere = await connect(await wan.open_gateway("a", "c", *target))
            idle, fresh = await connect(address), None
            await asyncio.sleep(0.35)
            async with background(pour(address)):
                await asyncio.sleep(0.1)
                fresh = await connect(address)
                wan.cut(*direction)
                await asyncio.gather(*(expect_reset(sock, within_s=0.1) for sock in (idle, fresh)))
                with pytest.raises(ConnectionRefusedError):
                    await connect(address)
                wan.restore(*direction)
                healed = await connect(address)
                await loop.sock_sendall(healed, b"again")
                assert await asyncio.wait_for(loop.sock_recv(healed, 100), 5) == b"again"
                await loop.sock_sendall(elsewhere, b"still here")
                assert await asyncio.wait_for(loop.sock_recv(elsewhere, 100), 5) == b"still here"
            for sock in (elsewhere, idle, fresh, healed):
                sock.close()

    asyncio.run(main())


def test_both_directions_must_be_restored() -> None:
    async def main() -> None:
        async with network(echo) as (wan, address):
            wan.cut("a", "b")
            wan.cut("b", "a")
            wan.restore("a", "b")
            with pytest.raises(ConnectionRefusedError):
                await connect(address)
            wan.restore("b", "a")
            (await connect(address)).close()

    asyncio.run(main())


def test_connections_beyond_the_limit_are_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_module, "_CONNECTIONS_MAX", 2)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with network(echo) as (_, address):
            socks = [await connect(address) for _ in range(2)]
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(connect_and_read(address), 5)
            await loop.sock_sendall(socks[0], b"ok")
            assert await asyncio.wait_for(loop.sock_recv(socks[0], 10), 5) == b"ok"
            for sock in socks:
                sock.close()

    asyncio.run(main())


def test_close_leaves_no_task_no_descriptor_and_no_port() -> None:
    """With connections in every state: idle, in the handshake, mid-transfer, half-closed, gone."""

    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with listening(echo) as target:
            tasks_before, descriptors_before = asyncio.all_tasks(), descriptors()
            wan = Wan(make_links(rate=2 * MB, delay_s=0.02))
            address = await wan.open_gateway("a", "b", *target)
            async with background(pour(address)):
                idle, half, gone = [await connect(address) for _ in range(3)]
                half.shutdown(socket.SHUT_WR)
                reset(gone)
                await asyncio.sleep(0.2)
                newest = await connect(address)
                await asyncio.wait_for(wan.close(), 1)
                await wan.close()
                await expect_reset(idle, within_s=0.1)
                for sock in (idle, half, newest):
                    sock.close()
            with pytest.raises(OSError, match=f"Errno {errno.ECONNREFUSED}"):
                await connect(address)
            deadline_s = loop.time() + 2
            while loop.time() < deadline_s and (
                asyncio.all_tasks() - tasks_before or descriptors() > descriptors_before
            ):
                await asyncio.sleep(0.02)
            assert not asyncio.all_tasks() - tasks_before
            assert descriptors() == descriptors_before
            with pytest.raises(RuntimeError, match="closed"):
                await wan.open_gateway("a", "b", *target)

    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        asyncio.run(main())
        gc.collect()


def test_an_ended_connection_is_forgotten_while_the_network_lives() -> None:
    async def main() -> None:
        async with network(echo, make_links(delay_s=0.005)) as (_, address):
            before = asyncio.all_tasks()
            for number in range(20):
                sock = await connect(address)
                if number % 2:
                    reset(sock)
                else:
                    sock.close()
            deadline_s = asyncio.get_running_loop().time() + 2
            while asyncio.all_tasks() - before and asyncio.get_running_loop().time() < deadline_s:
                await asyncio.sleep(0.02)
            assert not asyncio.all_tasks() - before

    asyncio.run(main())


def test_a_host_may_be_a_name() -> None:
    async def main() -> bytes:
        async with listening(echo) as (_, port), Wan(make_links()) as wan:
            reader, writer = await asyncio.open_connection(*await wan.open_gateway("a", "b", "localhost", port))
            writer.write(b"name")
            answer = await asyncio.wait_for(reader.readexactly(4), 5)
            writer.close()
            return answer

    assert asyncio.run(main()) == b"name"


def test_mistakes_are_named() -> None:
    async def main() -> None:
        async with Wan(make_links()) as wan:
            with pytest.raises(ValueError, match="same site"):
                await wan.open_gateway("a", "a", "127.0.0.1", 80)
            with pytest.raises(LookupError, match="no link 'a' -> 'c'"):
                await wan.open_gateway("a", "c", "127.0.0.1", 80)
            with pytest.raises(ValueError, match="port is 0"):
                await wan.open_gateway("a", "b", "127.0.0.1", 0)
            with pytest.raises(ValueError, match="bytes_per_s is 0"):
                wan.set_rate("a", "b", 0)
            with pytest.raises(ValueError, match="delay_s is -1"):
                wan.set_delay("a", "b", -1)
            for act in (wan.cut, wan.restore, wan.bytes_carried):
                with pytest.raises(LookupError, match="no link 'b' -> 'x'"):
                    act("b", "x")
        one_way = Wan(make_links()[:1])
        with pytest.raises(LookupError, match="no link 'b' -> 'a'"):
            await one_way.open_gateway("a", "b", "127.0.0.1", 80)
        with pytest.raises(ValueError, match="given twice"):
            Wan(make_links() + make_links())

    asyncio.run(main())


def test_a_slow_reader_gets_everything_although_the_connection_has_ended() -> None:
    """The last bytes wait in the kernel of the gateway, which must not drop them when its work is done."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.write(bytes(20_000))
        await writer.drain()

    async def main() -> int:
        loop = asyncio.get_running_loop()
        async with network(speak) as (_, address):
            with socket.socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
                sock.setblocking(False)
                await loop.sock_connect(sock, address)
                sock.shutdown(socket.SHUT_WR)
                await asyncio.sleep(0.2)
                return len(await asyncio.wait_for(read_to_end(sock), 5))

    assert asyncio.run(main()) == 20_000


def test_a_client_gets_small_segments() -> None:
    """With the loopback device's own segments its kernel would take megabytes off its hands at first."""

    async def main() -> int:
        async with network(echo) as (_, address):
            with await connect(address) as sock:
                return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)

    assert asyncio.run(main()) <= 1460

"""The client to engines over real sockets, and engines that do all that an engine should not."""

import asyncio
import time

import pytest

from homing.router.service.door.upstream import EARLY_BYTES_MAX, Timeouts, Upstream, UpstreamError

from .wire import eventually, on_a_loop, one_request, scripted

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
QUICK = Timeouts(connect_s=1, first_byte_s=0.4, between_s=0.4)


def upstream(engine, timeouts=QUICK, **options):
    return Upstream(engine.url, timeouts, **options)


async def ask(up, body=b"{}", path="/v1/completions"):
    """A whole answer."""
    parts = []
    answer, head = await up.ask("POST", path, {"x-a": "b"}, body)
    try:
        answer.take(parts.append)
        await answer.done()
    finally:
        up.release(answer)
    return head.status, head.headers, b"".join(parts)


def says(*parts, pause_s=0.005):
    """An engine that answers every request with these bytes, in these parts."""

    async def script(reader, writer, number):
        while True:
            await one_request(reader)
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(pause_s)

    return script


def says_and_closes(*parts):
    async def script(reader, writer, number):
        await one_request(reader)
        for part in parts:
            writer.write(part)
            await asyncio.sleep(0.005)
        writer.close()

    return script


async def silent(reader, writer, number):
    await reader.read()


# -- answers -----------------------------------------------------------------------------------------------------------


@on_a_loop
async def test_what_is_asked():
    heads = []

    async def script(reader, writer, number):
        heads.append(await one_request(reader))
        writer.write(OK)

    async with scripted(script) as engine:
        up = Upstream(engine.url + "/base/", QUICK)
        assert (await ask(up, b"12345", "/v1/x"))[2] == b"ok"
        up.abort_all("test")
    ((head, body),) = heads
    host = engine.url.removeprefix("http://")
    assert head == f"post /base/v1/x http/1.1\r\nhost: {host}\r\nx-a: b\r\ncontent-length: 5\r\n\r\n"
    assert body == b"12345"


@pytest.mark.parametrize(
    "answer",
    [
        OK,
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\no\r\n1;x=y\r\nk\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-trailer: 1\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n" + OK,
        b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok",
    ],
    ids=["length", "chunks", "trailer", "interim", "1.0 kept"],
)
@pytest.mark.parametrize("piece", [1, 7, 1000])
@on_a_loop
async def test_one_connection_carries_many_answers(answer, piece):
    parts = [answer[at : at + piece] for at in range(0, len(answer), piece)]
    async with scripted(says(*parts, pause_s=0)) as engine:
        up = upstream(engine)
        for _ in range(4):
            status, headers, body = await ask(up)
            assert (status, body) == (200, b"ok")
            assert not {"link", "x-trailer"} & set(headers)
        assert engine.connections == 1
        up.abort_all("test")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ],
)
@on_a_loop
async def test_answers_that_end_with_their_connection(answer):
    async with scripted(says_and_closes(answer[:-1], answer[-1:])) as engine:
        up = upstream(engine)
        for _ in range(2):
            assert (await ask(up))[::2] == (200, b"ok")
        assert engine.connections == 2
        assert not up._idle


@on_a_loop
async def test_a_body_that_nobody_takes_yet_waits_and_slows_the_engine():
    sent = 0

    async def script(reader, writer, number):
        nonlocal sent
        await one_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n")
        for _ in range(1000):
            writer.write(bytes(100_000))
            await writer.drain()
            sent += 100_000
        await reader.read()  # until the client has all of it and leaves

    async with scripted(script) as engine:
        up = upstream(engine)
        answer, _ = await up.ask("POST", "/", {}, b"")
        await asyncio.sleep(0.2)
        assert answer._early_bytes < EARLY_BYTES_MAX + 1_000_000
        assert sent < 50_000_000
        before = sent
        await asyncio.sleep(0.6)
        assert sent == before, "a client that waits is no engine that stalls"
        got = 0

        def take(data):
            nonlocal got
            got += len(data)

        answer.take(take)
        await answer.done()
        assert got == 100_000_000
        up.release(answer)
        up.abort_all("test")


@on_a_loop
async def test_a_paused_answer_is_no_stalled_one():
    async with scripted(says(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n")) as engine:
        up = upstream(engine)
        answer, _ = await up.ask("POST", "/", {}, b"")
        answer.take(lambda data: None)
        answer.pause()
        await asyncio.sleep(1.0)
        assert not answer._done.done()
        answer.resume()
        with pytest.raises(UpstreamError, match="stalled"):
            await answer.done()
        up.release(answer)


# -- the pool ----------------------------------------------------------------------------------------------------------


@on_a_loop
async def test_a_connection_that_the_engine_closed_meanwhile_is_no_failure():
    """It may close a kept connection just when a request is on its way: that is asked again, on a new one."""
    asked = []

    async def script(reader, writer, number):
        await one_request(reader)
        writer.write(OK)
        asked.append(number)
        if number == 0:
            await one_request(reader)
            asked.append("lost")
            return
        await one_request(reader)
        writer.write(OK)

    async with scripted(script) as engine:
        up = upstream(engine)
        assert (await ask(up))[2] == b"ok"
        assert (await ask(up))[2] == b"ok"
        assert asked == [0, "lost", 1]
        up.abort_all("test")


@on_a_loop
async def test_closed_connections_are_not_asked():
    async with scripted(says_and_closes(OK)) as engine:
        up = upstream(engine)
        for _ in range(3):
            assert (await ask(up))[2] == b"ok"
            await asyncio.sleep(0.05)
        assert engine.connections == 3
        up.abort_all("test")


@on_a_loop
async def test_a_new_connection_that_is_closed_is_a_failure_and_asked_once():
    async with scripted(says_and_closes()) as engine:
        with pytest.raises(UpstreamError, match="closed the connection"):
            await ask(upstream(engine))
        assert engine.connections == 1


@on_a_loop
async def test_what_has_begun_or_is_late_is_not_asked_again():
    seen = []

    def second(tail):
        async def script(reader, writer, number):
            await one_request(reader)
            seen.append(number)
            writer.write(OK)
            await one_request(reader)
            seen.append(number)
            writer.write(tail)
            await asyncio.sleep(0.01 if tail else 5)

        return script

    for tail, why in ((b"HTTP/1.1 2", "closed the connection"), (b"", "no answer within")):
        seen.clear()
        async with scripted(second(tail)) as engine:
            up = upstream(engine)
            await ask(up)
            with pytest.raises(UpstreamError, match=why):
                await ask(up)
        assert seen == [0, 0]


@on_a_loop
async def test_idle_connections_are_bounded_and_their_sweep_ends():
    async with scripted(says(OK)) as engine:
        up = upstream(engine, idle_max=2)
        await asyncio.gather(*(ask(up) for _ in range(6)))
        assert len(up._idle) == 2
        await eventually(lambda: engine.open == 2, "the others are closed")
        for answer in up._idle:
            answer.idle_since_s -= 10
        await eventually(lambda: engine.open == 0, "idle ones are closed")
        await eventually(lambda: up._sweeping is None, "nothing is left to sweep")
        assert (await ask(up))[2] == b"ok"
        up.abort_all("test")


@on_a_loop
async def test_bytes_that_nobody_asked_for_close_a_connection():
    async with scripted(says(OK, b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")) as engine:
        up = upstream(engine)
        for _ in range(3):
            assert (await ask(up))[2] == b"ok"
            await asyncio.sleep(0.03)
        assert engine.connections == 3
        up.abort_all("test")


@pytest.mark.parametrize("more", [OK, b"x", b"HTTP/1.1 200 OK\r\n"])
@on_a_loop
async def test_a_second_answer_in_one_breath_goes_to_nobody(more):
    async with scripted(says(OK + more)) as engine:
        up = upstream(engine)
        for _ in range(3):
            assert (await ask(up))[2] == b"ok"
        assert engine.connections == 3


# -- failures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ([b"hello\r\n\r\n"], "no HTTP"),
        ([b"\x00\x01\x02\xff"], "no HTTP"),
        ([b"HTTP/1.1 200 OK\r\ncontent-length: zz\r\n\r\n"], "no HTTP"),
        ([b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"], "no HTTP"),
        ([b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n"], "another protocol"),
        ([b"HTTP/1.1 200 OK\r\n", *[b"x: %b\r\n" % (b"a" * 1000)] * 70], "headers of more than"),
        ([b"HTTP/1.1 200 OK\r\nx: ", *[b"a" * 10_000] * 8], "headers of more than"),
        (
            [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: ", *[b"a" * 10_000] * 8],
            "headers of more than",
        ),
        ([b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf"], "before its answer was whole"),
        ([b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nha\r\n"], "before its answer was whole"),
        ([b"HTTP/1.1 200 O"], "before its answer was whole"),
        ([b"HTTP/1.1 100 Continue\r\n\r\n"], "before its answer was whole"),
    ],
)
@on_a_loop
async def test_what_is_no_answer_is_told(parts, why):
    async with scripted(says_and_closes(*parts)) as engine:
        up = upstream(engine, Timeouts())
        with pytest.raises(UpstreamError, match=why):
            await ask(up)
        assert not up._idle
        assert not up._busy


@on_a_loop
async def test_an_answer_without_length_that_is_torn_off_is_not_whole():
    async def script(reader, writer, number):
        await one_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        await writer.drain()
        await asyncio.sleep(0.02)
        sock = writer.get_extra_info("socket")
        # On abort with this option the kernel resets the connection.
        sock.setsockopt(1, 13, b"\x01\x00\x00\x00\x00\x00\x00\x00")

    async with scripted(script) as engine:
        with pytest.raises(UpstreamError, match="before its answer was whole"):
            await ask(upstream(engine))


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ([], "no answer within 0.4 s"),
        ([b"HTTP/1.1 200 OK\r\nx: "], "no answer within 0.4 s"),
        ([b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"], "stalled"),
        ([b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf"], "stalled"),
    ],
)
@on_a_loop
async def test_an_engine_that_stalls_is_given_up(parts, why):
    async def script(reader, writer, number):
        await one_request(reader)
        for part in parts:
            writer.write(part)
        await reader.read()

    async with scripted(script) as engine:
        began_s = time.monotonic()
        with pytest.raises(UpstreamError, match=why):
            await ask(upstream(engine))
        assert time.monotonic() - began_s < 1.5
        await eventually(lambda: engine.open == 0, "its connection is closed")


@on_a_loop
async def test_nobody_listens():
    async with scripted(silent) as engine:
        up = upstream(engine)
    with pytest.raises(UpstreamError, match="no connection") as caught:
        await ask(up)
    assert caught.value.refused
    assert up.refused


@pytest.mark.parametrize("url", ["http://no-such-host.invalid:1", "http://a..b:1", "http://" + "a" * 70 + ":1"])
@on_a_loop
async def test_a_host_that_is_none(url):
    with pytest.raises(UpstreamError, match="no connection"):
        await ask(Upstream(url, QUICK))


@on_a_loop
async def test_who_leaves_closes_the_connection():
    async with scripted(silent) as engine:
        up = upstream(engine, Timeouts())
        asking = asyncio.ensure_future(ask(up))
        await eventually(lambda: engine.open == 1, "it was asked")
        asking.cancel()
        await eventually(lambda: engine.open == 0, "the engine sees it")
        assert not up._busy


@on_a_loop
async def test_a_lost_engine_fails_all_that_wait_at_once():
    async with (
        scripted(says(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")) as streams,
        scripted(silent) as waits,
    ):
        for engine in (streams, waits):
            up = upstream(engine, Timeouts())
            asking = [asyncio.ensure_future(ask(up)) for _ in range(3)]
            await eventually(lambda engine=engine: engine.open == 3, "they wait")
            up.abort_all("is lost")
            for each in asyncio.as_completed(asking):
                with pytest.raises(UpstreamError, match="is lost"):
                    await each
            assert engine.connections == 3, "nobody asked again"


@on_a_loop
async def test_what_was_heard_of_an_engine():
    async with scripted(says(OK)) as engine:
        up = upstream(engine)
        before_s = asyncio.get_running_loop().time()
        assert not up.heard_since(before_s)
        await ask(up)
        assert up.heard_since(before_s)
        assert not up.heard_since(asyncio.get_running_loop().time() + 1)
        up.abort_all("test")

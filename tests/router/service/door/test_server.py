"""Our HTTP server over real sockets: what clients send, how they send it, and that none of them takes too much."""

import asyncio
import contextlib
import socket
import time
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .wire import chunked, connected, eventually, on_a_loop, request, serving


async def echo(asked, responder):
    """Tells what it was asked."""
    body = f"{asked.method} {asked.path}?{asked.query} ".encode() + asked.body
    responder.send(200, body, {"content-type": "text/plain"})


async def stream(asked, responder):
    responder.start(200, {"content-type": "text/event-stream"})
    for part in (b"data: 1\n\n", b"data: 2\n\n"):
        responder.write(part)
        await asyncio.sleep(0)
    responder.finish()


class Held:
    """A handler that waits for `go`, and says whether it was cancelled."""

    def __init__(self):
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def __call__(self, asked, responder):
        self.begun.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        await echo(asked, responder)


# -- requests ----------------------------------------------------------------------------------------------------------


@on_a_loop
async def test_connections_are_kept_and_requests_pipelined():
    async with serving(echo) as server, connected(server.port) as client:
        await client.send(request(b"one", path="/a?x=1"))
        first = await client.response()
        assert (first.status, first.body) == (200, b"POST /a?x=1 one")
        assert "connection" not in first.headers
        await client.send(request(b"2") + request(method="GET", path="/get") + chunked([b"th", b"r", b"ee"]))
        assert [(await client.response()).body for _ in range(3)] == [
            b"POST /echo? 2",
            b"GET /get? ",
            b"POST /echo? three",
        ]
        assert len(server.connections) == 1


@on_a_loop
async def test_close_is_done_and_what_follows_is_left_alone():
    async with serving(echo) as server, connected(server.port) as client:
        await client.send(request(b"x", headers=["connection: close"]) + request(b"y"))
        (only,) = await client.responses()
        assert only.body == b"POST /echo? x"
        assert only.headers["connection"] == "close"


@on_a_loop
async def test_head_has_the_headers_of_get_and_no_body():
    async with serving(echo) as server, connected(server.port) as client:
        await client.send(request(method="HEAD", path="/h") + request(b"x"))
        head = await client.response(bodiless=True)
        assert head.headers["content-length"] == str(len(b"HEAD /h? "))
        assert (await client.response()).body == b"POST /echo? x"


@on_a_loop
async def test_streams_come_in_chunks():
    async with serving(stream) as server, connected(server.port) as client:
        for _ in range(2):
            await client.send(request())
            told = await client.response()
            assert told.headers["transfer-encoding"] == "chunked"
            assert told.body == b"data: 1\n\ndata: 2\n\n"


@pytest.mark.parametrize("keep", [False, True])
@on_a_loop
async def test_http_1_0_knows_no_chunks(keep):
    ask = b"GET / HTTP/1.0\r\n" + (b"connection: keep-alive\r\n" if keep else b"") + b"\r\n"
    async with serving(stream) as server, connected(server.port) as client:
        await client.send(ask)
        (told,) = await client.responses()
        assert "transfer-encoding" not in told.headers
        assert told.body == b"data: 1\n\ndata: 2\n\n"
    async with serving(echo) as server, connected(server.port) as client:
        await client.send(ask)
        told = await client.response()
        assert told.body == b"GET /? "
        assert told.headers["connection"] == ("keep-alive" if keep else "close")
        if keep:
            await client.send(ask)
            assert (await client.response()).body == b"GET /? "


@on_a_loop
async def test_a_body_that_waits_to_be_asked_for_is_asked_for():
    head, body = request(b"hello", headers=["expect: 100-continue"]).split(b"\r\n\r\n")
    async with serving(echo) as server, connected(server.port) as client:
        await client.send(head + b"\r\n\r\n")
        assert (await client.response()).status == 100
        await client.send(body)
        assert (await client.response()).body == b"POST /echo? hello"


@on_a_loop
async def test_a_body_that_is_too_large_is_not_asked_for():
    head = b"POST / HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 2000\r\n\r\n"
    async with serving(echo, body_bytes_max=1024) as server, connected(server.port) as client:
        await client.send(head)
        assert [each.status for each in await client.responses()] == [413]


@on_a_loop
async def test_asking_for_a_body_waits_for_the_answers_before_it():
    held = Held()
    async with serving(held) as server, connected(server.port) as client:
        await client.send(request(b"1") + request(b"2", headers=["expect: 100-continue"])[:-1])
        await held.begun.wait()
        await asyncio.sleep(0.02)
        held.go.set()
        assert [(await client.response()).status for _ in range(2)] == [200, 100]
        await client.send(b"2")
        assert (await client.response()).body == b"POST /echo? 2"


@on_a_loop
async def test_trailers_are_no_headers():
    async def tell(asked, responder):
        responder.send(200, repr(sorted(asked.headers)).encode())

    async with serving(tell) as server, connected(server.port) as client:
        await client.send(chunked([b"x"], trailers=["authorization: Bearer stolen"]))
        assert (await client.response()).body == b"['host', 'transfer-encoding']"


@on_a_loop
async def test_an_offer_of_http_2_is_ignored():
    """Java's HttpClient and `curl --http2` make it with each request."""
    offer = ["connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQAoAAA"]
    async with serving(echo) as server, connected(server.port) as client:
        for ask in (request(b"body", headers=offer), chunked([b"bo", b"dy"], headers=offer)):
            data = ask + request(b"next")
            for cut in (len(data), 30, len(ask) - 2):
                await client.send(data[:cut])
                await asyncio.sleep(0.005)
                await client.send(data[cut:])
                assert (await client.response()).body == b"POST /echo? body"
                assert (await client.response()).body == b"POST /echo? next"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00", "HTTP/2"),
        (request(method="GET", headers=["connection: upgrade", "upgrade: websocket"]), "upgrade"),
        (b"CONNECT a:80 HTTP/1.1\r\n\r\n", "upgrade"),
        (bytes.fromhex("16030100a5010000a10303"), "HTTP/1.1"),
        (b"\x00\xff\xfe\r\n\r\n", "HTTP/1.1"),
        (b"GET / HTTP/1.1\r\nx: a\x00b\r\n\r\n", "HTTP/1.1"),
        (b"GET / HTTP/1.1\r\nx: a\r\n folded\r\n\r\n", "HTTP/1.1"),
        (b"GET http://a:port/ HTTP/1.1\r\n\r\n", "HTTP/1.1"),
        ("GET /é HTTP/1.1\r\n\r\n".encode(), "HTTP/1.1"),
        (b"POST / HTTP/1.1\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", "HTTP/1.1"),
        (b"POST / HTTP/1.1\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabc", "HTTP/1.1"),
        (b"POST / HTTP/1.1\r\ncontent-length: +3\r\n\r\nabc", "HTTP/1.1"),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: gzip\r\n\r\nabc", "HTTP/1.1"),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n", "HTTP/1.1"),
    ],
)
@on_a_loop
async def test_what_is_no_request_gets_a_clear_no(data, says):
    async with serving(echo) as server, connected(server.port) as client:
        await client.send(data)
        (told,) = await client.responses()
        assert told.status == 400
        assert says in told.body.decode()
        assert told.headers["connection"] == "close"


@on_a_loop
async def test_good_requests_before_a_bad_one_are_answered_first():
    async with serving(stream) as server, connected(server.port) as client:
        await client.send(request() + request() + b"what?\r\n\r\n")
        assert [each.status for each in await client.responses()] == [200, 200, 400]


# -- limits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n" + b"".join(b"x%d: y\r\n" % n for n in range(200)),
        b"GET /" + b"a" * 3000,
        b"GET / HTTP/1.1\r\nx: " + b"a" * 3000,
        b"GET / HTTP/1.1\r\n" + b"a" * 3000,
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\nx: " + b"a" * 3000,
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1;" + b"a" * 3000,
        b"\r\n" * 2000,
    ],
    ids=["many headers", "URL", "value", "name", "trailer", "chunk extension", "empty lines"],
)
@pytest.mark.parametrize("piece", [100, 700])
@on_a_loop
async def test_headers_are_bounded_before_they_end(data, piece):
    async with serving(echo, header_bytes_max=1024) as server, connected(server.port) as client:
        with contextlib.suppress(ConnectionError):
            for start in range(0, len(data), piece):
                await client.send(data[start : start + piece])
                await asyncio.sleep(0)
        (told,) = await client.responses()
        assert told.status == 431
        assert b"1024 bytes" in told.body


@pytest.mark.parametrize("declared", [True, False])
@on_a_loop
async def test_a_huge_body_is_refused_in_little_memory(declared):
    """100 MB; the client sends all of it before it reads, and still reads what it is told."""
    size, piece = 100 * 1000 * 1000, bytes(1000 * 1000)
    async with serving(echo, body_bytes_max=4 * 1024 * 1024) as server, connected(server.port, limit=1 << 16) as client:
        tracemalloc.start()
        try:
            if declared:
                await client.send(b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % size)
            else:
                await client.send(b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n")
            for _ in range(size // len(piece)):
                await client.send(piece if declared else b"%x\r\n%b\r\n" % (len(piece), piece))
            (told,) = await client.responses()
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert told.status == 413
        assert b"router.body_bytes_max" in told.body
        assert peak_bytes < 20_000_000


@on_a_loop
async def test_a_body_in_tiny_chunks_takes_no_more_memory_than_its_size():
    async with serving(echo) as server, connected(server.port) as client:
        tracemalloc.start()
        try:
            await client.send(b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n")
            for _ in range(100):
                await client.send(b"2\r\nab\r\n" * 1000)
            await eventually(lambda: server.bodies_bytes == 200_000, "it was read")
            held_bytes, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert held_bytes < 1_000_000
        await client.send(b"0\r\n\r\n")
        assert len((await client.response()).body) == 200_000 + len(b"POST /? ")


@on_a_loop
async def test_all_bodies_together_are_bounded():
    held = Held()
    async with serving(held, bodies_bytes_max=1000) as server:
        async with connected(server.port) as first, connected(server.port) as second:
            await first.send(request(bytes(600)))
            await held.begun.wait()
            await second.send(request(bytes(600)))
            (told,) = await second.responses()
            assert told.status == 503
            held.go.set()
            assert (await first.response()).status == 200
        async with connected(server.port) as third:
            await third.send(request(bytes(600)))
            assert (await third.response()).status == 200


@on_a_loop
async def test_bodies_are_given_back_when_a_client_leaves():
    held = Held()
    async with serving(held) as server, connected(server.port) as client:
        await client.send(request(b"a" * 100) + request(b"b" * 100) + request(b"c" * 100)[:-50])
        await held.begun.wait()
        assert server.bodies_bytes == 250
        client.leave()
        await held.cancelled.wait()
        await eventually(lambda: server.bodies_bytes == 0, "the bodies were given back")


@on_a_loop
async def test_connections_beyond_the_limit_are_told_so():
    async with serving(echo, connections_max=2) as server:
        async with connected(server.port) as first, connected(server.port) as second, connected(server.port) as third:
            await third.send(request(b"x"))
            (told,) = await third.responses()
            assert told.status == 503
            for client in (first, second):
                await client.send(request(b"x"))
                assert (await client.response()).status == 200
        await eventually(lambda: not server.connections, "they are gone")
        async with connected(server.port) as fourth:
            await fourth.send(request(b"x"))
            assert (await fourth.response()).status == 200


@on_a_loop
async def test_requests_sent_ahead_are_bounded():
    held = Held()
    async with serving(held) as server, connected(server.port) as client:
        await client.send(request(b"0"))
        await held.begun.wait()
        await client.send(b"".join(request(b"%d" % n) for n in range(1, 19)))
        held.go.set()
        told = await client.responses()
        assert [each.status for each in told] == [200] * 17 + [429]


@on_a_loop
async def test_what_is_sent_ahead_is_not_read_without_end():
    held = Held()
    async with serving(held) as server, connected(server.port) as client:
        await client.send(request(b"0"))
        await held.begun.wait()
        client.writer.write(bytes(50_000_000))
        await asyncio.sleep(0.2)
        (connection,) = server.connections
        assert len(connection._unread) < 1_000_000
        held.go.set()
        assert (await client.response()).status == 200


# -- time --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["headers", "body", "chunks"])
@on_a_loop
async def test_a_client_that_sends_byte_by_byte_is_cut_off(where):
    """Slow loris: a byte every now and then does not buy more time."""
    whole = chunked([b"x" * 100]) if where == "chunks" else request(b"x" * 100)
    at = 4 if where == "headers" else whole.index(b"\r\n\r\n") + 4
    async with serving(echo, header_timeout_s=0.2, body_timeout_s=0.2) as server, connected(server.port) as client:
        began_s = time.monotonic()
        await client.send(whole[:at])
        answer = asyncio.ensure_future(client.responses())
        while not answer.done():
            with contextlib.suppress(ConnectionError):
                await client.send(whole[at : at + 1])
            at += 1
            await asyncio.sleep(0.02)
        (told,) = await answer
        assert told.status == 408
        assert b"within 0.2 s" in told.body
        assert time.monotonic() - began_s < 1.5


@on_a_loop
async def test_time_counts_for_each_request_of_a_connection():
    """The rest of a request that began before the answer to the last one was out has its time from then on."""
    held = Held()
    async with serving(held, header_timeout_s=0.2, idle_timeout_s=20) as server, connected(server.port) as client:
        await client.send(request(b"1") + b"POST /half")
        await held.begun.wait()
        await asyncio.sleep(0.4)
        held.go.set()
        assert [each.status for each in await client.responses()] == [200, 408]


@on_a_loop
async def test_an_idle_connection_is_closed_without_a_word():
    limits = {"header_timeout_s": 0.2, "idle_timeout_s": 0.2}
    async with serving(echo, **limits) as server, connected(server.port) as fresh, connected(server.port) as used:
        await used.send(request(b"x"))
        assert (await used.response()).status == 200
        assert await fresh.ended()
        assert await used.ended()


class Flood:
    """Writes without end, but stops when told to: a stand-in for an engine with a slow reader."""

    def __init__(self):
        self.going = True
        self.pauses = 0
        self.written = 0
        self.cancelled = False

    def pause(self):
        self.going = False
        self.pauses += 1

    def resume(self):
        self.going = True

    async def __call__(self, asked, responder):
        responder.start(200, {})
        responder.watch(self.pause, self.resume)
        try:
            while True:
                if self.going:
                    responder.write(bytes(64 * 1024))
                    self.written += 64 * 1024
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.cancelled = True
            raise


def slow_reader(port):
    """A socket that takes little, so that the kernel does not hide that nobody reads."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    made.connect(("127.0.0.1", port))
    return made


@on_a_loop
async def test_a_client_that_does_not_read_slows_the_writer_and_is_cut_off():
    flood = Flood()
    async with serving(flood, write_timeout_s=0.5) as server:
        with slow_reader(server.port) as sock:
            sock.sendall(request())
            await eventually(lambda: flood.pauses, "the writer was paused")
            written = flood.written
            await asyncio.sleep(0.2)
            assert flood.written == written < 20_000_000
            await eventually(lambda: flood.cancelled, "it was cut off")
            await eventually(lambda: not server.connections, "it is gone")


@on_a_loop
async def test_a_client_that_reads_slowly_is_kept():
    flood = Flood()
    async with serving(flood, write_timeout_s=4.0) as server, connected(server.port, limit=1 << 16) as client:
        await client.send(request())
        for _ in range(30):
            await client.reader.readexactly(1_000_000)
            await asyncio.sleep(0.05)
        assert flood.pauses > 1
        assert not flood.cancelled


@on_a_loop
async def test_the_next_answer_to_a_client_that_is_behind_is_paused_from_its_start():
    flood = Flood()

    async def handler(asked, responder):
        if asked.body == b"large":
            responder.send(200, bytes(8_000_000))
        else:
            await flood(asked, responder)

    async with serving(handler) as server:
        with slow_reader(server.port) as sock:
            sock.sendall(request(b"large") + request(b"flood"))
            await eventually(lambda: flood.pauses, "the writer was paused")
            await asyncio.sleep(0.1)
            assert flood.written == 0


@pytest.mark.parametrize("headers", [[], ["connection: close"]], ids=["kept", "closed"])
@pytest.mark.parametrize("size", [4_000_000, 30_000_000])
@on_a_loop
async def test_an_answer_that_nobody_takes_does_not_hold_its_connection(headers, size):
    async def handler(asked, responder):
        responder.send(200, bytes(size))

    async with serving(handler, write_timeout_s=0.3, idle_timeout_s=0.3) as server:
        with slow_reader(server.port) as sock:
            sock.sendall(request(headers=headers))
            await eventually(lambda: server.connections, "it came")
            await eventually(lambda: not server.connections, "it was cut off", 3)


@on_a_loop
async def test_a_slow_reader_that_caught_up_is_idle():
    async def handler(asked, responder):
        responder.send(200, bytes(20_000_000))

    limits = {"write_timeout_s": 5, "idle_timeout_s": 0.3, "header_timeout_s": 1}
    async with serving(handler, **limits) as server, connected(server.port) as client:
        await client.send(request())
        await asyncio.sleep(0.1)
        assert len((await client.response()).body) == 20_000_000
        assert await client.ended()


# -- leaving -----------------------------------------------------------------------------------------------------------


@on_a_loop
async def test_a_client_that_leaves_cancels_its_handler():
    held = Held()
    async with serving(held) as server, connected(server.port) as client:
        await client.send(request(b"x"))
        await held.begun.wait()
        client.leave()
        await asyncio.wait_for(held.cancelled.wait(), 2)


@on_a_loop
async def test_a_handler_that_fails_closes_its_connection():
    async def handler(asked, responder):
        raise LookupError

    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    async with serving(handler) as server, connected(server.port) as client:
        await client.send(request(b"x"))
        assert await client.ended()


@on_a_loop
async def test_a_stop_lets_the_answer_end():
    held = Held()
    async with serving(held) as server, connected(server.port) as client, connected(server.port) as idle:
        await client.send(request(b"x"))
        await held.begun.wait()
        closing = asyncio.ensure_future(server.close(grace_s=5))
        await asyncio.sleep(0.05)
        assert await idle.ended()
        held.go.set()
        assert (await client.response()).body == b"POST /echo? x"
        await closing
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", server.port)


# -- any way to cut a stream of requests -------------------------------------------------------------------------------


def requests():
    bodies = st.binary(max_size=40)
    sized = st.builds(request, bodies, path=st.sampled_from(["/a", "/b?c=d"]))
    pieces = st.lists(st.binary(min_size=1, max_size=10), max_size=4)
    parts = st.builds(chunked, pieces, trailers=st.lists(st.just("t: 1"), max_size=1))
    upgrade = st.builds(request, bodies, headers=st.just(["connection: upgrade", "upgrade: h2c"]))
    simple = st.builds(request, method=st.sampled_from(["GET", "DELETE"]))
    ends = st.sampled_from([b"", b"", b"junk\r\n\r\n", request(b"z", headers=["connection: close"])])
    many = st.lists(st.one_of(sized, parts, upgrade, simple), min_size=1, max_size=8)
    return st.builds(lambda each, end: (each, end), many, ends)


async def answers(port, pieces, count):
    async with connected(port) as client:
        for piece in pieces:
            await client.send(piece)
            await asyncio.sleep(0)
        return [await client.response() for _ in range(count)]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(asked=requests(), data=st.data())
def test_however_requests_are_cut_the_answers_are_the_same(asked, data):
    whole = b"".join(asked[0]) + asked[1]
    cuts = sorted(data.draw(st.sets(st.integers(1, len(whole) - 1), max_size=12)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    count = len(asked[0]) + bool(asked[1])

    @on_a_loop
    async def run():
        async with serving(echo) as server:
            alone = [(await answers(server.port, [each], 1))[0] for each in asked[0]]
            if asked[1]:
                alone += await answers(server.port, [asked[1]], 1)
            assert await answers(server.port, pieces, count) == alone

    run()

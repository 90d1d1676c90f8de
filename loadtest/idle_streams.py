"""Many streams that stand still: what each costs a router, and whether all are given back.

    python -m homing.loadtest.idle_streams --streams 10000

An echo worker sends the first token of each answer and pauses; every stream goes through the router's door and is held
open. Prints one line of JSON: memory of the router before and with them, bytes per stream, streams that broke, and
connections that were still open some seconds after all were closed.
"""

import argparse
import asyncio
import contextlib
import json
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from .asks import CHAT_PATH
from .processes import Process, echo_command, router_command, started

OPENING_MAX = 200
"""Streams that are being opened at once: fewer than any server's backlog."""
OPEN_S = 60.0
"""How long a stream may take until its first token."""
SETTLE_S = 1.0
FILES_SPARE = 200
ECHO = ("--pause-after-tokens", "1", "--pause-s", "3600", "--kv-blocks", "65536", "--requests-max", "4096")
INSTANT = ("--prefill-a-s", "0", "--prefill-b-s", "0", "--decode-s", "0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a run showed. `rss` is the memory of the router's processes; without a router, of the worker."""

    streams: int
    open_s: float
    rss_before_bytes: int
    rss_with_bytes: int
    bytes_per_stream: int
    cpu_share_idle: float
    """CPU seconds per second while all streams stand still."""
    broken: int
    left_open: int


class Stream(asyncio.Protocol):
    """One request that is answered bit by bit; `first` is done with its first token."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self.first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Nobody may be left to read how it ended, when another one has ended the run.
        self.first.add_done_callback(lambda first: first.cancelled() or first.exception())
        self.transport: asyncio.Transport | None = None
        self.is_broken = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """The head of the answer tells whether it was accepted, an event with content is a token."""
        if self.first.done():
            return
        if data.startswith(b"HTTP/") and b" 200 " not in data[:16]:
            self.first.set_exception(ConnectionError(data[:200].decode(errors="replace")))
        elif b'"content":"' in data.replace(b'"content":""', b"").replace(b'": "', b'":"'):
            self.first.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio.Protocol."""
        self.is_broken = True
        if not self.first.done():
            self.first.set_exception(error or ConnectionError("closed before the first token"))


def request_of(url: str, model: str, number: int) -> bytes:
    """A request for a stream of two tokens."""
    message = {"role": "user", "content": f"stream {number}"}
    body = json.dumps({"model": model, "messages": [message], "max_tokens": 2, "stream": True}).encode()
    head = f"POST {CHAT_PATH} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def open_streams(url: str, model: str, count: int) -> list[Stream]:
    """All streams, each with its first token there. Raises what the first that failed met."""
    loop, place = asyncio.get_running_loop(), asyncio.Semaphore(OPENING_MAX)
    host, _, port = urlsplit(url).netloc.rpartition(":")

    async def one(number: int) -> Stream:
        async with place, asyncio.timeout(OPEN_S):
            stream = Stream(request_of(url, model, number))
            await loop.create_connection(lambda: stream, host, int(port))
            await stream.first
            return stream

    return await asyncio.gather(*(one(number) for number in range(count)))


async def hold(url: str, measured: Process, worker: Process, options: argparse.Namespace) -> Found:
    """Open all, hold them, close them."""
    for stream in await open_streams(url, options.model, 1):
        _close(stream)
    await asyncio.sleep(SETTLE_S)
    before_bytes, began_s = measured.rss_bytes(), time.monotonic()
    streams = await open_streams(url, options.model, options.streams)
    open_s = time.monotonic() - began_s
    await asyncio.sleep(SETTLE_S)
    cpu_s = measured.cpu_s()
    await asyncio.sleep(options.hold_s)
    idle_share = (measured.cpu_s() - cpu_s) / options.hold_s
    with_bytes, broken = measured.rss_bytes(), sum(stream.is_broken for stream in streams)
    for stream in streams:
        _close(stream)
    await asyncio.sleep(options.close_s)
    return Found(
        streams=options.streams,
        open_s=round(open_s, 2),
        rss_before_bytes=before_bytes,
        rss_with_bytes=with_bytes,
        bytes_per_stream=(with_bytes - before_bytes) // options.streams,
        cpu_share_idle=round(idle_share, 3),
        broken=broken,
        left_open=_open_requests(worker, options.streams),
    )


def _close(stream: Stream) -> None:
    if stream.transport is not None:
        stream.transport.abort()


def _open_requests(worker: Process, streams: int) -> int:
    """Connections at the worker beyond those that a router keeps for later."""
    kept = min(streams, 128)
    connections = 0
    for process in worker.family():
        with contextlib.suppress(psutil.Error):
            found = process.net_connections(kind="tcp")
            connections += sum(c.status == psutil.CONN_ESTABLISHED for c in found)
    return max(0, connections - kept)


def _router_command(stack: contextlib.ExitStack, url: str, streams: int) -> list[str]:
    """A router that gives the one worker all streams at once, more than it would send to an engine it does not know."""
    config = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "router.yaml"
    config.write_text(json.dumps({"backends": [{"url": url, "requests_max": streams + OPENING_MAX}]}))
    return [*router_command([]), "--config", str(config)]


def raise_file_limit(streams: int) -> None:
    """Let this process and its children open enough sockets; SystemExit when the system's own limit is lower."""
    needed = 2 * streams + FILES_SPARE
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        hard = max(hard, needed)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    except (ValueError, OSError) as error:
        raise SystemExit(f"{streams} streams need {needed} open files in one process: raise ulimit -Hn") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 1 when a stream broke or was not given back."""
    parser = argparse.ArgumentParser(prog="idle_streams", description="Hold many streams open through a router.")
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--hold-s", type=float, default=5.0)
    parser.add_argument("--close-s", type=float, default=5.0, help="how long closing may take")
    parser.add_argument("--direct", action="store_true", help="without a router: what a worker takes itself")
    parser.add_argument("--model", default="echo")
    options = parser.parse_args(arguments)
    raise_file_limit(options.streams)
    with contextlib.ExitStack() as stack:
        worker = stack.enter_context(started(echo_command(*ECHO, *INSTANT)))
        url, measured = worker.http_url(), worker
        if not options.direct:
            measured = stack.enter_context(started(_router_command(stack, url, options.streams)))
            url = measured.http_url()
        try:
            found = asyncio.run(hold(url, measured, worker, options))
        except (OSError, TimeoutError) as error:
            raise SystemExit(
                f"a stream could not be opened: {error!r}; the router said: {measured.output()}"
            ) from error
    sys.stdout.write(json.dumps(asdict(found)) + "\n")
    return 1 if found.broken or found.left_open else 0


if __name__ == "__main__":
    sys.exit(main())

"""Connections to workers, and the addresses under which workers reach each other."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from homing.router.core.types import Site, WorkerId

from .wire import WorkerStub, fleet_pb2

MESSAGE_BYTES_MAX = 16 * 1024 * 1024
CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
]


@dataclass(frozen=True, slots=True)
class _Known:
    hello: fleet_pb2.Hello
    channel: grpc.aio.Channel
    stub: WorkerStub


class Workers:
    """Every worker that joined. `site` is the router's own."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._known: dict[WorkerId, _Known] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self.address_elsewhere: Callable[[WorkerId], str] = lambda worker: ""
        """Where a worker is reached that did not join by itself; empty for one that is not known there either."""

    def add(self, hello: fleet_pb2.Hello) -> None:
        """A worker joined."""
        worker = WorkerId(hello.worker_id)
        self.remove(worker)
        channel = grpc.aio.insecure_channel(_address(hello, self._site), options=CHANNEL_OPTIONS)
        self._known[worker] = _Known(hello, channel, WorkerStub(channel))

    def remove(self, worker: WorkerId) -> None:
        """A worker is gone: calls to it break at once."""
        known = self._known.pop(worker, None)
        if known is not None:
            task = asyncio.ensure_future(known.channel.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def stub(self, worker: WorkerId) -> WorkerStub | None:
        """How to call a worker; None if it is gone."""
        known = self._known.get(worker)
        return None if known is None else known.stub

    def hello(self, worker: WorkerId) -> fleet_pb2.Hello | None:
        """What a worker said of itself."""
        known = self._known.get(worker)
        return None if known is None else known.hello

    def address(self, worker: WorkerId, seen_from: WorkerId | None = None) -> str:
        """A worker's address as another worker sees it, or as this router does; empty if either is gone."""
        known = self._known.get(worker)
        if known is None:
            return self.address_elsewhere(worker)
        if seen_from is None:
            return _address(known.hello, self._site)
        viewer = self._known.get(seen_from)
        return "" if viewer is None else _address(known.hello, Site(viewer.hello.site))

    async def close(self) -> None:
        """Close every connection."""
        for worker in list(self._known):
            self.remove(worker)
        await asyncio.gather(*self._closing, return_exceptions=True)


def _address(hello: fleet_pb2.Hello, site: Site) -> str:
    return str(hello.address_from.get(site, hello.address))

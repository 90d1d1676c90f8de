"""One engine rank's KV events, live: a thin shell around `EventStream` and `CacheBook`.

Rule 1: what is told is told in order: events of the cache first, then how far they can be relied on.
Rule 2: whatever goes wrong with what an engine tells clears that engine's cache and nothing else; only a wrong address
(ConfigError) ends `run`.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import zmq.asyncio

from ..core.errors import ConfigError
from ..core.types import Trust
from ..engines.types import KvSource
from .book import BookCounts, CacheBook
from .decode import decode_batch
from .events import EngineBatch, KvEventError
from .hub import KvEventHub
from .sockets import KvEventLimits, Subscriber, read_seq, replay
from .stream import Action, Apply, AskReplay, Clear, EventStream, StreamCounts
from .writer import CacheEvent

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class KvEventStats:
    """What metrics show of one source. The counts are live objects, to be read only."""

    trust: Trust
    reason: str
    blocks: int
    orphans: int
    lag_s: float
    """Between an engine's telling and our hearing of the last live batch, by two clocks."""
    foreign: int
    """Messages that were none of this publisher's."""
    stream: StreamCounts
    book: BookCounts


class KvEventSource:
    """Hears one publisher and hands on what its cache does, and how far that can be relied on.

    `on_events` gets lists of BlocksStored, BlocksRemoved and CacheCleared; `on_trust` what trust begins with, then its
    changes, and the reason. Both are called on the loop and must not wait. `hub` is needed where `source.bind`.
    """

    def __init__(
        self,
        source: KvSource,
        book: CacheBook,
        *,
        on_events: Callable[[Sequence[CacheEvent]], None],
        on_trust: Callable[[Trust, str], None],
        context: zmq.asyncio.Context,
        hub: KvEventHub | None = None,
        limits: KvEventLimits | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        if source.bind and hub is None:
            raise ConfigError(f"KV events: {source.endpoint} is to be listened on: that needs a hub")
        self.source = source
        self._book = book
        self._on_events = on_events
        self._on_trust = on_trust
        self._context = context
        self._hub = hub
        self._limits = limits or KvEventLimits()
        self._wall_clock = wall_clock
        self._stream = EventStream(has_replay=source.replay_endpoint is not None, waiting_max=self._limits.waiting_max)
        self._told = (Trust.BLIND, "")
        self._lag_s = 0.0
        self._foreign = 0
        self._down_since_s: float | None = None
        self._quiet_since_s = 0.0
        self._replaying: asyncio.Task[None] | None = None
        self._broken: asyncio.Future[None] | None = None
        """Where a replay's error goes, to end `run` with it."""

    @property
    def trust(self) -> Trust:
        """How far what was told can be relied on."""
        return self._stream.trust

    def stats(self) -> KvEventStats:
        """A snapshot."""
        return KvEventStats(
            trust=self._stream.trust,
            reason=self._stream.reason,
            blocks=len(self._book),
            orphans=self._book.orphans,
            lag_s=self._lag_s,
            foreign=self._foreign,
            stream=self._stream.counts,
            book=self._book.counts,
        )

    async def run(self) -> None:
        """Hear until cancelled. Raises ConfigError when the address cannot be used."""
        if self._hub is not None and self.source.bind:
            async with self._hub.listening(self):
                await self._run(None)
            return
        subscriber = Subscriber(
            self._context,
            self.source.endpoint,
            bind=False,
            limits=self._limits,
            on_message=self._on_message,
            on_connected=self.connected,
            on_disconnected=self.disconnected,
        )
        subscriber.subscribe(self.source.topic)
        await self._run(subscriber)

    async def _run(self, subscriber: Subscriber | None) -> None:
        self._told = (self._stream.trust, self._stream.reason)
        self._on_trust(*self._told)
        self._broken = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.TaskGroup() as tasks:
                if subscriber is not None:
                    tasks.create_task(subscriber.run())
                else:
                    self.connected()
                tasks.create_task(self._tend(self._broken))
        finally:
            replaying = self._replaying
            self._stop_replay()
            if replaying is not None:
                await asyncio.gather(replaying, return_exceptions=True)

    def heard(self, seq: int, batch: EngineBatch | None) -> None:
        """A live message; None: it could not be read."""
        if batch is not None:
            self._lag_s = self._wall_clock() - batch.told_s
        self._down_since_s = None
        self._quiet_since_s = asyncio.get_running_loop().time()
        self._do(self._stream.received(seq, batch))

    def connected(self) -> None:
        """The connection is up."""
        self._down_since_s = None
        self._do(self._stream.connected())

    def disconnected(self) -> None:
        """The connection is down."""
        self._down_since_s = asyncio.get_running_loop().time()
        self._stop_replay()
        self._do(self._stream.disconnected())

    def begin_anew(self, reason: str) -> None:
        """Forget what was told and hear everything again, as far as the publisher still has it: for a listener whose
        own picture broke. Only while `run` runs.
        """
        self._do(self._stream.lost(reason))
        self._do(self._stream.connected())

    def _on_message(self, frames: list[bytes]) -> None:
        """Frames of the own socket. A subscription is to all topics with that beginning, so the topic is compared."""
        try:
            topic, seq_frame, payload = frames
            seq = read_seq(seq_frame)
        except (ValueError, KvEventError):
            self._foreign += 1
            return
        if self.source.topic and topic != self.source.topic.encode():
            self._foreign += 1
            return
        self.heard(seq, self._read(payload))

    def _read(self, payload: bytes) -> EngineBatch | None:
        try:
            return decode_batch(payload)
        except KvEventError as error:
            if not self._stream.counts.unreadable:
                log.warning("KV events of %s: %s; more of that is only counted", self.source.endpoint, error)
            return None

    def _do(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Apply(batch=batch):
                    self._apply(batch)
                case Clear():
                    self._on_events(self._book.clear())
                case AskReplay(from_seq=from_seq):
                    self._start_replay(from_seq)
        told = (self._stream.trust, self._stream.reason)
        if told[0] is not self._told[0]:
            self._on_trust(*told)
        self._told = told

    def _apply(self, batch: EngineBatch) -> None:
        try:
            events = self._book.apply(batch)
        except KvEventError as error:
            self._stream.refused(str(error))
            events = self._book.clear()
        if events:
            self._on_events(events)

    def _start_replay(self, from_seq: int) -> None:
        self._stop_replay()
        self._replaying = asyncio.create_task(self._replay(from_seq))
        self._replaying.add_done_callback(self._replay_ended)

    def _stop_replay(self) -> None:
        if self._replaying is not None:
            self._replaying.cancel()
            self._replaying = None

    async def _replay(self, from_seq: int) -> None:
        assert self.source.replay_endpoint is not None
        try:
            await replay(self._context, self.source.replay_endpoint, from_seq, self._limits, self._on_replayed)
        except KvEventError as error:
            self._replaying = None
            self._do(self._stream.replay_failed(str(error)))
        else:
            self._replaying = None
            self._do(self._stream.replay_ended())

    def _replay_ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and self._broken is not None and not self._broken.done():
            self._broken.set_exception(error)

    def _on_replayed(self, seq: int, payload: bytes) -> None:
        self._do(self._stream.replayed(seq, self._read(payload)))

    async def _tend(self, broken: asyncio.Future[None]) -> None:
        """Ask again where that could help, ask who is quiet, and give up a publisher whose connection stays down; until
        `broken`.
        """
        loop = asyncio.get_running_loop()
        limits = self._limits
        self._quiet_since_s = loop.time()
        retry_at_s = self._quiet_since_s + limits.retry_s
        while True:
            await asyncio.wait([broken], timeout=min(1.0, limits.retry_s, limits.check_s, limits.lost_after_s))
            if broken.done():
                broken.result()
            now = loop.time()
            if self._down_since_s is not None and now - self._down_since_s >= limits.lost_after_s:
                self._down_since_s = None
                self._do(self._stream.lost(f"its connection was down for {limits.lost_after_s:g} s"))
            if now >= retry_at_s:
                retry_at_s = now + limits.retry_s
                self._do(self._stream.retry())
            if now - self._quiet_since_s >= limits.check_s:
                self._quiet_since_s = now
                self._do(self._stream.check())

"""One listening address for many engines: those that connect to the router instead of being connected to.

They are told apart by topic, and where several ranks share one, by the rank in their batches. A connection does not say
whose it is. When one breaks, all that share the address and have a replay endpoint are told: a replay shows who is as
before, and later checks show who is not heard any more. Of the others a restart shows only when their numbers go back.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol

import zmq.asyncio

from ..core.errors import ConfigError
from ..core.types import Trust
from ..engines.types import KvSource
from .decode import decode_batch
from .events import EngineBatch, KvEventError
from .sockets import KvEventLimits, Subscriber, read_seq


class Listener(Protocol):
    """Whoever wants one publisher's messages (`source.KvEventSource`)."""

    source: KvSource

    @property
    def trust(self) -> Trust:
        """How far its publisher can be relied on."""
        ...

    def heard(self, seq: int, batch: EngineBatch | None) -> None:
        """A message; None: it could not be read."""
        ...

    def connected(self) -> None:
        """The connection is up."""
        ...

    def disconnected(self) -> None:
        """The connection is down."""
        ...


@dataclass(slots=True)
class _Address:
    subscriber: Subscriber
    task: asyncio.Task[None]
    listeners: dict[str, list[Listener]] = field(default_factory=dict)
    """By topic."""


class KvEventHub:
    """Shares bound sockets. A socket is there as long as somebody listens on it."""

    def __init__(self, context: zmq.asyncio.Context, limits: KvEventLimits | None = None) -> None:
        self.foreign = 0
        """Messages of topics that nobody listens to, or that are none of ours; only grows."""
        self._context = context
        self._limits = limits or KvEventLimits()
        self._addresses: dict[str, _Address] = {}

    def endpoint(self, source: KvSource) -> str:
        """Where a source's address really is, when it was given with port 0. KeyError if nobody listens on it."""
        return self._addresses[source.endpoint].subscriber.endpoint

    @asynccontextmanager
    async def listening(self, listener: Listener) -> AsyncIterator[None]:
        """Hand a listener its messages for as long as this is open. Raises ConfigError when its topic is taken or its
        address cannot be bound.
        """
        source = listener.source
        address = self._addresses.get(source.endpoint) or self._open(source.endpoint)
        sharing = address.listeners.setdefault(source.topic, [])
        if any(other.source.rank == source.rank for other in sharing):
            raise ConfigError(
                f"KV events: two engines publish topic {source.topic!r}, rank {source.rank} to {source.endpoint}: "
                "give each a topic of its own"
            )
        sharing.append(listener)
        address.subscriber.subscribe(source.topic)
        try:
            yield
        finally:
            sharing.remove(listener)
            address.subscriber.unsubscribe(source.topic)
            if not sharing:
                del address.listeners[source.topic]
            if not address.listeners:
                await self._close(source.endpoint)

    def _open(self, endpoint: str) -> _Address:
        subscriber = Subscriber(
            self._context,
            endpoint,
            bind=True,
            limits=self._limits,
            on_message=lambda frames: self._heard(endpoint, frames),
            on_connected=lambda: self._tell(endpoint, up=True),
            on_disconnected=lambda: self._tell(endpoint, up=False),
        )
        task = asyncio.create_task(subscriber.run(), name=f"kv-events {endpoint}")
        address = self._addresses[endpoint] = _Address(subscriber, task)
        return address

    async def _close(self, endpoint: str) -> None:
        task = self._addresses.pop(endpoint).task
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    def _heard(self, endpoint: str, frames: list[bytes]) -> None:
        listeners = self._addresses[endpoint].listeners
        try:
            topic, seq_frame, payload = frames
            sharing = listeners[topic.decode()]
            seq = read_seq(seq_frame)
        except (ValueError, KeyError, KvEventError):
            self.foreign += 1
            return
        try:
            batch = decode_batch(payload)
        except KvEventError:
            for listener in sharing:
                listener.heard(seq, None)
            return
        for listener in sharing:
            if len(sharing) == 1 or batch.rank == listener.source.rank:
                listener.heard(seq, batch)

    def _tell(self, endpoint: str, *, up: bool) -> None:
        sharing = self._addresses[endpoint].listeners.values()
        for listener in [listener for same_topic in sharing for listener in same_topic]:
            if listener.source.replay_endpoint is None or (up and listener.trust is Trust.EXACT):
                continue
            if not up:
                listener.disconnected()
            listener.connected()

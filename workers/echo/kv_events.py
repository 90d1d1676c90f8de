"""KV events as vLLM (0.32) publishes them over ZeroMQ.

A message has three frames: topic, sequence number (u64, big-endian, from 0 on), and msgpack of
`[time, [events], data-parallel rank]`; an event is a map with its `type`. A listener who missed some asks the replay
socket for all since a number; the end of its answer is number -1 with nothing.

Rule 1: a message is sent in the order in which the cache changed, and kept for a replay, up to a bound.
Rule 2: nothing here waits for a listener: what cannot be sent is dropped, as vLLM does.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from homing.router.core.types import BlockKey

from .hashes import Extra, block_digest, on_the_wire
from .settings import KvEventSettings
from .stored import Changes, RemovedBlock, StoredBlock

END_OF_REPLAY = b"\xff" * 8
_NUMBER_BYTES = 8


class EventWriter:
    """Turns changes of a cache into vLLM's events, and remembers what its blocks were called there."""

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._digests: dict[BlockKey, bytes] = {}

    def events(self, changes: Changes) -> list[dict[str, Any]]:
        """The events of one message."""
        events: list[dict[str, Any]] = []
        if changes.cleared:
            self._digests.clear()
            events.append({"type": "AllBlocksCleared"})
        for run in _runs(changes):
            if isinstance(run, RemovedBlock):
                digest = self._digests.pop(run.key)
                events.append({"type": "BlockRemoved", "block_hashes": [on_the_wire(digest)], "medium": "GPU"})
            else:
                events.append(self._stored(run))
        return events

    def _stored(self, run: list[StoredBlock]) -> dict[str, Any]:
        first, sequence = run[0], run[0].sequence
        parent = self._parent(first)
        digests = []
        digest = parent
        for block in run:
            digest = block_digest(
                digest, block.tokens, _extra(block.sequence.lora, block.sequence.salt, block.position)
            )
            self._digests[block.key] = digest
            digests.append(digest)
        return {
            "type": "BlockStored",
            "block_hashes": [on_the_wire(digest) for digest in digests],
            "parent_block_hash": None if parent is None else on_the_wire(parent),
            "token_ids": [token for block in run for token in block.tokens],
            "block_size": self._block_tokens,
            "lora_id": None,
            "medium": "GPU",
            "lora_name": sequence.lora or None,
            "extra_keys": [_extra_keys(sequence.lora, sequence.salt, block.position) for block in run],
            "group_idx": 0,
            "kv_cache_spec_kind": "full_attention",
        }

    def _parent(self, block: StoredBlock) -> bytes | None:
        """The digest of the block before; made anew from its request when the cache forgot it meanwhile."""
        sequence, known = block.sequence, block.position
        while known and sequence.keys[known - 1] not in self._digests:
            known -= 1
        digest = self._digests[sequence.keys[known - 1]] if known else None
        for position in range(known, block.position):
            digest = block_digest(digest, block.tokens_at(position), _extra(sequence.lora, sequence.salt, position))
        return digest


class KvPublisher:
    """Publishes and replays; `endpoint` and `replay_endpoint` are where it listens once it has started."""

    def __init__(self, settings: KvEventSettings) -> None:
        self._settings = settings
        self._kept: deque[tuple[int, bytes]] = deque(maxlen=settings.buffer_steps)
        self._next = 0
        self._encode = msgspec.msgpack.Encoder().encode
        self._opened = contextlib.ExitStack()
        self._replaying: asyncio.Task[None] | None = None
        self._send: Callable[[tuple[bytes, ...]], object] = lambda frames: None
        self.endpoint = ""
        self.replay_endpoint: str | None = None

    def start(self) -> None:
        """Bind or connect. Raises OSError for an address that cannot be had."""
        import zmq  # noqa: PLC0415 - only a worker that publishes needs it
        import zmq.asyncio  # noqa: PLC0415

        context, waiting = zmq.Context(), zmq.asyncio.Context()
        for opened in (context, waiting):
            self._opened.callback(opened.destroy, linger=0)
        live = context.socket(zmq.PUB)
        live.set_hwm(self._settings.hwm)
        self._send = live.send_multipart
        if _is_bound(self._settings.endpoint):
            live.bind(self._settings.endpoint)
        else:
            live.connect(self._settings.endpoint)
        self.endpoint = live.getsockopt_string(zmq.LAST_ENDPOINT)
        if self._settings.replay_endpoint is not None:
            replay = waiting.socket(zmq.ROUTER)
            replay.bind(self._settings.replay_endpoint)
            self.replay_endpoint = replay.getsockopt_string(zmq.LAST_ENDPOINT)
            self._replaying = asyncio.create_task(self._replay(replay), name="kv event replay")

    async def close(self) -> None:
        """Stop. Idempotent."""
        if self._replaying is not None:
            self._replaying.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._replaying
            self._replaying = None
        self._opened.close()

    @property
    def source(self) -> dict[str, Any]:
        """Its entry in `/kv_event_sources`. A bound address is shown with `*`, as vLLM's own is: its host is that of
        the server.
        """
        bound, settings = _is_bound(self._settings.endpoint), self._settings
        return {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": _any_host(self.endpoint) if bound else self.endpoint,
            "replay_endpoint": None if self.replay_endpoint is None else _any_host(self.replay_endpoint),
            "buffer_steps": settings.buffer_steps,
            "hwm": settings.hwm,
            "max_queue_size": settings.hwm,
            "topic": settings.topic,
        }

    def publish(self, events: list[dict[str, Any]]) -> None:
        """Send one message, if anybody listens."""
        payload = self._encode([time.time(), events, 0])
        number, self._next = self._next, self._next + 1
        self._kept.append((number, payload))
        self._send((self._settings.topic.encode(), _u64(number), payload))

    async def _replay(self, socket: Any) -> None:
        with contextlib.closing(socket):
            while True:
                frames = await socket.recv_multipart()
                if len(frames) != 3 or len(frames[2]) != _NUMBER_BYTES:
                    continue
                asked, topic = int.from_bytes(frames[2], "big"), self._settings.topic.encode()
                for number, payload in list(self._kept):
                    if number >= asked:
                        await socket.send_multipart((frames[0], b"", topic, _u64(number), payload))
                await socket.send_multipart((frames[0], b"", b"", END_OF_REPLAY, b""))


def _runs(changes: Changes) -> Iterator[RemovedBlock | list[StoredBlock]]:
    """Blocks that follow one another in one request are told in one event."""
    run: list[StoredBlock] = []
    for block in changes.blocks:
        if isinstance(block, StoredBlock) and run and block.follows(run[-1]):
            run.append(block)
            continue
        if run:
            yield run
        run = []
        if isinstance(block, StoredBlock):
            run = [block]
        else:
            yield block
    if run:
        yield run


def _extra(lora: str, salt: str, position: int) -> Extra:
    """What vLLM adds to the hash: the adapter always, the salt to the first block."""
    named = (("lora", lora, ""),) if lora else ()
    return (*named, ("cache_salt", salt)) if salt and position == 0 else named


def _extra_keys(lora: str, salt: str, position: int) -> list[str] | None:
    """The same as events carry it, without the tags."""
    keys = ([lora] if lora else []) + ([salt] if salt and position == 0 else [])
    return keys or None


def _is_bound(endpoint: str) -> bool:
    return any(mark in endpoint for mark in ("*", "::", "ipc://", "inproc://"))


def _any_host(endpoint: str) -> str:
    scheme, _, rest = endpoint.partition("://")
    return f"tcp://*:{rest.rpartition(':')[2]}" if scheme == "tcp" else endpoint


def _u64(number: int) -> bytes:
    return number.to_bytes(_NUMBER_BYTES, "big")

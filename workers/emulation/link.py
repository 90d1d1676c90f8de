"""One direction between two sites: its rate, its delay, and the pacer that all its flows share.

Rule 1: pacing is virtual. A chunk starts when the link is free and the chunk is there, whenever the event
loop gets round to it; a timer that fires late costs no rate, because flows keep a few chunks queued.
Rule 2: a link is never early. At most one chunk has started that is not yet through (I9).
Rule 3: nothing here knows sockets.
"""

import asyncio
import math
from collections import deque
from dataclasses import dataclass

# A chunk takes 2 ms: twice the resolution of an epoll timer, and short enough to wait behind.
_CHUNK_S = 0.002
_CHUNK_BYTES_MIN = 2 * 1024
_CHUNK_BYTES_MAX = 256 * 1024
# Bytes queued before the link keep it busy while the event loop is late by up to this much.
_LOOKAHEAD_S = 0.008
_LOOKAHEAD_BYTES_MAX = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatedLink:
    """The link from site `source` to site `target`.

    `bytes_per_s` is shared by all its flows; `delay_s` is one way, the time from the last byte of a chunk
    leaving to its arrival.
    """

    source: str
    target: str
    bytes_per_s: float
    delay_s: float

    def __post_init__(self) -> None:
        name = f"link {self.source!r} -> {self.target!r}"
        if not self.source or not self.target or self.source == self.target:
            raise ValueError(f"{name}: a link joins two different, named sites; give each its own name")
        if not (math.isfinite(self.bytes_per_s) and self.bytes_per_s > 0):
            raise ValueError(
                f"{name}: bytes_per_s is {self.bytes_per_s}, must be finite and above 0; "
                "to stop all traffic, cut the link"
            )
        if not (math.isfinite(self.delay_s) and self.delay_s >= 0):
            raise ValueError(f"{name}: delay_s is {self.delay_s}, must be finite and at least 0; give seconds")


class Pacer:
    """Serialises the chunks of all flows of one link, in shares of equal bytes.

    The order is start-time fair queueing (Goyal, Vin and Cheng, 1996): each flow carries a tag that grows
    with its bytes and is lifted to the link's when the flow wakes up, and the lowest tag goes first. A
    message on an idle flow therefore waits for about one chunk of every busy flow at most.
    """

    def __init__(self, link: EmulatedLink) -> None:
        self.is_cut = False
        self._backlogged: dict[Flow, None] = {}
        self._bytes_carried = 0
        self._free_at_s = -math.inf
        self._tag_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self.configure(link)

    def configure(self, link: EmulatedLink) -> None:
        """Take on the rate and delay of `link`; the one chunk that has started keeps the old ones."""
        self._advance()
        self.link = link
        self.chunk_bytes = round(_clamp(link.bytes_per_s * _CHUNK_S, _CHUNK_BYTES_MIN, _CHUNK_BYTES_MAX))
        self.lookahead_bytes = round(
            _clamp(link.bytes_per_s * _LOOKAHEAD_S, 4 * self.chunk_bytes, _LOOKAHEAD_BYTES_MAX)
        )
        # Beside what propagates, one chunk is being serialised and one may wait for a late timer.
        self.window_bytes = math.ceil(link.bytes_per_s * link.delay_s) + self.lookahead_bytes + 2 * self.chunk_bytes

    def bytes_carried(self) -> int:
        """Bytes whose chunk has started by this moment; grows by at most rate x time + one chunk (I9)."""
        self._advance()
        return self._bytes_carried

    def enqueue(self, flow: "Flow", data: bytes) -> None:
        """Queue `data` of `flow`; empty data marks the end of the flow and costs nothing."""
        if not flow.backlog:
            flow.tag_bytes = max(flow.tag_bytes, self._tag_bytes)
            self._backlogged[flow] = None
        flow.backlog.append((asyncio.get_running_loop().time(), memoryview(data)))
        self._advance()

    def forget(self, flow: "Flow") -> None:
        """Drop what `flow` still has queued; a flow without a backlog is no error."""
        self._backlogged.pop(flow, None)

    def close(self) -> None:
        """Drop every backlog and the timer."""
        self._backlogged.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _advance(self) -> None:
        """Start every chunk that is due by now, then sleep until the link is free again."""
        if not self._backlogged:
            return
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        while self._backlogged and self._free_at_s <= now_s:
            self._start_chunk()
        if self._backlogged and self._timer is None:
            self._timer = loop.call_at(self._free_at_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._advance()

    def _start_chunk(self) -> None:
        free_at_s = self._free_at_s
        flow = min(self._backlogged, key=lambda each: (max(each.backlog[0][0], free_at_s), each.tag_bytes))
        arrived_s, data = flow.backlog.popleft()
        chunk, rest = data[: self.chunk_bytes], data[self.chunk_bytes :]
        if rest:
            flow.backlog.appendleft((arrived_s, rest))
        if not flow.backlog:
            del self._backlogged[flow]
        self._tag_bytes = flow.tag_bytes
        flow.tag_bytes += len(chunk)
        self._bytes_carried += len(chunk)
        self._free_at_s = max(free_at_s, arrived_s) + len(chunk) / self.link.bytes_per_s
        flow.start(chunk, self._free_at_s + self.link.delay_s)


class Flow:
    """One direction of one connection on its way through a link: queued before it, then in transit.

    Both together hold at most `Pacer.window_bytes` (bandwidth x delay + 6 chunks or so) and one read more,
    also when the receiver stops reading.
    """

    def __init__(self, pacer: Pacer) -> None:
        self.backlog: deque[tuple[float, memoryview]] = deque()
        self.tag_bytes = 0
        self._pacer = pacer
        self._backlog_bytes = 0
        self._held_bytes = 0
        self._room = asyncio.Event()
        self._transit: asyncio.Queue[tuple[float, memoryview]] = asyncio.Queue()

    @property
    def chunk_bytes(self) -> int:
        """The size in which to hand data in."""
        return self._pacer.chunk_bytes

    async def send(self, data: bytes) -> None:
        """Queue `data` and wait until there is room for more; empty data ends the flow."""
        self._backlog_bytes += len(data)
        self._held_bytes += len(data)
        self._pacer.enqueue(self, data)
        # Without this a quick sender would keep the event loop to itself until the window is full.
        await asyncio.sleep(0)
        while self._is_full():
            self._room.clear()
            await self._room.wait()

    async def receive(self) -> memoryview:
        """The next chunk, at the time when it reaches the other end; an empty one ends the flow.

        It counts as held until `delivered` is told of it.
        """
        due_s, chunk = await self._transit.get()
        wait_s = due_s - asyncio.get_running_loop().time()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        return chunk

    def start(self, chunk: memoryview, due_s: float) -> None:
        """Take `chunk` from the backlog into transit; it is at the other end at `due_s`."""
        self._backlog_bytes -= len(chunk)
        self._transit.put_nowait((due_s, chunk))
        self._room.set()

    def delivered(self, chunk_bytes: int) -> None:
        """Give back the room of a chunk that the receiver has taken."""
        self._held_bytes -= chunk_bytes
        self._room.set()

    def discard(self) -> None:
        """Drop what has not started; the connection is gone."""
        self._pacer.forget(self)

    def _is_full(self) -> bool:
        pacer = self._pacer
        return self._backlog_bytes >= pacer.lookahead_bytes or self._held_bytes >= pacer.window_bytes


def _clamp(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)

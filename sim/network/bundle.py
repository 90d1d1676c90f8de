"""Flows that nothing tells apart: the same path, the same cap, hence the same rate at every moment.

Rule 1: a bundle has one rate and one scale: bytes served to each flow since the bundle was last idle. A flow is a mark
on that scale, and has nothing left when the scale reaches it: a new rate touches no flow, and k flows cost O(log k).
(The virtual time of fair queueing: Parekh and Gallager, IEEE/ACM Transactions on Networking 1(3), 1993, section III.)
Rule 2: the scale moves when something changes, never by a timer. What is due is set exactly on its mark, so that
rounding neither adds up nor leaves a last fraction of a byte to wait for.
Rule 3: the top of the heap is true. Entries below may be too early (the flow was given more) or of a flow that was
stopped; whatever comes up as the top is mended there.
"""

from heapq import heapify, heappop, heappush, heapreplace
from math import inf, nextafter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .resource import Resource
    from .sharing import Alarm

Key = tuple[str, str, tuple[str, ...]]
"""(source, target, via)."""
STALE_MAX = 8
"""So many entries of stopped flows, beside one per flow that runs, are cheaper kept than swept out."""


class Stream:
    """Something with bytes to send, now and then. A stretch is a time in which it has some left."""

    __slots__ = ("added_bytes", "before_bytes", "bundle", "flowing_before_s", "is_flowing", "mark", "since_s", "start")

    def __init__(self, bundle: "Bundle") -> None:
        self.bundle = bundle
        self.is_flowing = False
        self.mark = 0.0
        """Where on the bundle's scale it has nothing left."""
        self.start = 0.0
        """Where this stretch began."""
        self.added_bytes = 0.0
        """All that it was given, less what was dropped."""
        self.before_bytes = 0.0
        """What was sent before this stretch."""
        self.since_s = 0.0
        self.flowing_before_s = 0.0

    def sent_at(self, now: float) -> float:
        """Bytes that have left."""
        if not self.is_flowing:
            return self.added_bytes
        return min(self.added_bytes, self.before_bytes + (self.bundle.served_at(now) - self.start))

    def ran_dry(self, now: float) -> None:
        """Called when the last byte has left, after the stretch was booked; it may be given more later."""
        raise NotImplementedError


class Bundle:
    """The flows on one path, each capped at `cap` bytes per second; rates and ceilings are per flow."""

    __slots__ = (
        "_ended_bytes",
        "_heap",
        "_moved_bytes",
        "_number",
        "_served",
        "_settled_s",
        "alarm",
        "bound",
        "cap",
        "ceiling",
        "due_s",
        "flowing",
        "key",
        "next_rate",
        "path",
        "rate",
        "seen",
        "streams",
    )

    def __init__(self, key: Key, path: tuple["Resource", ...], cap: float) -> None:
        self.key = key
        self.path = path
        self.cap = cap
        self.streams = 0
        """Open ones; with the last of them the bundle goes."""
        self.flowing = 0
        """How many have bytes left."""
        self.ceiling = self.bound = 0.0
        """What one flow, and all together, could take if nobody else were there."""
        self.rate = self.next_rate = 0.0
        self.due_s = inf
        """When the first of them has nothing left."""
        self.alarm: Alarm | None = None
        self.seen = 0
        self._served = self._settled_s = 0.0
        self._moved_bytes = 0.0
        """Since it was last idle, all flows together, by the rates."""
        self._ended_bytes = 0.0
        """The same of the stretches that are over, by what the streams were given: the witness of the rates."""
        self._heap: list[tuple[float, int, Stream]] = []
        self._number = 0

    def limit(self) -> None:
        """Ceiling and bound anew, after a capacity or the number of flows changed."""
        ceiling = self.cap
        for resource in self.path:
            ceiling = min(ceiling, resource.capacity / self.flowing)
        self.ceiling = ceiling
        self.bound = ceiling * self.flowing

    def served_at(self, now: float) -> float:
        """The scale at a time since the last change; exactly at the first mark when that is due."""
        if self.due_s <= now:
            return self._heap[0][0]
        return self._served + self.rate * (now - self._settled_s)

    def carried_at(self, now: float) -> float:
        """Bytes of all its flows since it was last idle, by the rates."""
        return self._moved_bytes + self.flowing * (self.served_at(now) - self._served)

    def run(self, rate: float, now: float) -> None:
        """Go on at a rate."""
        self._settle(now)
        self.rate = rate
        self._aim()

    def push(self, stream: Stream, now: float) -> None:
        """A stretch begins, with what the stream was given beyond `before_bytes`."""
        self._settle(now)
        stream.is_flowing = True
        stream.since_s = now
        stream.start = self._served
        stream.mark = self._served + (stream.added_bytes - stream.before_bytes)
        self._number += 1
        heappush(self._heap, (stream.mark, self._number, stream))
        self.flowing += 1

    def extend(self, stream: Stream, size_bytes: float, now: float) -> None:
        """More to send in the same stretch. Rates stay, and what is due first may be due later, never earlier."""
        if self._heap[0][2] is not stream:
            stream.mark += size_bytes
            return
        self._settle(now)
        stream.mark += size_bytes
        self._mend()
        due_s = self.due_s
        self._aim()
        self.due_s = max(due_s, self.due_s)

    def pop_due(self, now: float) -> list[Stream]:
        """End the stretches that are through."""
        self._settle(now)
        through = []
        while self._heap and self._heap[0][0] <= self._served:
            stream = heappop(self._heap)[2]
            self._end(stream, stream.added_bytes, now)
            through.append(stream)
            self._mend()
        self._aim()
        return through

    def drop(self, stream: Stream, now: float) -> None:
        """End a stretch early; what is left of it is not sent."""
        self._settle(now)
        self._end(stream, stream.sent_at(now), now)
        self._mend()
        if len(self._heap) > 2 * self.flowing + STALE_MAX:
            self._heap = [entry for entry in self._heap if entry[2].is_flowing]
            heapify(self._heap)
        self._aim()

    def rest(self) -> float:
        """It is idle: returns what it carried since it was last, and begins a new scale."""
        carried = self._moved_bytes
        self._served = self._moved_bytes = self._ended_bytes = self.rate = 0.0
        return carried

    def check(self, now: float) -> None:
        """Assert that heap, counts and both accounts agree."""
        live = [stream for _, _, stream in self._heap if stream.is_flowing]
        assert len(live) == len(set(map(id, live))) == self.flowing <= self.streams, f"{self.key}: flows"
        assert not self._heap or self._heap[0][2].is_flowing, f"{self.key}: the top is of a stopped flow"
        assert all(self._heap[0][0] <= stream.mark for stream in live), f"{self.key}: the top is not the first"
        assert self.due_s >= now, f"{self.key}: overdue"
        account = self._ended_bytes + sum(stream.sent_at(now) - stream.before_bytes for stream in live)
        moved, slack = self.carried_at(now), 1e-9 * (account + self._served)
        assert abs(moved - account) <= slack + 1e-6, f"{self.key}: {moved} by the rates, {account} by the flows"

    def _settle(self, now: float) -> None:
        served = self.served_at(now)
        self._moved_bytes += self.flowing * (served - self._served)
        self._served = served
        self._settled_s = now

    def _aim(self) -> None:
        """Say anew when the first is due, after its mark, the rate or the scale changed.

        A time is rounded up: a clock that ticks coarsely far from 0 must not make a link quicker than it is (I9).
        """
        left = self._heap[0][0] - self._served if self._heap else inf
        if left <= 0:
            self.due_s = self._settled_s
        elif left == inf or not self.rate:
            self.due_s = inf
        else:
            due_s = self._settled_s + left / self.rate
            self.due_s = nextafter(due_s, inf) if (due_s - self._settled_s) * self.rate < left else due_s

    def _mend(self) -> None:
        heap = self._heap
        while heap:
            mark, number, stream = heap[0]
            if not stream.is_flowing:
                heappop(heap)
            elif stream.mark > mark:
                heapreplace(heap, (stream.mark, number, stream))
            else:
                return

    def _end(self, stream: Stream, sent_bytes: float, now: float) -> None:
        self._ended_bytes += sent_bytes - stream.before_bytes
        stream.is_flowing = False
        stream.added_bytes = stream.before_bytes = sent_bytes
        stream.flowing_before_s += now - stream.since_s
        self.flowing -= 1

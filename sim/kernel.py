"""Virtual time: a heap of what is to happen, and a clock that jumps from one to the next.

Rule 1: the clock never goes back (I2); asking for the past is an error.
Rule 2: what is due at one time happens in the order in which it was asked for. Nothing else decides, so that the same
calls give the same run (I5).
Rule 3: nothing here waits, draws or reads a clock; a simulated hour takes as long as its callbacks.
"""

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from math import inf
from sys import float_info

Callback = Callable[[], None]

COMPACT_ABOVE = 1024
"""Below this many entries, cancelled ones may wait in the heap for their time: sweeping them out would cost more."""


class Handle:
    """A callback that is due at `due_s`, for whoever may want to call it off."""

    __slots__ = ("_callback", "_kernel", "due_s")

    def __init__(self, kernel: "Kernel", due_s: float, callback: Callback) -> None:
        self._kernel = kernel
        self._callback: Callback | None = callback
        self.due_s = due_s

    @property
    def is_pending(self) -> bool:
        """Whether it is still to happen: neither called nor cancelled."""
        return self._callback is not None

    def cancel(self) -> None:
        """Call it off; harmless when it happened already or was cancelled before."""
        if self._take() is not None:
            self._kernel._forget_one()  # noqa: SLF001 - the two are one thing in two classes

    def _take(self) -> Callback | None:
        callback, self._callback = self._callback, None
        return callback


class Kernel:
    """A discrete-event simulator's clock and agenda. `at` and `after` are O(log n) in what is pending."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now = start_s
        self._heap: list[tuple[float, int, Handle]] = []
        self._sequence = 0
        self._cancelled = 0
        self.happened = 0
        """How many callbacks were called: two runs that should be equal have the same."""

    def __len__(self) -> int:
        """How many callbacks are pending."""
        return len(self._heap) - self._cancelled

    @property
    def now(self) -> float:
        """The virtual time in seconds."""
        return self._now

    def at(self, due_s: float, callback: Callback) -> Handle:
        """Call back at a time, which may be this very moment; ValueError for the past and for what is no time."""
        if not due_s >= self._now:
            raise ValueError(f"due_s: expected at least {self._now} (now), got {due_s}; time never goes back")
        handle = Handle(self, due_s, callback)
        heappush(self._heap, (due_s, self._sequence, handle))
        self._sequence += 1
        return handle

    def after(self, delay_s: float, callback: Callback) -> Handle:
        """Call back so much later; ValueError for a negative delay."""
        return self.at(self._now + delay_s, callback)

    def next_s(self) -> float:
        """When something happens next; infinity when nothing is pending."""
        while self._heap and not self._heap[0][2].is_pending:
            heappop(self._heap)
            self._cancelled -= 1
        return self._heap[0][0] if self._heap else inf

    def run_until(self, end_s: float) -> None:
        """Let everything happen that is due at or before `end_s`, also what is asked for meanwhile.

        Then it is `end_s`; with infinity it runs until nothing is pending, and stays at the time of the last. An error
        in a callback goes to the caller; calling again goes on behind it.
        """
        last_s = min(end_s, float_info.max)
        while self._heap and self._heap[0][0] <= last_s:
            due_s, _, handle = heappop(self._heap)
            callback = handle._take()  # noqa: SLF001 - the two are one thing in two classes
            if callback is None:
                self._cancelled -= 1
                continue
            self._now = due_s
            self.happened += 1
            callback()
        if end_s < inf:
            self._now = max(self._now, end_s)

    def clear(self) -> None:
        """Let nothing that is pending happen: a run is over."""
        for _, _, handle in self._heap:
            handle._take()  # noqa: SLF001 - the two are one thing in two classes
        self._heap.clear()
        self._cancelled = 0

    def _forget_one(self) -> None:
        """Cancelled entries never outnumber pending ones by far: memory is bounded by what is pending."""
        self._cancelled += 1
        if len(self._heap) > COMPACT_ABOVE and 2 * self._cancelled > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].is_pending]
            heapify(self._heap)
            self._cancelled = 0

"""One transfer, as its sender sees it: bytes are added as they come to exist, then it is closed and arrives."""

from collections.abc import Callable
from math import isfinite

from ..kernel import Handle
from .bundle import Bundle, Stream
from .sharing import Sharing


class Flow(Stream):
    """A flow that `Network.open` opened; it carries nothing until bytes are added.

    It ends once: it arrives, and `on_done` is called, or it was cancelled, and `on_done` never is.
    """

    __slots__ = ("_arrival", "_dry_s", "_is_over", "_on_done", "_sharing", "is_open", "latency_s")

    def __init__(self, sharing: Sharing, bundle: Bundle, latency_s: float, on_done: Callable[[], None]) -> None:
        super().__init__(bundle)
        bundle.streams += 1
        self.latency_s = latency_s
        self.is_open = True
        """Whether more may be added: neither closed nor cancelled."""
        self._sharing = sharing
        self._on_done = on_done
        self._arrival: Handle | None = None
        self._dry_s: float | None = None
        self._is_over = False

    @property
    def is_over(self) -> bool:
        """Whether it arrived or was cancelled."""
        return self._is_over

    @property
    def carried_bytes(self) -> float:
        """Bytes that have left the source."""
        return self.sent_at(self._sharing.kernel.now)

    @property
    def bytes_per_s(self) -> float:
        """Its share right now; 0 while it has nothing to send."""
        return self.bundle.rate if self.is_flowing else 0.0

    @property
    def flowing_s(self) -> float:
        """The time in which it had bytes to send, also while the link stood still."""
        return self.flowing_before_s + (self._sharing.kernel.now - self.since_s if self.is_flowing else 0.0)

    def add(self, size_bytes: float) -> None:
        """More to carry; ValueError for what is no size, AssertionError after `close` or `cancel`."""
        if not (isfinite(size_bytes) and size_bytes >= 0):
            raise ValueError(f"size_bytes: expected a finite number of at least 0, got {size_bytes}")
        assert self.is_open, "nothing is added to a flow that was closed or cancelled"
        if size_bytes:
            self._sharing.add(self, size_bytes)

    def close(self) -> None:
        """Nothing more will be added; again, or after `cancel`, it changes nothing.

        `on_done` is called by the kernel, never from in here: `latency_s` after the last byte left, or after this very
        moment if nothing was ever added.
        """
        if self.is_open:
            self.is_open = False
            if not self.is_flowing:
                self._arrive(self._sharing.kernel.now)

    def cancel(self) -> None:
        """Forget what is left; again, or after it arrived, it changes nothing."""
        if self._is_over:
            return
        self._is_over, self.is_open = True, False
        if self.is_flowing:
            self._sharing.stop(self)
        if self._arrival is not None:
            self._arrival.cancel()
        else:
            self._sharing.leave(self.bundle)

    def ran_dry(self, now: float) -> None:
        """Called by the sharing when the last byte has left."""
        self._dry_s = now
        if not self.is_open:
            self._arrive(now)

    def _arrive(self, now: float) -> None:
        left_s = now if self._dry_s is None else self._dry_s
        self._sharing.leave(self.bundle)
        self._arrival = self._sharing.kernel.at(max(now, left_s + self.latency_s), self._done)

    def _done(self) -> None:
        self._is_over = True
        self._on_done()

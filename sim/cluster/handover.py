"""Blocks that a prefill computes for a worker elsewhere, shipped layer by layer as they are computed.

The fluid that flows is bytes. A pass that computes some blocks for `d` seconds makes them in layers; the layers are
grouped into at most `GROUPS` parts, each of which may leave as soon as its share of the pass is done. The flow opens
when both ends have room; what was computed before that waits at the source.
"""

from homing.router.core.events import TransferFinished
from homing.router.core.types import RequestId

from ..kernel import Handle, Kernel
from ..network.network import Flow, Network
from .job import Job
from .worker import SimulatedWorker

GROUPS = 16
"""Parts of a pass: more would cost events and change the exposed tail by less than a sixteenth of one pass's bytes."""


class Handover:
    """The way of one request's KV from its prefill worker to its decode worker."""

    def __init__(
        self,
        kernel: Kernel,
        network: Network,
        source: SimulatedWorker,
        target: SimulatedWorker,
        request_id: RequestId,
        *,
        blocks: range,
        block_bytes: float,
        state_bytes: float,
        layers: int,
    ) -> None:
        self._kernel = kernel
        self._network = network
        self._source = source
        self._target = target
        self._request_id = request_id
        self._blocks = blocks
        self._block_bytes = block_bytes
        self._state_bytes = state_bytes
        self._groups = min(GROUPS, layers)
        self._flow: Flow | None = None
        self._waiting_bytes = 0.0
        self._promised = range(blocks.start, blocks.start)
        self._complete = False
        self._over = False
        self._job: Job | None = None
        self._timers: list[Handle] = []
        self.shipped_bytes = 0.0
        for end in (source, target):
            end.transfers[self] = None

    # -- the target ----------------------------------------------------------------------------------------------

    def begin(self, job: Job, needed: range) -> None:
        """The decode worker has room."""
        if self._over:
            job.sequence.arrivals_ended()
            self._target.settle(job)
            return
        self._job = job
        sites = self._source.facts.site, self._target.facts.site
        via = (f"{self._source.facts.id}/out", f"{self._target.facts.id}/in")
        self._flow = self._network.open(*sites, via=via, on_done=self._all_here)
        if self._waiting_bytes:
            self._flow.add(self._waiting_bytes)
        if self._complete:
            self._flow.close()

    # -- the source ----------------------------------------------------------------------------------------------

    def begun(self, blocks: range) -> None:
        """These were in the source's cache."""
        self._ready(blocks)

    def arrived(self, blocks: range) -> None:
        """These came to the source from elsewhere."""
        self._ready(blocks)

    def computing(self, blocks: range, seconds: float) -> None:
        """A pass of so many seconds has begun that computes these blocks."""
        size = self._size_of(blocks)
        if not size:
            return
        part = size / self._groups
        for group in range(1, self._groups):
            self._timers.append(self._kernel.after(seconds * group / self._groups, lambda: self._add(part)))
        self._timers.append(self._kernel.after(seconds, lambda: self._last_of_pass(part)))

    def done(self) -> None:
        """The source has all that there will be."""
        self._complete = True
        if not self._timers:
            self._close()

    def broke(self) -> None:
        """An end is gone, or the request is given up."""
        self._end(complete=False)

    # -- between -------------------------------------------------------------------------------------------------

    def _size_of(self, blocks: range) -> float:
        first, stop = max(blocks.start, self._blocks.start), min(blocks.stop, self._blocks.stop)
        return max(0, stop - first) * self._block_bytes

    def _ready(self, blocks: range) -> None:
        size = self._size_of(blocks)
        if size:
            self._add(size)

    def _add(self, size: float) -> None:
        if self._over:
            return
        if self._flow is None:
            self._waiting_bytes += size
        else:
            self._flow.add(size)

    def _last_of_pass(self, size: float) -> None:
        self._add(size)
        self._timers.clear()
        if self._complete:
            self._close()

    def _close(self) -> None:
        """The fixed state of hybrid-attention models is whole with the last token only."""
        if self._state_bytes:
            self._add(self._state_bytes)
        if self._flow is not None and not self._over:
            self._flow.close()

    def _all_here(self) -> None:
        job = self._job
        assert job is not None
        needed = job.sequence.still_expected
        if not job.ended and needed and job.sequence.claim(needed):
            self._target.arrived(job, needed)
        self._end(complete=True)

    def _end(self, *, complete: bool) -> None:
        if self._over:
            return
        self._over = True
        for timer in self._timers:
            timer.cancel()
        for end in (self._source, self._target):
            end.transfers.pop(self, None)
        seconds = None
        if self._flow is not None:
            self.shipped_bytes = self._flow.carried_bytes
            seconds = self._flow.flowing_s if complete else None
            self._flow.cancel()
        job = self._job
        if job is None or not self._target.is_up:
            return
        self._target.tell(
            TransferFinished(
                request_id=self._request_id,
                source=self._source.facts.id,
                target=self._target.facts.id,
                bytes=int(self.shipped_bytes),
                seconds=seconds,
                complete=complete,
            )
        )
        if not job.ended:
            job.sequence.arrivals_ended()
            self._target.settle(job)
        self._target.flush()

"""Blocks that a prefill computes for a worker elsewhere, shipped layer by layer as they are computed.

The fluid that flows is bytes. A pass that computes some blocks for `d` seconds makes them in layers; the layers are
grouped into at most `GROUPS` parts, each of which may leave as soon as its share of the pass is done. The flow opens
when the target has room and has asked; what was computed before that waits at the source, whose blocks stay pinned
until all has been sent.
"""

from homing.router.core.events import TransferFinished
from homing.router.core.types import RequestId

from ..kernel import Handle, Kernel
from ..network.network import Flow, Network
from .job import Job
from .silence import Silence
from .transfers import SETUP_ROUND_TRIPS
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
        self._silence: Silence | None = None
        self._waiting_bytes = 0.0
        self._complete = False
        self._over = False
        self._job: Job | None = None
        self._pinned: list[int] = []
        self._timers: list[Handle] = []
        self._asking: Handle | None = None
        self.shipped_bytes = 0.0
        for end in (source, target):
            end.transfers[self] = None

    # -- the target ----------------------------------------------------------------------------------------------

    def begin(self, job: Job, needed: range) -> None:
        """The decode worker has room; those at `needed` are still wanted."""
        self._job = job
        if self._over:
            job.sequence.arrivals_ended()
        elif not needed:
            self._shut(complete=True)
        else:
            rtt_s = self._network.rtt_s(self._source.facts.site, self._target.facts.site)
            self._asking = self._kernel.after(SETUP_ROUND_TRIPS * rtt_s, self._open)

    def _open(self) -> None:
        sites = self._source.facts.site, self._target.facts.site
        via = (f"{self._source.facts.id}/out", f"{self._target.facts.id}/in")
        self._flow = self._network.open(*sites, via=via, on_done=self._all_here)
        self._silence = Silence(self._kernel, self._flow, self.broke)
        if self._waiting_bytes:
            self._flow.add(self._waiting_bytes)
        if self._complete and not self._timers:
            self._flow.close()

    # -- the source ----------------------------------------------------------------------------------------------

    def begun(self, job: Job, blocks: range) -> None:
        """The prefill has its blocks; these were in the source's cache."""
        if not self._over:
            self._pinned = job.sequence.blocks[self._blocks.start : self._blocks.stop]
            self._source.keep(self._pinned)
            self._ready(blocks)

    def arrived(self, blocks: range) -> None:
        """These came to the source from elsewhere."""
        self._ready(blocks)

    def computing(self, blocks: range, seconds: float) -> None:
        """A pass of so many seconds has begun that computes these blocks."""
        size = self._size_of(blocks)
        if self._over or not size:
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
        if needed and job.sequence.claim(needed):
            self._target.arrived(job, needed)
        self._end(complete=True)

    def _end(self, *, complete: bool) -> None:
        if self._over:
            return
        self._shut(complete=complete)
        job, target = self._job, self._target
        if job is not None and target.is_up and not job.ended:
            job.sequence.arrivals_ended()
            target.settle(job)

    def _shut(self, *, complete: bool) -> None:
        """Nothing more flows."""
        self._over = True
        for timer in (*self._timers, *([] if self._asking is None else [self._asking])):
            timer.cancel()
        for end in (self._source, self._target):
            end.transfers.pop(self, None)
        if self._flow is not None:
            self.shipped_bytes = self._flow.carried_bytes
        if self._job is not None and self._target.is_up:
            self._tell(self._job, complete=complete)
        if self._flow is not None:
            self._flow.cancel()
        if self._silence is not None:
            self._silence.stop()
        if self._pinned and self._source.is_up:
            self._source.let_go(self._pinned)

    def _tell(self, job: Job, *, complete: bool) -> None:
        """The target says how it went."""
        flow = self._flow
        event = TransferFinished(
            request_id=self._request_id,
            source=self._source.facts.id,
            target=self._target.facts.id,
            bytes=int(self.shipped_bytes),
            seconds=flow.flowing_s if complete and flow is not None else None,
            complete=complete,
        )
        self._target.tell(event, job.owner)

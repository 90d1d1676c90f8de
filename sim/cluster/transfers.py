"""Cached blocks that travel from one simulated worker to another, as live workers move them.

Rule 1: a source gives the leading run of the wanted blocks that it has at the moment when it is asked, pinned until
nobody reads them; what it does not have is computed by the target.
Rule 2: whatever fails, the target computes: `arrivals_ended` is called once on every path.
"""

from homing.router.core.events import TransferFinished
from homing.router.core.types import BlockKey, RequestId

from ..kernel import Handle, Kernel
from ..network.network import Flow, Network
from .job import Job
from .worker import SimulatedWorker

SETUP_ROUND_TRIPS = 3.0
"""Asking for an offer, connecting, presenting the ticket: what the live data plane does before the first byte."""
STALLED_S = 0.1
"""When to look again while nothing flows."""
POLL_MIN_S = 1e-3
"""How often at the most a meeting looks at what has arrived."""


class Fetch:
    """Blocks `[first, end)` come front to back; the target waits for all of them."""

    def __init__(
        self,
        kernel: Kernel,
        network: Network,
        source: SimulatedWorker,
        target: SimulatedWorker,
        request_id: RequestId,
        block_bytes: float,
        state_bytes: float,
    ) -> None:
        self._kernel = kernel
        self._network = network
        self._source = source
        self._target = target
        self._request_id = request_id
        self._block_bytes = block_bytes
        self._state_bytes = state_bytes
        self._pinned: list[int] = []
        self._flow: Flow | None = None
        self._timer: Handle | None = None
        self._over = False
        self._job: Job | None = None
        self._blocks = range(0)
        self.arrived_blocks = 0
        self.moved_bytes = 0

    def begin(self, job: Job, needed: range) -> None:
        """The target has room for the blocks; those at `needed` are still wanted."""
        self._job, self._blocks = job, needed
        for end in (self._source, self._target):
            end.transfers[self] = None
        if not needed:
            self._end(complete=True)
            return
        rtt_s = self._network.rtt_s(self._source.facts.site, self._target.facts.site)
        self._timer = self._kernel.after(SETUP_ROUND_TRIPS * rtt_s, self._ask)

    def broke(self) -> None:
        """One end is gone, or nobody waits any more."""
        self._end(complete=False)

    def _ask(self) -> None:
        job, source = self._job, self._source
        assert job is not None
        if job.ended:
            self._end(complete=False)
            return
        wanted: list[BlockKey] = job.sequence.keys[self._blocks.start : self._blocks.stop]
        self._pinned = source.cache.match(wanted) if source.is_up else []
        if not self._pinned:
            self._end(complete=False)
            return
        source.cache.pin(self._pinned)
        self._blocks = range(self._blocks.start, self._blocks.start + len(self._pinned))
        sites = source.facts.site, self._target.facts.site
        via = (f"{source.facts.id}/out", f"{self._target.facts.id}/in")
        self._flow = self._network.open(*sites, via=via, on_done=self._all_here)
        self._flow.add(self._state_bytes + self._block_bytes * len(self._blocks))
        self._flow.close()
        self._flowing()

    def _flowing(self) -> None:
        """Bytes begin to come."""

    def _all_here(self) -> None:
        job = self._job
        assert job is not None
        if not job.ended and job.sequence.claim(self._blocks):
            self._target.arrived(job, self._blocks)
            self.arrived_blocks = len(self._blocks)
        self._end(complete=True)

    def _end(self, *, complete: bool) -> None:
        if self._over:
            return
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        for end in (self._source, self._target):
            end.transfers.pop(self, None)
        if self._pinned and self._source.is_up:
            self._source.cache.unpin(self._pinned)
        seconds = None
        moved = 0
        if self._flow is not None:
            moved = self.moved_bytes = int(self._flow.carried_bytes)
            seconds = self._flow.flowing_s if moved else None
            self._flow.cancel()
        job = self._job
        assert job is not None
        if not self._target.is_up:
            return
        self._target.tell(
            TransferFinished(
                request_id=self._request_id,
                source=self._source.facts.id,
                target=self._target.facts.id,
                bytes=moved,
                seconds=seconds,
                complete=complete,
                rtt_s=self._network.rtt_s(self._source.facts.site, self._target.facts.site) if moved else None,
            )
        )
        if not job.ended:
            job.sequence.arrivals_ended()
            self._target.settle(job)
        self._target.flush()


class Meet(Fetch):
    """Blocks come back to front while the target computes from the front, until the two meet."""

    def _flowing(self) -> None:
        self._claimed = 0
        self._look()

    def _look(self) -> None:
        """Take what has arrived, and claim the block that comes next: what is claimed is not computed."""
        job, flow = self._job, self._flow
        assert job is not None and flow is not None
        if job.ended:
            self._end(complete=False)
            return
        here = min(len(self._blocks), int((flow.carried_bytes + 1e-6) // self._block_bytes))
        self._take(job, min(here, self._claimed))
        while self._claimed <= here and self._claimed < len(self._blocks):
            position = self._blocks.stop - 1 - self._claimed
            if not job.sequence.claim(range(position, position + 1)):
                self._end(complete=True)
                return
            self._claimed += 1
            self._take(job, min(here, self._claimed))
        self._target.settle(job)
        if not self._over and self.arrived_blocks < len(self._blocks):
            missing = (self.arrived_blocks + 1) * self._block_bytes - flow.carried_bytes
            wait_s = missing / flow.bytes_per_s if flow.bytes_per_s > 0 else STALLED_S
            self._timer = self._kernel.after(max(POLL_MIN_S, wait_s * 1.0001), self._look)

    def _take(self, job: Job, here: int) -> None:
        if here > self.arrived_blocks:
            stop = self._blocks.stop
            self._target.arrived(job, range(stop - here, stop - self.arrived_blocks))
            self.arrived_blocks = here

    def _all_here(self) -> None:
        if not self._over:
            self._look()
            self._end(complete=True)

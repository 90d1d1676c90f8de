"""Cached blocks that travel from one simulated worker to another, as live workers move them.

Rule 1: a source gives the leading run of the wanted blocks that it has at the moment when it is asked, pinned until
nobody reads them; what it does not have is computed by the target.
Rule 2: whatever fails, the target computes: `arrivals_ended` is called once on every path.
"""

from functools import partial

from homing.router.core.events import TransferFinished
from homing.router.core.types import BlockKey, RequestId

from ..kernel import Handle, Kernel
from ..network.network import Flow, Network
from .job import Job
from .silence import Silence
from .worker import SimulatedWorker

SETUP_ROUND_TRIPS = 2.5
"""Asking for an offer, connecting, presenting the ticket: what passes before the source sends the first byte, which
then takes half a round trip more."""
STALLED_S = 0.1
"""When to look again while nothing flows."""
POLL_MIN_S = 1e-3
"""How often at the most a meeting looks at what has been sent."""


class Fetch:
    """Blocks `[first, end)` come front to back; the target waits for all of them."""

    def __init__(
        self,
        kernel: Kernel,
        network: Network,
        source: SimulatedWorker,
        target: SimulatedWorker,
        request_id: RequestId,
        *,
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
        self._silence: Silence | None = None
        self._over = False
        self._job: Job | None = None
        self._blocks = range(0)
        self.arrived_blocks = 0
        self.moved_bytes = 0

    def begin(self, job: Job, needed: range) -> None:
        """The target has room for the blocks; those at `needed` are still wanted."""
        self._job, self._blocks = job, needed
        if self._over or not needed:
            self._over = True
            self._tell(complete=not needed)
            job.sequence.arrivals_ended()
            return
        for end in (self._source, self._target):
            end.transfers[self] = None
        self._timer = self._kernel.after(SETUP_ROUND_TRIPS * self._rtt_s(), self._ask)

    def broke(self) -> None:
        """One end is gone, or nobody waits any more."""
        if self._job is None:
            self._over = True
        else:
            self._end(complete=False)

    def _ask(self) -> None:
        job, source = self._job, self._source
        assert job is not None
        wanted: list[BlockKey] = job.sequence.keys[self._blocks.start : self._blocks.stop]
        found = source.cache.match(wanted)
        if not found:
            self._end(complete=False)
            return
        self._pinned = found
        source.keep(found)
        self._blocks = range(self._blocks.start, self._blocks.start + len(found))
        sites = source.facts.site, self._target.facts.site
        via = (f"{source.facts.id}/out", f"{self._target.facts.id}/in")
        self._flow = self._network.open(*sites, via=via, on_done=self._all_here)
        self._silence = Silence(self._kernel, self._flow, self.broke)
        self._flow.add(self._state_bytes + self._block_bytes * len(self._blocks))
        self._flow.close()
        self._flowing()

    def _flowing(self) -> None:
        """Bytes begin to come."""

    def _all_here(self) -> None:
        job = self._job
        assert job is not None
        if job.sequence.claim(self._blocks):
            self._target.arrived(job, self._blocks)
            self.arrived_blocks = len(self._blocks)
        self._end(complete=True)

    def _end(self, *, complete: bool) -> None:
        if self._over:
            return
        self._over = True
        job, target = self._job, self._target
        assert job is not None
        if self._timer is not None:
            self._timer.cancel()
        for end in (self._source, target):
            end.transfers.pop(self, None)
        self._tell(complete=complete)
        if self._flow is not None:
            self._flow.cancel()
        if self._silence is not None:
            self._silence.stop()
        if self._pinned and self._source.is_up:
            self._source.let_go(self._pinned)
        if target.is_up and not job.ended:
            job.sequence.arrivals_ended()
            target.settle(job)

    def _tell(self, *, complete: bool) -> None:
        """The target says how it went."""
        flow, job = self._flow, self._job
        assert job is not None
        self.moved_bytes = 0 if flow is None else int(flow.carried_bytes)
        if self._target.is_up:
            event = TransferFinished(
                request_id=self._request_id,
                source=self._source.facts.id,
                target=self._target.facts.id,
                bytes=self.moved_bytes,
                seconds=flow.flowing_s if flow is not None and self.moved_bytes else None,
                complete=complete,
                rtt_s=self._rtt_s() if self.moved_bytes else None,
            )
            self._target.tell(event, job.owner)

    def _rtt_s(self) -> float:
        return self._network.rtt_s(self._source.facts.site, self._target.facts.site)


class Meet(Fetch):
    """Blocks come back to front while the target computes from the front, until the two meet.

    A block is claimed when its first byte is here, and counts when its last one is: what is claimed is not computed.
    """

    def _flowing(self) -> None:
        self._claimed = 0
        self._look()

    def _look(self) -> None:
        """See how many blocks have left; the target sees the same when they have come all the way."""
        flow = self._flow
        assert flow is not None
        sent = min(len(self._blocks), int((flow.carried_bytes + 1e-6) // self._block_bytes))
        self._kernel.after(flow.latency_s, partial(self._received, sent))
        if sent < len(self._blocks):
            missing = (sent + 1) * self._block_bytes - flow.carried_bytes
            wait_s = missing / flow.bytes_per_s if flow.bytes_per_s > 0 else STALLED_S
            self._timer = self._kernel.after(max(POLL_MIN_S, wait_s * (1 + 1e-9)), self._look)

    def _received(self, whole: int) -> None:
        """So many blocks are whole, and the next one begins to come."""
        job = self._job
        assert job is not None
        if self._over:
            return
        self._take(job, min(whole, self._claimed))
        while self._claimed <= whole and self._claimed < len(self._blocks):
            position = self._blocks.stop - 1 - self._claimed
            if not job.sequence.claim(range(position, position + 1)):
                self._end(complete=True)
                return
            self._claimed += 1
            self._take(job, min(whole, self._claimed))
        self._target.settle(job)

    def _take(self, job: Job, whole: int) -> None:
        if whole > self.arrived_blocks:
            stop = self._blocks.stop
            self._target.arrived(job, range(stop - whole, stop - self.arrived_blocks))
            self.arrived_blocks = whole

    def _all_here(self) -> None:
        self._received(len(self._blocks))
        self._end(complete=True)

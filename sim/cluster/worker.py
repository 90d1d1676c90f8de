"""One simulated worker: the live engine's batcher and block book, and a stopwatch where the GPU would be.

Rule 1: what is computed next, who waits and what is cached is decided by `workers.engine` alone, as on a live worker.
Rule 2: how long it takes is the profile's truth; the router hears of it in the events that a live worker sends.
Rule 3: passes that only decode are run through at once, up to the end of an answer or until a prompt can join them. The
time of one pass changes linearly over such a run, which is exact where decode time is linear in the context;
`exact=True` runs every pass by itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, inf, sqrt
from typing import Protocol

from homing.router.core.events import BlocksRemoved, BlocksStored, Event, LoadReported, PrefillMeasured
from homing.router.core.types import BlockKey, LoadReport, Tier, Worker, WorkerId
from homing.workers.engine.batcher import Batcher, Progress
from homing.workers.engine.kvcache import KvCache, KvEvent, Stored
from homing.workers.engine.step import Batch

from ..kernel import Handle, Kernel
from ..measure.histogram import WeightedHistogram
from ..truth.profile import Profile
from .job import Job
from .stalls import Stalls


class Transfer(Protocol):
    """Blocks on their way."""

    def broke(self) -> None:
        """One of its ends is gone."""


class About(Protocol):
    """Whom an event is about, who may not want it told any more by the time it is heard."""

    is_over: bool


Told = tuple[Event, About | None]


class Tiers(Protocol):
    """What a worker keeps below its device memory."""

    def clear(self) -> None:
        """Everything is gone."""

    def take_in(self, worker: WorkerId, changes: list[KvEvent]) -> list[Event]:
        """Keep what the device evicted; returns what there is to tell of it."""

    def load(self, worker: "SimulatedWorker", job: Job) -> None:
        """Bring up what follows on what the device holds of a prompt."""

    def everything(self, worker: WorkerId) -> list[Event]:
        """All that is kept, as events."""


class Listener(Protocol):
    """Where a worker's events go."""

    def hear(self, worker: "SimulatedWorker", events: list[Told], kv_events: list[Event]) -> None:
        """What happened on a worker at this moment; changes of its cache apart, since they may take another way."""


@dataclass(slots=True)
class Counters:
    """What a worker did since the start."""

    busy_s: float = 0.0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    passes: int = 0
    kv_block_s: float = 0.0
    """Integral of used blocks over time."""


@dataclass(slots=True)
class _Run:
    """What the stopwatch measures: a batch, so many passes in a row, the first of which takes `first_s`."""

    batch: Batch
    began_s: float
    passes: int
    first_s: float
    slope_s: float
    """By how much each pass takes longer than the one before."""

    def lasts_s(self, passes: int) -> float:
        return passes * self.first_s + self.slope_s * passes * (passes - 1) / 2

    def passes_by(self, elapsed_s: float) -> int:
        """How many passes have begun after so long: the one that runs will be the last."""
        half = self.slope_s / 2
        linear = self.first_s - half
        root = elapsed_s / linear if half < 1e-15 else (sqrt(linear**2 + 4 * half * elapsed_s) - linear) / (2 * half)
        return max(1, min(self.passes, ceil(root - 1e-9)))


class SimulatedWorker:
    """Runs jobs on virtual time. `facts` are what a router is told of it when it joins."""

    def __init__(
        self,
        facts: Worker,
        profile: Profile,
        kernel: Kernel,
        listener: Listener,
        *,
        step_tokens_max: int,
        sequences_max: int,
        itl: WeightedHistogram,
        report_every_s: float = 1.0,
        tiers: Tiers | None = None,
        exact: bool = False,
    ) -> None:
        self.facts = facts
        self.profile = profile
        self.cache = KvCache(facts.kv_blocks_max)
        self.batcher = Batcher(self.cache, step_tokens_max=step_tokens_max, sequences_max=sequences_max)
        self.counters = Counters()
        self.tiers = tiers
        self.slow_factor = 1.0
        self.is_up = True
        self._kernel = kernel
        self._listener = listener
        self._itl = itl
        self._exact = exact
        self._report_every_s = report_every_s
        self._jobs: dict[str, Job] = {}
        self._run: _Run | None = None
        self._timer: Handle | None = None
        self._stalls = Stalls()
        self._events: list[Told] = []
        self._sequence = 0
        self.reported_s = -inf
        self.transfers: dict[Transfer, None] = {}
        """What is on its way to or from here, in the order in which it began."""
        self._kv_changed_s = kernel.now

    def __len__(self) -> int:
        return len(self._jobs)

    def submit(self, job: Job) -> None:
        """Take a job in."""
        self._jobs[job.sequence.request_id] = job
        self.batcher.submit(job.sequence)
        self._admit()
        self._go_on()

    def cancel(self, job: Job) -> None:
        """Give a job up; one that ended is no error."""
        if self._jobs.get(job.sequence.request_id) is not job:
            return
        self._drop(job)
        self.batcher.cancel(job.sequence.request_id)
        self._admit()
        self._go_on()

    def crash(self) -> None:
        """Lose everything at once: what runs, what waits and what is cached."""
        self.is_up = False
        if self._timer is not None:
            self._timer.cancel()
        self.settle_books()
        for transfer in list(self.transfers):
            transfer.broke()
        for job in list(self._jobs.values()):
            self._drop(job)
        self._run = None
        self._events.clear()
        self.cache = KvCache(self.facts.kv_blocks_max)
        self.batcher = self.batcher.anew(self.cache)
        if self.tiers is not None:
            self.tiers.clear()

    def come_back(self) -> None:
        """Be there again, with an empty cache."""
        self.is_up = True

    def arrived(self, job: Job, blocks: range) -> None:
        """Blocks that a job expected, and has claimed, are there."""
        for position in blocks:
            job.sequence.arrived(position)
        if job.outgoing is not None:
            job.outgoing.arrived(blocks)

    def settle(self, job: Job) -> None:
        """Arrivals changed something: what is whole can be found, and the engine may go on."""
        if self.is_up and not job.ended:
            self.batcher.settle_arrivals(job.sequence)
            self._admit()
            self._go_on()

    def worst_itl_s(self, since_s: float) -> float:
        """The longest time between two tokens of an answer that is decoded here since then."""
        return self._stalls.worst_since(since_s)

    def report(self) -> LoadReported:
        """What it tells of its load."""
        self._sequence += 1
        self.reported_s = self._kernel.now
        load = self.batcher.load()
        report = LoadReport(
            worker=self.facts.id,
            sequence=self._sequence,
            measured_s=self._kernel.now,
            queued_prefill_tokens=load.queued_prefill_tokens,
            running_requests=load.running_requests,
            kv_blocks_used=load.kv_blocks_used,
        )
        return LoadReported(report=report)

    def everything_cached(self) -> list[Event]:
        """Its whole cache, for a router that begins anew."""
        stored = _told(self.facts, list(self.cache.entries()), Tier.DEVICE)
        return stored if self.tiers is None else stored + self.tiers.everything(self.facts.id)

    def check(self) -> None:
        """Assert the engine's invariants (I3), and that engine and jobs agree."""
        self.batcher.check()
        assert len(self.batcher) == len(self._jobs)

    # -- the engine ----------------------------------------------------------------------------------------------

    def _drop(self, job: Job) -> None:
        del self._jobs[job.sequence.request_id]
        job.ended = True

    def _go_on(self) -> None:
        """Begin a pass if none runs; a run of decode passes ends with the one that runs when a prompt could join."""
        if not self.is_up:
            return
        run = self._run
        if run is None:
            self._begin()
        elif run.passes > 1 and self.batcher.has_prompts:
            assert self._timer is not None
            run.passes = run.passes_by(self._kernel.now - run.began_s)
            self._timer.cancel()
            self._timer = self._kernel.at(max(self._kernel.now, run.began_s + run.lasts_s(run.passes)), self._done)

    def _begin(self) -> None:
        batch = self.batcher.next_step()
        if batch is None:
            self.flush()
            return
        run = self._run = self._measured(batch)
        for chunk in batch.chunks:
            job = self._jobs[chunk.sequence.request_id]
            if job.began_s is None:
                self._note_begun(job, chunk.start)
            if job.outgoing is not None:
                size = chunk.sequence.block_tokens
                job.outgoing.computing(range(chunk.start // size, chunk.stop // size), run.first_s)
        self._timer = self._kernel.at(self._kernel.now + run.lasts_s(run.passes), self._done)

    def _note_begun(self, job: Job, start: int) -> None:
        job.began_s = self._kernel.now
        if job.outgoing is not None:
            job.sequence.has_fixed_blocks = True
            job.outgoing.begun(range(start // job.sequence.block_tokens))

    def _measured(self, batch: Batch) -> _Run:
        """How long the batch takes, and how many passes of it can be run through."""
        now, slow = self._kernel.now, self.slow_factor
        decoding = batch.decoding
        context = sum([sequence.present for sequence in decoding])
        if batch.chunks:
            spans = [(chunk.start, chunk.stop) for chunk in batch.chunks]
            return _Run(batch, now, 1, slow * self.profile.pass_s(spans, len(decoding), context), 0.0)
        passes = 1 if self._exact else min([sequence.answer_tokens - sequence.generated for sequence in decoding])
        first_s = slow * self.profile.decode_s(len(decoding), context)
        if passes == 1:
            return _Run(batch, now, 1, first_s, 0.0)
        last_s = slow * self.profile.decode_s(len(decoding), context + len(decoding) * (passes - 1))
        return _Run(batch, now, passes, first_s, (last_s - first_s) / (passes - 1))

    def _done(self) -> None:
        run, self._run, self._timer = self._run, None, None
        assert run is not None
        self._count(run)
        if run.batch.chunks:
            self._note_chunks(run)
        for progress in self.batcher.count(run.batch, run.passes):
            self._progressed(progress)
        self._admit()
        self._begin()
        self.flush()

    def _count(self, run: _Run) -> None:
        seconds = self._kernel.now - run.began_s
        counters, decoding = self.counters, len(run.batch.decoding)
        counters.busy_s += seconds
        counters.passes += run.passes
        if decoding:
            counters.decode_tokens += decoding * run.passes
            self._itl.add(seconds / run.passes, decoding * run.passes)
            self._stalls.add(self._kernel.now, max(run.first_s, run.first_s + run.slope_s * (run.passes - 1)))
        self.settle_books()

    def settle_books(self) -> None:
        """Bring the counters up to this moment."""
        now = self._kernel.now
        self.counters.kv_block_s += self.cache.used * (now - self._kv_changed_s)
        self._kv_changed_s = now

    def _note_chunks(self, run: _Run) -> None:
        """Prompts share the pass by their tokens, as live workers report it."""
        chunks = run.batch.chunks
        tokens = sum([chunk.stop - chunk.start for chunk in chunks])
        seconds = self._kernel.now - run.began_s
        self.counters.prefill_tokens += tokens
        for chunk in chunks:
            job = self._jobs.get(chunk.sequence.request_id)
            if job is not None and job.sequence is chunk.sequence:
                job.note_computed(chunk.start, chunk.stop, seconds * (chunk.stop - chunk.start) / tokens)

    def _progressed(self, progress: Progress) -> None:
        sequence = progress.sequence
        job = self._jobs[sequence.request_id]
        if progress.finished:
            self._drop(job)
        if sequence.is_prefill_only:
            if progress.finished:
                self._prefilled(job)
            return
        if job.first_token_s == 0.0 and sequence.generated:
            job.first_token_s = self._kernel.now
            self._tell_prefill(job)
            job.owner.first_token(job)
        if progress.finished:
            job.owner.finished(job)

    def _prefilled(self, job: Job) -> None:
        if job.outgoing is not None:
            job.outgoing.done()
        self._tell_prefill(job)
        job.owner.prefilled(job)

    def _tell_prefill(self, job: Job) -> None:
        for part in job.computed:
            measured = PrefillMeasured(
                worker_id=self.facts.id, cached_tokens=part.start, end_tokens=part.stop, seconds=part.seconds
            )
            self._events.append((measured, None))

    def _admit(self) -> None:
        """Let in who fits, until nobody does: what ends without a pass makes room at once."""
        while True:
            for sequence in self.batcher.admit():
                self._admitted(self._jobs[sequence.request_id])
            if not self.batcher.has_prompts:
                return
            finished = self.batcher.finished_without_step()
            for sequence in finished:
                job = self._jobs[sequence.request_id]
                self._drop(job)
                if job.began_s is None:
                    self._note_begun(job, sequence.present)
                self._prefilled(job)
            if not finished:
                return

    def _admitted(self, job: Job) -> None:
        if job.expected is not None:
            expected = job.expected
            needed = job.sequence.expect(expected.first, expected.end, expected.waiting)
            if job.outgoing is not None:
                self._note_begun(job, job.sequence.present)
            expected.begin(job, needed)
        elif self.tiers is not None:
            self.tiers.load(self, job)

    # -- what it tells -------------------------------------------------------------------------------------------

    def tell(self, event: Event, about: About | None = None) -> None:
        """Say something together with what this moment brings besides."""
        self._events.append((event, about))

    def flush(self, *, report: bool = False) -> None:
        """Say what there is to say, with a report if one is due or asked for."""
        changes = self.cache.take_events()
        now = self._kernel.now
        if report or now - self.reported_s >= self._report_every_s:
            self._events.append((self.report(), None))
        if not changes and not self._events:
            return
        kv_events = _told(self.facts, changes, Tier.DEVICE) if changes else []
        if self.tiers is not None and changes:
            kv_events += self.tiers.take_in(self.facts.id, changes)
        events, self._events = self._events, []
        self._listener.hear(self, events, kv_events)


def _told(facts: Worker, changes: list[KvEvent] | list[Stored], tier: Tier) -> list[Event]:
    """Changes of a cache as a live worker tells them: chains of stored blocks together, in order."""
    events: list[Event] = []
    keys: list[BlockKey] = []
    kind: Callable[..., Event] | None = None
    parent: BlockKey | None = None
    for change in changes:
        if isinstance(change, Stored):
            if kind is not BlocksStored or not keys or change.parent != keys[-1]:
                _flush(events, kind, keys, parent, facts, tier)
                kind, keys, parent = BlocksStored, [], change.parent
        elif kind is not BlocksRemoved:
            _flush(events, kind, keys, parent, facts, tier)
            kind, keys = BlocksRemoved, []
        keys.append(change.key)
    _flush(events, kind, keys, parent, facts, tier)
    return events


def _flush(
    events: list[Event],
    kind: Callable[..., Event] | None,
    keys: list[BlockKey],
    parent: BlockKey | None,
    facts: Worker,
    tier: Tier,
) -> None:
    if kind is BlocksStored:
        events.append(BlocksStored(worker_id=facts.id, keys=tuple(keys), parent=parent, tier=tier))
    elif kind is BlocksRemoved:
        events.append(BlocksRemoved(worker_id=facts.id, keys=tuple(keys), tier=tier))

"""The running worker: one event loop that decides, one thread that computes.

The batcher, the block book and all jobs belong to the event loop; the compute thread gets a frozen step plan, runs the
model and gives tokens back. While it computes, the loop takes requests in and moves blocks.

Rule 1: whatever fails on the way of a block, the answer is to compute it.
Rule 2: blocks are given back only when nobody reads or writes them: pulls have returned, passes are complete, exports
done.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from concurrent.futures import ThreadPoolExecutor

from homing.router.core.types import BlockKey

from .arrival import ArrivalSink
from .engine.batcher import Batcher, Load
from .engine.kvcache import KvCache, KvEvent
from .engine.step import Batch, StepPlan
from .handover import Handovers
from .job import Broken, Generated, Job, Prefilled, Source
from .model.kv import KvTensor
from .model.llama import LlamaModel
from .model.sampling import sample
from .pulling import Puller
from .transfer import CachedExport, DataServer, Export, Offer, Order, Outcome, RefusedError

log = logging.getLogger(__name__)

OFFER_TTL_S = 5.0
"""How long an offer waits for its taker, who connects at once if it still lives: till then the blocks stay pinned."""


class CancelledJobError(Exception):
    """The job was given up by its sender or by a shutdown."""


class WorkerRuntime:
    """Runs jobs on a model. `puller` brings blocks from other workers, `data` gives this one's away."""

    def __init__(
        self,
        model: LlamaModel,
        kv: KvTensor,
        *,
        puller: Puller,
        data: DataServer,
        step_tokens_max: int = 256,
        sequences_max: int = 64,
    ) -> None:
        self.cache = KvCache(kv.blocks)
        self.batcher = Batcher(self.cache, step_tokens_max=step_tokens_max, sequences_max=sequences_max)
        self.on_kv_events: Callable[[list[KvEvent]], None] = lambda events: None
        self.on_load: Callable[[], None] = lambda: None
        self._model = model
        self._kv = kv
        self._puller = puller
        self._data = data
        self._jobs: dict[str, Job] = {}
        self.handovers = Handovers(self.cache, kv)
        self.handovers.on_room = self._room_appeared
        self._wake = asyncio.Event()
        self.idle = asyncio.Event()
        self.idle.set()
        self._compute = ThreadPoolExecutor(max_workers=1, thread_name_prefix="compute")
        self._running: asyncio.Task[None] | None = None

    @property
    def kv(self) -> KvTensor:
        """The blocks' memory."""
        return self._kv

    def load(self) -> Load:
        """What there is to do."""
        return self.batcher.load()

    def start(self) -> None:
        """Begin to compute."""
        self._running = asyncio.create_task(self._run(), name="engine")

    async def close(self) -> None:
        """Give up every job and stop. Idempotent."""
        for job in list(self._jobs.values()):
            await self.cancel(job)
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
            self._running = None
        self._compute.shutdown(wait=True)

    def submit(self, job: Job) -> None:
        """Take a job in. Raises ValueError when one of this id runs here already, or when it could never fit."""
        request_id, needed = job.sequence.request_id, job.sequence.blocks_needed
        if request_id in self._jobs:
            raise ValueError(f"request_id: {request_id!r} is already running here")
        if needed > self.cache.total:
            raise ValueError(f"request {request_id!r} needs {needed} KV blocks, this worker has {self.cache.total}")
        self._jobs[request_id] = job
        if job.handover_blocks:
            self.handovers.announce(request_id)
        self.idle.clear()
        self.on_load()
        self.batcher.submit(job.sequence)
        self._admit()
        self._wake.set()

    async def cancel(self, job: Job) -> None:
        """Give a job up; one that ended is no error. Its blocks are free on return, or after the pass that runs."""
        if not self._runs(job):
            return
        request_id = job.sequence.request_id
        job.stop_pulling.set()
        await asyncio.gather(*job.pulling, return_exceptions=True)
        if self._runs(job):
            self._forget(request_id)
            self.batcher.cancel(request_id)
            self._break(job, CancelledJobError(f"request {request_id!r} was cancelled"))
        self._admit()
        self._wake.set()

    # -- giving blocks away --------------------------------------------------------------------------------------

    def export_cached(self, keys: Seq[BlockKey], order: Order) -> tuple[Export, Callable[[], None]]:
        """The leading run of `keys` that is cached, pinned until the returned function is called once.

        Raises RefusedError when not even the first is here.
        """
        blocks = self.cache.match(keys)
        if not blocks:
            raise RefusedError("none of these blocks is cached here (any more)")
        self.cache.pin(blocks)
        export = CachedExport(blocks, order, self._kv.layers, self._kv.layer_block_bytes)

        def release() -> None:
            self.cache.unpin(blocks)
            self._room_appeared()

        return export, release

    def offer(self, export: Export, release: Callable[[], None]) -> Offer:
        """Open an export on the data plane; `release` is called once, when nobody reads it any more."""

        def done(outcome: Outcome) -> None:
            log.info("export ended: %s, %d bytes in %.3f s", outcome.status, outcome.payload_bytes, outcome.seconds)
            release()

        try:
            return self._data.open(export, ttl_s=OFFER_TTL_S, on_done=done)
        except Exception:
            release()
            raise

    # -- the engine ----------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = self.batcher.next_step()
            if batch is None:
                self._wake.clear()
                await self._wake.wait()
                continue
            plan = batch.plan()
            self._note_begun(plan)
            work = loop.run_in_executor(self._compute, self._forward, plan, loop)
            try:
                tokens, seconds = await asyncio.shield(work)
            except asyncio.CancelledError:
                await asyncio.wait([work])
                raise
            except Exception as error:
                log.exception("a forward pass failed")
                await self._fail(batch, plan, error)
            else:
                self._completed(batch, plan, tokens, seconds)
            self._admit()

    def _forward(self, plan: StepPlan, loop: asyncio.AbstractEventLoop) -> tuple[dict[str, int], float]:
        """Runs in the compute thread."""
        began_s = time.perf_counter()
        jobs = {step.request_id: self._jobs.get(step.request_id) for step in plan.steps}
        handing_over = [
            (job.handover, range(step.start // size, step.end // size))
            for step in plan.steps
            if (job := jobs[step.request_id]) is not None
            and job.handover is not None
            and (size := job.sequence.block_tokens)
        ]

        def on_layer(layer: int) -> None:
            for handover, positions in handing_over:
                loop.call_soon_threadsafe(handover.layer_done, layer, positions)

        logits = self._model.forward(plan, self._kv, on_layer if handing_over else None)
        tokens = {}
        for row, step in zip(logits, (step for step in plan.steps if step.sample), strict=True):
            job = jobs[step.request_id]
            if job is not None:
                tokens[step.request_id] = sample(row, job.sampling, step.end)
        return tokens, time.perf_counter() - began_s

    def _note_begun(self, plan: StepPlan) -> None:
        now = time.monotonic()
        for step in plan.steps:
            job = self._jobs[step.request_id]
            if job.began_s is None:
                job.began_s = now
            self._begin_handover(job)

    def _completed(self, batch: Batch, plan: StepPlan, tokens: dict[str, int], seconds: float) -> None:
        prefilling = {s.request_id: s for s in plan.steps if s.start < self._prompt_end(s.request_id)}
        prefill_tokens = sum(len(step.tokens) for step in prefilling.values())
        for request_id, step in prefilling.items():
            share_s = seconds * len(step.tokens) / prefill_tokens
            self._jobs[request_id].note_computed(step.start, step.end, share_s)
        for progress in self.batcher.complete(batch, tokens):
            job = self._jobs[progress.sequence.request_id]
            if job.handover is not None:
                job.handover.whole(progress.full_blocks)
            if progress.token is not None:
                job.outputs.put_nowait(Generated(progress.token, progress.sequence.finish_reason))
            if progress.finished:
                self._finish(job)
        self._tell_events()

    def _prompt_end(self, request_id: str) -> int:
        job = self._jobs.get(request_id)
        return -1 if job is None else job.sequence.prompt_tokens

    def _finish(self, job: Job) -> None:
        self._begin_handover(job)
        self._forget(job.sequence.request_id)
        if job.handover is not None:
            job.handover.export.finish()
        if job.sequence.is_prefill_only:
            job.outputs.put_nowait(Prefilled())

    async def _fail(self, batch: Batch, plan: StepPlan, error: Exception) -> None:
        """A pass failed: its jobs are broken, the others go on."""
        jobs = [job for step in plan.steps if (job := self._jobs.get(step.request_id)) is not None]
        for job in jobs:
            job.stop_pulling.set()
            await asyncio.gather(*job.pulling, return_exceptions=True)
        jobs = [job for job in jobs if self._runs(job)]
        for job in jobs:
            self.batcher.cancel(job.sequence.request_id)
        self.batcher.complete(batch, {})
        for job in jobs:
            self._forget(job.sequence.request_id)
            self._break(job, error)

    def _runs(self, job: Job) -> bool:
        """Whether this very job is here: its id may have come again since it ended."""
        return self._jobs.get(job.sequence.request_id) is job

    def _forget(self, request_id: str) -> None:
        del self._jobs[request_id]
        self.on_load()
        if not self._jobs:
            self.idle.set()

    def _break(self, job: Job, error: Exception) -> None:
        if job.handover is not None:
            job.handover.export.fail(str(error))
        self.handovers.drop(job.sequence.request_id, str(error))
        job.outputs.put_nowait(Broken(error))

    def _admit(self) -> None:
        while True:
            for sequence in self.batcher.admit():
                self._begin(self._jobs[sequence.request_id])
            finished = self.batcher.finished_without_step()
            for sequence in finished:
                self._finish(self._jobs[sequence.request_id])
            if not finished:
                break
            # What they gave back may let in who waits, and no pass will end to ask again.
        self._tell_events()

    def _room_appeared(self) -> None:
        """Blocks that others read are given back: who waits for room may begin, though no pass will end to ask."""

        def look() -> None:
            self._admit()
            self._wake.set()

        asyncio.get_running_loop().call_soon(look)

    def _begin(self, job: Job) -> None:
        """A job's sequence has its blocks."""
        if job.source is not None:
            self._begin_handover(job)
            self._begin_pulling(job)

    def _begin_handover(self, job: Job) -> None:
        """Keep a prefill's blocks for the worker that decodes.

        Only when its computation or its arrivals begin: until then blocks that others compute may take their place.
        """
        if not job.handover_blocks or job.handover is not None:
            return
        sequence = job.sequence
        sequence.has_fixed_blocks = True
        job.handover = self.handovers.begin(sequence, job.handover_blocks, job.handover_lease_s)
        job.handover.whole(range(sequence.committed))

    def _tell_events(self) -> None:
        events = self.cache.take_events()
        if events:
            self.on_kv_events(events)

    # -- arrivals ------------------------------------------------------------------------------------------------

    def _begin_pulling(self, job: Job) -> None:
        assert job.source is not None
        needed = job.sequence.expect(job.source.first, job.source.end, job.source.waiting)
        if needed:
            # The source of a handover sends all of it, whatever is here already; a fetch asks for what is needed.
            first = job.source.first if job.source.is_handover else needed.start
            pulling = self._pull(job, job.source, range(first, needed.stop))
            job.pulling.append(asyncio.create_task(pulling, name=f"pull {job.sequence.request_id}"))

    async def _pull(self, job: Job, source: Source, positions: range) -> None:
        sink = ArrivalSink(job.sequence, positions, self._kv, lambda position: self._arrived(job, position))
        keys = tuple(job.sequence.keys[positions.start : positions.stop])
        try:
            done = await self._puller.pull(source, job.sequence.request_id, keys, sink, job.stop_pulling)
            job.transferred.append(done)
        finally:
            sink.wipe()
            job.sequence.arrivals_ended()
            self._settle(job)

    def _arrived(self, job: Job, position: int) -> None:
        """A block is whole: it can be handed on, whatever is still missing before it."""
        if job.handover is not None:
            job.handover.whole(range(position, position + 1))
        self._settle(job)

    def _settle(self, job: Job) -> None:
        """What is whole from the front on can be found, and the engine may go on."""
        self.batcher.settle_arrivals(job.sequence)
        self._admit()
        self._wake.set()

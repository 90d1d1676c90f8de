"""The engine of an echo worker: the real batcher and block book, with a stopwatch instead of a model.

Rule 1: everything lives on one event loop. A pass sleeps as long as the stopwatch says.
Rule 2: an answer is a function of its prompt alone.
Rule 3: what the cache told is told on before the tokens that came with it.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from homing.workers.engine.batcher import Batcher, Progress
from homing.workers.engine.kvcache import KvCache
from homing.workers.engine.step import Batch

from .settings import EchoSettings
from .stored import Changes, EchoSequence

log = logging.getLogger(__name__)

EOS = 257
"""The byte tokenizer's end of a text."""
PASSES_AT_ONCE_MAX = 64
"""How many passes that take no time may follow each other before others have their turn."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an answer; `finish_reason` ("stop" or "length") comes with the last one."""

    id: int
    finish_reason: str | None


@dataclass(slots=True, eq=False)
class Job:
    """A request that is worked on. `outputs` carries its tokens in order."""

    sequence: EchoSequence
    echo: Sequence[int]
    """What it answers."""
    repeats: bool
    """Whether it begins again at the end of its answer instead of ending."""
    outputs: asyncio.Queue[Token] = field(default_factory=asyncio.Queue)

    def next_token(self) -> int:
        """The token that follows those that were generated."""
        at, length = self.sequence.generated, len(self.echo)
        if length and (at < length or self.repeats):
            return self.echo[at % length]
        return EOS


@dataclass(slots=True)
class Counts:
    """What a worker did since its start, in tokens and requests."""

    requests: int = 0
    cancelled: int = 0
    prompt_tokens: int = 0
    hit_tokens: int = 0
    output_tokens: int = 0


class EchoEngine:
    """Runs jobs one pass after another.

    * using: `start`, `submit`, `cancel`, `clear_cache`, `close`
    * asking: `running`, `waiting`, `kv_use`, `counts`
    * telling: `on_changes`, called with what became findable and what no longer is
    """

    def __init__(self, settings: EchoSettings) -> None:
        self.settings = settings
        self.cache = KvCache(settings.kv_blocks)
        self.batcher = Batcher(
            self.cache, step_tokens_max=settings.step_tokens_max, sequences_max=settings.requests_max
        )
        self.counts = Counts()
        self.on_changes: Callable[[Changes], None] | None = None
        self._jobs: dict[str, Job] = {}
        self._backlog: deque[Job] = deque()
        self._admitted: set[str] = set()
        self._wake = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    @property
    def running(self) -> int:
        """Requests that have their blocks."""
        return len(self._admitted)

    @property
    def waiting(self) -> int:
        """Requests that wait for a place."""
        return len(self._jobs) - len(self._admitted)

    @property
    def kv_use(self) -> float:
        """The part of the blocks that somebody uses, 0 to 1."""
        return self.cache.used / self.cache.total

    def start(self) -> None:
        """Begin to work."""
        self._running = asyncio.create_task(self._run(), name="echo engine")
        self._running.add_done_callback(_tell_death)

    @property
    def is_alive(self) -> bool:
        """Whether it works, or waits for work."""
        return self._running is not None and not self._running.done()

    async def close(self) -> None:
        """Stop. Idempotent."""
        if self._running is not None:
            self._running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._running
            self._running = None

    def submit(
        self,
        request_id: str,
        tokens: Sequence[int],
        *,
        echo: Sequence[int],
        max_output_tokens: int,
        repeats: bool = False,
        lora: str = "",
        salt: str = "",
    ) -> Job:
        """Take a request in. ValueError when its id is here already or it could never fit."""
        if request_id in self._jobs:
            raise ValueError(f"request id {request_id!r} is already running here")
        sequence = EchoSequence(
            request_id,
            tokens,
            block_tokens=self.settings.block_tokens,
            max_output_tokens=max_output_tokens,
            eos_ids=frozenset() if repeats else frozenset({EOS}),
            lora=lora,
            salt=salt,
        )
        if sequence.blocks_needed > self.cache.total:
            raise ValueError(f"the request needs {sequence.blocks_needed} KV blocks, there are {self.cache.total}")
        job = Job(sequence, echo, repeats)
        self._jobs[request_id] = job
        self._backlog.append(job)
        self.counts.requests += 1
        self.counts.prompt_tokens += len(tokens)
        self._wake.set()
        return job

    def cancel(self, job: Job) -> None:
        """Give a job up and free its blocks, at once or after the pass that runs; one that ended is no error."""
        request_id = job.sequence.request_id
        if self._jobs.get(request_id) is not job:
            return
        self._forget(request_id)
        self.counts.cancelled += 1
        if not self.batcher.cancel(request_id):
            self._backlog.remove(job)
        self._wake.set()

    def clear_cache(self) -> None:
        """Let nothing be found any more, as vLLM's `/reset_prefix_cache` does."""
        self.cache.clear()
        self.cache.take_events()
        if self.on_changes is not None:
            self.on_changes(Changes(cleared=True))

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        due_s, at_once = loop.time(), 0
        while True:
            self._admit()
            batch = self.batcher.next_step()
            if batch is None:
                self._wake.clear()
                await self._wake.wait()
                due_s = loop.time()
                continue
            due_s = max(due_s, loop.time()) + self.settings.times.batch_s(batch)
            wait_s = due_s - loop.time()
            at_once = 0 if wait_s > 0 else at_once + 1
            if wait_s > 0 or at_once % PASSES_AT_ONCE_MAX == 1:
                await asyncio.sleep(max(0.0, wait_s))
            self._completed(self.batcher.complete(batch, self._sampled(batch)))

    def _sampled(self, batch: Batch) -> dict[str, int]:
        """The next token of everyone who gets one; requests that were cancelled meanwhile get none."""
        sampling = [*batch.decoding, *(chunk.sequence for chunk in batch.chunks if chunk.samples)]
        return {s.request_id: job.next_token() for s in sampling if (job := self._jobs.get(s.request_id)) is not None}

    def _completed(self, progress: list[Progress]) -> None:
        self._tell(progress)
        for part in progress:
            request_id = part.sequence.request_id
            job = self._jobs[request_id]
            if part.token is not None:
                self.counts.output_tokens += 1
                self.counts.hit_tokens += part.sequence.hit_tokens if part.sequence.generated == 1 else 0
                job.outputs.put_nowait(Token(part.token, part.sequence.finish_reason))
            if part.finished:
                self._forget(request_id)

    def _tell(self, progress: list[Progress]) -> None:
        events = self.cache.take_events()
        if events and self.on_changes is not None:
            self.on_changes(Changes.of(events, progress))

    def _admit(self) -> None:
        while self._backlog and len(self.batcher) < self.settings.requests_max:
            self.batcher.submit(self._backlog.popleft().sequence)
        for sequence in self.batcher.admit():
            self._admitted.add(sequence.request_id)
        # What was evicted to make room is told even when no pass follows.
        self._tell([])

    def _forget(self, request_id: str) -> None:
        del self._jobs[request_id]
        self._admitted.discard(request_id)


def _tell_death(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and task.exception() is not None:
        log.critical("the engine has ended: nothing more will be answered", exc_info=task.exception())

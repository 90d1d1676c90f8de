"""One engine, from being found to being let go: asked what it is, joined to the fleet, watched, heard, and looked for
again when it is lost.

Rule 1: an engine that does not answer is lost; one that is merely slow to tell its load is not, as long as it answers
requests.
Rule 2: how far an engine's cache is known is told with every change, and where it cannot be known at all, from the
start: no worker is blind in silence.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Final

import zmq.asyncio

from homing.router.actuators.types import Actuator
from homing.router.core.errors import ConfigError
from homing.router.core.events import LoadReported, TrustChanged, WorkerDraining, WorkerJoined, WorkerLost
from homing.router.core.types import BlockKey, LoadReport, Trust, WorkerId
from homing.router.engines.types import Adapter, EngineError, EngineFacts, EngineLoad, KvSource
from homing.router.kv_events.approximate import ApproximateCache
from homing.router.kv_events.book import CacheBook
from homing.router.kv_events.hub import KvEventHub
from homing.router.kv_events.source import KvEventSource
from homing.router.kv_events.writer import CacheEvent

from ..door.upstream import Upstream
from ..driver import Driver
from ..sections import BackendSection
from .described import Description
from .endpoint import Endpoint, Endpoints

log = logging.getLogger(__name__)

LOOK_AGAIN_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0)
"""Between two looks for an engine that is not there: ever longer."""
LOOK_SHARE: Final = 0.3
"""Of the time for which a worker may be silent: that long a look for its load takes at most, and one for its health."""
HEAR_AGAIN_S: Final = 1.0
"""Between two tries to listen where it cannot be done."""
WAITING_TOKENS: Final = 512
"""What a waiting request is taken to bring, where the engine only counts them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What all backends share."""

    driver: Driver
    endpoints: Endpoints
    find: Callable[[BackendSection], Awaitable[Adapter]]
    """Asks what engine is behind a URL."""
    upstream_of: Callable[[BackendSection], Upstream]
    describe: Callable[[BackendSection, EngineFacts], Description]
    calibrate: Callable[["Backend"], Awaitable[None]]
    context: zmq.asyncio.Context
    hub: KvEventHub
    poll_s: float
    lost_after_s: float


@dataclass(slots=True)
class _Rank:
    """One cache of the engine."""

    endpoint: Endpoint
    kv_blocks_max: int
    sequence: int = 0
    load: EngineLoad = field(default_factory=EngineLoad)
    heard: KvEventSource | None = None
    listening: asyncio.Task[None] | None = None
    trust: Trust = Trust.EXACT
    why: str = ""


class Backend:
    """One engine behind one URL. `run` it as a task; cancelling the task lets the engine go."""

    def __init__(self, section: BackendSection, around: Surroundings, actuator: Actuator | None) -> None:
        self.section = section
        self.name = section.name
        self.facts: EngineFacts | None = None
        self.problem = "it was not asked yet"
        self.draining = False
        self.actuator = actuator
        self._around = around
        self._ranks: list[_Rank] = []
        self._look = asyncio.Event()

    @property
    def workers(self) -> list[WorkerId]:
        """The workers that it is to the fleet; none while it is not there."""
        return [rank.endpoint.worker for rank in self._ranks]

    @property
    def endpoints(self) -> list[Endpoint]:
        """Where they are reached."""
        return [rank.endpoint for rank in self._ranks]

    def sources(self) -> dict[WorkerId, tuple[Trust, str, KvEventSource | None]]:
        """How far each cache is known, why no further, and who listens to it."""
        return {rank.endpoint.worker: (rank.trust, rank.why, rank.heard) for rank in self._ranks}

    def suspect(self) -> None:
        """A request failed there: look at once whether it lives."""
        self._look.set()

    def forget(self, worker: WorkerId) -> None:
        """The core gave a worker up."""
        if worker in self.workers:
            self.problem = f"worker {worker} was silent for too long"
            self.suspect()

    def resync(self, worker: WorkerId) -> None:
        """What a cache told contradicts itself: hear it anew, from the beginning."""
        for rank in self._ranks:
            if rank.endpoint.worker == worker and rank.heard is not None:
                rank.heard.begin_anew("what it told contradicted itself")

    async def run(self) -> None:
        """Find it, watch it, and begin again when it is lost, until cancelled."""
        misses = 0
        while True:
            try:
                adapter = await self._around.find(self.section)
                facts = await adapter.facts()
                description = self._around.describe(self.section, facts)
            except (EngineError, ConfigError) as error:
                self._note(str(error))
                await self._pause(LOOK_AGAIN_S[min(misses, len(LOOK_AGAIN_S) - 1)])
                misses += 1
                continue
            misses = 0
            try:
                await self._serve(adapter, facts, description)
            finally:
                self._let_go()

    def drain(self) -> None:
        """Give it nothing new."""
        self.draining = True
        for worker in self.workers:
            self._around.driver.feed(WorkerDraining(worker_id=worker))

    def _note(self, problem: str) -> None:
        if problem != self.problem:
            log.warning("backend %s: %s", self.name, problem)
        self.problem = problem

    async def _pause(self, seconds: float) -> None:
        self._look.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._look.wait()
        except TimeoutError:
            pass

    # -- while it is there ----------------------------------------------------------------------------------------

    async def _serve(self, adapter: Adapter, facts: EngineFacts, described: Description) -> None:
        """Join it, and watch it until it is lost."""
        self.facts = facts
        self._join(adapter, described)
        self.problem = ""
        log.info("backend %s: %s %s serves %s", self.name, facts.kind, facts.version, ", ".join(described.aliases))
        # Beside the looking: a slow engine takes longer for it than one may be silent.
        measuring = asyncio.create_task(self._measure())
        try:
            while True:
                await self._pause(self._around.poll_s)
                problem = await self._look_at(adapter)
                if problem:
                    self._note(problem)
                    return
        finally:
            measuring.cancel()

    async def _measure(self) -> None:
        try:
            await self._around.calibrate(self)
        except (EngineError, TimeoutError) as error:
            log.warning("backend %s: its speed could not be measured: %s", self.name, str(error) or "it took too long")

    def _join(self, adapter: Adapter, described: Description) -> None:
        around = self._around
        around.driver.scheduler.models.setdefault(described.profile.name, described.profile)
        for rank, worker in enumerate(described.workers):
            endpoint = Endpoint(
                worker=worker.id,
                backend=self.name,
                url=self.section.url,
                site=worker.site,
                model=worker.model,
                adapter=adapter,
                upstream=around.upstream_of(self.section),
                rank=rank,
                patch=adapter.to_rank(rank),
                headers=described.headers,
                actuator=self.actuator,
                prepares_local=self.actuator is not None and self.actuator.prepares_local,
                kv=self.section.connector.kv if self.section.connector else {},
                gives_usage=described.gives_usage,
                on_trouble=self.suspect,
            )
            state = _Rank(endpoint, described.kv_blocks_max)
            self._ranks.append(state)
            around.endpoints.add(endpoint)
            around.driver.feed(WorkerJoined(worker=worker))
            self._hear(state, described.kv_sources.get(rank), worker.block_tokens)
        around.endpoints.name(self.name, described.aliases)
        if self.draining:
            self.drain()

    def _hear(self, rank: _Rank, source: KvSource | None, block_tokens: int) -> None:
        """Listen to what it caches, or guess it."""
        endpoint, around = rank.endpoint, self._around
        if source is None:
            guess = ApproximateCache(endpoint.worker, rank.kv_blocks_max, block_tokens)
            endpoint.on_sent = lambda keys: self._tell(guess.sent(keys, around.driver.now()))
            endpoint.on_cached = lambda keys, tokens, at_s: self._confirm(guess, keys, tokens, at_s)
            self._trust(rank, guess.trust, "it tells nothing of its cache: what was sent there is a guess")
            return
        connector = self.section.connector
        book = CacheBook(endpoint.worker, block_tokens, merge_host=connector is not None and connector.name == "homing")
        rank.heard = KvEventSource(
            source,
            book,
            on_events=self._tell,
            on_trust=lambda trust, why: self._trust(rank, trust, why),
            context=around.context,
            hub=around.hub,
        )
        rank.listening = asyncio.create_task(self._listen(rank, rank.heard))

    async def _listen(self, rank: _Rank, source: KvEventSource) -> None:
        """An address that is in use may be free in a moment: of the listener before this one, or of another router."""
        while True:
            try:
                await source.run()
            except ConfigError as error:
                if rank.why != str(error):
                    self._trust(rank, Trust.BLIND, str(error))
            except Exception:
                log.exception("backend %s: listening to its cache failed", self.name)
                self._trust(rank, Trust.BLIND, "listening to its cache failed")
                return
            await asyncio.sleep(HEAR_AGAIN_S)

    def _tell(self, events: Sequence[CacheEvent]) -> None:
        for event in events:
            self._around.driver.feed(event)

    def _confirm(self, guess: ApproximateCache, keys: Sequence[BlockKey], cached_tokens: int, at_s: float) -> None:
        self._tell(guess.confirmed(keys, cached_tokens, at_s, self._around.driver.now()))

    def _trust(self, rank: _Rank, trust: Trust, why: str) -> None:
        rank.why = why
        rank.trust = trust
        level = logging.INFO if trust is Trust.EXACT else logging.WARNING
        log.log(level, "worker %s: its cache is known: %s%s", rank.endpoint.worker, trust, f" ({why})" if why else "")
        self._around.driver.feed(TrustChanged(worker_id=rank.endpoint.worker, trust=trust))

    # -- whether it still is --------------------------------------------------------------------------------------

    async def _look_at(self, adapter: Adapter) -> str:
        """Ask for its load, and pass it on; what is wrong, or nothing."""
        asked_s = asyncio.get_running_loop().time()
        if any(self._around.driver.scheduler.fleet.get(worker) is None for worker in self.workers):
            return self.problem or "the fleet gave it up"
        limit_s = self._around.lost_after_s * LOOK_SHARE
        try:
            async with asyncio.timeout(limit_s):
                loads = await adapter.load()
                if not loads and not await adapter.is_healthy():
                    return "it says that it is not well"
        except (EngineError, TimeoutError) as error:
            if not await self._lives(adapter, asked_s):
                return str(error) or f"it says nothing of itself for {limit_s:g} s"
            loads = tuple(rank.load for rank in self._ranks)
        # An engine that does not tell its load is alive all the same: what it does for us is known.
        for rank, load in zip_longest(self._ranks, loads[: len(self._ranks)], fillvalue=EngineLoad()):
            assert isinstance(rank, _Rank) and isinstance(load, EngineLoad)
            rank.load = load
            rank.sequence += 1
            self._around.driver.feed(LoadReported(report=self._report(rank)))
        return ""

    async def _lives(self, adapter: Adapter, since_s: float) -> bool:
        """Whether it answers, however slowly: bytes of an answer in the last seconds, or a health check."""
        recently_s = since_s - self._around.lost_after_s
        if self._is_listening() and any(rank.endpoint.upstream.heard_since(recently_s) for rank in self._ranks):
            return True
        try:
            async with asyncio.timeout(self._around.lost_after_s * LOOK_SHARE):
                return await adapter.is_healthy()
        except (EngineError, TimeoutError):
            return False

    def _is_listening(self) -> bool:
        return not any(rank.endpoint.upstream.refused for rank in self._ranks)

    def _report(self, rank: _Rank) -> LoadReport:
        load = rank.load
        return LoadReport(
            worker=rank.endpoint.worker,
            sequence=rank.sequence,
            measured_s=self._around.driver.now(),
            queued_prefill_tokens=load.waiting * WAITING_TOKENS,
            running_requests=load.running + load.waiting,
            kv_blocks_used=int((load.kv_use or 0.0) * rank.kv_blocks_max),
        )

    def _let_go(self) -> None:
        """It is lost, or not wanted any more: nothing of it stays in the fleet."""
        around = self._around
        around.endpoints.name(self.name, {})
        ranks, self._ranks = self._ranks, []
        for rank in ranks:
            around.endpoints.remove(rank.endpoint.worker)
            if rank.listening is not None:
                rank.listening.cancel()
            around.driver.feed(WorkerLost(worker_id=rank.endpoint.worker, reason=self.problem or "it was let go"))
            rank.endpoint.upstream.abort_all(f"is lost: {self.problem or 'it was let go'}")

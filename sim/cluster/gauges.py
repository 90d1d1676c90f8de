"""What is read off the world while it runs: a timeline, and the books of workers and links over the measured span."""

from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from homing.router.core.types import WorkerId

from ..measure.records import LinkUse, RunResult, WorkerUse
from ..measure.timeline import Timeline
from ..network.resource import Usage
from .worker import Counters

if TYPE_CHECKING:
    from .world import World

SPAN_MIN_S = 1e-6


@dataclass(frozen=True, slots=True)
class _Books:
    """All counters at one moment."""

    at_s: float
    workers: dict[WorkerId, Counters]
    links: dict[tuple[str, str], Usage]


class Gauges:
    """Reads the world every `sample_every_s`, and at both ends of the measured span."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._timeline = Timeline(every_s=world.scenario.sample_every_s)
        self._first: _Books | None = None
        self._last: _Books | None = None
        self._roles = {name: [(0.0, str(w.facts.role))] for name, w in world.workers.items()}
        self._flows_before: dict[tuple[str, str], Usage] = {}

    def begin(self) -> None:
        """Read for the first time."""
        kernel = self._world.kernel
        kernel.at(max(kernel.now, self._world.scenario.warmup_s), self._open)
        self._sample()

    def close(self) -> None:
        """The measured span is over: nothing more arrives."""
        if self._last is None:
            self._last = self._read()

    def note_role(self, worker: WorkerId, role: str) -> None:
        """A worker changed its role."""
        self._roles[worker].append((self._world.kernel.now, role))

    def result(self, unfinished: int) -> RunResult:
        """The run as data."""
        self.close()
        world, last = self._world, self._last
        assert last is not None
        first = self._first or _Books(world.scenario.warmup_s, {}, {})
        to_s = max(last.at_s, first.at_s + SPAN_MIN_S)
        span_s = to_s - first.at_s
        places = {s.name: s.place for s in world.scenario.sites if s.place is not None}
        return RunResult(
            scenario=world.scenario.name,
            policy=world.scenario.router.policy,
            seed=world.scenario.seed,
            from_s=first.at_s,
            to_s=to_s,
            log=world.log,
            unfinished=unfinished,
            itl=world.itl,
            links=tuple(_link_use(pair, usage, first.links.get(pair)) for pair, usage in last.links.items()),
            workers=tuple(self._worker_use(name, first, last, span_s) for name in world.workers),
            timeline=self._timeline,
            plans=dict(sorted(world.plans.items())),
            commands=dict(sorted(world.commands.items())),
            marks=tuple(world.marks),
            places=places,
        )

    def _open(self) -> None:
        if self._last is None:
            self._first = self._read()

    def _read(self) -> _Books:
        world = self._world
        counters = {}
        for name, worker in world.workers.items():
            worker.settle_books()
            counters[name] = copy(worker.counters)
        return _Books(world.kernel.now, counters, world.network.snapshot())

    def _worker_use(self, name: WorkerId, first: _Books, last: _Books, span_s: float) -> WorkerUse:
        worker = self._world.workers[name]
        before, after = first.workers.get(name, Counters()), last.workers[name]
        section = self._world.sections[name]
        gpus = section.gpus or worker.profile.gpus
        busy_s = after.busy_s - before.busy_s
        return WorkerUse(
            id=name,
            site=worker.facts.site,
            roles=tuple(self._roles[name]),
            busy_s=busy_s,
            utilisation=min(1.0, busy_s / span_s),
            prefill_tokens=after.prefill_tokens - before.prefill_tokens,
            decode_tokens=after.decode_tokens - before.decode_tokens,
            kv_mean=(after.kv_block_s - before.kv_block_s) / span_s / worker.facts.kv_blocks_max,
            gpus=gpus,
            dollars=section.dollars_per_h * span_s / 3600,
        )

    def _sample(self) -> None:
        world = self._world
        if self._last is None:
            self._timeline.sample(world.kernel.now, self._values())
        if not world.is_over:
            world.kernel.after(world.scenario.sample_every_s, self._sample)

    def _values(self) -> dict[str, float]:
        world = self._world
        queued: dict[str, float] = {}
        running: dict[str, float] = {}
        for worker in world.workers.values():
            load = worker.batcher.load()
            pool = f"{worker.facts.site}/{worker.facts.role}"
            queued[pool] = queued.get(pool, 0) + load.queued_prefill_tokens
            running[pool] = running.get(pool, 0) + load.running_requests
        values = {f"queued_prefill_tokens/{pool}": value for pool, value in queued.items()}
        values |= {f"running_requests/{pool}": value for pool, value in running.items()}
        values["waiting_requests/router"] = len(world.router.scheduler.admission)
        for pair, usage in world.network.snapshot().items():
            before = self._flows_before.get(pair)
            self._flows_before[pair] = usage
            values[f"link_utilisation/{pair[0]} -> {pair[1]}"] = (usage.since(before) if before else usage).utilisation
        return values


def _link_use(pair: tuple[str, str], usage: Usage, before: Usage | None) -> LinkUse:
    spent = usage.since(before) if before is not None else usage
    return LinkUse(
        source=pair[0],
        target=pair[1],
        bytes=int(spent.bytes),
        utilisation=min(1.0, spent.utilisation),
        mean_flows=spent.flows_mean,
        peak_flows=spent.flows_max,
        dollars=spent.dollars,
    )

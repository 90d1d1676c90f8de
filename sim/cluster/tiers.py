"""Host memory and disk below a worker's KV cache: what is evicted above is kept below, and comes back when wanted.

Books only, as everything here: keys with their parents, least recently used first. A block that comes back stays below
too. Writing down is free, since it happens beside the computation; reading up takes the tier's own bandwidth.

Rule 1: a level holds at most its blocks; what does not fit goes one level down, and from the last one away.
Rule 2: of a prefix its last block goes first, as in the cache above: what can be found of it has no holes.
"""

from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING

from homing.router.core.events import BlocksRemoved, BlocksStored, Event
from homing.router.core.types import BlockKey, Tier, WorkerId
from homing.workers.engine.kvcache import KvEvent, Stored
from homing.workers.engine.sequence import Waiting

from ..network.network import Flow, Network
from .job import Job
from .worker import SimulatedWorker

if TYPE_CHECKING:
    from ..scenario import WorkerSection
    from .world import World

TIERS = (Tier.HOST, Tier.DISK)


class Level:
    """One tier: at most `blocks_max` keys. `resource` is the network's name for its bandwidth."""

    def __init__(self, tier: Tier, blocks_max: int, resource: str) -> None:
        self.tier = tier
        self.blocks_max = blocks_max
        self.resource = resource
        self.keys: OrderedDict[BlockKey, None] = OrderedDict()


class LowerTiers:
    """What one worker keeps below its device memory, fastest tier first."""

    def __init__(self, levels: list[Level], network: Network, block_bytes: float) -> None:
        self._levels = levels
        self._network = network
        self._block_bytes = block_bytes
        self._device: set[BlockKey] = set()
        self._parents: dict[BlockKey, BlockKey | None] = {}

    @classmethod
    def of(cls, section: "WorkerSection", name: str, world: "World") -> "LowerTiers":
        """The tiers that a group of workers has."""
        model = next(m for m in world.models.values() if m.name == section.model)
        tokens = (section.host_tokens, section.disk_tokens)
        rates = (section.host_bytes_per_s, section.disk_bytes_per_s)
        levels = []
        for tier, size, bytes_per_s in zip(TIERS, tokens, rates, strict=True):
            if size >= model.block_tokens:
                world.network.add_resource(f"{name}/{tier.value}", bytes_per_s)
                levels.append(Level(tier, size // model.block_tokens, f"{name}/{tier.value}"))
        return cls(levels, world.network, world.block_bytes(model.name))

    def clear(self) -> None:
        """Everything is gone."""
        for level in self._levels:
            level.keys.clear()
        self._device.clear()
        self._parents.clear()

    def take_in(self, worker: WorkerId, changes: list[KvEvent]) -> list[Event]:
        """Keep what the device evicted; returns what there is to tell of it."""
        events: list[Event] = []
        for change in changes:
            if isinstance(change, Stored):
                self._device.add(change.key)
                self._parents[change.key] = change.parent
            else:
                self._device.discard(change.key)
                self._push(worker, change.key, 0, events)
        return events

    def load(self, worker: SimulatedWorker, job: Job) -> None:
        """Bring up what follows on what the device holds of a prompt; the prompt waits for it."""
        sequence = job.sequence
        first = sequence.committed
        runs = self._found(sequence.keys[first : sequence.reusable_blocks])
        total = sum(runs.values())
        if total and sequence.expect(first, first + total, Waiting.FOR_ALL):
            job.load = _Load(worker, job, range(first, first + total), runs)
            job.load.begin(self._network, self._block_bytes, {level.tier: level.resource for level in self._levels})

    def everything(self, worker: WorkerId) -> list[Event]:
        """All that is kept, for a router that begins anew."""
        return [
            BlocksStored(worker_id=worker, keys=(key,), parent=self._parents[key], tier=level.tier)
            for level in self._levels
            for key in level.keys
        ]

    def check(self) -> None:
        """Assert the bounds, and that a parent is known of just what is kept."""
        assert all(len(level.keys) <= level.blocks_max for level in self._levels)
        assert self._parents.keys() == self._device.union(*(level.keys for level in self._levels))

    def _found(self, keys: list[BlockKey]) -> dict[Tier, int]:
        """How many leading keys each tier gives; a gap ends it. They count as used, the last one first."""
        counts: dict[Tier, int] = {}
        found: list[tuple[Level, BlockKey]] = []
        for key in keys:
            level = next((level for level in self._levels if key in level.keys), None)
            if level is None:
                break
            found.append((level, key))
            counts[level.tier] = counts.get(level.tier, 0) + 1
        for level, key in reversed(found):
            level.keys.move_to_end(key)
        return counts

    def _push(self, worker: WorkerId, key: BlockKey, depth: int, events: list[Event]) -> None:
        """Keep a block in the level of this depth, which may push another one further down."""
        if depth == len(self._levels):
            if key not in self._device and not any(key in level.keys for level in self._levels):
                del self._parents[key]
            return
        level = self._levels[depth]
        if key in level.keys:
            level.keys.move_to_end(key)
            return
        level.keys[key] = None
        events.append(BlocksStored(worker_id=worker, keys=(key,), parent=self._parents[key], tier=level.tier))
        if len(level.keys) > level.blocks_max:
            oldest, _ = level.keys.popitem(last=False)
            events.append(BlocksRemoved(worker_id=worker, keys=(oldest,), tier=level.tier))
            self._push(worker, oldest, depth + 1, events)


class _Load:
    """Blocks on their way up. They count when all of them are there."""

    def __init__(self, worker: SimulatedWorker, job: Job, blocks: range, runs: dict[Tier, int]) -> None:
        self._worker = worker
        self._job = job
        self._blocks = blocks
        self._runs = runs
        self._flows: dict[Tier, Flow] = {}

    def begin(self, network: Network, block_bytes: float, resources: dict[Tier, str]) -> None:
        self._worker.transfers[self] = None
        # A place of its own: what a worker reads of its own memory crosses no link of its site.
        place = self._worker.facts.id
        for tier, count in self._runs.items():
            done = partial(self._part_is_here, tier)
            flow = self._flows[tier] = network.open(place, place, via=(resources[tier],), on_done=done, latency_s=0.0)
            flow.add(count * block_bytes)
            flow.close()

    def broke(self) -> None:
        """The worker is gone, or nobody waits any more."""
        self._worker.transfers.pop(self, None)
        for flow in self._flows.values():
            flow.cancel()

    def _part_is_here(self, tier: Tier) -> None:
        del self._flows[tier]
        if self._flows:
            return
        self._worker.transfers.pop(self, None)
        job = self._job
        if job.sequence.claim(self._blocks):
            self._worker.arrived(job, self._blocks)
            for each, count in self._runs.items():
                job.tier_hit_tokens[each] = count * job.sequence.block_tokens
        job.sequence.arrivals_ended()
        self._worker.settle(job)

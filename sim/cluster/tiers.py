"""Host memory and disk below a worker's KV cache: what is evicted above is kept below, and comes back when it is wanted.

Books only, as everything here: keys with their parents, least recently used first. A block that comes back stays below
too. Writing down is free, since it happens beside the computation; reading up takes the tier's own bandwidth.
"""

from collections import OrderedDict
from typing import TYPE_CHECKING

from homing.router.core.events import BlocksRemoved, BlocksStored, Event
from homing.router.core.types import BlockKey, Tier, WorkerId
from homing.workers.engine.kvcache import KvEvent, Stored
from homing.workers.engine.sequence import Waiting

from .job import Job
from .worker import SimulatedWorker

if TYPE_CHECKING:
    from ..network.network import Network
    from ..scenario import WorkerSection
    from .world import World


class _Level:
    """One tier: at most `blocks_max` keys."""

    def __init__(self, tier: Tier, blocks_max: int, resource: str) -> None:
        self.tier = tier
        self.blocks_max = blocks_max
        self.resource = resource
        self.keys: OrderedDict[BlockKey, None] = OrderedDict()


class LowerTiers:
    """What one worker keeps below its device memory, fastest tier first."""

    def __init__(self, levels: list[_Level], network: "Network", block_bytes: float) -> None:
        self._levels = levels
        self._network = network
        self._block_bytes = block_bytes
        self._parents: dict[BlockKey, BlockKey | None] = {}

    @classmethod
    def of(cls, section: "WorkerSection", name: str, world: "World") -> "LowerTiers":
        """The tiers that a group of workers has."""
        model = next(m for m in world.models.values() if m.name == section.model)
        sizes = ((Tier.HOST, section.host_tokens, section.host_bytes_per_s), (Tier.DISK, section.disk_tokens, section.disk_bytes_per_s))
        levels = []
        for tier, tokens, bytes_per_s in sizes:
            if tokens >= model.block_tokens:
                world.network.add_resource(f"{name}/{tier.value}", bytes_per_s)
                levels.append(_Level(tier, tokens // model.block_tokens, f"{name}/{tier.value}"))
        return cls(levels, world.network, world.block_bytes(model.name))

    def clear(self) -> None:
        """Everything is gone."""
        for level in self._levels:
            level.keys.clear()
        self._parents.clear()

    def take_in(self, worker: WorkerId, changes: list[KvEvent]) -> list[Event]:
        """Keep what the device evicted; returns what there is to tell of it."""
        events: list[Event] = []
        for change in changes:
            if isinstance(change, Stored):
                self._parents[change.key] = change.parent
            else:
                self._push(worker, change.key, 0, events)
        return events

    def load(self, worker: SimulatedWorker, job: Job) -> None:
        """Bring up what follows on what the device holds of a prompt; the prompt waits for it."""
        sequence = job.sequence
        first = sequence.committed
        runs = self._run(sequence.keys[first : sequence.reusable_blocks])
        total = sum(count for _, count in runs)
        needed = sequence.expect(first, first + total, Waiting.FOR_ALL) if total else range(0)
        if not needed:
            return
        left = [len(runs)]
        site = worker.facts.site

        def part_is_here() -> None:
            left[0] -= 1
            if left[0] == 0 and not job.ended:
                if sequence.claim(needed):
                    worker.arrived(job, needed)
                    for level, count in runs:
                        job.tier_hit_tokens[level.tier.value] = count * sequence.block_tokens
                sequence.arrivals_ended()
                worker.settle(job)

        for level, count in runs:
            flow = self._network.open(site, site, via=(level.resource,), on_done=part_is_here, latency_s=0.0)
            flow.add(count * self._block_bytes)
            flow.close()

    def everything(self, worker: WorkerId) -> list[Event]:
        """All that is kept, for a router that begins anew."""
        return [
            BlocksStored(worker_id=worker, keys=(key,), parent=self._parents.get(key), tier=level.tier)
            for level in self._levels
            for key in level.keys
        ]

    def check(self) -> None:
        """Assert the bounds."""
        assert all(len(level.keys) <= level.blocks_max for level in self._levels)

    def _run(self, keys: list[BlockKey]) -> list[tuple[_Level, int]]:
        """How many leading keys each tier gives; a gap ends it."""
        counts: dict[Tier, int] = {}
        by_tier = {level.tier: level for level in self._levels}
        for key in keys:
            level = next((level for level in self._levels if key in level.keys), None)
            if level is None:
                break
            level.keys.move_to_end(key)
            counts[level.tier] = counts.get(level.tier, 0) + 1
        return [(by_tier[tier], count) for tier, count in counts.items()]

    def _push(self, worker: WorkerId, key: BlockKey, depth: int, events: list[Event]) -> None:
        if depth == len(self._levels):
            if not any(key in level.keys for level in self._levels):
                self._parents.pop(key, None)
            return
        level = self._levels[depth]
        if key in level.keys:
            level.keys.move_to_end(key)
            return
        level.keys[key] = None
        parent = self._parents.get(key)
        events.append(BlocksStored(worker_id=worker, keys=(key,), parent=parent, tier=level.tier))
        if len(level.keys) > level.blocks_max:
            oldest, _ = level.keys.popitem(last=False)
            events.append(BlocksRemoved(worker_id=worker, keys=(oldest,), tier=level.tier))
            self._push(worker, oldest, depth + 1, events)

"""What a device evicts goes down, and comes back up when it is wanted: against a naive model, and on the clock."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homing.router.core.events import BlocksRemoved, BlocksStored
from homing.router.core.types import BlockKey, Tier, WorkerId
from homing.sim.cluster.tiers import Level, LowerTiers
from homing.sim.kernel import Kernel
from homing.sim.network.network import Network
from homing.workers.engine.kvcache import KvCache

from .worlds import BLOCK, BYTES_PER_TOKEN, arrival, document, run, worker, world

NEAR_S, DISPATCH_S = 1e-4, 0.002
HOST, DISK = 10, 6


class Naive:
    """The same tiers as lists, least recently used first."""

    def __init__(self) -> None:
        self.host: list[int] = []
        self.disk: list[int] = []

    def evicted(self, key: int) -> None:
        if key in self.host:
            self.host.remove(key)
        self.host.append(key)
        if len(self.host) > HOST:
            self.moved_down(self.host.pop(0))

    def moved_down(self, key: int) -> None:
        if key in self.disk:
            self.disk.remove(key)
        self.disk.append(key)
        del self.disk[:-DISK]

    def used(self, keys: list[int]) -> dict[Tier, int]:
        counts: dict[Tier, int] = {}
        found = []
        for key in keys:
            tier = Tier.HOST if key in self.host else Tier.DISK if key in self.disk else None
            if tier is None:
                break
            counts[tier] = counts.get(tier, 0) + 1
            found.append((self.host if tier is Tier.HOST else self.disk, key))
        for where, key in reversed(found):
            where.remove(key)
            where.append(key)
        return counts


def chain(family: int, fork: int, length: int) -> list[BlockKey]:
    """Keys of a prompt: it shares its first `fork` blocks with all that fork no sooner, the rest with its family."""
    return [BlockKey(place if place < fork else 1000 * (family + 1) + 100 * fork + place) for place in range(length)]


prompts = st.tuples(st.integers(0, 3), st.sampled_from([0, 2, 4]), st.integers(1, 8))


@settings(deadline=None, max_examples=150)
@given(st.lists(prompts, min_size=1, max_size=40))
def test_tiers_agree_with_lists(asked):
    """Prompts run through a small device cache; what can be found below is what the naive model holds, prefixes have no
    holes, and a listener who only hears events knows the same.
    """
    network = Network(Kernel(), [], Random(0))
    tiers = LowerTiers([Level(Tier.HOST, HOST, "h"), Level(Tier.DISK, DISK, "d")], network, 1.0)
    device, naive, worker_id = KvCache(8), Naive(), WorkerId("w")
    parents: dict[int, int | None] = {}
    heard: dict[Tier, set[int]] = {Tier.HOST: set(), Tier.DISK: set()}
    for family, fork, length in asked:
        keys = chain(family, fork, length)
        hit = device.match(keys)
        device.pin(hit)
        assert tiers._found(keys[len(hit) :]) == naive.used(keys[len(hit) :])
        fresh = device.allocate(len(keys) - len(hit))
        blocks = hit + fresh
        for place in range(len(hit), len(keys)):
            parent = keys[place - 1] if place else None
            device.commit(blocks[place], keys[place], parent)
            assert parents.setdefault(keys[place], parent) == parent
        device.unpin(blocks)
        changes = device.take_events()
        for change in changes:
            if type(change).__name__ == "Removed":
                naive.evicted(change.key)
        for event in tiers.take_in(worker_id, changes):
            if isinstance(event, BlocksStored):
                assert [parents[key] for key in event.keys] == [event.parent]
                heard[event.tier].update(event.keys)
            else:
                assert isinstance(event, BlocksRemoved)
                heard[event.tier].difference_update(event.keys)
        tiers.check()
        host, disk = (level.keys for level in tiers._levels)
        assert (list(host), list(disk)) == (naive.host, naive.disk)
        assert heard == {Tier.HOST: set(host), Tier.DISK: set(disk)}
        here = {entry.key for entry in device.entries()} | set(host) | set(disk)
        assert all(parents[key] in here for key in here if parents[key] is not None), "a prefix has a hole"
    whole = {(event.tier, key) for event in tiers.everything(worker_id) for key in event.keys}
    assert whole == {(tier, key) for tier, keys in heard.items() for key in keys}


def small(**keys) -> dict:
    """A device of 64 blocks, of which a prompt of 800 tokens with its answer takes 51, and a host of 100."""
    tiers = {"host_tokens": 1600, "host_bytes_per_s": 1e6, "disk_tokens": 32_000, "disk_bytes_per_s": 2.5e5}
    return document(worker(kv_tokens=64 * BLOCK, **tiers), router={"max_output_tokens": 16}, **keys)


def test_a_block_comes_back_at_its_tiers_speed():
    """Evicted by the second prompt and wanted by the third: bytes by bandwidth, then the last 16 tokens."""
    coming = [arrival("a", tokens=800, shared=800, output=1), arrival("b", 5.0, tokens=800, output=1)]
    _, records = run(small(), [*coming, arrival("c", 10.0, tokens=800, shared=800, output=1)])
    record = records["c"]
    assert (record.host_hit_tokens, record.device_hit_tokens, record.disk_hit_tokens) == (36 * BLOCK, 13 * BLOCK, 0)
    assert record.computed_tokens == BLOCK
    loading_s = 36 * BLOCK * BYTES_PER_TOKEN / 1e6
    assert record.ttft_s == pytest.approx(2 * NEAR_S + DISPATCH_S + loading_s + 0.01 + 1e-4 * BLOCK, abs=1e-6)
    assert record.queued_s == pytest.approx(loading_s, abs=1e-6)


def test_tiers_are_read_beside_each_other():
    """What is in both is read at once; the slower tier decides."""
    coming = [arrival(f"r{n}", 5.0 * n, tokens=800, shared=800, family=n + 1, output=1) for n in range(4)]
    again = arrival("again", 30.0, tokens=800, shared=800, family=1, output=1)
    _, records = run(small(), [*coming, again])
    record = records["again"]
    assert record.disk_hit_tokens > 0
    assert record.host_hit_tokens + record.disk_hit_tokens + record.device_hit_tokens + BLOCK == 800
    reading_s = max(record.host_hit_tokens / 1e6, record.disk_hit_tokens / 2.5e5) * BYTES_PER_TOKEN
    assert record.queued_s == pytest.approx(reading_s, abs=1e-6)


def test_the_router_hears_of_tiers():
    coming = [arrival(f"r{n}", 2.0 * n, tokens=800, shared=800, family=n + 1, output=1) for n in range(6)]
    made = world(small(), [*coming, arrival("later", 100.0)])
    made.begin()
    made.kernel.run_until(50.0)
    bit = made.router.scheduler.fleet.get("w-1").bit
    for level in made.workers["w-1"].tiers._levels:
        index = made.router.scheduler.index[level.tier]
        assert len(level.keys) == index.blocks_of(bit) > 0
        assert all(index.holds(bit, key) for key in level.keys)


def test_a_crash_takes_the_tiers_too():
    """Also what is on its way up: nobody waits for it, and nothing of it is found afterwards."""
    coming = [arrival("a", tokens=800, shared=800, output=1), arrival("b", 5.0, tokens=800, output=1)]
    faults = [{"kind": "crash", "at_s": 10.3, "worker": "w-1", "for_s": 0.01}]
    asked = [*coming, arrival("c", 10.0, tokens=800, shared=800, output=1), arrival("d", 12.0, tokens=800, shared=800)]
    made, records = run(small(faults=faults), asked)
    assert records["c"].reason == "no_worker"
    assert (records["d"].host_hit_tokens, records["d"].computed_tokens) == (0, 800)
    assert made.network.usage_of("w-1/host").flows == 0


def test_what_is_given_up_reads_no_further():
    """A request that is cancelled while its blocks come up leaves the bandwidth to others."""
    coming = [arrival("a", tokens=800, shared=800, output=1), arrival("b", 5.0, tokens=800, output=1)]
    late = arrival("c", 10.0, tokens=800, shared=800, output=1)
    scenario = small() | {"router": {"max_output_tokens": 16, "lease_s": 0.3}}
    made, records = run(scenario, [*coming, late])
    assert (records["c"].outcome, records["c"].output_tokens) == ("failed", 0)
    assert made.network.usage_of("w-1/host").bytes == pytest.approx((0.3 - DISPATCH_S - NEAR_S) * 1e6, rel=1e-6)


def test_a_prefill_ships_what_came_up_from_below_once():
    """What the prefill worker reads of its own tiers is shipped with the rest, not twice."""
    tiers = {"host_tokens": 16_000, "host_bytes_per_s": 1e7}
    workers = worker("p", role="prefill", **tiers), worker("d", role="decode")
    workers = [section | {"kv_tokens": 64 * BLOCK} for section in workers]
    coming = [arrival("a", tokens=800, shared=800, output=1), arrival("b", 5.0, tokens=800, output=1)]
    asked = [*coming, arrival("c", 10.0, tokens=900, shared=800, output=1)]
    _, records = run(document(*workers, router={"max_output_tokens": 16}), asked)
    record = records["c"]
    assert (record.plan, record.device_hit_tokens, record.host_hit_tokens) == ("remote", 15 * BLOCK, 34 * BLOCK)
    decoder_had = 13
    assert record.shipped_bytes == (56 - decoder_had) * BLOCK * BYTES_PER_TOKEN
    assert record.computed_tokens == 900 - 49 * BLOCK

"""What the router believes of caches when the news of them is late, lost, or out of order."""

import pytest

from homing.router.core.types import Tier
from homing.sim.cluster.worker import SimulatedWorker
from homing.sim.cluster.world import World

from .worlds import arrival, document, run, worker, world

MANY = [arrival(f"r{n}", n / 4, tokens=600, shared=320 * (n % 3), family=n % 3, output=30) for n in range(40)]


def believed(made: World, worker: SimulatedWorker) -> set[int]:
    """The device blocks that the router thinks a worker has."""
    state = made.router.scheduler.fleet.get(worker.facts.id)
    index = made.router.scheduler.index[Tier.DEVICE]
    return {
        entry.key for w in made.workers.values() for entry in w.cache.entries() if index.holds(state.bit, entry.key)
    }


def held(worker: SimulatedWorker) -> set[int]:
    return {entry.key for entry in worker.cache.entries()}


@pytest.mark.parametrize(
    "events",
    [{}, {"lag_s": 0.5}, {"reorder": 0.4}, {"loss": 0.2}, {"lag_s": 0.2, "loss": 0.1, "reorder": 0.3}],
    ids=["plain", "late", "overtaken", "lost", "all"],
)
def test_the_index_becomes_true(events):
    """When a last message of each worker has come through, the router knows exactly what there is (I10)."""
    coming = [*MANY, arrival("later", 90.0)]
    made = world(document(worker(count=3, kv_tokens=4000), router={"kv_events": events}), coming)
    made.begin()
    made.kernel.run_until(30.0)
    assert not made.flights
    for _ in range(20 if "loss" in events else 0):
        for each in made.workers.values():
            made.resync(each)
        made.kernel.run_until(made.kernel.now + 1.0)
    for each in made.workers.values():
        assert believed(made, each) == held(each)
    made.kernel.run_until(1e6)
    made.check_over()


def test_gaps_are_seen_and_mended():
    made, records = run(document(worker(count=2), router={"kv_events": {"loss": 0.2}}), MANY)
    assert made.commands["kv event gap"] > 3
    assert all(record.outcome == "finished" for record in records.values())
    calm, _ = run(document(worker(count=2)), MANY)
    assert calm.commands["kv event gap"] == 0
    assert calm.commands["resync"] == 0, "what is told in order contradicts nothing"


def test_news_of_an_earlier_life_is_not_believed():
    """Blocks that a worker stored shortly before it died are gone, however late the news of them."""
    crash = {"kind": "crash", "at_s": 0.3, "worker": "w-1", "for_s": 0.01}
    made = world(
        document(faults=[crash], router={"kv_events": {"lag_s": 1.0}}), [arrival("a", output=2), arrival("b", 9.0)]
    )
    made.begin()
    made.kernel.run_until(5.0)
    assert held(made.workers["w-1"]) == believed(made, made.workers["w-1"]) == set()
    index = made.router.scheduler.index[Tier.DEVICE]
    assert index.blocks_of(made.router.scheduler.fleet.get("w-1").bit) == 0


def test_a_report_of_an_earlier_life_is_not_believed():
    crash = {"kind": "crash", "at_s": 1.0, "worker": "w-1", "for_s": 0.01}
    scenario = document(faults=[crash], router={"report_lag_s": 2.0})
    made = world(scenario, [arrival("a", output=500), arrival("b", 9.0)])
    made.begin()
    made.kernel.run_until(3.005)
    assert made.router.scheduler.fleet.get("w-1").report is None
    made.kernel.run_until(1e6)
    made.check_over()

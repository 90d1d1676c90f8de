"""The scheduler on virtual time: whatever happens, every request ends once, and every run can be repeated."""

import subprocess
import sys
from pathlib import Path

import pytest

from homing.router.core.policies import POLICIES
from homing.router.core.types import PlanKind

from .little_fleet import LittleFleet


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_request_ends_exactly_once(policy):
    """I1 and I4, with crashes, deadlines, cancels and a queue that overflows."""
    world = LittleFleet(1, policy).run()
    assert world.ends.total() == 200
    assert world.ends["finished"] > 90
    assert world.ends["rejected"] > 0
    assert world.ends["cancelled"] > 0
    assert not world.scheduler.in_flight
    assert len(world.scheduler.fleet.ledger) == 0
    assert len(world.scheduler.admission) == 0
    assert not any(world.on.values())


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_no_worker_is_given_more_than_it_takes(policy):
    world = LittleFleet(2, policy).run()
    assert max(world.most_on.values()) == 4


def test_the_scheduler_learns_the_speed_that_is():
    """The prior says a millisecond per token, the truth is half of it."""
    world = LittleFleet(3).run()
    for state in world.scheduler.fleet:
        if state.rate.samples > 10:
            assert state.rate.prefill_s(0, 1000) == pytest.approx(0.501, rel=0.1)


def test_plans_of_many_kinds_are_used():
    kinds = sum((LittleFleet(seed).run().kinds for seed in range(3)), LittleFleet(9).kinds)
    assert {PlanKind.LOCAL, PlanKind.FETCH, PlanKind.REMOTE} <= set(kinds)


def test_a_seed_decides_a_run():
    """I5, within one process."""
    one, same, other = (LittleFleet(seed).run() for seed in (4, 4, 5))
    assert one.log == same.log
    assert one.kernel.happened == same.kernel.happened
    assert one.log != other.log


@pytest.mark.parametrize("policy", ["homing", "session-hash"])
def test_a_seed_decides_a_run_in_every_process(policy):
    """I5: no set's order, no built-in hash, no address leaks into a decision."""
    path = ":".join([str(Path(__file__).parents[1]), *sys.path])
    printed = {
        subprocess.run(
            [sys.executable, "-m", "core.little_fleet", "6", policy],
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        for hash_seed in ("0", "12345")
    }
    assert len(printed) == 1
    assert int(printed.pop().split()[1]) > 100

"""What policies remember, after anything may have happened: consistent all the way, and nothing left at the end."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant

from homing.router.core.policies import POLICIES, Observing, make_policy

from ..little_fleet import LittleFleet
from ..test_storm import Storm, shapes

OBSERVING = sorted(name for name in POLICIES if isinstance(make_policy(name), Observing))
LATER_S = 1e4


def test_who_remembers():
    known = {
        "dynamo-kv",
        "gorgo",
        "homing",
        "preble",
        "prfaas-two-timescale",
        "sglang-cache-aware",
        "skywalker",
        "smg-cache-aware",
    }
    assert known <= set(OBSERVING)


def trees(policy):
    return [getattr(policy, name) for name in ("tree", "replicas", "regions") if hasattr(policy, name)]


def remembered(policy, now):
    """How much is remembered of requests that are out, or were lately: nothing when none is."""
    match policy.name:
        case "dynamo-kv":
            return len(policy.active) + len(policy.active._blocks)
        case "gorgo":
            return policy.in_flight() + len(policy._queued_tokens)
        case "homing":
            return policy.pending()
        case "preble":
            policy.histogram.expire(now + LATER_S)
            policy.histogram.check()
            return len(policy.histogram) + len(policy.histogram._owner)
        case "prfaas-two-timescale":
            policy.egress._expire(now + LATER_S)
            return len(policy.egress) + len(policy.egress._bytes)
        case _:
            return 0


def check(policy, joined):
    """Of workers only those that are here."""
    for tree in trees(policy):
        tree.check()
    if policy.name == "homing":
        assert policy._sites.keys() <= joined
    if policy.name == "preble":
        policy.histogram.check()
        assert policy._prefillers.keys() <= joined
    if policy.name == "prfaas-two-timescale":
        assert policy.egress._sites.keys() <= joined
    for name in ("tree", "replicas"):
        if hasattr(policy, name):
            assert getattr(policy, name)._slots.keys() <= joined


class Memory(Storm):
    """The storm of the scheduler, with only those policies that remember."""

    @initialize(
        policy=st.sampled_from(OBSERVING), seed=st.integers(0, 3), first=st.lists(shapes, min_size=2, max_size=4)
    )
    def begin(self, policy, seed, first):
        super().begin(policy, seed, first)

    @invariant()
    def memory_agrees(self):
        if hasattr(self, "made"):
            check(self.made.policy, set(self.joined))

    @invariant()
    def nobody_waits_beside_room(self):
        """But by the will of a policy that holds requests back."""
        if hasattr(self, "made") and self.made.policy.name != "skywalker":
            super().nobody_waits_beside_room()

    def teardown(self):
        super().teardown()
        if hasattr(self, "made"):
            assert remembered(self.made.policy, self.now) == 0
            check(self.made.policy, set(self.joined))


TestMemory = Memory.TestCase
TestMemory.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)


@pytest.mark.parametrize("name", OBSERVING)
def test_nothing_is_left_of_a_day(name):
    world = LittleFleet(7, name).run()
    policy = world.scheduler.policy
    check(policy, set(world.workers))
    assert remembered(policy, world.kernel.now) == 0


@pytest.mark.parametrize(("name", "option"), [("sglang-cache-aware", "tree_blocks_max"), ("gorgo", "tree_blocks_max")])
def test_trees_are_bounded_by_their_option(name, option):
    policy = make_policy(name, {option: 7})
    for number in range(50):
        policy.tree.sent("w", tuple(range(number * 10, number * 10 + 5)))
    assert policy.tree.size("w") == 7
    policy.tree.check()

"""What a pencil says: processor sharing, two bottlenecks, profiles, faults, layers, delays."""

from itertools import accumulate
from math import inf
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .worlds import World, line


@pytest.mark.parametrize("flows", [1, 2, 7, 100])
def test_equal_flows_end_together(flows):
    world = World()
    for number in range(flows):
        world.send(number, 50.0)
    world.run()
    assert list(world.arrived_s.values()) == [pytest.approx(flows * 0.5)] * flows
    assert len(set(world.arrived_s.values())) == 1


@given(st.lists(st.floats(1.0, 1e9), min_size=1, max_size=30))
def test_processor_sharing_of_unequal_flows(sizes):
    """The i-th of n to end has seen each shorter one whole, and its own length taken by each that is left."""
    world, sizes = World(), sorted(sizes)
    for number, size in enumerate(sizes):
        world.send(number, size)
    world.run()
    shorter = [0.0, *accumulate(sizes)]
    for number, size in enumerate(sizes):
        due_s = (shorter[number] + (len(sizes) - number) * size) / 100.0
        assert world.arrived_s[number] == pytest.approx(due_s, rel=1e-9)
    assert world.kernel.happened <= 2 * len(sizes), "each end is met by one call, and one more for the arrival"


def test_staggered_arrivals():
    world = World()
    world.send("first", 1000.0)
    world.send_at(5.0, "second", 1000.0)
    world.run()
    assert world.arrived_s == {"first": 15.0, "second": 20.0}


def test_two_bottlenecks():
    """The long flow is held to 4 by the narrow link; what it leaves of the NIC is the other's."""
    world = World(line(), line(target="c", bytes_per_s=4.0), resources={"nic": 10.0})
    wide, narrow = world.open("wide", via=("nic",)), world.open("narrow", target="c", via=("nic",))
    wide.add(60.0), narrow.add(40.0)
    assert (wide.bytes_per_s, narrow.bytes_per_s) == (6.0, 4.0)
    wide.close(), narrow.close()
    world.run()
    assert world.arrived_s == {"wide": 10.0, "narrow": 10.0}


def test_a_dumbbell_shares_its_middle_in_equal_parts():
    """Four NICs of 100 into one link of 100: a quarter each, until one has to go slower for another reason."""
    world = World(resources={f"nic{i}": 100.0 for i in range(4)} | {"slow": 10.0})
    flows = [world.open(i, via=(f"nic{i}",)) for i in range(3)] + [world.open("slow", via=("nic3", "slow"))]
    for flow in flows:
        flow.add(1e6)
    assert [flow.bytes_per_s for flow in flows] == [30.0, 30.0, 30.0, 10.0]


def test_a_resource_named_twice_counts_once():
    world = World(resources={"nic": 50.0})
    flow = world.open("x", via=("nic", "nic"))
    flow.add(100.0)
    assert flow.bytes_per_s == 50.0
    world.network.check()


def test_capacity_changes_under_way():
    """100 for a second, nothing for two, half of it then: 300 bytes take 1 + 2 + 4."""
    world = World(line(capacity=((0.0, 1.0), (1.0, 0.0), (3.0, 0.5))))
    flow = world.send("x", 300.0)
    world.run(2.0)
    assert (flow.carried_bytes, flow.bytes_per_s) == (100.0, 0.0)
    world.run()
    assert world.arrived_s == {"x": 7.0}
    usage = world.network.usage("a", "b")
    assert (usage.busy_s, usage.bytes, usage.offered_bytes) == (7.0, 300.0, 300.0)
    assert usage.utilisation == 1.0


def test_background_takes_its_part_first():
    world = World(line(background=((1.0, 80.0), (2.0, 150.0), (3.0, 0.0))))
    world.send("x", 220.0)
    world.run()
    assert world.arrived_s == {"x": pytest.approx(4.0)}


def test_faults_multiply_the_profile():
    world = World(line(capacity=((1.0, 0.5),)))
    world.send("x", 200.0)
    world.kernel.at(2.0, lambda: world.network.set_factor("a", "b", 0.1))
    world.kernel.at(4.0, lambda: world.network.set_factor("a", "b", 0.0))
    world.kernel.at(9.0, lambda: world.network.set_factor("a", "b", 1.0))
    world.run()
    assert world.arrived_s == {"x": pytest.approx(9.0 + (200 - 100 - 50 - 2 * 5) / 50)}


def test_a_profile_that_began_before_the_run_holds_at_once():
    world = World(line(capacity=((5.0, 0.5), (12.0, 1.0))), start_s=10.0)
    world.send("x", 200.0)
    world.run()
    assert world.arrived_s == {"x": 13.0}


def test_a_cut_for_ever_ends_nothing_and_waits_for_nothing():
    world = World()
    world.network.set_factor("a", "b", 0.0)
    flow = world.send("x", 1.0)
    world.run()
    assert len(world.kernel) == 0 and not world.arrived_s and not flow.is_over
    world.network.set_factor("a", "b", 1.0)
    world.run()
    assert world.arrived_s == {"x": 0.01}


def test_layers_are_sent_as_they_come_to_exist():
    """Ten layers of 50 bytes, computed in one second each over 100 bytes per second: the link idles half the time."""
    world = World()
    flow = world.open("x")
    for layer in range(1, 11):
        world.kernel.at(float(layer), lambda: flow.add(50.0))
    world.kernel.at(10.0, flow.close)
    world.run(5.25)
    assert flow.carried_bytes == 225.0
    world.run()
    assert world.arrived_s == {"x": 10.5}
    assert (flow.carried_bytes, flow.flowing_s) == (500.0, 5.0)
    assert world.network.usage("a", "b").busy_s == 5.0


@given(st.lists(st.floats(0.001, 1e6), min_size=1, max_size=20), st.floats(1.0, 1e6))
def test_what_is_added_under_way_is_one_flow(sizes, other):
    """However a length is cut into pieces, and whether or not somebody else is there."""
    whole, pieces = World(), World()
    whole.send("x", sum(sizes))
    flow = pieces.open("x")
    for size in sizes:
        flow.add(size)
    flow.close()
    for world in (whole, pieces):
        world.send("other", other)
        world.run()
    assert pieces.arrived_s == pytest.approx(whole.arrived_s, rel=1e-9)


def test_it_arrives_later_than_it_leaves():
    world = World(line(rtt_s=3.0))
    flow = world.send("x", 100.0)
    world.run(1.0)
    assert flow.carried_bytes == 100.0 and not flow.is_over
    world.run()
    assert world.arrived_s == {"x": 2.5} and flow.is_over


@pytest.mark.parametrize(("close_s", "arrives_s"), [(0.5, 3.0), (2.0, 3.0), (7.0, 7.0)])
def test_the_delay_counts_from_the_last_byte_but_not_before_the_close(close_s, arrives_s):
    world = World()
    flow = world.open("x", latency_s=2.0)
    flow.add(100.0)
    world.kernel.at(close_s, flow.close)
    world.run()
    assert world.arrived_s == {"x": arrives_s}


def test_an_empty_flow_arrives_too():
    world = World(line(rtt_s=2.0))
    flow = world.open("x")
    flow.add(0.0)
    world.kernel.at(3.0, flow.close)
    world.run()
    assert world.arrived_s == {"x": 4.0}
    assert (flow.carried_bytes, flow.flowing_s) == (0.0, 0.0)


def test_without_a_limit_it_takes_no_time():
    world = World(resources={"nic": inf})
    world.send("x", 1e12, "a", "a", latency_s=0.0)
    world.send("y", 2e12, "a", "a", via=("nic",))
    world.run()
    assert world.arrived_s == {"x": 0.0, "y": 1e-4}
    assert world.network.usage_of("nic").bytes == 2e12


def test_jitter_is_drawn_once_per_flow_and_has_the_mean_it_says():
    world = World(line(rtt_s=1.0, jitter_s=0.2, bytes_per_s=inf))
    flows = [world.send(number, 1.0) for number in range(4000)]
    world.kernel.run_until(inf)
    delays = [flow.latency_s for flow in flows]
    assert delays == [world.arrived_s[number] for number in range(4000)]
    assert min(delays) >= 0.5
    assert sum(delays) / len(delays) == pytest.approx(0.7, abs=4 * 0.2 / 4000**0.5)
    random = Random(0)
    assert delays[:3] == [0.5 + random.expovariate(5.0) for _ in range(3)]


@pytest.mark.parametrize("start_s", [0.0, 1e6, 1e9])
def test_rounding_stops_nobody(start_s):
    """At 1e9 seconds the clock ticks in 1.2e-7: ends that lie closer than that must still come, and once."""
    world = World(line(bytes_per_s=1e10), start_s=start_s)
    sizes = [1e-9, 1e-3, 1.0, 1.0 + 1e-12, 1e3, 1e10, 1e10 + 1e-3, 1e12]
    for number, size in enumerate(sizes):
        world.send(number, size)
    world.run(start_s + 1000.0)
    assert len(world.arrived_s) == len(sizes)
    assert world.network.usage("a", "b").bytes == pytest.approx(sum(sizes), rel=1e-12)
    assert world.kernel.happened <= 3 * len(sizes)


def test_a_quiet_path_begins_a_new_scale():
    """What was carried long ago takes no digits from what comes: 1.5 bytes beside 1e18."""
    world = World(line(bytes_per_s=1e18))
    world.open("keeps the path").add(1e18)
    world.run(1.0)
    world.network.set_factor("a", "b", 1e-18)
    world.send("little", 1.5)
    world.run()
    assert world.arrived_s == {"little": 2.5}


@given(st.floats(1.0, 1e9), st.floats(0.01, 0.99))
def test_more_for_one_of_two_that_would_end_together(size, part):
    """The other ends when it would have, to a rounding, and its alarm is not late by one."""
    world = World()
    one = world.open("one")
    one.add(size)
    other = world.send("other", size)
    world.kernel.at(2 * size / 100.0 * part, lambda: (one.add(size), world.network.check()))
    world.run()
    assert world.arrived_s == {"other": pytest.approx(2 * size / 100.0)}
    assert one.carried_bytes == 2 * size and other.is_over


@settings(max_examples=20)
@given(st.integers(0, 2**32))
def test_many_changes_do_not_drift(seed):
    """A long flow beside three hundred short ones: it ends when the link has carried all."""
    random, world = Random(seed), World(line(bytes_per_s=1e9))
    total = 1e12
    world.send("long", total)
    for number in range(300):
        size = random.uniform(1.0, 1e9)
        total += size
        world.send_at(random.uniform(0.0, 400.0), number, size)
    world.kernel.run_until(inf)
    assert world.arrived_s["long"] == pytest.approx(total / 1e9, rel=1e-12)

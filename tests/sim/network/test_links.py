"""What a link is: its formulas, its profiles, its books, and how it refuses what cannot be."""

from math import inf, nan, sqrt
from random import Random

import pytest

from homing.router.core.errors import ConfigError
from homing.sim.kernel import Kernel
from homing.sim.network import Network

from .worlds import World, line


def test_bbr_gives_what_is_not_lost():
    """Cardwell et al. 2016, figure 8: the link's rate times the part that arrives, whatever the round trip."""
    spec = line(bytes_per_s=1e9, rtt_s=0.1, loss=0.1)
    assert spec.flow_bytes_per_s == inf
    assert spec.capacity_bytes_per_s(0.0) == pytest.approx(0.9e9)


@pytest.mark.parametrize("connections", [1, 8])
def test_cubic_is_capped_by_mathis(connections):
    """1460 bytes, 40 ms, 1 %: 445 kB/s or 3.6 Mbit/s a connection; 3.0 was seen of Linux's CUBIC on such a path."""
    spec = line(bytes_per_s=1.25e8, rtt_s=0.04, loss=0.01, congestion="cubic", connections=connections)
    assert spec.flow_bytes_per_s == pytest.approx(connections * 1.22 * 1460 / (0.04 * sqrt(0.01)))
    assert spec.flow_bytes_per_s * 8 == pytest.approx(connections * 3.56e6, rel=0.01)
    assert line(congestion="cubic").flow_bytes_per_s == inf


def test_a_capped_flow_leaves_the_rest_to_nobody_and_many_fill_the_link():
    spec = line(bytes_per_s=1e6, rtt_s=0.04, loss=0.01, congestion="cubic")
    world = World(spec)
    flows = [world.open(number) for number in range(4)]
    flows[0].add(1e9)
    assert flows[0].bytes_per_s == spec.flow_bytes_per_s
    for flow in flows[1:]:
        flow.add(1e9)
    assert [flow.bytes_per_s for flow in flows] == [pytest.approx(0.99e6 / 4)] * 4
    world.network.check()


def test_profiles_multiply_and_subtract():
    spec = line(loss=0.1, capacity=((1.0, 0.5), (3.0, 0.0)), background=((2.0, 20.0),))
    found = [spec.capacity_bytes_per_s(at_s, 0.8) for at_s in (0.0, 1.0, 2.0, 3.0)]
    assert found == pytest.approx([72.0, 36.0, 18.0, 0.0])
    assert [spec.next_change_s(at_s) for at_s in (-1.0, 1.0, 2.5, 3.0)] == [1.0, 2.0, 3.0, inf]
    assert line(bytes_per_s=inf, capacity=((1.0, 0.0),)).capacity_bytes_per_s(1.0) == 0.0


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"bytes_per_s": 0.0}, "bytes_per_s: expected more than 0, found 0.0"),
        ({"bytes_per_s": nan}, "bytes_per_s: expected more than 0"),
        ({"rtt_s": -1.0}, "rtt_s: expected a finite number of at least 0"),
        ({"jitter_s": inf}, "jitter_s"),
        ({"price_per_gb": nan}, "price_per_gb"),
        ({"loss": 1.0}, "loss: expected a ratio"),
        ({"loss": 0.2}, "loss: expected at most 0.15 under bbr, found 0.2; model a worse path"),
        ({"connections": 0}, "connections: expected at least 1"),
        ({"congestion": "reno"}, "congestion: expected bbr or cubic, found 'reno'"),
        ({"capacity": ((2.0, 1.0), (1.0, 1.0))}, "capacity: expected .* ascending times"),
        ({"capacity": ((1.0, 1.0), (1.0, 0.5))}, "capacity"),
        ({"background": ((1.0, -1.0),)}, "background"),
        ({"background": ((nan, 1.0),)}, "background"),
    ],
)
def test_a_link_cannot_be_built_wrong(facts, message):
    with pytest.raises(ConfigError, match=f"link a -> b: {message}"):
        line(**facts)


def test_within_a_site_there_is_a_fast_network_unless_one_is_listed():
    world = World(line(), line(source="b", target="b", rtt_s=1.0, bytes_per_s=10.0))
    network = world.network
    assert (network.rtt_s("a", "a"), network.link("a", "a").bytes_per_s) == (2e-4, inf)
    assert (network.one_way_s("a", "a"), network.one_way_s("b", "b")) == (1e-4, 0.5)
    world.send("x", 20.0, "b", "b")
    world.run()
    assert world.arrived_s == {"x": 2.5}
    assert [spec.target for spec in network.links()] == ["b", "b"]


def test_what_does_not_exist_is_named():
    world = World()
    network = world.network
    assert network.has_link("a", "b") and network.has_link("c", "c") and not network.has_link("b", "a")
    for ask in (network.link, network.rtt_s, network.one_way_s, network.usage, lambda s, t: world.open("x", s, t)):
        with pytest.raises(ConfigError, match="link b -> a: no such link"):
            ask("b", "a")
    with pytest.raises(ConfigError, match="b -> a"):
        world.open("x", "b", "a", latency_s=0.0)
    with pytest.raises(ConfigError, match="a -> a"):
        network.set_factor("a", "a", 0.5)
    with pytest.raises(ConfigError, match="resource 'nic': never added"):
        world.open("x", via=("nic",))
    network.check()
    assert not network._sharing.bundles


def test_what_is_given_twice_or_is_no_number_is_refused():
    world = World(resources={"nic": 1.0})
    with pytest.raises(ConfigError, match="'nic': it was added before"):
        world.network.add_resource("nic", 1.0)
    with pytest.raises(ConfigError, match="bytes_per_s: expected more than 0"):
        world.network.add_resource("other", 0.0)
    with pytest.raises(ConfigError, match="a -> b: listed twice"):
        Network(Kernel(), [line(), line(rtt_s=1.0)], Random(0))
    for factor in (-0.1, nan, inf):
        with pytest.raises(ValueError, match="factor"):
            world.network.set_factor("a", "b", factor)
    for latency_s in (-0.1, nan, inf):
        with pytest.raises(ValueError, match="latency_s"):
            world.open("x", latency_s=latency_s)
    flow = world.open("x")
    for size in (-1.0, nan, inf):
        with pytest.raises(ValueError, match="size_bytes"):
            flow.add(size)
    flow.close()
    flow.close()
    with pytest.raises(AssertionError, match="closed or cancelled"):
        flow.add(1.0)


def test_books():
    """Two flows, of 100 and 300 bytes, one second apart, over a link of 100 per second for 2 dollars a gigabyte."""
    world = World(line(price_per_gb=2.0), resources={"nic": 50.0})
    world.send("x", 100.0, via=("nic",))
    world.send_at(1.0, "y", 300.0)
    world.run(1.0)
    first = world.network.usage("a", "b")
    world.run(10.0)
    usage = world.network.usage("a", "b")
    assert world.arrived_s == {"x": 2.0, "y": 4.5}
    assert (first.bytes, first.bytes_per_s, first.flows, first.capacity_bytes_per_s) == (50.0, 100.0, 2, 100.0)
    assert (usage.bytes, usage.offered_bytes, usage.utilisation) == (400.0, 1000.0, 0.4)
    assert (usage.busy_s, usage.flow_s, usage.flows_mean) == (4.5, 5.5, 0.55)
    assert (usage.flows, usage.flows_max, usage.bytes_per_s) == (0, 2, 0.0)
    assert usage.dollars == pytest.approx(800e-9)
    span = usage.since(first)
    assert (span.from_s, span.to_s, span.bytes, span.busy_s) == (1.0, 10.0, 350.0, 3.5)
    assert span.utilisation == pytest.approx(350 / 900)
    assert world.network.usage_of("nic").bytes == 100.0
    assert world.network.snapshot() == {("a", "b"): usage}

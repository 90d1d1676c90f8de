"""Who gets how much: against the textbook, and only those are touched whom a change concerns."""

from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homing.sim.network import LinkSpec

from .worlds import World, line, textbook_shares

SITES = "abcd"
FACTORS = st.sampled_from([0.0, 0.25, 0.5, 1.0])


@st.composite
def topologies(draw):
    """Links in some directions, of which some cap each flow by their loss, and things in the sites to send via."""
    pairs = [(s, t) for s in SITES for t in SITES if s != t]
    chosen = draw(st.lists(st.sampled_from(pairs), min_size=1, max_size=6, unique=True))
    lossy = st.sampled_from([0.0, 0.0, 0.01, 0.04])
    links = [
        LinkSpec(source=s, target=t, bytes_per_s=rate, rtt_s=10.0, loss=loss, connections=count, congestion="cubic")
        for (s, t), rate, loss, count in zip(
            chosen,
            draw(st.lists(st.integers(500, 10_000), min_size=6, max_size=6)),
            draw(st.lists(lossy, min_size=6, max_size=6)),
            draw(st.lists(st.integers(1, 3), min_size=6, max_size=6)),
            strict=False,
        )
    ]
    rates = draw(st.lists(st.integers(500, 20_000), min_size=1, max_size=5))
    return links, {f"nic{i}": rate for i, rate in enumerate(rates)}


def expected(world, links, resources, flows):
    """The textbook's rates of flows that are given as (pair, via, flow)."""
    caps = {(spec.source, spec.target): spec.flow_bytes_per_s for spec in links}
    capacities = {pair: world.network.usage(*pair).capacity_bytes_per_s for pair in caps} | resources
    paths = [{*via, *([pair] if pair in caps else [])} for pair, via, _ in flows]
    return textbook_shares(paths, [caps.get(pair, inf) for pair, _, _ in flows], capacities)


@settings(max_examples=150, deadline=None)
@given(topologies(), st.data())
def test_shares_are_those_of_the_textbook(topology, data):
    """After each flow that begins, each that is called off and each fault, though only a part is computed anew."""
    links, resources = topology
    world, flows = World(*links, resources=resources), []
    pairs = [(spec.source, spec.target) for spec in links] + [("a", "a")]
    for number in range(data.draw(st.integers(1, 12), "steps")):
        step = data.draw(st.sampled_from(["begin", "begin", "begin", "cancel", "fault"]), "step")
        if step == "begin" or not flows:
            pair = data.draw(st.sampled_from(pairs), "pair")
            least = int(pair == ("a", "a"))
            via = data.draw(st.lists(st.sampled_from(sorted(resources)), min_size=least, max_size=3, unique=True))
            for _ in range(data.draw(st.integers(1, 3), "flows")):
                flow = world.open(number, *pair, via=tuple(via))
                flow.add(1e9)
                flows.append((pair, via, flow))
        elif step == "cancel":
            flows.pop(data.draw(st.integers(0, len(flows) - 1), "victim"))[2].cancel()
        else:
            world.network.set_factor(*data.draw(st.sampled_from(pairs[:-1])), data.draw(FACTORS, "factor"))
        world.network.check()
        rates = expected(world, links, resources, flows)
        found = [flow.bytes_per_s for _, _, flow in flows]
        assert found == pytest.approx([float(rate) for rate in rates], rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(topologies(), st.data())
def test_flows_end_when_the_textbook_says(topology, data):
    """A whole run: the reference computes the whole system anew at every arrival, end and fault."""
    links, resources = topology
    world = World(*links, resources=resources)
    pairs = [(spec.source, spec.target) for spec in links]
    plans = [
        (
            float(data.draw(st.integers(0, 20), "at")),
            data.draw(st.integers(1, 50_000), "size"),
            data.draw(st.sampled_from(pairs), "pair"),
            tuple(data.draw(st.lists(st.sampled_from(sorted(resources)), max_size=2, unique=True), "via")),
        )
        for _ in range(data.draw(st.integers(1, 8), "flows"))
    ]
    cut = (float(data.draw(st.integers(0, 20), "fault")), data.draw(st.sampled_from(pairs)), data.draw(FACTORS))
    for number, (at_s, size, pair, via) in enumerate(plans):
        world.send_at(at_s, number, size, *pair, via=via, latency_s=0.0)
    world.kernel.at(cut[0], lambda: world.network.set_factor(*cut[1], cut[2]))
    world.run()
    ends = textbook_ends(links, resources, plans, cut)
    assert world.arrived_s == pytest.approx(ends, rel=1e-9)


def textbook_ends(links, resources, plans, cut):
    now, ends, left = 0.0, {}, {}
    waiting = sorted(range(len(plans)), key=lambda number: plans[number][0])
    capacities = {(spec.source, spec.target): spec.capacity_bytes_per_s(0.0) for spec in links} | resources
    caps = {(spec.source, spec.target): spec.flow_bytes_per_s for spec in links}
    cut_s, cut_pair, factor = cut
    while True:
        while waiting and plans[waiting[0]][0] <= now:
            number = waiting.pop(0)
            left[number] = float(plans[number][1])
        if cut_s <= now:
            capacities[cut_pair], cut_s = capacities[cut_pair] * factor, inf
        numbers = sorted(left)
        paths = [{plans[number][2], *plans[number][3]} for number in numbers]
        shares = textbook_shares(paths, [caps[plans[number][2]] for number in numbers], capacities)
        rates = dict(zip(numbers, map(float, shares), strict=True))
        end_s = {number: now + left[number] / rate for number, rate in rates.items() if rate}
        next_s = min([*end_s.values(), cut_s, *(plans[number][0] for number in waiting[:1])])
        if next_s == inf:
            return ends
        for number, rate in rates.items():
            left[number] -= rate * (next_s - now)
        for number in [number for number, due_s in end_s.items() if due_s == next_s]:
            ends[number] = next_s
            del left[number]
        now = next_s


def two_links():
    return line(), line(source="c", target="d")


def test_a_change_touches_no_other_component():
    world = World(*two_links())
    for number in range(50):
        world.open(number, via=()).add(1e6)
    far = world.open("far", "c", "d")
    far.add(1e6)
    alarm, before = far.bundle.alarm, world.network.rated
    for number in range(10):
        world.open(f"more {number}").add(1e6)
    world.network.set_factor("a", "b", 0.5)
    assert world.network.rated == before + 11, "one path, whose flows are one to the engine"
    assert far.bundle.alarm is alarm, "nobody set the other's alarm anew"


def test_a_resource_couples_only_where_it_can_bind():
    for nic, reached in [(1000.0, 1), (150.0, 2)]:
        world = World(*two_links(), resources={"nic": nic})
        world.open("far", "c", "d", via=("nic",)).add(1e6)
        before = world.network.rated
        flow = world.open("near", via=("nic",))
        flow.add(1e6)
        assert world.network.rated == before + reached
        assert flow.bytes_per_s == min(100.0, nic / 2)


def test_who_was_held_back_is_freed_when_the_coupling_ends():
    """The NIC couples before the change and not after: the other's rate must still rise."""
    world = World(*two_links(), resources={"nic": 150.0})
    near, far = world.open("near", via=("nic",)), world.open("far", "c", "d", via=("nic",))
    near.add(1e6), far.add(1e6)
    assert (near.bytes_per_s, far.bytes_per_s) == (75.0, 75.0)
    near.cancel()
    assert far.bytes_per_s == 100.0
    world.network.check()


def test_a_thousand_flows_on_a_path_cost_two_rates_each():
    world = World()
    for number in range(1000):
        world.send(number, float(number + 1))
    world.kernel.run_until(inf)
    assert len(world.arrived_s) == 1000
    assert world.network.rated <= 2000


@pytest.mark.parametrize(
    "tamper",
    [
        lambda bundle, resource: setattr(bundle, "rate", bundle.rate * 1.01),
        lambda bundle, resource: setattr(bundle, "rate", bundle.rate * 0.99),
        lambda bundle, resource: setattr(bundle, "alarm", None),
        lambda bundle, resource: setattr(bundle, "flowing", 2),
        lambda bundle, resource: setattr(bundle, "_moved_bytes", 5e4),
        lambda bundle, resource: setattr(bundle, "due_s", 0.5),
        lambda bundle, resource: resource.bundles.clear(),
        lambda bundle, resource: setattr(resource, "is_tight", True),
        lambda bundle, resource: setattr(resource, "capacity", 200.0),
        lambda bundle, resource: setattr(resource, "carried_bytes", 200.0),
    ],
)
def test_check_sees_what_is_wrong(tamper):
    world = World()
    flow = world.open("x")
    flow.add(1e4)
    world.run(1.0)
    tamper(flow.bundle, flow.bundle.path[0])
    with pytest.raises(AssertionError):
        world.network.check()


def test_check_sees_a_flow_above_its_cap():
    world = World(line(bytes_per_s=1e9, rtt_s=0.1, loss=0.01, congestion="cubic"))
    flow = world.open("x")
    flow.add(1e9)
    world.network.check()
    flow.bundle.rate *= 1.01
    with pytest.raises(AssertionError, match="above its cap"):
        world.network.check()

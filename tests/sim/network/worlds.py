"""Small networks to try things on, and the textbook's answer to who gets how much."""

from collections.abc import Sequence
from fractions import Fraction
from math import inf
from random import Random

from homing.sim.kernel import Kernel
from homing.sim.network import LinkSpec, Network


def line(**facts):
    """The link a -> b: 100 bytes per second and no delay, unless told otherwise."""
    return LinkSpec(**{"source": "a", "target": "b", "bytes_per_s": 100.0, "rtt_s": 0.0, **facts})


class World:
    """A network whose flows write down when they arrive."""

    def __init__(self, *links, resources=(), start_s=0.0, seed=0):
        self.kernel = Kernel(start_s)
        self.network = Network(self.kernel, links or [line()], Random(seed))
        for name, bytes_per_s in dict(resources).items():
            self.network.add_resource(name, bytes_per_s)
        self.arrived_s = {}

    def open(self, name, source="a", target="b", **options):
        def done():
            assert name not in self.arrived_s, "on_done is called once"
            self.arrived_s[name] = self.kernel.now

        return self.network.open(source, target, on_done=done, **options)

    def send(self, name, size_bytes, source="a", target="b", **options):
        flow = self.open(name, source, target, **options)
        flow.add(size_bytes)
        flow.close()
        return flow

    def send_at(self, at_s, name, size_bytes, source="a", target="b", **options):
        self.kernel.at(at_s, lambda: self.send(name, size_bytes, source, target, **options))

    def run(self, end_s=inf):
        """To the end, with all that must hold asserted after every moment at which something happens."""
        while (next_s := self.kernel.next_s()) <= end_s and next_s < inf:
            self.kernel.run_until(next_s)
            self.network.check()
        if end_s < inf:
            self.kernel.run_until(end_s)
            self.network.check()


def textbook_shares(paths: Sequence[set[str]], caps: Sequence[float], capacities: dict[str, float]) -> list[Fraction]:
    """Max-min fair rates of all flows by progressive filling over the whole system, in exact fractions.

    Bertsekas and Gallager, Data Networks, section 6.5.2, word for word: raise all rates by the same amount until a
    link is full or a flow at its cap; those stop; go on with the others.
    """
    left = {name: Fraction(capacity) for name, capacity in capacities.items() if capacity < inf}
    rates = [Fraction(0)] * len(paths)
    rising = set(range(len(paths)))
    while rising:
        crossing = {name: sum(name in paths[flow] for flow in rising) for name in left}
        steps = [left[name] / number for name, number in crossing.items() if number]
        steps += [Fraction(caps[flow]) - rates[flow] for flow in rising if caps[flow] < inf]
        step = min(steps)
        for flow in rising:
            rates[flow] += step
        for name, number in crossing.items():
            left[name] -= step * number
        full = {name for name, rest in left.items() if rest == 0}
        rising -= {flow for flow in rising if paths[flow] & full or rates[flow] == caps[flow]}
    return rates

"""The highest rate of requests that a deployment sustains, found by running it.

A run is stable if what is in the system does not grow: over the second half of the arrivals the number of requests that
arrived and have not ended is fitted by a straight line, and its slope is at most `GROWTH_MAX` of the arrival rate, so
that what finishes keeps up with what arrives. A pool that gets a share p of the requests and is asked for e times its
capacity grows by p*(e - 1): the rate found is too high by at most `GROWTH_MAX / p`, plus the resolution.

Rule 1: every rate is tried on the same draws, so that two trials differ by their rate alone.
Rule 2: a trial ends with the last arrival; what is still on its way then is not waited for.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

from ..cluster.world import World
from ..rng import Streams
from ..scenario import Scenario
from ..workload.arrival import Arrival
from ..workload.spec import build

GROWTH_MAX = 0.005
SAMPLES = 200
"""Looks at the backlog over the second half."""

ArrivalsOf = Callable[[Scenario, Streams], Iterator[Arrival]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One run: what was offered, how many were in the system at its end, and by how many a second they grew."""

    rate_per_s: float
    backlog: int
    growth_per_s: float
    requests: int
    """That ended."""
    plans: dict[str, int]

    @property
    def is_stable(self) -> bool:
        """Whether what finishes keeps up with what arrives."""
        return self.growth_per_s <= GROWTH_MAX * self.rate_per_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """The highest rate found stable, the lowest found unstable, and all trials in the order in which they were made."""

    stable_per_s: float
    unstable_per_s: float
    trials: tuple[Trial, ...]

    @property
    def requests_per_s(self) -> float:
        """The middle of the two."""
        return sqrt(self.stable_per_s * self.unstable_per_s)


def workload_arrivals(scenario: Scenario, streams: Streams) -> Iterator[Arrival]:
    """What the scenario's own workload gives; its files are named by absolute paths."""
    return build(scenario.workload, streams, Path())


def sustainable_rate(
    scenario_of_rate: Callable[[float], Scenario],
    low_per_s: float,
    high_per_s: float,
    *,
    resolution: float = 0.01,
    arrivals_of: ArrivalsOf = workload_arrivals,
) -> Capacity:
    """Bisect between two rates until they are within `resolution` of each other, as a share.

    A scenario has a `duration_s`, best as many requests long at every rate. `low_per_s` is lowered while it is not
    stable, `high_per_s` raised while it is; ValueError if they are not 0 < low < high.
    """
    if not 0 < low_per_s < high_per_s:
        raise ValueError(f"low_per_s, high_per_s: expected 0 < low < high, got {low_per_s} and {high_per_s}")
    trials: list[Trial] = []

    def is_stable(rate_per_s: float) -> bool:
        trials.append(try_rate(scenario_of_rate(rate_per_s), rate_per_s, arrivals_of))
        return trials[-1].is_stable

    step = high_per_s / low_per_s
    if is_stable(low_per_s):
        while is_stable(high_per_s):
            low_per_s, high_per_s = high_per_s, high_per_s * step
    else:
        low_per_s, high_per_s = low_per_s / step, low_per_s
        while not is_stable(low_per_s):
            low_per_s, high_per_s = low_per_s / step, low_per_s
    while high_per_s > low_per_s * (1 + resolution):
        middle_per_s = sqrt(low_per_s * high_per_s)
        if is_stable(middle_per_s):
            low_per_s = middle_per_s
        else:
            high_per_s = middle_per_s
    return Capacity(stable_per_s=low_per_s, unstable_per_s=high_per_s, trials=tuple(trials))


def try_rate(scenario: Scenario, rate_per_s: float, arrivals_of: ArrivalsOf = workload_arrivals) -> Trial:
    """Run a scenario up to its `duration_s` and look at how many requests are in it meanwhile."""
    assert scenario.duration_s is not None, "a trial has an end"
    streams = Streams(scenario.seed)
    world = World(scenario, arrivals_of(scenario, streams), streams)
    world.begin()
    half_s = scenario.duration_s / 2
    times = [half_s * (1 + number / SAMPLES) for number in range(SAMPLES + 1)]
    backlog = []
    for at_s in times:
        world.kernel.run_until(at_s)
        backlog.append(len(world.flights))
    return Trial(
        rate_per_s=rate_per_s,
        backlog=backlog[-1],
        growth_per_s=slope(times, backlog),
        requests=len(world.log),
        plans=dict(world.plans),
    )


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Of the straight line of least squares.

    >>> slope([0, 1, 2], [5, 7, 9])
    2.0
    """
    x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
    across = sum((x - x_mean) ** 2 for x in xs)
    return sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True)) / across

"""One run: a scenario, a policy, a seed, and what came of it.

Rule 1: whoever watches changes nothing: a run with a callback and one without give the same bytes (I5).
Rule 2: how often garbage is collected is as before once a run is over, however it ends.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import takewhile
from math import inf

from homing.router.core.errors import ConfigError
from homing.router.garbage import rarely_collected

from ..cluster.world import World
from ..measure.records import RunResult
from ..rng import Streams
from ..workload.arrival import Arrival
from ..workload.spec import build
from ..workload.tracefile import ReadCounts
from .ending import Ending
from .load import Experiment

TOLD_EVERY_S = 1.0
"""Of simulated time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run has come."""

    simulated_s: float
    arrived: int
    ended: int
    share: float | None
    """Of the arrivals that have come, 0..1; None where nobody can know."""


Watcher = Callable[[Progress], None]
Prepare = Callable[[World], None]
"""Called with the world before anything has happened in it, for those who want to listen."""


def run(experiment: Experiment, watch: Watcher | None = None, prepare: Prepare | None = None) -> RunResult:
    """Run it to its end; ConfigError for what only the run can find, such as a bad line of a trace."""
    scenario = experiment.scenario
    streams, counts = Streams(scenario.seed), ReadCounts()
    try:
        arrivals = build(scenario.workload, streams, experiment.base, counts=counts)
        watched = _Watched(experiment, arrivals, counts)
        world = World(scenario, iter(watched), streams)
        if watch is not None:
            watched.tell(world, watch)
        if prepare is not None:
            prepare(world)
        with rarely_collected():
            result = world.run()
    except ConfigError as error:
        raise ConfigError(f"{experiment.where}: {error}") from error
    return replace(result, notes=(*result.notes, *experiment.notes, *_notes(counts)))


def _notes(counts: ReadCounts) -> Iterator[str]:
    if counts.bad:
        yield f"{counts.bad} bad lines of the workload were skipped; the first: {counts.first_bad}"
    if counts.failed:
        yield f"{counts.failed} requests of the workload had no answer and were left out"


def arrivals(experiment: Experiment) -> Iterator[Arrival]:
    """The requests that a run of it would see, as far as they come in time."""
    scenario = experiment.scenario
    until_s = inf if scenario.duration_s is None else scenario.duration_s
    found = build(scenario.workload, Streams(scenario.seed), experiment.base)
    return takewhile(lambda arrival: arrival.at_s <= until_s, found)


class _Watched:
    """The arrivals of a run on their way into it: checked against its sites, and counted."""

    def __init__(self, experiment: Experiment, arrivals: Iterator[Arrival], counts: ReadCounts) -> None:
        self._sites = {site.name for site in experiment.scenario.sites}
        self._arrivals = arrivals
        self._ending = Ending(experiment, counts)
        self._arrived = 0
        self._at_s = 0.0

    def __iter__(self) -> Iterator[Arrival]:
        for arrival in self._arrivals:
            if arrival.origin is not None and arrival.origin not in self._sites:
                known = ", ".join(sorted(self._sites))
                raise ConfigError(
                    f"workload: {arrival.id} comes from {arrival.origin!r}, which is no site; known are {known}"
                )
            self._arrived += 1
            self._at_s = arrival.at_s
            yield arrival
        self._at_s = inf

    def tell(self, world: World, watch: Watcher) -> None:
        """Call the watcher from time to time, until the world ends and forgets what is due."""

        def told() -> None:
            watch(
                Progress(
                    simulated_s=world.kernel.now,
                    arrived=self._arrived,
                    ended=len(world.log),
                    share=1.0 if self._at_s == inf else self._ending.share(self._arrived, self._at_s),
                )
            )
            world.kernel.after(TOLD_EVERY_S, told)

        world.kernel.after(0.0, told)

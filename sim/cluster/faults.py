"""What goes wrong in a run, and when: crashes, slow workers, links that degrade or are cut, a router that begins anew.

Faults may overlap: a worker is back when none of its faults lasts any more, and factors multiply.
"""

from collections.abc import Hashable
from functools import partial
from math import prod
from random import Random
from typing import TYPE_CHECKING

from homing.router.core.types import WorkerId

from ..measure.records import Mark
from ..scenario import FaultSection

if TYPE_CHECKING:
    from .worker import SimulatedWorker
    from .world import World


class Faults:
    """Carries the faults of a scenario out; whom they hit, where the scenario leaves it open, is drawn at once."""

    def __init__(self, world: "World", sections: tuple[FaultSection, ...], random: Random) -> None:
        self._world = world
        self._planned = [(section, self._hit(section, random)) for section in sections]
        self._lasting: dict[Hashable, list[float]] = {}
        """Factors of the faults that last, by what they hit: 0 stands for a worker that is gone."""

    def begin(self) -> None:
        """Let them be due."""
        for section, workers in self._planned:
            self._world.kernel.at(section.at_s, partial(self._strike, section, workers))

    def _hit(self, section: FaultSection, random: Random) -> list["SimulatedWorker"]:
        world = self._world
        if section.kind == "site":
            return [w for w in world.workers.values() if w.facts.site == section.site]
        if section.kind not in {"crash", "slow"}:
            return []
        if section.worker is not None:
            return [world.workers[WorkerId(section.worker)]]
        candidates = [w for w in world.workers.values() if section.site in {None, w.facts.site}]
        return [random.choice(candidates)]

    def _strike(self, section: FaultSection, workers: list["SimulatedWorker"]) -> None:
        if self._world.is_over:
            return
        names = ", ".join(worker.facts.id for worker in workers)
        match section.kind:
            case "crash" | "site":
                self._mark(f"{section.site if section.kind == 'site' else names} is gone")
            case "slow":
                self._mark(f"{names} takes {section.factor:g} times as long")
            case "link":
                self._mark(f"{section.source} and {section.target} have {section.factor:.0%} of their link")
            case "router":
                self._mark("the router begins anew")
                self._world.restart_router()
        self._turn(section, workers, begins=True)
        if section.for_s is not None:
            self._world.kernel.after(section.for_s, partial(self._mend, section, workers))

    def _mend(self, section: FaultSection, workers: list["SimulatedWorker"]) -> None:
        if self._world.is_over:
            return
        self._turn(section, workers, begins=False)
        names = ", ".join(worker.facts.id for worker in workers)
        match section.kind:
            case "crash" | "site" if all(worker.is_up for worker in workers):
                self._mark(f"{section.site if section.kind == 'site' else names} is back")
            case "slow":
                self._mark(f"{names} takes as long as before")
            case "link":
                self._mark(f"{section.source} and {section.target} have their link again")

    def _turn(self, section: FaultSection, workers: list["SimulatedWorker"], *, begins: bool) -> None:
        """A fault begins or ends: whatever it hits is as the faults that last then make it."""
        match section.kind:
            case "crash" | "site":
                for worker in workers:
                    self._set_up(worker, is_up=self._factor(("up", worker.facts.id), 0.0, begins=begins) > 0.0)
            case "slow":
                for worker in workers:
                    worker.take_times_as_long(self._factor(("slow", worker.facts.id), section.factor, begins=begins))
            case "link":
                assert section.source is not None and section.target is not None
                for pair in dict.fromkeys([(section.source, section.target), (section.target, section.source)]):
                    if self._world.network.has_link(*pair):
                        self._world.network.set_factor(*pair, self._factor(pair, section.factor, begins=begins))

    def _factor(self, what: Hashable, factor: float, *, begins: bool) -> float:
        """What the faults that last make of something, with one more or one fewer of them."""
        lasting = self._lasting.setdefault(what, [])
        if begins:
            lasting.append(factor)
        else:
            lasting.remove(factor)
        return prod(lasting)

    def _set_up(self, worker: "SimulatedWorker", *, is_up: bool) -> None:
        if worker.is_up and not is_up:
            self._world.lose(worker, "crashed")
        elif is_up and not worker.is_up:
            self._world.bring_back(worker)

    def _mark(self, text: str) -> None:
        self._world.marks.append(Mark(at_s=self._world.kernel.now, text=text))

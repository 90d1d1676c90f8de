"""What goes wrong in a run, and when: crashes, slow workers, links that degrade or are cut, a router that begins anew."""

from functools import partial
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
                self._mark(f"{section.site or names} is gone")
                for worker in workers:
                    if worker.is_up:
                        self._world.lose(worker, "crashed")
            case "slow":
                self._mark(f"{names} takes {section.factor:g} times as long")
                for worker in workers:
                    worker.slow_factor = section.factor
            case "link":
                self._mark(f"{section.source} and {section.target} have {section.factor:.0%} of their link")
                self._set_link(section, section.factor)
            case "router":
                self._mark("the router begins anew")
                self._world.restart_router()
        if section.for_s is not None:
            self._world.kernel.after(section.for_s, partial(self._mend, section, workers))

    def _mend(self, section: FaultSection, workers: list["SimulatedWorker"]) -> None:
        match section.kind:
            case "crash" | "site":
                for worker in workers:
                    if not worker.is_up:
                        worker.come_back()
                        self._world.join(worker)
                self._mark(f"{section.site or workers[0].facts.id} is back")
            case "slow":
                for worker in workers:
                    worker.slow_factor = 1.0
            case "link":
                self._set_link(section, 1.0)
                self._mark(f"{section.source} and {section.target} have their link again")
            case "router":
                pass

    def _set_link(self, section: FaultSection, factor: float) -> None:
        assert section.source is not None and section.target is not None
        for pair in ((section.source, section.target), (section.target, section.source)):
            if self._world.network.has_link(*pair):
                self._world.network.set_factor(*pair, factor)

    def _mark(self, text: str) -> None:
        self._world.marks.append(Mark(at_s=self._world.kernel.now, text=text))

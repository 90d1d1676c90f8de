"""A worker changes its role, as an operator would have it done: drained, taken out, and joined anew with its cache."""

from dataclasses import replace
from typing import TYPE_CHECKING

from homing.router.core.commands import ChangeRole
from homing.router.core.events import WorkerDraining

from ..measure.records import Mark
from .worker import SimulatedWorker

if TYPE_CHECKING:
    from .world import World

LOOK_EVERY_S = 0.5
"""How often a draining worker is looked at."""


def change_role(world: "World", command: ChangeRole) -> None:
    """Begin a change; one that is down, or under way, is left alone."""
    worker = world.workers[command.worker_id]
    if not worker.is_up or worker.is_changing:
        return
    worker.is_changing = True
    world.commands[f"role {command.role.value}"] += 1
    world.router.tell((WorkerDraining(worker_id=worker.facts.id),))
    # Not at once: other commands of the same moment may send it a request.
    world.kernel.after(0.0, lambda: _when_idle(world, worker, command))


def _when_idle(world: "World", worker: SimulatedWorker, command: ChangeRole) -> None:
    if not worker.is_up or world.is_over:
        worker.is_changing = False
        return
    expected = any(
        flight.attempt is not None and worker.facts.id in flight.attempt.decision.plan.workers
        for flight in world.flights.values()
    )
    if expected or len(worker) or worker.transfers:
        world.kernel.after(LOOK_EVERY_S, lambda: _when_idle(world, worker, command))
        return
    worker.is_changing = False
    world.leave(worker, f"becomes a {command.role.value} worker")
    worker.facts = replace(worker.facts, role=command.role)
    world.gauges.note_role(worker.facts.id, command.role.value)
    world.marks.append(Mark(at_s=world.kernel.now, text=f"{worker.facts.id} becomes a {command.role.value} worker"))
    world.join(worker)
    world.resync(worker)

"""All backends: those of the file, and those that come and go while the router runs."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from homing.router.actuators.types import Actuator
from homing.router.core.types import WorkerId

from ..sections import BackendSection
from .watch import Backend, Surroundings

log = logging.getLogger(__name__)

BACKENDS_MAX = 4096


@dataclass(slots=True)
class _Kept:
    backend: Backend
    task: asyncio.Task[None]
    from_file: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What a reload did."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = field(default=())


class Backends:
    """Adds, drains and removes engines. `actuator_of` makes what moves their KV."""

    def __init__(
        self, around: Surroundings, actuator_of: Callable[[BackendSection], Actuator | None], *, drain_s: float
    ) -> None:
        self._around = around
        self._actuator_of = actuator_of
        self._drain_s = drain_s
        self._kept: dict[str, _Kept] = {}
        self._leaving: dict[str, asyncio.Task[None]] = {}
        """The last of each name to leave: one that is added waits for it."""
        self._departures: set[asyncio.Task[None]] = set()

    def __iter__(self) -> Iterator[Backend]:
        return (kept.backend for kept in self._kept.values())

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, name: str) -> Backend | None:
        """A backend by its id; None if there is none."""
        kept = self._kept.get(name)
        return None if kept is None else kept.backend

    def of_worker(self, worker: WorkerId) -> Backend | None:
        """The backend that a worker is; None if it is no backend's."""
        return next((backend for backend in self if worker in backend.workers), None)

    def add(self, section: BackendSection, *, from_file: bool = False) -> Backend:
        """Look for an engine and let it join when it is found, and when one of the same id has left. Its id must be
        free, and its connector known: ConfigError.
        """
        assert section.name not in self._kept, section.name
        backend = Backend(section, self._around, self._actuator_of(section))
        task = asyncio.create_task(_run_after(self._leaving.get(section.name), backend), name=f"backend {section.name}")
        task.add_done_callback(_tell_of_failure)
        self._kept[section.name] = _Kept(backend, task, from_file)
        return backend

    def remove(self, name: str) -> bool:
        """Give an engine nothing new, and let it go when its requests have ended; False if there is none."""
        kept = self._kept.pop(name, None)
        if kept is None:
            return False
        kept.backend.drain()
        leaving = asyncio.create_task(self._leave(name, kept, self._leaving.get(name)))
        self._leaving[name] = leaving
        self._departures.add(leaving)
        leaving.add_done_callback(self._departures.discard)
        return True

    def apply(self, sections: Iterable[BackendSection]) -> Changes:
        """Make the file's backends those of its new form; those that came otherwise stay."""
        wanted = {section.name: section for section in sections}
        known = {name: kept for name, kept in self._kept.items() if kept.from_file}
        gone = [name for name in known if name not in wanted]
        changed = [name for name, kept in known.items() if name in wanted and kept.backend.section != wanted[name]]
        added = [name for name in wanted if name not in self._kept]
        for name in (*gone, *changed):
            self.remove(name)
        for name in (*changed, *added):
            self.add(wanted[name], from_file=True)
        return Changes(added=tuple(added), removed=tuple(gone), changed=tuple(changed))

    def forget(self, worker: WorkerId) -> bool:
        """The core gave a worker up; False if it is no backend's."""
        backend = self.of_worker(worker)
        if backend is not None:
            backend.forget(worker)
        return backend is not None

    def resync(self, worker: WorkerId) -> bool:
        """The core found a contradiction in what a worker told; False if it is no backend's."""
        backend = self.of_worker(worker)
        if backend is not None:
            backend.resync(worker)
        return backend is not None

    async def close(self) -> None:
        """Let all go. Idempotent."""
        tasks = [kept.task for kept in self._kept.values()] + list(self._departures)
        self._kept.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _leave(self, name: str, kept: _Kept, before: "asyncio.Task[None] | None") -> None:
        """Whoever left before under this name has left when this one has."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + self._drain_s
        try:
            if before is not None:
                await asyncio.wait([before])
            while self._is_working(kept.backend) and loop.time() < until_s:  # noqa: ASYNC110 - seldom, for seconds
                await asyncio.sleep(0.1)
        finally:
            kept.backend.problem = "it was removed"
            kept.task.cancel()
            await asyncio.gather(kept.task, return_exceptions=True)
            if self._leaving.get(name) is asyncio.current_task():
                del self._leaving[name]

    def _is_working(self, backend: Backend) -> bool:
        fleet = self._around.driver.scheduler.fleet
        states = (fleet.get(worker) for worker in backend.workers)
        return any(state is not None and state.account.running for state in states)


async def _run_after(leaving: "asyncio.Task[None] | None", backend: Backend) -> None:
    if leaving is not None:
        await asyncio.wait([leaving])
    await backend.run()


def _tell_of_failure(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("%s failed", task.get_name(), exc_info=task.exception())

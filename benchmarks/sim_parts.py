"""Where the CPU time of a simulated run goes, by part of the program.

A timer of the process's own CPU time interrupts it, and the innermost frame that belongs to Homing gets the sample:
what the standard library does counts for who called it. Unlike a tracing profiler it makes no function dearer than
another. A garbage collection is seen because one of its callbacks is what runs next.
"""

import gc
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parent.parent
EVERY_S = 0.002
GARBAGE, OTHER = "garbage collection", "other"
PARTS = {
    "search": ("policies", "planner", "price", "tolls", "question", "preparation", "rates", "topology", "congestion"),
    "index events": ("prefix_index", "space"),
    "scheduler bookkeeping": ("",),
}
"""Modules of the router's core; what is in no other part is bookkeeping."""
PREFIXES = {
    "workers/engine/": "engine",
    "sim/kernel.py": "kernel",
    "sim/measure/": "records",
    "sim/workload/": "reading",
    "sim/truth/": "stopwatch",
    "sim/network/": "network",
    "sim/cluster/": "world",
}


def part_of(path: str) -> str:
    """The part of a module of Homing, by its path from the root.

    >>> part_of("router/core/planner.py"), part_of("router/core/ledger.py"), part_of("sim/kernel.py")
    ('search', 'scheduler bookkeeping', 'kernel')
    """
    if path.startswith("router/core/"):
        module = path.removeprefix("router/core/")
        return next(part for part, modules in PARTS.items() if module.startswith(modules))
    return next((part for prefix, part in PREFIXES.items() if path.startswith(prefix)), OTHER)


class Sampler:
    """Counts samples per part."""

    def __init__(self) -> None:
        self.samples: Counter[str] = Counter()
        self._known: dict[str, str | None] = {}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Sample what happens inside; of one thread only, the main one."""
        before = signal.signal(signal.SIGPROF, self._sample)
        gc.callbacks.append(_collected)
        signal.setitimer(signal.ITIMER_PROF, EVERY_S, EVERY_S)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0.0)
            gc.callbacks.remove(_collected)
            signal.signal(signal.SIGPROF, before)

    def shares(self) -> dict[str, float]:
        """The parts' shares of all samples, the largest first."""
        total = self.samples.total()
        return {part: count / total for part, count in self.samples.most_common()}

    def _sample(self, _signal: int, frame: FrameType | None) -> None:
        while frame is not None:
            if frame.f_code is _collected.__code__:
                self.samples[GARBAGE] += 1
                return
            part = self._part_of_file(frame.f_code.co_filename)
            if part is not None:
                self.samples[part] += 1
                return
            frame = frame.f_back

    def _part_of_file(self, name: str) -> str | None:
        """None for what is not Homing's own, such as a dataclass's generated methods: then its caller counts."""
        if name not in self._known:
            path = Path(name).resolve()
            inside = path.is_file() and path.is_relative_to(ROOT) and ".venv" not in path.parts
            self._known[name] = part_of(path.relative_to(ROOT).as_posix()) if inside else None
        return self._known[name]


def _collected(_phase: str, _info: dict[str, int]) -> None:
    """Nothing: it is there to be seen."""

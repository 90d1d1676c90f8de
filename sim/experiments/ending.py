"""How much of a workload has arrived, as far as that can be known while it arrives."""

import gzip
from pathlib import Path

from ..workload.spec import Trace
from ..workload.tracefile import ReadCounts
from .load import Experiment, traces_of

CHUNK_BYTES = 1 << 20


class Ending:
    """What a run's arrivals end with: a time, a number, the last line of its traces, or whichever comes first."""

    def __init__(self, experiment: Experiment, counts: ReadCounts) -> None:
        spec = experiment.scenario.workload
        self._until_s = [s for s in (experiment.scenario.duration_s, spec.until_s) if s is not None]
        self._limit = spec.limit
        self._counts = counts
        self._traces = [experiment.base / trace.path for trace in traces_of(spec)]
        self._is_all = isinstance(spec, Trace)
        self._lines: int | None = None

    def share(self, arrived: int, at_s: float) -> float | None:
        """The share that has arrived, 0..1; None for a workload of which nobody knows."""
        shares = [at_s / until_s for until_s in self._until_s]
        if self._limit is not None:
            shares.append(arrived / self._limit)
        if self._traces and (self._is_all or not shares):
            if self._lines is None:
                self._lines = sum(_count_lines(path) for path in self._traces)
            shares.append(self._counts.lines / max(1, self._lines))
        return min(1.0, max(shares)) if shares else None


def _count_lines(path: Path) -> int:
    """Lines of a file, unpacked if its name ends in .gz. Whether it can be read is told by whoever reads it."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(CHUNK_BYTES), b""))
    except (OSError, EOFError):
        return 0

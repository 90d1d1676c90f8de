"""A scenario over a grid of overrides, on all cores or on a cluster; part of the extra `sim`.

Results are appended to a file as they finish, one JSON object per line: the digest of the experiment, its overrides and
its summary. A sweep that was interrupted goes on where it stopped: what the file holds is not run again.

Rule 1: everything is checked before anything runs.
Rule 2: the file is keyed by what determines a result (`Experiment.digest`), so that another scenario, another trace or
another version never passes for this one.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from homing.router.core.errors import ConfigError

from ..measure.schema import Slo, Summary
from ..measure.summary import summarize
from .executors import executor
from .grid import Grid, points
from .load import Experiment, prepare
from .run import run

LINE = b'{"digest":'
"""What every line begins with."""
Done = Callable[[int, int], None]
"""Called with how many are done, those of earlier among them, and how many there are."""


class SweepRow(msgspec.Struct, frozen=True, kw_only=True):
    """One point: a line of the file."""

    digest: str
    overrides: dict[str, Any] = msgspec.field(name="set")
    summary: Summary


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One combination of the grid, checked."""

    overrides: dict[str, Any]
    experiment: Experiment
    digest: str


def plan(document: Any, path: Path, grid: Grid) -> list[Point]:
    """Every point of a grid over a scenario that was read from `path`; ConfigError for the first that is wrong."""
    found: dict[str, Point] = {}
    for overrides in points(grid):
        experiment = prepare(document, path, overrides)
        digest = experiment.digest()
        found.setdefault(digest, Point(overrides=overrides, experiment=experiment, digest=digest))
    return list(found.values())


def sweep(
    asked: Sequence[Point], out: Path, *, on: str = "", processes: int | None = None, done: Done | None = None
) -> list[SweepRow]:
    """Run what `out` does not hold, and append it; all rows in the order of what was asked."""
    _mend(out)
    rows = {row.digest: row for row in read_rows(out)} if out.exists() else {}
    missing = [point for point in asked if point.digest not in rows]
    if done is not None:
        done(len(asked) - len(missing), len(asked))
    try:
        with out.open("ab") as file, executor(on, processes) as where:
            for future in as_completed([where.submit(measure, point) for point in missing]):
                row = future.result()
                rows[row.digest] = row
                file.write(msgspec.json.encode(row) + b"\n")
                file.flush()
                if done is not None:
                    done(sum(point.digest in rows for point in asked), len(asked))
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written: {error.strerror}") from error
    return [rows[point.digest] for point in asked]


def measure(point: Point) -> SweepRow:
    """Run one point and sum it up, wherever this happens."""
    slo = point.experiment.scenario.slo
    summary = summarize(run(point.experiment), Slo(ttft_s=slo.ttft_s, tpot_s=slo.tpot_s))
    return SweepRow(digest=point.digest, overrides=point.overrides, summary=summary)


def read_rows(path: Path) -> Iterator[SweepRow]:
    """The lines of a sweep's file; ConfigError that names the line for one that is none."""
    decoder = msgspec.json.Decoder(SweepRow)
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield decoder.decode(line)
            except msgspec.DecodeError as error:
                raise ConfigError(f"{path}:{number}: is not a row of a sweep: {error}") from error


def _mend(path: Path) -> None:
    """Cut off a last line that was not written to its end; ConfigError for a file that is no sweep's."""
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if not data[whole:].startswith(LINE[: len(data) - whole]):
        raise ConfigError(f"{path}: is not the file of a sweep; name another, or one that is not there")
    if whole < len(data):
        with path.open("r+b") as file:
            file.truncate(whole)

"""`homing sim sweep`: a scenario over a grid of parameters, which can be interrupted and goes on."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from homing.router.core.errors import ConfigError
from homing.sim.experiments.grid import check_grid, parse_axis
from homing.sim.experiments.load import SWEEP, read_scenario, scenario_path

from .headline import seconds, share
from .terminal import Bar, bar, interruptible, needs_extra, notes, out, written

if TYPE_CHECKING:
    from homing.sim.experiments.sweep import Done, SweepRow

BANDWIDTH, ROUND_TRIP = ".bytes_per_s", ".rtt_s"
"""What the paths of the two axes of a heat map end in."""


def run_sweep(
    name: str, sets: Sequence[str], *, out_file: Path | None, plot: Path | None, processes: int | None, on: str
) -> None:
    """Run what the file does not hold yet, print a row per point, draw a heat map if one is wanted."""
    with needs_extra():
        from homing.sim.experiments.sweep import plan, sweep

    document, section = read_scenario(name)
    path = scenario_path(name)
    grid = check_grid(section, f"{path}: {SWEEP}") | dict(map(parse_axis, sets))
    if not grid:
        raise ConfigError(f"{path}: nothing to sweep over; give --set path=value,value, or a section {SWEEP}")
    if plot is not None:
        _axes(list(grid))
    asked = plan(document, path, grid)
    file = out_file or Path(f"{asked[0].experiment.scenario.name}.sweep.jsonl")
    with interruptible(f"what is done is in {file}; the same command goes on from there"), bar(path.stem) as shown:
        rows = sweep(asked, file, on=on, processes=processes, done=_teller(shown, file))
    out().print(_table(rows, [path for path, values in grid.items() if len(values) > 1]))
    paths = [file]
    if plot is not None:
        _draw(rows, list(grid), plot)
        paths.append(plot)
    written(paths)


def _teller(shown: Bar, file: Path) -> "Done":
    earlier: int | None = None

    def told(done: int, of: int) -> None:
        nonlocal earlier
        if earlier is None:
            earlier = done
            if done:
                notes.print(f"{done} of {of} are in {file} already", markup=False)
        rate_per_s = (done - earlier) / shown.elapsed_s
        shown.show(done / of, f"{done} of {of} runs, {rate_per_s:.2f}/s")

    return told


def _table(rows: "Sequence[SweepRow]", paths: Sequence[str]) -> Table:
    table = Table(*paths, title=f"{rows[0].summary.scenario}, {len(rows)} runs", title_justify="left")
    for name in ("TTFT mean", "TTFT p90", "TTFT p99", "TPOT p50", "goodput", "hit ratio"):
        table.add_column(name, justify="right")
    for row in rows:
        run = row.summary
        times = (run.ttft_s.mean, run.ttft_s.p90, run.ttft_s.p99, run.tpot_s.p50)
        shares = (run.rates.goodput_share, run.tokens.hit_ratio)
        table.add_row(*(_text(row.overrides[path]) for path in paths), *map(seconds, times), *map(share, shares))
    return table


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _axes(paths: Sequence[str]) -> tuple[str, str]:
    """The paths of bandwidth and round trip; ConfigError when the grid lacks one."""
    found = [next((path for path in paths if path.endswith(end)), None) for end in (BANDWIDTH, ROUND_TRIP)]
    if found[0] is None or found[1] is None:
        raise ConfigError("--plot: a heat map needs axes such as links[*].bytes_per_s and links[*].rtt_s in the grid")
    return found[0], found[1]


def _draw(rows: "Sequence[SweepRow]", paths: Sequence[str], plot: Path) -> None:
    from homing.sim.report.plots.heat import SweepPoint, heat_maps
    from homing.sim.report.style import save

    bandwidth, round_trip = _axes(paths)
    cells: dict[tuple[float, float, str], list[float]] = {}
    for row in rows:
        place = (float(row.overrides[bandwidth]), float(row.overrides[round_trip]), row.summary.policy)
        if row.summary.ttft_s.p90 is not None:
            cells.setdefault(place, []).append(row.summary.ttft_s.p90)
    points = [
        SweepPoint(bandwidth_bytes_per_s=wide, rtt_s=far, policy=policy, value_s=sum(values) / len(values))
        for (wide, far, policy), values in cells.items()
    ]
    save(heat_maps(points), plot)

"""`homing sim compare`: policies beside each other over the same seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from homing.sim.experiments.compare import Done, compare, experiments
from homing.sim.measure.records import RunResult

from .headline import comparison_table
from .terminal import Bar, bar, folder, interruptible, needs_extra, notes, out, written

if TYPE_CHECKING:
    from homing.sim.measure.schema import Slo

BOOTSTRAP_SEED = 0


def run_compare(
    name: str,
    policies: Sequence[str],
    seeds: Sequence[int],
    changes: Mapping[str, Any],
    *,
    out_folder: Path | None,
    report: bool,
    table: str,
    processes: int | None,
    on: str,
) -> None:
    """Run all, print a row per policy, write what is wanted."""
    with needs_extra():
        from homing.sim.measure.schema import Slo
        from homing.sim.report import html as _html  # noqa: F401 - better now than when all is computed

    asked = experiments(name, policies, seeds, changes)
    with interruptible("nothing was written; `homing sim sweep` keeps each result as it comes"), bar(name) as shown:
        results = compare(asked, on=on, processes=processes, done=_teller(shown))
    section = asked[0].scenario.slo
    written(_write(results, Slo(ttft_s=section.ttft_s, tpot_s=section.tpot_s), out_folder, report=report, table=table))


def _teller(shown: Bar) -> Done:
    requests = 0

    def told(result: RunResult, done: int, of: int) -> None:
        nonlocal requests
        requests += len(result.log)
        rate_per_s = requests / shown.elapsed_s
        shown.show(done / of, f"{done} of {of} runs, {requests:,} requests, {rate_per_s:,.0f}/s")

    return told


def _write(results: list[RunResult], slo: "Slo", out_folder: Path | None, *, report: bool, table: str) -> list[Path]:
    import numpy as np

    from homing.sim.measure.compare import compare as scored
    from homing.sim.measure.summary import summarize
    from homing.sim.report.files import write_json, write_table
    from homing.sim.report.html import render

    comparison = scored(results, slo, np.random.default_rng(BOOTSTRAP_SEED))
    summaries = [summarize(result, slo) for result in results]
    out().print(comparison_table(comparison, summaries))
    if out_folder is None:
        notes.print("--out DIR writes a report, the comparison, and a summary and a row per request of each run")
        return []
    runs = folder(folder(out_folder) / "runs")
    write_json(comparison, out_folder / "comparison.json")
    for result, summary in zip(results, summaries, strict=True):
        stem = f"{result.policy}-{result.seed}"
        write_json(summary, runs / f"{stem}.json")
        write_table(result.log, runs / f"{stem}.{table}")
    paths = [out_folder / "comparison.json", runs]
    if report:
        paths.append(out_folder / "report.html")
        paths[-1].write_text(render(results, comparison), encoding="utf-8")
    return paths

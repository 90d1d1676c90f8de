"""`homing sim run`: one scenario, one policy, one seed."""

import csv
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from homing.router.core.errors import ConfigError
from homing.sim.experiments.load import Experiment, load
from homing.sim.experiments.replay import Recording
from homing.sim.experiments.run import Prepare, Progress, Watcher, run
from homing.sim.measure.records import RequestRecord, RunResult

from .headline import plain_table, seconds, summary_table
from .terminal import Bar, bar, folder, interruptible, needs_extra, notes, out, written


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be written where."""

    out: Path | None
    report: bool
    table: str
    journal: Path | None = None


def run_one(name: str, changes: Mapping[str, Any], wanted: Wanted) -> None:
    """Run, print the headline, write what is wanted."""
    if wanted.report and wanted.out is not None:
        with needs_extra():
            import homing.sim.report.html  # noqa: F401 - better now than when all is computed
    experiment = load(name, changes)
    with ExitStack() as stack:
        stack.enter_context(interruptible("nothing was written; the same command runs it again from its beginning"))
        prepare = stack.enter_context(_recording(wanted.journal))
        shown = stack.enter_context(bar(f"{experiment.scenario.name}, {experiment.scenario.router.policy}"))
        result = run(experiment, _watcher(shown), prepare)
    paths = [] if wanted.journal is None else [wanted.journal]
    try:
        paths += _write(experiment, result, wanted)
    except ModuleNotFoundError as error:
        _write_plain(experiment, result, wanted, error)
    if wanted.out is None:
        notes.print("--out DIR writes a report, a summary and a row per request")
    written(paths)


def _watcher(shown: Bar) -> Watcher:
    def watch(progress: Progress) -> None:
        if shown.is_due:
            rate_per_s = progress.ended / shown.elapsed_s
            text = f"{progress.ended:,} requests done, {rate_per_s:,.0f}/s, at {seconds(progress.simulated_s)}"
            shown.show(progress.share, text)

    return watch


@contextmanager
def _recording(path: Path | None) -> Iterator[Prepare | None]:
    if path is None:
        yield None
        return
    try:
        with path.open("wb") as file:
            yield Recording(file).begin
    except OSError as error:
        raise ConfigError(f"--journal {path}: cannot be written: {error.strerror}") from error


def _write(experiment: Experiment, result: RunResult, wanted: Wanted) -> list[Path]:
    from homing.sim.measure.schema import Slo
    from homing.sim.measure.summary import summarize
    from homing.sim.report.files import write_json, write_table

    slo = Slo(ttft_s=experiment.scenario.slo.ttft_s, tpot_s=experiment.scenario.slo.tpot_s)
    summary = summarize(result, slo)
    out().print(summary_table(summary))
    if wanted.out is None:
        return []
    here = folder(wanted.out)
    paths = [here / "run.json", here / f"requests.{wanted.table}"]
    write_json(summary, paths[0])
    write_table(result.log, paths[1])
    if wanted.report:
        from homing.sim.report.html import write_report

        paths.append(here / "report.html")
        write_report([result], slo, paths[-1], title=experiment.scenario.name)
    return paths


def _write_plain(experiment: Experiment, result: RunResult, wanted: Wanted, missing: ModuleNotFoundError) -> None:
    """What can be done without numpy: the headline, and CSV."""
    with needs_extra():
        if missing.name != "numpy" or (wanted.out is not None and wanted.table != "csv"):
            raise missing
    out().print(plain_table(result, experiment.scenario.slo))
    notes.print("summaries and plots need pip install 'homing[sim]'", markup=False)
    if wanted.out is not None:
        path = folder(wanted.out) / "requests.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(field.name for field in fields(RequestRecord))
            writer.writerows(astuple(record) for record in result.log)
        written([path])

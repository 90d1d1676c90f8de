"""The smaller commands: journals replayed, tables of published numbers, reuse in traces, the scenarios that ship."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.table import Table

from homing.router.core.errors import ConfigError
from homing.sim.experiments.load import load, read_scenario, scenario_names

from .terminal import interruptible, needs_extra, notes, out, written


def run_replay(journal: Path) -> None:
    """Feed a journal to a new scheduler; exit code 1 when its answers differ."""
    from homing.sim.experiments.replay import replay

    with interruptible("a replay begins anew"):
        found = replay(journal)
    if found.difference is not None:
        out().print(f"{journal}: other commands after {found.events:,} events", markup=False, soft_wrap=True)
        out().print(str(found.difference), markup=False, soft_wrap=True)
        raise typer.Exit(1)
    out().print(f"{found.events:,} events, same commands")
    if found.stopped:
        notes.print(f"the journal ends before its router did: {found.stopped}", markup=False)


def run_prfaas() -> None:
    """Print Table 6 of Prefill-as-a-Service, recomputed, and what narrower links give."""
    from homing.sim.prfaas import bandwidths, render, render_bandwidths, table6

    _text("Prefill-as-a-Service (arXiv 2604.15039), Table 6: recomputed (printed, difference)\n")
    _text(render(table6()))
    _text("\nThe best split for each bandwidth between the clusters, and the printed split there\n")
    _text(render_bandwidths(bandwidths()))


def run_reuse(trace: Path) -> None:
    """Print how much of a trace's prompts an ideal cache would have held."""
    from homing.sim.workload.reuse import prompts_of_trace, render, reuse_table

    if not trace.is_file():
        raise ConfigError(f"{trace}: expected a trace in Mooncake's format, found no file")
    with interruptible("nothing was counted to its end"):
        _text(render(reuse_table(lambda: prompts_of_trace(trace))))


def run_validate(names: Sequence[str], trace: Path | None, *, quick: bool) -> None:
    """Run validations and print each check; exit code 1 when one fails."""
    with needs_extra():
        from homing.sim.validate import render, validate

    def progress(text: str) -> None:
        notes.print(text, style="dim", markup=False)

    with needs_extra(), interruptible("validations begin anew"):
        checks = validate(names, quick=quick, progress=progress, trace=trace)
    _text(render(checks))
    if not all(check.passed for check in checks):
        raise typer.Exit(1)


def run_trace(name: str, changes: Mapping[str, Any], to: Path) -> None:
    """Write the requests of a scenario as a trace."""
    from homing.sim.experiments.run import arrivals
    from homing.sim.workload.write import write_mooncake

    experiment = load(name, changes)
    with interruptible(f"{to} lacks its end"):
        requests = write_mooncake(arrivals(experiment), to)
    notes.print(f"wrote {to}, {requests:,} requests", markup=False)


def run_scenarios() -> None:
    """List the scenarios that ship."""
    table = Table("scenario", "about", show_lines=True)
    for name in scenario_names():
        table.add_row(name, read_scenario(name)[0].get("about", ""))
    out().print(table)


def run_fit(points: Path, to: Path | None, name: str, model: str, hardware: str, gpus: int) -> None:
    """Fit a profile to measured points, and say how well it fits."""
    with needs_extra():
        from homing.sim.truth.fit import fit

        report = fit(points, to, name=name, model=model, hardware=hardware, gpus=gpus)
    _text(report.render())
    if to is None:
        notes.print("--out profile.json writes a profile that a scenario can name")
    else:
        written([to])


def _text(text: str) -> None:
    out().print(text, markup=False, soft_wrap=True)

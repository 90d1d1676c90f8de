"""The sub-commands: each parses and hands on; what it needs it imports when it is called."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from homing.router.core.errors import ConfigError

sim = typer.Typer(help="Simulate fleets: the same router and engines, on virtual time.", no_args_is_help=True)
calibrate = typer.Typer(help="Make profiles for the simulator out of measurements.", no_args_is_help=True)

Scenario = Annotated[str, typer.Argument(help="A scenario file, or the name of one that ships (homing sim scenarios).")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", help="path=value, such as links[*].bytes_per_s=1e9; repeatable.")
]
Out = Annotated[Path | None, typer.Option(help="Folder for results.", file_okay=False)]
Report = Annotated[bool, typer.Option(help="Write an HTML report with plots.")]
Kind = Annotated[Literal["csv", "parquet"], typer.Option(help="Kind of the table of requests.")]
Processes = Annotated[int | None, typer.Option(min=1, help="Worker processes; all cores by default.")]
On = Annotated[str, typer.Option(help="A cluster: ray://host:port or dask://host:port; this machine by default.")]


@sim.command("run")
def run(
    scenario: Scenario,
    policy: Annotated[str | None, typer.Option(help="Instead of the scenario's policy.")] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of the scenario's seed.")] = None,
    sets: Sets = None,
    out: Out = None,
    report: Report = True,
    table: Kind = "csv",
    journal: Annotated[Path | None, typer.Option(help="Record for `homing sim replay`.", dir_okay=False)] = None,
) -> None:
    """Run one scenario with one policy and one seed."""
    from .run import Wanted, run_one

    changes = _changes(sets)
    if policy is not None:
        changes["router.policy"] = policy
    if seed is not None:
        changes["seed"] = seed
    run_one(scenario, changes, Wanted(out=out, report=report, table=table, journal=journal))


@sim.command("compare")
def compare(
    scenario: Scenario,
    policies: Annotated[
        str, typer.Option(help="Names with commas between, the baseline first, or all.")
    ] = "homing,least-loaded",
    seeds: Annotated[str, typer.Option(help="Whole numbers with commas between.")] = "0,1,2",
    sets: Sets = None,
    out: Out = None,
    report: Report = True,
    table: Kind = "csv",
    processes: Processes = None,
    on: On = "",
) -> None:
    """Run policies beside each other over the same seeds, with intervals."""
    from .compare import run_compare

    run_compare(
        scenario,
        [name.strip() for name in policies.split(",") if name.strip()],
        _seeds(seeds),
        _changes(sets),
        out_folder=out,
        report=report,
        table=table,
        processes=processes,
        on=on,
    )


@sim.command("sweep")
def sweep(
    scenario: Scenario,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="path=value,value,...: an axis of the grid, such as router.policy=homing,random."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="JSONL file of the results; goes on if it is there.", dir_okay=False)
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Heat map over bandwidth and round trip, .png or .svg.", dir_okay=False)
    ] = None,
    processes: Processes = None,
    on: On = "",
) -> None:
    """Run a scenario over a grid of parameters; interrupted, it goes on where it stopped."""
    from .sweep import run_sweep

    run_sweep(scenario, sets or [], out_file=out, plot=plot, processes=processes, on=on)


@sim.command("replay")
def replay(journal: Annotated[Path, typer.Argument(help="What `--journal` recorded.")]) -> None:
    """Feed what a router was told to a new one, and compare what it answers."""
    from .analysis import run_replay

    run_replay(journal)


@sim.command("prfaas")
def prfaas() -> None:
    """Recompute Table 6 of Prefill-as-a-Service, and what narrower links give."""
    from .analysis import run_prfaas

    run_prfaas()


@sim.command("reuse")
def reuse(trace: Annotated[Path, typer.Argument(help="A trace in Mooncake's format.")]) -> None:
    """Tell how much of a trace's prompts an ideal cache would have held."""
    from .analysis import run_reuse

    run_reuse(trace)


@sim.command("trace")
def trace(
    scenario: Scenario,
    out: Annotated[Path, typer.Option(help="The file; .gz is packed.", dir_okay=False)],
    sets: Sets = None,
) -> None:
    """Write the requests of a scenario as a trace in Mooncake's format."""
    from .analysis import run_trace

    run_trace(scenario, _changes(sets), out)


@sim.command("validate")
def validate(
    names: Annotated[list[str] | None, typer.Argument(help="What to validate; all by default.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Seconds instead of minutes, with wider tolerances.")] = False,
    trace: Annotated[Path | None, typer.Option(help="Mooncake's whole conversation trace.", dir_okay=False)] = None,
) -> None:
    """Hold the simulator against theory and publications; exit code 1 when a check fails."""
    from .analysis import run_validate

    run_validate(names or [], trace, quick=quick)


@sim.command("live")
def live(recorded: Annotated[Path, typer.Argument(help="What `homing demo --out` wrote.", dir_okay=False)]) -> None:
    """Simulate a recorded demo and compare plans and TTFT; exit code 1 when they are too far apart."""
    from .live import run_live

    run_live(recorded)


@sim.command("scenarios")
def scenarios() -> None:
    """List the scenarios that ship."""
    from .analysis import run_scenarios

    run_scenarios()


@calibrate.callback()
def _calibrate() -> None:
    """Keep `fit` a command of its own: a single command would otherwise be the whole."""


@calibrate.command("fit")
def fit(
    points: Annotated[Path, typer.Argument(help="CSV of measured passes.")],
    out: Annotated[Path | None, typer.Option(help="Write the profile here, a .json file.", dir_okay=False)] = None,
    name: Annotated[str, typer.Option(help="Name of the profile; that of the file by default.")] = "",
    model: Annotated[str, typer.Option(help="The model that was measured.")] = "",
    hardware: Annotated[str, typer.Option(help="What it was measured on.")] = "",
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of one worker.")] = 1,
) -> None:
    """Fit a profile to measured points."""
    from .analysis import run_fit

    run_fit(points, out, name, model, hardware, gpus)


def _changes(sets: list[str] | None) -> dict[str, Any]:
    from homing.sim.experiments.document import parse_override

    return dict(map(parse_override, sets or []))


def _seeds(text: str) -> list[int]:
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--seeds {text}: expected whole numbers with commas between, such as 0,1,2") from error

"""`homing sim live`: what the demo measured, beside what the simulator says of the same requests."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.table import Table

from .terminal import needs_extra, out

if TYPE_CHECKING:
    from homing.sim.validate.live import Comparison, Pair


def run_live(recorded: Path) -> None:
    """Print a row per request, and the medians; exit code 1 when they are too far apart."""
    with needs_extra():
        from homing.sim.validate.live import SAME_PLAN_MIN, TTFT_ERROR_MAX, compare
        from homing.sim.validate.recording import read_recording

        found = compare(read_recording(recorded))
    console = out()
    console.print(found.speed.render(), markup=False, soft_wrap=True)
    console.print(_table(found))
    console.print(
        f"Median TTFT error {found.ttft_error_median:.1%} (must be below {TTFT_ERROR_MAX:.0%}); plans of the same kind"
        f" {found.same_plans:.0%} (at least {SAME_PLAN_MIN:.0%}): {'passed' if found.passed else 'FAILED'}."
    )
    if not found.passed:
        raise typer.Exit(1)


def _table(found: "Comparison") -> Table:
    table = Table(title="the demo, live and simulated: plans and time to first token", title_justify="left")
    for name in ("request", "prompt", "plan live", "simulated", "where live", "simulated"):
        table.add_column(name, justify="right" if name == "prompt" else "left")
    for name in ("TTFT live", "simulated", "error"):
        table.add_column(name, justify="right")
    for pair in found.pairs:
        table.add_row(*_row(pair))
    return table


def _row(pair: "Pair") -> list[str]:
    live = pair.live
    return [
        live.request,
        str(live.prompt_tokens),
        live.plan,
        pair.plan if pair.same_plan else f"[yellow]{pair.plan}[/yellow]",
        _where(live.prefill, live.decode),
        _where(pair.prefill, pair.decode),
        f"{live.ttft_s:.3f} s",
        f"{pair.ttft_s:.3f} s",
        f"{pair.error:+.0%}",
    ]


def _where(prefill: str, decode: str) -> str:
    return decode if prefill in {"", decode} else f"{prefill} -> {decode}"

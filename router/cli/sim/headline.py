"""The headline numbers of runs as tables for a terminal."""

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING

from rich.table import Table

from homing.sim.measure.records import RunResult
from homing.sim.scenario import SloSection

if TYPE_CHECKING:
    from homing.sim.measure.compare import Comparison
    from homing.sim.measure.schema import Spread, Summary
    from homing.sim.report.tables import Cell

NOTHING = "-"
LEFT_OUT = ("ITL p99", "rejected")
"""Columns of the report for which a terminal is too narrow."""


def summary_table(summary: "Summary") -> Table:
    """One run."""
    table = _two_columns(f"{summary.scenario}, {summary.policy}, seed {summary.seed}")
    requests, tokens, slo = summary.requests, summary.tokens, summary.slo
    others = {name: getattr(requests, name) for name in ("rejected", "failed", "cancelled", "unfinished")}
    told = "".join(f", {count} {name}" for name, count in others.items() if count)
    table.add_row(
        "requests",
        f"{requests.finished} of {requests.arrived} finished{told}, in {summary.to_s - summary.from_s:.0f} s",
    )
    for name, spread in (("TTFT", summary.ttft_s), ("TPOT", summary.tpot_s), ("E2E", summary.e2e_s)):
        table.add_row(name, _spread(spread))
    table.add_row(
        f"goodput (TTFT {seconds(slo.ttft_s)}, TPOT {seconds(slo.tpot_s)})",
        f"{share(summary.rates.goodput_share)}, {summary.rates.goodput_per_s:.2f} requests/s",
    )
    table.add_row("prompt tokens from caches", f"{share(tokens.hit_ratio)}, of which moved {share(tokens.moved_ratio)}")
    table.add_row("plans", ", ".join(f"{count} {kind}" for kind, count in summary.plans.items()) or NOTHING)
    table.add_row("TTFT predicted within", f"{share(summary.prediction.median_abs)} (median)")
    for name, pool in summary.pools.items():
        table.add_row(f"{name}, {pool.workers} workers", f"busy {share(pool.utilisation)}, KV {share(pool.kv_mean)}")
    for link in summary.links:
        if link.bytes:
            table.add_row(
                f"{link.source} → {link.target}", f"{link.bytes / 1e9:.1f} GB, {share(link.utilisation)} of the link"
            )
    if summary.cost.dollars_per_million_output_tokens:
        table.add_row("cost", f"{summary.cost.dollars_per_million_output_tokens:.2f} $ per million output tokens")
    return table


def comparison_table(comparison: "Comparison", summaries: "Sequence[Summary]") -> Table:
    """A row per policy, as in the report: estimates, and below them the 95 % intervals."""
    from homing.sim.report.tables import HEADLINES, rows

    seeds = ", ".join(map(str, comparison.seeds))
    table = Table("policy", title=f"{comparison.scenario}, seeds {seeds}", title_justify="left")
    for name in HEADLINES:
        if name not in LEFT_OUT:
            table.add_column(name, justify="right", no_wrap=True)
    for row in rows(comparison, summaries):
        cells = zip(HEADLINES, row.cells, strict=True)
        table.add_row(row.policy, *(_cell(cell) for name, cell in cells if name not in LEFT_OUT))
    return table


def plain_table(result: RunResult, slo: SloSection) -> Table:
    """One run, by the standard library alone: what there is without the extra."""
    table = _two_columns(f"{result.scenario}, {result.policy}, seed {result.seed}")
    arrived = [record for record in result.log if result.from_s <= record.at_s < result.to_s]
    finished = [record for record in arrived if record.outcome == "finished"]
    ttfts_s = sorted(record.ttft_s for record in finished if record.ttft_s is not None)
    table.add_row("requests", f"{len(finished)} of {len(arrived) + result.unfinished} finished")
    if ttfts_s:
        quantiles = ", ".join(f"p{p} {seconds(ttfts_s[ceil(p / 100 * len(ttfts_s)) - 1])}" for p in (50, 90, 99))
        table.add_row("TTFT", f"mean {seconds(sum(ttfts_s) / len(ttfts_s))}, {quantiles}")
        good = sum(r.ttft_s <= slo.ttft_s and (r.tpot_s or 0.0) <= slo.tpot_s for r in finished if r.ttft_s is not None)
        table.add_row("goodput", share(good / (len(arrived) + result.unfinished)))
    table.add_row("plans", ", ".join(f"{count} {kind}" for kind, count in result.plans.items()) or NOTHING)
    return table


def seconds(value: float | None) -> str:
    """A time as people say it."""
    if value is None:
        return NOTHING
    return f"{value:.3g} s" if value >= 0.9995 or value == 0 else f"{1e3 * value:.3g} ms"


def share(value: float | None) -> str:
    """A share in percent."""
    return NOTHING if value is None else f"{100 * value:.3g} %"


def _spread(spread: "Spread") -> str:
    named = (("mean", spread.mean), ("p50", spread.p50), ("p90", spread.p90), ("p99", spread.p99))
    return ", ".join(f"{name} {seconds(value)}" for name, value in named)


def _cell(cell: "Cell") -> str:
    return f"{cell.text}\n[dim]{cell.interval}[/dim]" if cell.interval else cell.text


def _two_columns(title: str) -> Table:
    return Table("", "", title=title, title_justify="left", show_header=False)

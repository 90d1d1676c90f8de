"""What the demo shows at its end: each request, each link, and what was saved."""

from dataclasses import dataclass
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from homing.protos import router_pb2
from homing.router.core.types import PlanKind
from homing.router.service.wire import PLAN_KIND_NAMES

from .fleet import BELIEVED_BYTES_PER_S
from .play import Played

WIDTH = 118


def wide_console() -> Console:
    """A console in which the tables fit, also where the output is no terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDTH)


def requests_table(played: list[Played]) -> Table:
    """One row per request: the plan, where, what was reused and moved, predicted and measured TTFT, the check."""
    table = Table(title="requests, with their time to first token", title_justify="left")
    for name, justify in (
        ("request", "left"),
        ("plan", "left"),
        ("where", "left"),
        ("prompt", "right"),
        ("from caches", "right"),
        ("moved", "right"),
        ("predicted", "right"),
        ("measured", "right"),
        ("recomputed", "right"),
        ("same", "left"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]  # a literal type that strings do not have
    for one in played:
        assert one.summary is not None
        table.add_row(
            one.step.name,
            kind_of(one),
            where_of(one),
            str(one.summary.prompt_tokens),
            str(one.summary.hit_tokens),
            f"{moved_bytes(one) / 1e6:.1f} MB" if moved_bytes(one) else "-",
            f"{one.summary.predicted_ttft_s:.2f} s",
            f"{one.summary.ttft_s:.2f} s",
            f"{one.recomputed_ttft_s:.2f} s",
            "[green]yes[/green]" if one.same_tokens else "[red]NO[/red]",
        )
    return table


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedLink:
    """A link that moved blocks: what the router believes of it, and what is true."""

    name: str
    believed_bytes_per_s: float
    learned_bytes_per_s: float
    true_bytes_per_s: float
    transfers: int

    @property
    def error(self) -> float:
        """How far off the belief is, relative to the truth."""
        return self.learned_bytes_per_s / self.true_bytes_per_s - 1


def learned_links(fleet: router_pb2.GetFleetReply, true: dict[tuple[str, str], float]) -> list[LearnedLink]:
    """All links between sites that carried blocks."""
    believed = BELIEVED_BYTES_PER_S | {(other, one): rate for (one, other), rate in BELIEVED_BYTES_PER_S.items()}
    return [
        LearnedLink(
            name=f"{link.source} -> {link.target}",
            believed_bytes_per_s=believed[link.source, link.target],
            learned_bytes_per_s=link.bytes_per_s,
            true_bytes_per_s=true[link.source, link.target],
            transfers=link.samples,
        )
        for link in fleet.links
        if (link.source, link.target) in true and link.samples
    ]


def links_table(links: list[LearnedLink]) -> Table:
    """Each link that moved blocks: what was believed at first, what was learned, what is true."""
    table = Table("link", "told", "learned", "true", "error", "transfers", title="links", title_justify="left")
    for link in links:
        table.add_row(
            link.name,
            f"{link.believed_bytes_per_s / 1e6:.0f} MB/s",
            f"{link.learned_bytes_per_s / 1e6:.1f} MB/s",
            f"{link.true_bytes_per_s / 1e6:.1f} MB/s",
            f"{link.error:+.0%}",
            str(link.transfers),
        )
    return table


def summary(played: list[Played]) -> dict[str, Any]:
    """The figures of a whole run."""
    ends = [one.summary for one in played if one.summary is not None]
    errors = [abs(end.predicted_ttft_s - end.ttft_s) / end.ttft_s for end in ends]
    return {
        "requests": len(played),
        "same_tokens": sum(bool(one.same_tokens) for one in played),
        "plans": {kind.value: sum(kind_of(one) == kind for one in played) for kind in PlanKind},
        "prompt_tokens": sum(end.prompt_tokens for end in ends),
        "prefill_tokens_saved": sum(end.hit_tokens for end in ends),
        "moved_bytes": sum(moved_bytes(one) for one in played),
        "ttft_s": sum(end.ttft_s for end in ends),
        "recomputed_ttft_s": sum(one.recomputed_ttft_s for one in played),
        "ttft_error_median": median(errors),
        "ttft_error_median_second_half": median(errors[len(errors) // 2 :]),
    }


def show(console: Console, played: list[Played], links: list[LearnedLink]) -> None:
    """Print tables and sums."""
    figures = summary(played)
    console.print(requests_table(played))
    console.print(links_table(links))
    saved, asked = figures["prefill_tokens_saved"], figures["prompt_tokens"]
    console.print(
        f"[bold]{figures['same_tokens']} of {figures['requests']} answers have the very tokens that one worker "
        "computes from nothing.[/bold]"
    )
    console.print(
        f"Saved: {saved} of {asked} prompt tokens were not computed ({saved / asked:.0%}); "
        f"{figures['moved_bytes'] / 1e6:.0f} MB of KV moved instead."
    )
    console.print(
        f"Waited for first tokens: {figures['ttft_s']:.1f} s in all, against {figures['recomputed_ttft_s']:.1f} s "
        "on one worker without a cache, one request after the other."
    )
    console.print(f"TTFT was predicted within {figures['ttft_error_median']:.0%} (median).")
    missing = [kind for kind, count in figures["plans"].items() if not count]
    if missing:
        console.print(f"[yellow]Not chosen this time: {', '.join(missing)} (no request made it the cheapest).[/yellow]")


def kind_of(played: Played) -> str:
    """The plan that was carried out."""
    assert played.decision is not None
    return PLAN_KIND_NAMES[played.decision.plan.kind]


def where_of(played: Played) -> str:
    """The way of its blocks, or its worker."""
    assert played.decision is not None
    plan = played.decision.plan
    steps = [f"{move.source} -> {move.target}" for move in plan.moves]
    return ", ".join(steps) or plan.decode


def moved_bytes(played: Played) -> int:
    """KV that came from other workers."""
    assert played.summary is not None
    return sum(done.bytes for done in played.summary.transfers)

"""A decision in words that an operator can read: the plan, its price term by term, and by how much others lost."""

from collections.abc import Iterable

from .types import Decision, Move, Plan

_TERMS = ("network_s", "queue_s", "fetch_s", "prefill_s", "ship_s", "toll_s", "ttft_s", "score_s")


def explain(decision: Decision, *, took_s: float | None = None) -> str:
    """The whole story of one decision, as a table in plain text; ends with a line end."""
    request, plan = decision.request, decision.plan
    thought = "" if took_s is None else f" in {took_s * 1e6:.0f} us"
    lines = [
        f"request {request.id}, attempt {decision.attempt}: {request.prompt_tokens} prompt tokens of {request.model}",
        f"policy {decision.policy} priced {decision.plans_priced} plans{thought} and chose {describe(plan)}",
        "",
        *_table([plan, *decision.runners_up]),
        "",
    ]
    lines += [_why_it_lost(other, plan) for other in decision.runners_up]
    return "\n".join(lines).rstrip() + "\n"


def _why_it_lost(other: Plan, best: Plan) -> str:
    lost_by_s = other.estimate.score_s - best.estimate.score_s
    return f"{other.kind} lost by {_seconds(lost_by_s)}: {describe(other)}"


def describe(plan: Plan) -> str:
    """One plan in one phrase."""
    where = (
        f"on {plan.decode}" if plan.prefill == plan.decode else f"prefill on {plan.prefill}, decode on {plan.decode}"
    )
    moves = "; ".join(describe_move(move) for move in plan.moves)
    estimate = plan.estimate
    work = f"{estimate.hit_tokens} tokens from caches, {estimate.computed_tokens} computed"
    return f"{plan.kind} {where} ({work}{'; ' + moves if moves else ''})"


def describe_move(move: Move) -> str:
    """One move in one phrase."""
    return f"{move.kind} blocks {move.block_first}..{move.block_end - 1} {move.source} -> {move.target}"


def _table(plans: Iterable[Plan]) -> list[str]:
    head = ["plan", *(term.removesuffix("_s") for term in _TERMS)]
    rows = [head, *([plan.kind, *(_seconds(getattr(plan.estimate, term)) for term in _TERMS)] for plan in plans)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def _seconds(value: float) -> str:
    return f"{value * 1e3:.1f} ms" if value < 1 else f"{value:.2f} s"

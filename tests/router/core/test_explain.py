"""A decision in words: what an operator reads must be what was decided."""

from homing.router.core.events import RequestArrived
from homing.router.core.explain import describe, describe_move, explain
from homing.router.core.types import Role

from .fleets import HERE, busy, chain, link, request, scheduler, stored, worker

KEYS = chain(("doc", 100))


def decided(*workers, holder=None):
    made = scheduler(*workers, links=[link(HERE, HERE, 1e-3, 1e8)])
    if holder:
        made.handle(stored(holder, KEYS), 0.0)
    (sent,) = made.handle(RequestArrived(request=request("r-17", KEYS)), 0.0)
    return sent.decision


def test_the_whole_story():
    decision = decided(worker("p", role=Role.PREFILL), worker("d", role=Role.DECODE), worker("b"), holder="p")
    text = explain(decision, took_s=0.000123)
    lines = text.splitlines()
    assert lines[0] == "request r-17, attempt 1: 1601 prompt tokens of m"
    assert lines[1].startswith(f"policy homing priced {decision.plans_priced} plans in 123 us and chose ")
    assert describe(decision.plan) in lines[1]
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    header, *rows = [line.split() for line in lines[3 : 4 + 1 + len(decision.runners_up)]]
    assert header[0] == "plan"
    assert [row[0] for row in rows] == [plan.kind for plan in (decision.plan, *decision.runners_up)]
    for other in decision.runners_up:
        assert any(line.startswith(f"{other.kind} lost by ") and describe(other) in line for line in lines)


def test_the_table_has_every_term_of_the_price():
    decision = decided(worker("a"))
    lines = explain(decision).splitlines()
    assert lines[3].split() == ["plan", "network", "queue", "fetch", "prefill", "ship", "toll", "ttft", "score"]
    estimate = decision.plan.estimate
    assert f"{estimate.prefill_s:.2f} s" in lines[4]
    assert f"{estimate.network_s * 1e3:.1f} ms" in lines[4]
    assert len(lines) == 5, "nothing lost, and nothing is said of losers"


def test_columns_line_up():
    made = scheduler(worker("a"), worker("b"), links=[link(HERE, HERE, 1e-3, 1e6)])
    made.handle(stored("b", KEYS), 0.0)
    busy(made, "b", 9.0)
    (sent,) = made.handle(RequestArrived(request=request("r", KEYS)), 0.0)
    lines = explain(sent.decision).splitlines()
    table = lines[3 : lines.index("", 3)]
    assert len(table) == 1 + 3, "local, fetch and split"
    assert len({len(line) for line in table}) == 1


def test_a_plan_in_one_phrase():
    both = decided(worker("p", role=Role.PREFILL), worker("d", role=Role.DECODE)).plan
    (move,) = both.moves
    assert describe_move(move) == "ship blocks 0..99 p -> d"
    assert describe(both) == (
        "remote prefill on p, decode on d (0 tokens from caches, 1601 computed; ship blocks 0..99 p -> d)"
    )
    alone = decided(worker("a")).plan
    assert describe(alone) == "local on a (0 tokens from caches, 1601 computed)"

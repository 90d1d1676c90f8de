"""Mooncake (FAST 2025) on its own conversation trace: how much could be reused, and what scheduling makes of it.

Reuse needs no simulator and is counted in `sim.workload.reuse`; the world is held against that count with one worker
whose cache holds everything.

Figure 5 compares four rules by their mean TTFT on 16 nodes. The paper does not say how many of the nodes prefill. With
all 16 doing both, or 8 and 8, the trace at its own speed loads them too lightly for the printed seconds; with
`LOADED` the blind rule comes near them. Both are run: what is held is the order of the four and the sign of each
gap. Here the rules are

    random                 `random`
    load-balancing         `least-loaded`: the fewest requests, blind to caches
    local cache-aware      `prfaas-threshold`, which within one site is `queue + prefill` with a node's own cache: the
                           Conductor's Algorithm 1 without its copies
    global cache-aware     `mooncake-alg1`: Algorithm 1 with them

The 3M tokens of DRAM that a node has for KV are its KV memory here: the paper loads them layer by layer beside the
computation, at a cost that its figure 14 includes. Timestamps lie on a grid of three seconds, over which a seed spreads
them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

from ..cluster.world import World
from ..measure.records import RunResult
from ..rng import Streams
from ..scenario import Scenario, parse_scenario
from ..workload.reuse import CONVERSATION, FIGURE_9_CONVERSATION, prompts_of_trace, reuse_table
from ..workload.spec import build
from .check import Check, close, holds

EXCERPT = Path(str(files("homing.sim") / "scenarios" / "traces" / "conversation-10min.jsonl.gz"))
BLOCK_TOKENS = 512
NODE_TOKENS = 3_000_000
KV_TOKEN_BYTES = 327_680
"""80 layers, 8 KV heads of 128 and bf16."""
GRID_S = 3.0
UNLIMITED_TOKENS = 200_000_000
UNLIMITED = {"tokens": 0.374, "blocks": 0.366}
"""Of the published file, counted."""
FIGURE_9_OFF = 0.002
FIGURE_5 = {"random": 19.65, "least-loaded": 5.27, "prfaas-threshold": 3.58, "mooncake-alg1": 3.07}
"""Mean TTFT in seconds, as printed."""
LABELS = {
    "random": "random",
    "least-loaded": "load-balancing",
    "prfaas-threshold": "local cache-aware",
    "mooncake-alg1": "global cache-aware",
}
LIGHT, LOADED = (8, 8), (6, 10)
"""Nodes that prefill, nodes that decode."""
SEEDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One rule on one deployment: mean TTFTs in seconds, one for each seed."""

    policy: str
    ttft_s: tuple[float, ...]

    @property
    def mean_s(self) -> float:
        """Over the seeds."""
        return sum(self.ttft_s) / len(self.ttft_s)


def check_mooncake(*, quick: bool, progress: Callable[[str], None], trace: Path | None = None) -> Iterator[Check]:
    """Reuse on the whole trace where it is given, and everything else on that or on the first ten minutes of it."""
    if trace is not None:
        progress("reuse of the whole trace")
        yield from check_reuse(trace)
    chosen = EXCERPT if quick or trace is None else trace
    progress("one worker with unlimited memory")
    yield check_world(chosen)
    for nodes in (LIGHT,) if quick else (LIGHT, LOADED):
        rows = [measure(policy, nodes, chosen, 1 if quick else SEEDS, progress) for policy in FIGURE_5]
        yield compare(rows, nodes, chosen)


def check_reuse(trace: Path) -> Iterator[Check]:
    """The unlimited pool, and the capacities of figure 9."""
    table = reuse_table(lambda: prompts_of_trace(trace))
    is_known = (table.requests, table.prompt_tokens) == CONVERSATION
    note = "" if is_known else "this is not the published conversation trace"
    for row, expected in UNLIMITED.items():
        yield close(
            f"mooncake: reuse with unlimited memory, by {row}",
            source="the published trace, counted",
            expected=expected,
            measured=table.row(row).ratios[-1],
            tolerance=FIGURE_9_OFF,
            note=note,
        )
    found = table.row("sub-block").ratios
    yield holds(
        "mooncake: reuse by capacity",
        source=f"figure 9, read off to 1 %; within {FIGURE_9_OFF}",
        expected=" ".join(f"{ratio:.3f}" for ratio in FIGURE_9_CONVERSATION),
        measured=" ".join(f"{ratio:.3f}" for ratio in found),
        passed=max(abs(a - b) for a, b in zip(found, FIGURE_9_CONVERSATION, strict=True)) <= FIGURE_9_OFF,
        note="by blocks of 512 alone: " + " ".join(f"{ratio:.3f}" for ratio in table.row("tokens").ratios),
    )


def check_world(trace: Path) -> Check:
    """One simulated worker that forgets nothing finds what the pool without a bound finds, in full blocks."""
    counted = reuse_table(lambda: prompts_of_trace(trace), [None])
    log = run(unlimited_scenario(trace)).log
    found = float(log.column("device_hit_tokens").sum() / log.column("prompt_tokens").sum())
    return close(
        "mooncake: what one simulated worker finds in its cache",
        source="the reuse table, full blocks, no bound",
        expected=counted.row("full tokens").ratios[0],
        measured=found,
        tolerance=0.002,
        note=f"{len(log):,} requests; an engine computes at least one token of a prompt, the count does not ask for it",
    )


def measure(policy: str, nodes: tuple[int, int], trace: Path, seeds: int, progress: Callable[[str], None]) -> Row:
    """Run one rule with several seeds."""
    means = []
    for seed in range(seeds):
        progress(f"figure 5, {nodes[0]} + {nodes[1]} nodes, {LABELS[policy]}, seed {seed}")
        means.append(float(run(figure_5_scenario(policy, nodes, trace, seed)).log.column("ttft_s").mean()))
    return Row(policy=policy, ttft_s=tuple(means))


def compare(rows: list[Row], nodes: tuple[int, int], trace: Path) -> Check:
    """The four must be in the printed order with every seed."""
    in_order = all(
        slower > faster
        for before, after in pairwise(rows)
        for slower, faster in zip(before.ttft_s, after.ttft_s, strict=True)
    )
    gain = rows[-1].mean_s / rows[-2].mean_s - 1
    seeds = "; ".join(f"{LABELS[row.policy]} " + " ".join(f"{value:.2f}" for value in row.ttft_s) for row in rows)
    return holds(
        f"mooncake: mean TTFT of four rules, {nodes[0]} nodes prefill, {nodes[1]} decode",
        source=f"the order of figure 5, with every seed; {trace.name} at its own speed",
        expected=" > ".join(f"{LABELS[policy]} {value} s" for policy, value in FIGURE_5.items()),
        measured=" > ".join(f"{LABELS[row.policy]} {row.mean_s:.2f} s" for row in rows),
        passed=in_order,
        note=f"by seed: {seeds}. Copies change the mean by {gain:+.0%} (printed: -14%)",
    )


def run(scenario: Scenario) -> RunResult:
    """The scenario's own workload, to its end."""
    streams = Streams(scenario.seed)
    return World(scenario, build(scenario.workload, streams, Path()), streams).run()


def figure_5_scenario(policy: str, nodes: tuple[int, int], trace: Path, seed: int) -> Scenario:
    """16 nodes of eight A800 in one site, as figure 14 measured them."""
    node = {
        "site": "home",
        "profile": "llama3-70b_8xa800_mooncake",
        "kv_tokens": NODE_TOKENS,
        "nic_bytes_per_s": 1e11,
    }
    prefill, decode = nodes
    return parse_scenario(
        {
            "name": "figure-5",
            "seed": seed,
            "models": [{"shape": "llama-3.1-70b", "bytes_per_token": KV_TOKEN_BYTES}],
            "sites": [{"name": "home"}],
            "workers": [
                {"name": "p", "count": prefill, "role": "prefill", **node},
                {"name": "d", "count": decode, "role": "decode", **node},
            ],
            "router": {"policy": policy},
            "workload": {
                "kind": "mooncake",
                "path": str(trace.resolve()),
                "block_tokens": BLOCK_TOKENS,
                "spread_s": GRID_S,
            },
        }
    )


def unlimited_scenario(trace: Path) -> Scenario:
    """One worker, much faster than anything arrives, that computes prompt after prompt."""
    worker = {
        "name": "w",
        "site": "home",
        "profile": {"b_s": 1e-9, "decode_a_s": 1e-6},
        "kv_tokens": UNLIMITED_TOKENS,
        "sequences_max": 1,
        "step_tokens_max": 1 << 20,
        "requests_max": 10_000,
    }
    return parse_scenario(
        {
            "name": "unlimited",
            "models": [{"shape": "llama-3.1-70b"}],
            "sites": [{"name": "home"}],
            "workers": [worker],
            "router": {"policy": "least-loaded"},
            "workload": {"kind": "mooncake", "path": str(trace.resolve()), "block_tokens": BLOCK_TOKENS},
        }
    )

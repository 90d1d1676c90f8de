"""Invariants asserted after every event while everything goes wrong: no request lost or ended twice (I1), KV blocks
conserved (I3), bookings given back (I4), no more bytes on a link than it carries (I9).

Two sites and a link that is cut, workers that crash and slow down, a site that goes dark, a router that forgets, and
cache events that are late, lost and out of order. Each policy runs a fleet in which some workers do everything, and one
in which none does: each makes other plans.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from homing.router.core.policies import POLICIES

from ..cluster.world import World
from ..rng import Streams
from ..scenario import Scenario, parse_scenario
from ..workload.spec import build
from .check import Check, holds

REQUESTS = 150
QUICK_REQUESTS = 80
QUICK = (("homing", True), ("mooncake-alg1", False))
RATE_PER_S = 4.0
KV_EVENTS = {"lag_s": 0.02, "loss": 0.02, "reorder": 0.02}
FAULTS: tuple[tuple[float, float, dict[str, object]], ...] = (
    (0.1, 0.3, {"kind": "slow", "worker": "p-1", "factor": 5.0}),
    (0.2, 0.1, {"kind": "link", "source": "east", "target": "west", "factor": 0.0}),
    (0.35, 0.1, {"kind": "crash", "worker": "d-1"}),
    (0.45, 0.2, {"kind": "crash"}),
    (0.55, 0.1, {"kind": "site", "site": "east"}),
    (0.7, 0.1, {"kind": "link", "source": "west", "target": "east", "factor": 0.02}),
    (0.95, 0.0, {"kind": "router"}),
)
"""When, for how long, both as shares of the time in which requests arrive, and what."""


def check_conservation(*, quick: bool, progress: Callable[[str], None]) -> Iterator[Check]:
    """Every policy on both fleets, or two runs; the first assertion that fails is the result of a run."""
    every = [(policy, mixed) for policy in sorted(POLICIES) for mixed in (True, False)]
    for policy, mixed in QUICK if quick else every:
        progress(f"everything goes wrong under {policy}, {_fleet(mixed)}")
        yield survive(policy, QUICK_REQUESTS if quick else REQUESTS, mixed=mixed)


def survive(policy: str, requests: int, *, mixed: bool, seed: int = 0) -> Check:
    """One run; all that arrived must have ended once."""
    streams = Streams(seed)
    scenario = storm(policy, requests, mixed=mixed, seed=seed)
    arrivals = islice(build(scenario.workload, streams, Path()), requests)
    world = World(scenario, arrivals, streams, check_every=1)
    found, broken = "", ""
    try:
        result = world.run()
        world.check()
        outcomes, names = result.log.codes("outcome")
        counts = {name: int((outcomes == code).sum()) for code, name in enumerate(names) if (outcomes == code).any()}
        found = ", ".join(f"{count} {name}" for name, count in counts.items())
        ids = result.log.texts("id")
        if len(set(ids)) != requests or len(ids) != requests or result.unfinished:
            broken = f"; {len(ids)} ends of {len(set(ids))} requests, {result.unfinished} unfinished"
    except AssertionError as error:
        broken = f"{type(error).__name__} at {world.kernel.now:.3f} s: {error}"
    return holds(
        f"conservation: {policy} through faults, {_fleet(mixed)}",
        source="invariants I1, I3, I4 and I9 after every event",
        expected=f"{requests} requests end once",
        measured=found + broken,
        passed=not broken,
        note=f"{world.kernel.happened:,} callbacks, {world.router.handled:,} events at the router; plans "
        + ", ".join(f"{kind} {count}" for kind, count in sorted(world.plans.items())),
    )


def storm(policy: str, requests: int, *, mixed: bool, seed: int) -> Scenario:
    """Two sites, small memories and all faults; `mixed` has workers of all roles."""
    profile = {"a_s": 0.02, "b_s": 1e-4, "q_s": 1e-9, "decode_a_s": 0.02, "decode_b_s": 1e-4}
    worker = {"profile": profile, "kv_tokens": 60_000, "requests_max": 12, "step_tokens_max": 1024}
    workers = [
        {"name": "p", "site": "east", "role": "prefill", "count": 3, **worker},
        {"name": "d", "site": "west", "role": "decode", "count": 3, **worker},
        {"name": "b", "site": "west", "role": "both", "count": 2, "host_tokens": 60_000, **worker},
        {"name": "e", "site": "east", "role": "both", **worker},
    ]
    return parse_scenario(
        {
            "name": "storm",
            "seed": seed,
            "models": [{"shape": "llama-3.1-70b"}],
            "sites": [{"name": "west"}, {"name": "east"}],
            "links": [{"source": "east", "target": "west", "bytes_per_s": 1e10, "rtt_s": 0.03, "jitter_s": 0.002}],
            "workers": workers if mixed else workers[:2],
            "router": {"site": "west", "policy": policy, "lost_after_s": 2.0, "kv_events": KV_EVENTS},
            "workload": {
                "kind": "families",
                "block_tokens": 64,
                "arrivals": {"kind": "poisson", "rate_per_s": RATE_PER_S},
                "families": 12,
                "prefix": {"kind": "uniform", "min_tokens": 1024, "max_tokens": 4096},
                "suffix": {"kind": "lognormal", "mu": 5.5, "sigma": 0.8, "max_tokens": 4096},
                "output": {"kind": "lognormal", "mu": 4.0, "sigma": 0.8, "max_tokens": 400},
                "origins": {"sites": {"west": 1, "east": 1}, "by": "round_robin"},
            },
            "faults": list(_faults(requests / RATE_PER_S)),
        }
    )


def _faults(last_s: float) -> Iterator[dict[str, object]]:
    for begin, lasts, fault in FAULTS:
        yield {"at_s": begin * last_s, **({"for_s": lasts * last_s} if lasts else {}), **fault}


def _fleet(mixed: bool) -> str:
    return "with workers that do everything" if mixed else "prefill and decode apart"

"""What bench_sim.py simulates: documents of scenarios, as a file would have them.

The conversation trace (kvcache-ai/Mooncake, FAST25-release) runs on workers that serve Llama 3.1 70B with 8 H100 each,
in blocks of 512 tokens as in the trace. Sixty-four workers get it eight times as fast, so that each has as much to do
as each of eight.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from homing.sim.experiments.load import FOLDER, Experiment, prepare

EXCERPT = FOLDER / "traces" / "conversation-10min.jsonl.gz"
BLOCK_TOKENS = 512
KV_TOKENS = 1_200_000
PROFILE = "llama3.1-70b-bf16_h100_sxm_tp8"
FEW, MANY = 8, 64
SITES = {"frankfurt": 22, "virginia": 21, "tokyo": 21}
"""How many of the many stand where; 10 Gbit/s link every two of them."""
LINK = {"bytes_per_s": 1.25e9, "rtt_s": 0.09}
FAST_ROUTER: Mapping[str, Any] = {"policy": "homing", "options": {"explains": False}}
LEAST_LOADED: Mapping[str, Any] = {"policy": "least-loaded"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row of the results, and what is run for it."""

    name: str
    document: Mapping[str, Any]

    @property
    def policy(self) -> str:
        """Who decides."""
        return str(self.document["router"]["policy"])

    def experiment(self) -> Experiment:
        """It, checked."""
        return prepare(self.document, Path(__file__))


def conversation_cases(trace: Path, limit: int | None) -> list[Case]:
    """The trace on few workers and on many, the latter under two policies, and on few with each pass simulated."""
    few = _conversation(trace, limit, {"home": FEW}, speed=1)
    many = _conversation(trace, limit, SITES, speed=MANY // FEW)
    return [
        Case(name="8 workers, homing", document={**few, "router": FAST_ROUTER}),
        Case(name="8 workers, homing, pass by pass", document={**few, "router": FAST_ROUTER, "exact": True}),
        Case(name="64 workers in 3 sites, homing", document={**many, "router": FAST_ROUTER}),
        Case(name="64 workers in 3 sites, least-loaded", document={**many, "router": LEAST_LOADED}),
    ]


def many_requests(requests: int) -> Case:
    """A thousand families of prompts with short answers, as many as are asked for."""
    workload = {
        "kind": "families",
        "block_tokens": BLOCK_TOKENS,
        "limit": requests,
        "arrivals": {"kind": "poisson", "rate_per_s": 40},
        "families": 1000,
        "prefix": {"kind": "uniform", "min_tokens": 2048, "max_tokens": 8192},
        "suffix": {"kind": "lognormal", "mu": 6.0, "sigma": 0.8, "max_tokens": 8192},
        "output": {"kind": "lognormal", "mu": 3.5, "sigma": 0.5, "max_tokens": 256},
    }
    document = {**_fleet({"home": FEW}), "workload": workload, "router": FAST_ROUTER}
    return Case(name=f"{requests} requests, 8 workers, homing", document=document)


def _conversation(trace: Path, limit: int | None, sites: Mapping[str, int], *, speed: int) -> dict[str, Any]:
    workload = {
        "kind": "mooncake",
        "path": str(trace.resolve()),
        "block_tokens": BLOCK_TOKENS,
        "rate_scale": speed,
        "limit": limit,
    }
    return {**_fleet(sites), "workload": workload}


def _fleet(sites: Mapping[str, int]) -> dict[str, Any]:
    return {
        "name": "bench",
        "models": [{"name": "model", "shape": "llama-3.1-70b"}],
        "sites": [{"name": name} for name in sites],
        "links": [{"source": source, "target": target, **LINK} for source, target in combinations(sites, 2)],
        "workers": [
            {"name": name, "site": name, "count": count, "profile": PROFILE, "kv_tokens": KV_TOKENS}
            for name, count in sites.items()
        ],
    }

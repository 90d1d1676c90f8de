"""Random scenarios in which everything goes wrong: fleet, links, workload, policy and faults drawn from one seed."""

from random import Random
from typing import Any

from .worlds import document, link, worker

BLOCK = 64
POLICIES = (
    "homing",
    "homing",
    "homing",
    "round-robin",
    "power-of-two",
    "llm-d-p2p",
    "mooncake-alg1",
    "prfaas-threshold",
)
ROLES = (("both", "both"), ("prefill", "decode"), ("both", "decode"), ("prefill", "both"))
LENGTHS = {"kind": "uniform", "min_tokens": 1, "max_tokens": 600}
ANSWERS = {"kind": "uniform", "min_tokens": 1, "max_tokens": 250}


def storm(seed: int) -> dict[str, Any]:
    """A scenario in which every fault ends and at least one worker that decodes comes back."""
    random = Random(seed)
    workers = fleet(random)
    sites = list(dict.fromkeys(section["site"] for section in workers))
    bytes_per_s, rtt_s = random.choice([1e6, 1e7, 1e8, 1e9]), random.choice([0.001, 0.05, 0.2])
    pairs = [(a, b) for number, a in enumerate(sites) for b in sites[number + 1 :]]
    return document(
        *workers,
        links=[link(*pair, bytes_per_s=bytes_per_s, rtt_s=rtt_s, jitter_s=random.choice([0, 0.01])) for pair in pairs],
        faults=[fault(random, workers, pairs) for _ in range(random.randint(0, 8))],
        router=router(random, sites),
        workload=asked(random, sites),
        exact=random.random() < 0.3,
        seed=seed,
        drain_s=20_000,
    )


def fleet(random: Random) -> list[dict[str, Any]]:
    roles = random.choice(ROLES)
    common: dict[str, Any] = {"kv_tokens": random.choice([3000, 5000, 9000])}
    if random.random() < 0.4:
        common |= {"host_tokens": random.choice([0, 2000, 20_000]), "host_bytes_per_s": 1e8}
        common |= {"disk_tokens": random.choice([0, 4000]), "disk_bytes_per_s": 2e7}
    if random.random() < 0.3:
        common["sequences_max"] = random.choice([1, 2, 4])
    few = [{"count": random.randint(1, 3), "requests_max": random.choice([2, 8, 64])} for _ in range(2)]
    sections = [
        worker("a", "x", role=roles[0], **few[0], **common),
        worker("b", "y", role=roles[1], **few[1], **common),
    ]
    if random.random() < 0.5:
        sections.append(worker("c", "z", count=2, step_tokens_max=random.choice([64, 512, 8192]), **common))
    return sections


def fault(random: Random, workers: list[dict[str, Any]], pairs: list[tuple[str, str]]) -> dict[str, Any]:
    kind = random.choice(["crash", "crash", "crash", "slow", "link", "site", "router"])
    names = [f"{section['name']}-{number + 1}" for section in workers for number in range(section.get("count", 1))]
    found: dict[str, Any] = {"kind": kind, "at_s": round(random.uniform(0, 12), 3)}
    if kind != "router":
        found["for_s"] = round(random.choice([random.uniform(0.001, 0.1), random.uniform(0.1, 5)]), 3)
    if kind == "crash" and random.random() < 0.7:
        found["worker"] = random.choice(names)
    if kind == "slow":
        found |= {"factor": random.choice([2, 10, 50]), "worker": random.choice(names)}
    if kind == "link":
        source, target = random.choice(pairs)
        found |= {"source": source, "target": target, "factor": random.choice([0, 0.01, 0.5])}
    if kind == "site":
        found["site"] = random.choice(workers)["site"]
    return found


def router(random: Random, sites: list[str]) -> dict[str, Any]:
    late, lost, overtaken = random.choice([0, 0, 0.3]), random.choice([0, 0, 0.2]), random.choice([0, 0.3])
    found: dict[str, Any] = {
        "policy": random.choice(POLICIES),
        "site": random.choice(sites),
        "queue_max": random.choice([1, 5, 1000]),
        "lease_s": random.choice([3.0, 86_400.0, 86_400.0]),
        "report_lag_s": random.choice([0, 0, 0.5, 2.0]),
        "retries_max": random.choice([0, 1, 3]),
        "max_output_tokens": random.choice([64, 400]),
        "kv_events": {"lag_s": late, "loss": lost, "reorder": overtaken},
    }
    if random.random() < 0.3:
        found["ttft_deadline_s"] = random.choice([0.05, 1.0, 5.0])
    return found


def asked(random: Random, sites: list[str]) -> dict[str, Any]:
    common: dict[str, Any] = {"block_tokens": BLOCK, "limit": random.randint(15, 50), "output": ANSWERS}
    if random.random() < 0.7:
        common["origins"] = {"sites": dict.fromkeys(sites, 1)}
    if random.random() < 0.5:
        prefix = {"kind": "uniform", "min_tokens": 64, "max_tokens": 1500}
        arrivals = {"kind": "poisson", "rate_per_s": random.choice([2, 10, 40])}
        return common | {"kind": "families", "families": 5, "arrivals": arrivals, "prefix": prefix, "suffix": LENGTHS}
    arrivals = {"kind": "poisson", "rate_per_s": random.choice([1, 4])}
    turns = {"system_tokens": 256, "turns_mean": 4, "think_mean_s": 1}
    return common | {"kind": "sessions", "arrivals": arrivals, "user": LENGTHS} | turns

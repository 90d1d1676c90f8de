"""Small worlds for tests: scenarios as plain data, requests by hand, and a run that asserts everything on its way."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from homing.router.core.types import BlockKey
from homing.sim.cluster.world import World
from homing.sim.measure.records import RequestRecord
from homing.sim.rng import Streams
from homing.sim.scenario import parse_scenario
from homing.sim.workload.arrival import Arrival
from homing.sim.workload.spec import build

BLOCK = 16
BYTES_PER_TOKEN = 1000
PROFILE = {"a_s": 0.01, "b_s": 1e-4, "q_s": 0.0, "decode_a_s": 0.02, "decode_b_s": 1e-4, "decode_c_s": 1e-8}
WORKLOAD = {"kind": "prompts", "block_tokens": BLOCK, "limit": 1}
"""What a scenario file must have; tests bring their own arrivals unless they say otherwise."""


def worker(name: str = "w", site: str = "home", **keys: Any) -> dict[str, Any]:
    return {"name": name, "site": site, "profile": PROFILE, "kv_tokens": 100_000} | keys


def link(source: str, target: str, **keys: Any) -> dict[str, Any]:
    return {"source": source, "target": target, "bytes_per_s": 1e8, "rtt_s": 0.05} | keys


def document(*workers: dict[str, Any], **keys: Any) -> dict[str, Any]:
    """A scenario as a file would hold it, with the sites that its workers stand in."""
    listed = list(workers) or [worker()]
    sites = dict.fromkeys(section["site"] for section in listed)
    return {
        "name": "test",
        "models": [{"bytes_per_token": BYTES_PER_TOKEN, "layers": 16}],
        "sites": [{"name": name} for name in sites],
        "workers": listed,
        "workload": WORKLOAD,
    } | keys


def arrival(
    name: str = "r",
    at_s: float = 0.0,
    *,
    tokens: int = 1000,
    output: int = 10,
    shared: int = 0,
    family: int = 1,
    answers: int = 0,
    **keys: Any,
) -> Arrival:
    """A prompt whose first `shared` tokens it has in common with its family; keys of its first `answers` answer tokens
    are known.
    """
    own = sum(byte * 257**place for place, byte in enumerate(name.encode())) % (1 << 40) + 7
    row = [
        BlockKey((family if (position + 1) * BLOCK <= shared else own) << 20 | position)
        for position in range((tokens + answers) // BLOCK)
    ]
    whole = tokens // BLOCK
    return Arrival(
        id=name,
        at_s=at_s,
        prompt_tokens=tokens,
        output_tokens=output,
        block_tokens=BLOCK,
        keys=tuple(row[:whole]),
        answer_keys=tuple(row[whole:]),
        **keys,
    )


def world(scenario: dict[str, Any], arrivals: Iterable[Arrival] | None = None, *, check_every: int = 1) -> World:
    """A world that has not begun. Without arrivals its workload is that of the scenario."""
    parsed = parse_scenario(scenario)
    streams = Streams(parsed.seed)
    coming: Iterator[Arrival] = (
        build(parsed.workload, streams, Path()) if arrivals is None else iter(sorted(arrivals, key=lambda a: a.at_s))
    )
    return World(parsed, coming, streams, check_every=check_every)


def run(
    scenario: dict[str, Any], arrivals: Iterable[Arrival] | None = None, *, check_every: int = 1
) -> tuple[World, dict[str, RequestRecord]]:
    """The world after its run, and how each request ended; asserts that nothing is left of it (I1, I3, I4, I9)."""
    made = world(scenario, arrivals, check_every=check_every)
    result = made.run()
    assert result.unfinished == 0
    made.check_over()
    records = {record.id: record for record in made.log}
    assert len(records) == len(made.log), "a request ended twice"
    return made, records

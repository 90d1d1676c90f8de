"""Small worlds with one line each: workers, prompts, requests and schedulers with round numbers."""

from collections.abc import Iterable
from dataclasses import replace
from random import Random
from typing import Any

from homing.router.core.blocks import block_keys, pack_tokens
from homing.router.core.events import BlocksStored, Event, LoadReported, WorkerJoined
from homing.router.core.ledger import Charge
from homing.router.core.limits import Limits
from homing.router.core.policies import Policy
from homing.router.core.policies.homing import Homing
from homing.router.core.scheduler import Scheduler
from homing.router.core.tolls import Tolls
from homing.router.core.topology import Topology
from homing.router.core.types import (
    BlockKey,
    Link,
    LoadReport,
    ModelName,
    ModelProfile,
    PrefillPrior,
    Request,
    RequestId,
    Role,
    Site,
    Worker,
    WorkerId,
)

BLOCK = 16
MODEL = ModelName("m")
HERE, THERE = Site("here"), Site("there")
PRIOR = PrefillPrior(a_s=0.01, b_s=1e-3, q_s=0.0)
"""A slow machine with round numbers: 10 ms and 1 ms per token, so that a block of 16 takes 16 ms."""
PROFILE = ModelProfile(name=MODEL, block_tokens=BLOCK, bytes_per_token=1000, layers=4, context_tokens=100_000)


def chain(*parts: tuple[str, int]) -> tuple[BlockKey, ...]:
    """The keys of a prompt made of named parts, each of so many blocks: equal beginnings have equal keys."""
    tokens = [hash_of(name) + i for name, blocks in parts for i in range(blocks * BLOCK)]
    return block_keys(pack_tokens(tokens), BLOCK)


def hash_of(name: str) -> int:
    """A token id far from those of other names; the built-in hash differs from process to process."""
    return sum(ord(letter) * 31**place for place, letter in enumerate(name)) % 50_000 * 10_000


def worker(name: str, site: str = HERE, role: Role = Role.BOTH, **facts: Any) -> Worker:
    known = {"model": MODEL, "block_tokens": BLOCK, "kv_blocks_max": 10_000, "prior": PRIOR, **facts}
    return Worker(id=WorkerId(name), site=Site(site), role=role, **known)


def request(name: str = "r", keys: Iterable[BlockKey] = (), tokens: int | None = None, **facts: Any) -> Request:
    """A request for a prompt of these blocks and one token more, unless `tokens` says how many."""
    keys = tuple(keys)
    known = {"model": MODEL, "max_output_tokens": 16, "arrived_s": 0.0, **facts}
    prompt_tokens = len(keys) * BLOCK + 1 if tokens is None else tokens
    return Request(id=RequestId(name), block_keys=keys, prompt_tokens=prompt_tokens, **known)


def link(source: str, target: str, rtt_s: float, bytes_per_s: float, price_per_gb: float = 0.0) -> Link:
    facts = {"rtt_s": rtt_s, "bytes_per_s": bytes_per_s, "price_per_gb": price_per_gb}
    return Link(source=Site(source), target=Site(target), **facts)


def both_ways(one: Link) -> list[Link]:
    return [one, replace(one, source=one.target, target=one.source)]


def scheduler(
    *workers: Worker,
    links: Iterable[Link] = (),
    policy: Policy | None = None,
    limits: Limits | None = None,
    tolls: Tolls | None = None,
    profiles: Iterable[ModelProfile] = (PROFILE,),
    seed: int = 0,
) -> Scheduler:
    """A scheduler that stands in HERE and knows these workers since time 0."""
    made = Scheduler(
        models=profiles,
        topology=Topology(links),
        policy=policy or Homing(),
        random=Random(seed),
        site=HERE,
        limits=limits,
        tolls=tolls,
    )
    for one in workers:
        assert made.handle(WorkerJoined(worker=one), 0.0) == []
    return made


def stored(name: str, keys: Iterable[BlockKey]) -> Event:
    return BlocksStored(worker_id=WorkerId(name), keys=tuple(keys))


def load(name: str, sequence: int = 1, *, queued: int = 0, running: int = 0, used: int = 0, at: float = 0.0) -> Event:
    report = LoadReport(
        worker=WorkerId(name),
        sequence=sequence,
        measured_s=at,
        queued_prefill_tokens=queued,
        running_requests=running,
        kv_blocks_used=used,
    )
    return LoadReported(report=report)


def busy(made: Scheduler, name: str, seconds: float, now: float = 0.0) -> None:
    """Promise a worker so much prefill work, as if somebody else's request were there."""
    charge = Charge(compute=((WorkerId(name), seconds, 1),))
    made.fleet.charge(RequestId(f"work of {name}"), charge, now)

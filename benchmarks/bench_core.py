"""How quick the pure core is: prefix index, block keys and whole decisions.

    python benchmarks/bench_core.py [--short] [--peer-python PYTHON] [--output benchmarks/results/core.json]

Rows are medians and ninetieth percentiles of single calls, in microseconds; everything that is computed is asserted.
`--short` does less of all and writes nothing. `--peer-python` names a Python that has the package ai-dynamo-runtime:
then NVIDIA Dynamo's RadixTree runs the same workload (peer_radix_tree.py) directly after ours.
"""

import argparse
import gc
import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from machine import machine
from prefix_workload import Document, documents, entries, events, micros, prompts, rate_row, row
from rich.console import Console
from rich.progress import track
from rich.table import Table

from homing.router.core.blocks import block_keys, pack_tokens
from homing.router.core.commands import Dispatch
from homing.router.core.events import BlocksStored, RequestArrived, RequestFinished, WorkerJoined
from homing.router.core.ledger import Charge
from homing.router.core.policies.homing import Homing
from homing.router.core.prefix_index import PrefixIndex
from homing.router.core.scheduler import Scheduler
from homing.router.core.topology import Topology
from homing.router.core.types import (
    BlockKey,
    Link,
    ModelName,
    ModelProfile,
    Outcome,
    Request,
    RequestId,
    Role,
    Site,
    Worker,
    WorkerId,
)

BLOCK_TOKENS = 16
PROMPT_TOKENS = (8 * 1024, 32 * 1024, 128 * 1024)
DECIDED_BLOCKS = 512
"""A decision is about a prompt of 8,192 tokens."""
MODEL = ModelName("m")
PEER_TIMEOUT_S = 600

Row = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much of each thing is done."""

    documents: int
    fills: int
    rounds: int
    hashings: int
    decisions: int


FULL = Effort(documents=57, fills=3, rounds=20, hashings=80, decisions=300)
"""57 documents are 1,050,624 entries."""
SHORT = Effort(documents=5, fills=1, rounds=3, hashings=5, decisions=20)


def bench_index(effort: Effort) -> Iterator[Row]:
    """Stored events in, then prompts looked up."""
    docs = documents(effort.documents)
    told = [(event.worker, event.keys, event.parent) for event in events(docs)]
    seconds = []
    for _ in range(effort.fills):
        index = PrefixIndex()
        gc.collect()
        start_s = time.perf_counter()
        for worker, keys, parent in told:
            index.stored(worker, keys, parent)  # type: ignore[arg-type]
        seconds.append(time.perf_counter() - start_s)
        assert len(index) == entries(docs)
    yield rate_row("stored events of 16 blocks: Homing", entries(docs), seconds)
    yield from bench_match(index, docs, effort.rounds)


def bench_match(index: PrefixIndex, docs: list[Document], rounds: int) -> Iterator[Row]:
    """Each prompt several times, in turn."""
    asked = [(prompt, [BlockKey(key) for key in prompt.keys]) for prompt in prompts(docs)]
    samples: dict[str, list[float]] = {}
    for _ in range(rounds):
        for prompt, keys in asked:
            samples.setdefault(prompt.name, []).append(micros(lambda keys=keys: index.match(keys)))  # type: ignore[misc]
    for prompt, keys in asked:
        found = {w: level.depth for level in index.match(keys) for w in range(64) if level.holders >> w & 1}
        assert found == prompt.answer, prompt.name
    for name, taken in samples.items():
        yield row(f"{name}: Homing", taken)


def bench_keys(effort: Effort) -> Iterator[Row]:
    """Chained keys of long prompts."""
    for tokens in PROMPT_TOKENS:
        packed = pack_tokens(range(tokens))
        keys = block_keys(packed, BLOCK_TOKENS)
        assert len(keys) == tokens // BLOCK_TOKENS
        assert keys[:2] == (15310707395893867146, 13769157705258532664)
        taken = [micros(lambda packed=packed: block_keys(packed, BLOCK_TOKENS)) for _ in range(effort.hashings)]  # type: ignore[misc]
        yield row(f"hash {tokens // 1024}k tokens: Homing, chained keys", taken)


def new_fleet(workers: int, sites: int, roles: tuple[Role, ...], random: Random) -> Scheduler:
    """Workers spread over sites that are far from each other; the router stands in the first."""
    names = [Site(f"site-{i}") for i in range(sites)]
    links = [
        Link(source=a, target=b, rtt_s=random.uniform(0.01, 0.2), bytes_per_s=10 ** random.uniform(7, 9.5))
        for a in names
        for b in names
        if a != b
    ]
    profile = ModelProfile(
        name=MODEL, block_tokens=BLOCK_TOKENS, bytes_per_token=131_072, layers=32, context_tokens=131_072
    )
    made = Scheduler(models=[profile], topology=Topology(links), policy=Homing(), random=random, site=names[0])
    for i in range(workers):
        worker = Worker(
            id=WorkerId(f"w{i}"),
            model=MODEL,
            role=roles[i // sites % len(roles)],
            site=names[i % sites],
            block_tokens=BLOCK_TOKENS,
            kv_blocks_max=100_000,
        )
        made.handle(WorkerJoined(worker=worker), 0.0)
    return made


def give_a_past(made: Scheduler, keys: tuple[BlockKey, ...], holding: float, random: Random) -> None:
    """So large a part of the workers holds some of the prompt, and half of those that compute are at work."""
    for state in list(made.fleet):
        worker = state.worker
        if random.random() < holding:
            held = random.randrange(1, len(keys) + 1)
            made.handle(BlocksStored(worker_id=worker.id, keys=keys[:held]), 0.0)
        if worker.role.can_prefill and random.random() < 0.5:
            charge = Charge(compute=((worker.id, random.uniform(0.01, 3.0), 1),))
            made.fleet.charge(RequestId(f"work of {worker.id}"), charge, 0.0)


def bench_decisions(effort: Effort) -> Iterator[Row]:
    """Requests that arrive in fleets of three sizes and end at once."""
    fleets = [(16, 1), (128, 3), (1000, 20)]
    cases = [(size, (Role.BOTH,), holding) for size in fleets for holding in (0.0, 0.3, 1.0)]
    cases.append(((1000, 20), (Role.PREFILL, Role.DECODE), 0.3))
    for (workers, sites), roles, holding in track(cases, description="fleets", transient=True):
        random = Random(7)
        made = new_fleet(workers, sites, roles, random)
        keys = block_keys(pack_tokens(range(DECIDED_BLOCKS * BLOCK_TOKENS)), BLOCK_TOKENS)
        give_a_past(made, keys, holding, random)
        apart = ", prefill apart" if len(roles) > 1 else ""
        case = f"decision, {workers} workers in {sites} site{'s' * (sites > 1)}, {holding:.0%} hold some{apart}"
        yield decide(made, case, keys, effort.decisions, cached=holding > 0)


def decide(made: Scheduler, case: str, keys: tuple[BlockKey, ...], decisions: int, *, cached: bool) -> Row:
    """One fleet's row."""
    booked = len(made.fleet.ledger)
    taken: list[float] = []
    priced: list[int] = []
    for number in range(decisions):
        request = Request(
            id=RequestId(f"r{number}"),
            model=MODEL,
            block_keys=keys,
            prompt_tokens=len(keys) * BLOCK_TOKENS + 1,
            max_output_tokens=16,
            arrived_s=0.0,
        )
        arrived = RequestArrived(request=request)
        start_s = time.perf_counter()
        commands = made.handle(arrived, 0.0)
        taken.append((time.perf_counter() - start_s) * 1e6)
        (sent,) = commands
        assert isinstance(sent, Dispatch)
        assert cached == (sent.decision.plan.estimate.hit_tokens > 0)
        priced.append(sent.decision.plans_priced)
        made.handle(RequestFinished(request_id=request.id, outcome=Outcome.FINISHED, output_tokens=1), 0.0)
    made.world.check()
    assert len(made.fleet.ledger) == booked, "a request that ended left something booked"
    assert max(priced) <= 2000
    return {**row(case, taken), "plans_priced": max(priced)}


def bench_peer(python: Path, effort: Effort) -> list[Row]:
    """The same index workload in Dynamo; nothing, with a word why, where it cannot run."""
    script = Path(__file__).with_name("peer_radix_tree.py")
    sizes = {"--documents": effort.documents, "--rounds": effort.rounds, "--fills": effort.fills}
    arguments = [str(part) for flag, value in sizes.items() for part in (flag, value)]
    command = [str(python), str(script), *arguments, "--prompt-tokens", *map(str, PROMPT_TOKENS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PEER_TIMEOUT_S, check=False)
    if done.returncode:
        print(f"no rows of the peer: {done.stderr.strip().splitlines()[-1]}")
        return []
    rows: list[Row] = json.loads(done.stdout)
    return rows


def show(rows: list[Row]) -> None:
    """The rows as a table."""
    table = Table("case", "median us", "p90 us", "plans priced", "blocks/s")
    for one in rows:
        table.add_row(
            *(str(one.get(key, "")) for key in ("case", "median_us", "p90_us", "plans_priced", "blocks_per_s"))
        )
    Console(width=120).print(table)


def main() -> None:
    """Run, print the table, write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--short", action="store_true", help="a few seconds of everything, nothing written")
    parser.add_argument("--peer-python", type=Path, help="a Python that can import ai-dynamo-runtime")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "core.json")
    options = parser.parse_args()
    effort = SHORT if options.short else FULL
    before = machine()
    rows = [*bench_keys(effort), *bench_decisions(effort), *bench_index(effort)]
    if options.peer_python is not None:
        rows += bench_peer(options.peer_python, effort)
    show(rows)
    if not options.short:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps({"machine": before, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()

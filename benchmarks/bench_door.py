"""What a front door costs: Homing's and its peers', before engines that cost next to nothing.

    PYTHONPATH=.dev python benchmarks/bench_door.py [--rounds 3] [--smg PATH] [--output benchmarks/results/door.json]

Needs nginx and wrk, the extra `loadtest`, and a tokenizer (`--tokenizer`, SmolLM2's as it comes). Peers are measured
where they are installed: sglang-router, vllm-router and smg, as commands on the PATH or where the options say, each
with the policy that is named in its row. Homing's two rows are explained in `door_routers`, prompts in `door_prompts`,
and what engines hold in `door_events`. Everything is started here, on loopback.

In each round every router is asked in turn: on one connection, which tells the latency that it adds to the engine's
own, and on 32, which tells requests per second and, from /proc, the CPU time of the router's processes per request.
Requests per second and core are a second over that CPU time: what one core does that does nothing else. Rows are
medians over the rounds. Engines, load and routers share the machine's cores, so requests per second of a small machine
are those of all three together. Engines do not tokenise, and tell no KV events while they are asked.

Before and after the rounds of a case, Homing's precise mode must hold in its index exactly the blocks that engines
told, and send each of 32 prompts to its holder for as many tokens as that holds; `at holder` is the share of answers on
one connection of which that is true. With 32 connections it is not looked at.
"""

import argparse
import contextlib
import functools
import json
import shutil
import socket
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from door_client import WRK_SCRIPT, OneConnection, Timed, many_connections
from door_engine import MODEL, nginx_config
from door_events import Held, held_by, publishing
from door_prompts import CONVERSATIONS, MARK, Ask, asks
from door_routers import (
    NOTES,
    NotMeasurableError,
    Router,
    Surroundings,
    check_index,
    check_picks,
    is_at_holder,
    routers_of,
)
from machine import machine
from rich.console import Console
from rich.progress import track
from rich.table import Table

from homing.loadtest.processes import Process, StartError, started

CONNECTIONS = 32
ENGINES = 2
EVENTS = 32
SEED = 7
WARM_UP = 10
NUMBERS_A_RUN = 1_000_000
"""More than are asked in one run, so that runs of a router share none."""
WIDTH = 150
DIRECT = "none (direct)"
Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is asked."""

    prompt_bytes: int
    streams: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """The requests of one case, what engines hold of them, and wrk's script."""

    asks: list[Ask]
    held: list[Held]
    path: Path
    script: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A router that is up; none for the engine itself."""

    name: str
    url: str
    router: Router | None = None
    process: Process | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One round of one router."""

    first_ms: float
    whole_ms: float
    at_holder: float
    requests_per_s: float
    cpu_us: float
    rss_mib: float
    failed: int


@contextlib.contextmanager
def nginx(folder: Path, count: int) -> Iterator[list[str]]:
    """Engines that give whole answers; their URLs. Their ports are held while nginx opens them beside us."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            one.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in sockets]
        config = folder / "nginx.conf"
        config.write_text(nginx_config(folder, ports))
        process = stack.enter_context(started(["nginx", "-e", str(folder / "error.log"), "-c", str(config)]))
        process.http_url()
        yield [f"http://127.0.0.1:{port}" for port in ports]


@contextlib.contextmanager
def streaming_engines(count: int) -> Iterator[list[str]]:
    """Engines that stream; their URLs."""
    script = Path(__file__).with_name("door_engine.py")
    command = [sys.executable, str(script), "--events", str(EVENTS)]
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(started(command)).http_url() for _ in range(count)]


def one_connection(url: str, files: Files, first_number: int, count: int) -> tuple[float, float, float]:
    """Median time to the first byte and to the end, in ms, after a warm-up, and the share of answers that came from the
    engine that holds their prompt.
    """
    connection = OneConnection(url)
    timed: list[Timed] = []
    holders = 0
    try:
        for number in range(count + WARM_UP):
            position = number % len(files.asks)
            timed.append(connection.ask(files.asks[position].body(first_number + number)))
            holders += is_at_holder(timed[-1].headers, files.held[position])
    finally:
        connection.close()
    first_s, whole_s = zip(*((one.first_s, one.whole_s) for one in timed[WARM_UP:]), strict=True)
    return 1e3 * statistics.median(first_s), 1e3 * statistics.median(whole_s), holders / len(timed)


def measure(running: Running, files: Files, turn: int, options: argparse.Namespace) -> Sample:
    """One round of one router."""
    process = running.process
    first_number = (2 * turn + 1) * NUMBERS_A_RUN
    first_ms, whole_ms, at_holder = one_connection(running.url, files, first_number, options.requests)
    cpu_s = 0.0 if process is None else process.cpu_s()
    seen = many_connections(
        running.url,
        files.path,
        files.script,
        first_number=first_number + NUMBERS_A_RUN,
        connections=CONNECTIONS,
        seconds=options.seconds,
    )
    cpu_s = 0.0 if process is None else process.cpu_s() - cpu_s
    return Sample(
        first_ms=first_ms,
        whole_ms=whole_ms,
        at_holder=at_holder,
        requests_per_s=seen.requests / seen.seconds,
        cpu_us=1e6 * cpu_s / max(1, seen.requests),
        rss_mib=0.0 if process is None else process.rss_bytes() / 2**20,
        failed=seen.failed,
    )


@functools.cache
def held_of(prompt_bytes: int, tokenizer: str) -> list[Held]:
    """What engines hold of the prompts of this size, streamed or not."""
    return held_by(_asks(prompt_bytes, streams=False), ENGINES, tokenizer)


def _asks(prompt_bytes: int, *, streams: bool) -> list[Ask]:
    return asks(MODEL, prompt_bytes, streams=streams, random=Random(SEED))


def files_of(case: Case, folder: Path, tokenizer: str) -> Files:
    """Make a case's requests, and write them for wrk."""
    script, path = folder / "wrk.lua", folder / "bodies.jsonl"
    script.write_text(WRK_SCRIPT)
    asked = _asks(case.prompt_bytes, streams=case.streams)
    path.write_bytes(b"".join(ask.head + MARK.encode() + ask.tail + b"\n" for ask in asked))
    return Files(asks=asked, held=held_of(case.prompt_bytes, tokenizer), path=path, script=script)


def start_all(stack: contextlib.ExitStack, routers: Sequence[Router], around: Surroundings) -> Iterator[Running]:
    """The engine itself, and each router that comes up."""
    yield Running(name=DIRECT, url=around.urls[0])
    for router in routers:
        process = stack.enter_context(started(router.command(around)))
        try:
            yield Running(name=router.name, url=process.http_url(), router=router, process=process)
        except StartError as error:
            if not router.version:
                raise NotMeasurableError(f"{router.name} did not start: {error}") from error
            NOTES.print(f"{router.name} did not start and is left out: {error}", markup=False)


def check_all(running: Sequence[Running], files: Files) -> None:
    """Those that are said to be precise are."""
    for each in running:
        if each.router is not None and each.process is not None and each.router.is_precise:
            check_index(each.process, files.held)
            check_picks(each.url, files.asks, files.held)


def run_case(case: Case, routers: Sequence[Router], folder: Path, options: argparse.Namespace) -> list[Row]:
    """All rounds of one case, routers in turn."""
    files = files_of(case, folder, options.tokenizer)
    samples: dict[str, list[Sample]] = defaultdict(list)
    title = f"{case.prompt_bytes} B, {'streamed' if case.streams else 'whole'}"
    with contextlib.ExitStack() as stack:
        sources = stack.enter_context(publishing(folder, files.held, ENGINES))
        urls = stack.enter_context(streaming_engines(ENGINES) if case.streams else nginx(folder, ENGINES))
        running = list(start_all(stack, routers, Surroundings(urls=urls, sources=sources, folder=folder)))
        check_all(running, files)
        turns = [(turn, each) for turn in range(options.rounds) for each in running]
        for turn, each in track(turns, title, transient=True, console=NOTES):
            try:
                samples[each.name].append(measure(each, files, turn, options))
            except (OSError, ValueError) as error:
                said = "" if each.process is None else each.process.output()
                raise SystemExit(f"{each.name}, {title}: {error!r}; it said: {said}") from error
        check_all(running, files)
    return [summary(case, name, some, samples[DIRECT]) for name, some in samples.items()]


def summary(case: Case, name: str, samples: Sequence[Sample], direct: Sequence[Sample]) -> Row:
    """Medians; what is added is the median of the differences of each round."""

    def median(field: str) -> float:
        return statistics.median(getattr(sample, field) for sample in samples)

    def added(field: str) -> float:
        pairs = zip(samples, direct, strict=True)
        return statistics.median(getattr(sample, field) - getattr(base, field) for sample, base in pairs)

    return {
        **asdict(case),
        "router": name,
        "case": f"{case.prompt_bytes} B {'streamed' if case.streams else 'whole'}: {name}",
        "first_byte_ms": round(median("first_ms"), 3),
        "whole_ms": round(median("whole_ms"), 3),
        "added_first_byte_ms": round(added("first_ms"), 3),
        "added_whole_ms": round(added("whole_ms"), 3),
        "requests_per_s": round(median("requests_per_s")),
        "requests_per_s_core": round(1e6 / cpu_us) if (cpu_us := median("cpu_us")) else 0,
        "cpu_us_per_request": round(cpu_us),
        "at_holder": round(median("at_holder"), 3) if any(one.at_holder for one in samples) else None,
        "rss_mib": round(median("rss_mib"), 1),
        "failed": sum(sample.failed for sample in samples),
        "rounds": len(samples),
    }


def show(rows: Sequence[Row]) -> None:
    """The rows as a table."""
    columns = {
        "prompt B": "prompt_bytes",
        "streams": "streams",
        "router": "router",
        "+first ms": "added_first_byte_ms",
        "+whole ms": "added_whole_ms",
        "requests/s": "requests_per_s",
        "per core": "requests_per_s_core",
        "CPU us": "cpu_us_per_request",
        "at holder": "at_holder",
        "RSS MiB": "rss_mib",
        "failed": "failed",
    }
    table = Table(*columns)
    for row in rows:
        table.add_row(*(str(row[field]) for field in columns.values()))
    Console(width=WIDTH).print(table)


def options_given() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--rounds", type=int, default=3)
    add("--seconds", type=float, default=2.0, help="of load in each round")
    add("--requests", type=int, default=200, help="on one connection in each round")
    for name in ("sglang-router", "vllm-router", "smg"):
        add(f"--{name}", type=Path, help="where the peer's command is")
    add("--tokenizer", default="smollm2", help="what `tokenizer` of a model in Homing's file may name")
    add("--no-homing", dest="homing", action="store_false", help="peers alone")
    add("--homing-option", action="append", default=[], help="one more option for `homing serve`; may be repeated")
    add("--case", action="append", choices=["500", "200000", "500-stream", "200000-stream"], help="only this one")
    add("--output", type=Path, default=Path(__file__).parent / "results" / "door.json")
    return parser.parse_args()


def main() -> int:
    """Measure, show, write; an error when a request failed, or a router is not what its row says."""
    options = options_given()
    missing = [name for name in ("nginx", "wrk") if shutil.which(name) is None]
    if missing:
        sys.exit(f"{' and '.join(missing)}: not found; install it with the system's packages")
    try:
        rows = run_all(options)
    except NotMeasurableError as error:
        sys.exit(str(error))
    show(rows)
    return 1 if any(row["failed"] for row in rows) else 0


def run_all(options: argparse.Namespace) -> list[Row]:
    """All cases that are wanted; each is written as soon as it is measured."""
    routers = list(routers_of(options))
    result = {"machine": machine(), "connections": CONNECTIONS, "engines": ENGINES, "stream_events": EVENTS}
    result |= {"versions": {router.name: router.version for router in routers if router.version}}
    cases = [Case(prompt_bytes=size, streams=streams) for size in CONVERSATIONS for streams in (False, True)]
    wanted = set(options.case or ())
    rows: list[Row] = []
    for case in cases:
        if wanted and f"{case.prompt_bytes}{'-stream' if case.streams else ''}" not in wanted:
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows += run_case(case, routers, Path(folder), options)
        # A case takes a minute or more: what is measured is kept whatever becomes of the next one.
        options.output.write_text(json.dumps({**result, "rows": rows}, indent=2) + "\n")
    return rows


if __name__ == "__main__":
    sys.exit(main())

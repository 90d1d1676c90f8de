"""What a front door costs: Homing's and its peers', before engines that cost next to nothing.

    PYTHONPATH=.dev python benchmarks/bench_door.py [--rounds 3] [--smg PATH] [--output benchmarks/results/door.json]

Needs nginx and wrk, and the extra `loadtest`. Peers are measured where they are installed: sglang-router, vllm-router
and smg, as commands on the PATH or where the options say, each with the policy that is named in its row. Everything is
started here, on loopback.

In each round every router is asked in turn: on one connection, which tells the latency that it adds to the engine's
own, and on 32, which tells requests per second and, from /proc, the CPU time of the router's processes per request.
Rows are medians over the rounds. Prompts share nothing, and each comes again after 63 others of 500 B or 15 of 200 kB.
Engines do not tokenise here. Engines, load and routers share the machine's cores, so requests per second of a small
machine are those of all three together; CPU per request is the router's alone.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from door_client import WRK_SCRIPT, OneConnection, Timed, many_connections, write_bodies
from door_engine import MODEL, nginx_config
from rich.console import Console
from rich.progress import track
from rich.table import Table

from homing.loadtest.processes import Process, StartError, router_command, started
from homing.router.cli.demo.ports import free_ports

CONNECTIONS = 32
ENGINES = 2
EVENTS = 32
SIZES = {500: 64, 200_000: 16}
"""Bytes of a prompt, and how many different ones there are."""
WARM_UP = 10
WIDTH = 130
DIRECT = "none (direct)"
NOTES = Console(stderr=True)
Row = dict[str, Any]
Command = Callable[[Sequence[str]], list[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Router:
    """One that is measured: `command` starts it before these engines."""

    name: str
    command: Command


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is asked."""

    prompt_bytes: int
    streams: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """The requests of one case, and wrk's script."""

    bodies: list[bytes]
    path: Path
    script: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One round of one router."""

    first_ms: float
    whole_ms: float
    requests_per_s: float
    cpu_us: float
    rss_mib: float
    failed: int


def routers_of(options: argparse.Namespace) -> Iterator[Router]:
    """Homing, and the peers that are there."""
    given = options.homing_option
    if options.homing:
        yield Router(name="homing", command=lambda urls: router_command(urls) + given)
    for name, policy, further in (
        ("sglang-router", "cache_aware", ["launch"]),
        ("vllm-router", "round_robin", []),
        ("smg", "cache_aware", ["launch"]),
    ):
        path = getattr(options, name.replace("-", "_")) or shutil.which(name)
        if path is None:
            NOTES.print(f"{name} is not installed: left out")
            continue
        start = [str(path), *further, "--policy", policy, "--host", "127.0.0.1", "--log-level", "error"]
        yield Router(name=f"{name} {policy}", command=partial(_on_ports, start))


def _on_ports(start: Sequence[str], urls: Sequence[str]) -> list[str]:
    """Peers refuse port 0, so they get ports that are free."""
    door, metrics = free_ports(2)
    return [*start, "--port", str(door), "--prometheus-port", str(metrics), "--worker-urls", *urls]


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


def one_connection(url: str, bodies: Sequence[bytes], count: int) -> tuple[float, float]:
    """Median time to the first byte and to the end, in ms, after a warm-up."""
    connection = OneConnection(url)
    try:
        timed: list[Timed] = [connection.ask(bodies[number % len(bodies)]) for number in range(count + WARM_UP)]
    finally:
        connection.close()
    first_s, whole_s = zip(*((one.first_s, one.whole_s) for one in timed[WARM_UP:]), strict=True)
    return 1e3 * statistics.median(first_s), 1e3 * statistics.median(whole_s)


def measure(url: str, process: Process | None, files: Files, options: argparse.Namespace) -> Sample:
    """One round of one router."""
    first_ms, whole_ms = one_connection(url, files.bodies, options.requests)
    cpu_s = 0.0 if process is None else process.cpu_s()
    seen = many_connections(url, files.path, files.script, connections=CONNECTIONS, seconds=options.seconds)
    cpu_s = 0.0 if process is None else process.cpu_s() - cpu_s
    return Sample(
        first_ms=first_ms,
        whole_ms=whole_ms,
        requests_per_s=seen.requests / seen.seconds,
        cpu_us=1e6 * cpu_s / max(1, seen.requests),
        rss_mib=0.0 if process is None else process.rss_bytes() / 2**20,
        failed=seen.failed,
    )


def run_case(case: Case, routers: Sequence[Router], folder: Path, options: argparse.Namespace) -> list[Row]:
    """All rounds of one case, routers in turn."""
    script, path = folder / "wrk.lua", folder / "bodies.jsonl"
    script.write_text(WRK_SCRIPT)
    count = SIZES[case.prompt_bytes]
    bodies = write_bodies(path, MODEL, case.prompt_bytes, count, streams=case.streams, random=Random(7))
    files = Files(bodies=bodies, path=path, script=script)
    samples: dict[str, list[Sample]] = defaultdict(list)
    with contextlib.ExitStack() as stack:
        engines = streaming_engines(ENGINES) if case.streams else nginx(folder, ENGINES)
        urls = stack.enter_context(engines)
        measured: list[tuple[str, str, Process | None]] = [(DIRECT, urls[0], None)]
        for router in routers:
            process = stack.enter_context(started(router.command(urls)))
            try:
                measured.append((router.name, process.http_url(), process))
            except StartError as error:
                NOTES.print(f"{router.name} did not start and is left out: {error}", markup=False)
        title = f"{case.prompt_bytes} B, {'streamed' if case.streams else 'whole'}"
        turns = [turn for _ in range(options.rounds) for turn in measured]
        for name, url, of in track(turns, title, transient=True, console=NOTES):
            try:
                samples[name].append(measure(url, of, files, options))
            except (OSError, ValueError) as error:
                said = "" if of is None else of.output()
                raise SystemExit(f"{name}, {title}: {error!r}; it said: {said}") from error
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
        "first_byte_ms": round(median("first_ms"), 3),
        "whole_ms": round(median("whole_ms"), 3),
        "added_first_byte_ms": round(added("first_ms"), 3),
        "added_whole_ms": round(added("whole_ms"), 3),
        "requests_per_s": round(median("requests_per_s")),
        "cpu_us_per_request": round(median("cpu_us")),
        "rss_mib": round(median("rss_mib"), 1),
        "failed": sum(sample.failed for sample in samples),
        "rounds": len(samples),
    }


def versions_of(routers: Sequence[Router], options: argparse.Namespace) -> dict[str, str]:
    """Which peers were measured."""
    found = {}
    for router in routers:
        name = router.name.split(" ", maxsplit=1)[0]
        path = getattr(options, name.replace("-", "_"), None) or shutil.which(name)
        if path is not None and name != "homing":
            python = Path(path).parent / "python"
            code = f"import importlib.metadata as m; print(m.version({name!r}))"
            done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
            found[name] = done.stdout.strip() or "unknown"
    return found


def machine() -> Row:
    """What the figures were taken on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "load_1min_before": round(os.getloadavg()[0], 2),
    }


def show(rows: Sequence[Row]) -> None:
    """The rows as a table."""
    table = Table(
        "prompt B", "streams", "router", "+first ms", "+whole ms", "requests/s", "CPU us", "RSS MiB", "failed"
    )
    for row in rows:
        fields = ("prompt_bytes", "streams", "router", "added_first_byte_ms", "added_whole_ms", "requests_per_s")
        table.add_row(*(str(row[name]) for name in (*fields, "cpu_us_per_request", "rss_mib", "failed")))
    Console(width=WIDTH).print(table)


def options_given() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--rounds", type=int, default=3)
    add("--seconds", type=float, default=3.0, help="of load in each round")
    add("--requests", type=int, default=300, help="on one connection in each round")
    for name in ("sglang-router", "vllm-router", "smg"):
        add(f"--{name}", type=Path, help="where the peer's command is")
    add("--no-homing", dest="homing", action="store_false", help="peers alone")
    add("--homing-option", action="append", default=[], help="one more option for `homing serve`; may be repeated")
    add("--case", action="append", choices=["500", "200000", "500-stream", "200000-stream"], help="only this one")
    add("--output", type=Path, default=Path(__file__).parent / "results" / "door.json")
    return parser.parse_args()


def main() -> int:
    """Measure, show, write; an error when a request failed."""
    options = options_given()
    missing = [name for name in ("nginx", "wrk") if shutil.which(name) is None]
    if missing:
        sys.exit(f"{' and '.join(missing)}: not found; install it with the system's packages")
    routers = list(routers_of(options))
    result = {"machine": machine(), "connections": CONNECTIONS, "engines": ENGINES, "stream_events": EVENTS}
    result |= {"versions": versions_of(routers, options)}
    cases = [Case(prompt_bytes=size, streams=streams) for size in SIZES for streams in (False, True)]
    wanted = set(options.case or ())
    rows: list[Row] = []
    for case in cases:
        if wanted and f"{case.prompt_bytes}{'-stream' if case.streams else ''}" not in wanted:
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows += run_case(case, routers, Path(folder), options)
        # A case takes a minute or more: what is measured is kept whatever becomes of the next one.
        options.output.write_text(json.dumps({**result, "rows": rows}, indent=2) + "\n")
    show(rows)
    return 1 if any(row["failed"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())

"""How many requests the simulator gets through per second of CPU time, how much memory it takes, and where time goes.

    python benchmarks/bench_sim.py [--trace FILE] [--million] [--profile] [--peer-python PYTHON] [--short]

A run is everything between a checked scenario and its result: reading the trace, workload, router, engines, network
and records; CPU time is the process's. Rows are medians of three runs, taken in turn. All requests finish, and each run
of a case gives the same bytes. `--trace` names the whole conversation trace; without it the excerpt that ships is run.
`--million` adds a run of a million requests in a process of its own, and `--profile` says where the time goes.
`--short` is two runs of 400 requests, and writes nothing. `--peer-python` names a Python that has the package
ai-dynamo-runtime: then NVIDIA Dynamo's offline replay runs the same trace directly after ours (peer_replay.py).
"""

import argparse
import gc
import gzip
import json
import multiprocessing
import statistics
import subprocess
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec
from machine import machine
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sim_cases import BLOCK_TOKENS, EXCERPT, FEW, KV_TOKENS, MANY, Case, conversation_cases, many_requests
from sim_parts import Sampler
from xxhash import xxh3_128

from homing.sim.cluster.world import World
from homing.sim.experiments.run import run
from homing.sim.measure.log import RequestLog

ROUNDS, SHORT_ROUNDS = 3, 2
SHORT_REQUESTS = 400
MILLION = 1_000_000
RSS_MAX_BYTES = 2e9
REQUEST_MAX_BYTES = 2000
PEER_TIMEOUT_S = 600

Row = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One run."""

    cpu_s: float
    callbacks: int
    """Of the kernel."""
    requests: int
    hit_ratio: float
    """Prompt tokens that came out of some cache, of all."""
    digest: str
    """Of every record."""

    @property
    def requests_per_cpu_s(self) -> float:
        """What is measured."""
        return self.requests / self.cpu_s


def measure(case: Case) -> Sample:
    """One run, with what it computed checked after it."""
    experiment = case.experiment()
    worlds: list[World] = []
    gc.collect()
    start_s = time.process_time()
    result = run(experiment, prepare=worlds.append)
    cpu_s = time.process_time() - start_s
    log = result.log
    log.check()
    worlds[0].check_over()
    assert result.unfinished == 0
    assert all(record.outcome == "finished" for record in log), case.name
    return Sample(
        cpu_s=cpu_s,
        callbacks=worlds[0].kernel.happened,
        requests=len(log),
        hit_ratio=hit_ratio(log),
        digest=digest(log),
    )


def hit_ratio(log: RequestLog) -> float:
    """Prompt tokens that were found or moved, of all."""
    fields = ("device_hit_tokens", "host_hit_tokens", "disk_hit_tokens", "moved_tokens")
    found = sum(float(log.column(name).sum()) for name in fields)
    return found / float(log.column("prompt_tokens").sum())


def digest(log: RequestLog) -> str:
    """Equal for logs that are equal to the last bit."""
    state = xxh3_128()
    for record in log:
        state.update(msgspec.msgpack.encode(record))
    return state.hexdigest()


def bench_cases(cases: list[Case], rounds: int) -> list[Row]:
    """All cases, round by round, so that a busy moment of the machine hits all of them."""
    seen: dict[str, list[Sample]] = {case.name: [] for case in cases}
    for _ in track(range(rounds), description="rounds", transient=True):
        for case in cases:
            seen[case.name].append(measure(case))
    for name, samples in seen.items():
        assert len({sample.digest for sample in samples}) == 1, f"{name}: two runs differ (I5)"
    requests = {sample.requests for samples in seen.values() for sample in samples}
    assert len(requests) == 1, f"the cases have the same trace, and finished {requests}"
    rows = [row(name, samples) for name, samples in seen.items()]
    check_hits(cases, rows)
    return rows


def check_hits(cases: list[Case], rows: list[Row]) -> None:
    """Who looks at caches finds more in them."""
    ratios: dict[str, list[float]] = {"homing": [], "least-loaded": []}
    for case, one in zip(cases, rows, strict=True):
        ratios[case.policy].append(float(str(one["hit_ratio"])))
    assert 1.0 > min(ratios["homing"]) > max(ratios["least-loaded"]) > 0.0, ratios


def row(name: str, samples: list[Sample]) -> Row:
    """The medians of one case."""
    return {
        "case": name,
        "requests_per_cpu_s": round(statistics.median(sample.requests_per_cpu_s for sample in samples)),
        "hit_ratio": round(samples[0].hit_ratio, 3),
        "requests": samples[0].requests,
        "callbacks": samples[0].callbacks,
        "all_requests_per_cpu_s": [round(sample.requests_per_cpu_s) for sample in samples],
        "digest": samples[0].digest,
    }


def bench_many(requests: int) -> Row:
    """A long run and its memory, in a process that has done nothing before."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(many, requests).result()


def many(requests: int) -> Row:
    """The run itself; what it takes is counted above what the modules alone take."""
    case = many_requests(requests)
    experiment = case.experiment()
    before_bytes = memory("VmRSS")
    start_s = time.process_time()
    result = run(experiment)
    cpu_s = time.process_time() - start_s
    peak_bytes = memory("VmHWM")
    each_bytes = (peak_bytes - before_bytes) / requests
    assert len(result.log) == requests and result.unfinished == 0
    assert set(result.log.codes("outcome")[0].tolist()) == {result.log.codes("outcome")[1].index("finished")}
    if requests >= MILLION:
        assert peak_bytes < RSS_MAX_BYTES and each_bytes < REQUEST_MAX_BYTES, (peak_bytes, each_bytes)
    return {
        "case": case.name,
        "requests_per_cpu_s": round(requests / cpu_s),
        "hit_ratio": round(hit_ratio(result.log), 3),
        "requests": requests,
        "peak_rss_gb": round(peak_bytes / 1e9, 3),
        "bytes_per_request": round(each_bytes),
        "log_bytes_per_request": round(result.log.nbytes() / requests),
    }


def memory(field: str) -> int:
    """A line of /proc/self/status, in bytes; its peak, unlike getrusage's, is of this program alone."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def bench_peer(python: Path, trace: Path, requests: int, rounds: int) -> list[Row]:
    """The same trace in Dynamo; nothing, with a word why, where it cannot run."""
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "trace.jsonl"
        lines = (gzip.open if trace.suffix == ".gz" else open)(trace, "rb").read().splitlines(keepends=True)
        plain.write_bytes(b"".join(lines[:requests]))
        arguments = ["--workers", FEW, MANY, "--speeds", 1, MANY // FEW, "--requests", requests, "--rounds", rounds]
        arguments += ["--block-tokens", BLOCK_TOKENS, "--blocks", KV_TOKENS // BLOCK_TOKENS]
        script = Path(__file__).with_name("peer_replay.py")
        command = [str(python), str(script), "--trace", str(plain), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PEER_TIMEOUT_S, check=False)
    if done.returncode:
        print(f"no rows of the peer: {done.stderr.strip().splitlines()[-1]}")
        return []
    rows: list[Row] = json.loads(done.stdout)
    return rows


def profile(cases: list[Case]) -> dict[str, dict[str, float]]:
    """Shares of CPU time by part."""
    shares = {}
    for case in cases:
        sampler, experiment = Sampler(), case.experiment()
        with sampler.running():
            run(experiment)
        shares[case.name] = {part: round(share, 3) for part, share in sampler.shares().items()}
    return shares


def show(rows: list[Row]) -> None:
    """The rows as a table."""
    keys = ("requests_per_cpu_s", "hit_ratio", "requests", "callbacks", "peak_rss_gb", "bytes_per_request")
    table = Table("case", *(key.replace("_", " ") for key in keys))
    for one in rows:
        table.add_row(str(one["case"]), *(str(one.get(key, "")) for key in keys))
    Console(width=140).print(table)


def show_parts(shares: dict[str, dict[str, float]]) -> None:
    """Parts by cases, the dearest of the first case first."""
    table = Table("part", *shares)
    for part in next(iter(shares.values())):
        table.add_row(part, *(f"{of.get(part, 0.0):.1%}" for of in shares.values()))
    Console(width=140).print(table)


def options_given() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trace", type=Path, default=EXCERPT, help="the whole conversation trace")
    parser.add_argument("--million", type=int, nargs="?", const=MILLION, help="another number makes it shorter")
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    parser.add_argument("--peer-python", type=Path, help="a Python that can import ai-dynamo-runtime")
    parser.add_argument("--short", action="store_true", help="a few seconds of everything, nothing written")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "sim.json")
    return parser.parse_args()


def main() -> None:
    """Run, print the tables, write the results."""
    options = options_given()
    before = machine()
    rounds = SHORT_ROUNDS if options.short else ROUNDS
    cases = conversation_cases(options.trace, SHORT_REQUESTS if options.short else None)
    rows = bench_cases(cases, rounds)
    if options.peer_python is not None:
        requests = rows[0]["requests"]
        assert isinstance(requests, int)
        rows += bench_peer(options.peer_python, options.trace, requests, rounds)
    if options.million is not None:
        rows.append(bench_many(options.million))
    show(rows)
    shares = profile(cases) if options.profile else {}
    if shares:
        show_parts(shares)
    if not options.short:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        result = {"machine": before, "trace": options.trace.name, "rows": rows, "parts": shares}
        options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

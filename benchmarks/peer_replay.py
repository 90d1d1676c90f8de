"""NVIDIA Dynamo's offline replay on the trace of bench_sim.py; prints its rows as JSON.

Runs in an environment of its own that has the package ai-dynamo-runtime:

    python benchmarks/bench_sim.py --peer-python /path/to/that/bin/python

Its mock engine has the same blocks, as many of them, and its own model of time; its router chooses by KV.
"""

import argparse
import json
import os
import statistics
import time
from importlib.metadata import version

# Read when it is imported: without it each decision is a line on stderr, which would be measured.
os.environ.setdefault("DYN_LOG", "error")
from dynamo._core import run_mocker_trace_replay

PEER = f"Dynamo {version('ai-dynamo-runtime')}"


def replay(options: argparse.Namespace, workers: int, speed: int) -> dict[str, object]:
    """One row: the median of several runs, each with its own reading of the trace, as ours."""
    speeds, ratios = [], []
    for _ in range(options.rounds):
        start_s = time.process_time()
        summary = run_mocker_trace_replay(
            [options.trace],
            extra_engine_args={"engine": {"block_size": options.block_tokens, "num_gpu_blocks": options.blocks}},
            num_workers=workers,
            router_mode="kv_router",
            trace_block_size=options.block_tokens,
            arrival_speedup_ratio=float(speed),
            capture_planner_details=False,
        ).summary
        speeds.append(summary["completed_requests"] / (time.process_time() - start_s))
        ratios.append(summary["prefix_cache_reused_ratio"])
        assert summary["completed_requests"] == options.requests, summary["completed_requests"]
    return {
        "case": f"{workers} workers, KV router: {PEER}",
        "requests_per_cpu_s": round(statistics.median(speeds)),
        "hit_ratio": round(statistics.median(ratios), 3),
        "requests": options.requests,
        "all_requests_per_cpu_s": [round(one) for one in speeds],
        "all_hit_ratios": [round(one, 4) for one in ratios],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trace", required=True, help="not packed")
    parser.add_argument("--workers", type=int, nargs="+", required=True)
    parser.add_argument("--speeds", type=int, nargs="+", required=True)
    parser.add_argument("--requests", type=int, required=True)
    parser.add_argument("--block-tokens", type=int, required=True)
    parser.add_argument("--blocks", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    options = parser.parse_args()
    rows = [replay(options, workers, speed) for workers, speed in zip(options.workers, options.speeds, strict=True)]
    print(json.dumps(rows))


if __name__ == "__main__":
    main()

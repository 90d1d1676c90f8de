"""Runs the demo with its real model and asserts what it is there to show. Wants a quiet machine: `make demo-check`."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

LINK_ERROR_MAX = 0.20
TTFT_ERROR_MEDIAN_MAX = 0.35


def main() -> int:
    """Print what falls short; 0 when nothing does."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "demo.json"
        command = [sys.executable, "-m", "homing.router.cli.main", "demo", "--out", str(out)]
        subprocess.run(command, check=True)
        told = json.loads(out.read_text())
    summary = told["summary"]
    problems = [f"plan {kind} was never the cheapest" for kind, count in summary["plans"].items() if not count]
    if summary["same_tokens"] != summary["requests"]:
        problems.append(f"only {summary['same_tokens']} of {summary['requests']} answers have the same tokens")
    if summary["ttft_error_median_second_half"] > TTFT_ERROR_MEDIAN_MAX:
        problems.append(f"median TTFT error at the end is {summary['ttft_error_median_second_half']:.0%}")
    for link in told["links"]:
        error = link["learned_bytes_per_s"] / link["true_bytes_per_s"] - 1
        if abs(error) > LINK_ERROR_MAX:
            problems.append(f"link {link['name']} is believed {error:+.0%} off")
    for problem in problems:
        print(f"falls short: {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())

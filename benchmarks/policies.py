"""All policies on the scenarios that ship, as one table: what `homing sim compare` found, brought together.

    for s in conversation shared-prefix ...; do homing sim compare $s --policies all --out FOLDER/$s --no-report; done
    python benchmarks/policies.py FOLDER

Writes `benchmarks/results/policies.json`, which docs/performance.md shows. A policy is no worse than another where
the 95 % interval of the paired difference reaches zero; the last column counts Homing's four figures by that measure.
"""

import json
import platform
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "policies.json"
OURS = "homing"
LATENCIES = ("ttft_p50_s", "ttft_p90_s", "ttft_p99_s")
GOODPUT = "goodput_share"


def rows_of(folder: Path) -> list[dict[str, object]]:
    """One row per policy of one scenario, the best mean TTFT first."""
    comparison = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    assert comparison["baseline"] == OURS, "differences are to be taken from Homing: name it first"
    scores = sorted(comparison["scores"], key=lambda score: score["metrics"]["ttft_mean_s"]["estimate"])
    assert {score["policy"] for score in scores} >= {OURS}
    return [_row(comparison["scenario"], score) for score in scores]


def _row(scenario: str, score: dict) -> dict[str, object]:
    metrics, differences = score["metrics"], score["differences"]
    row: dict[str, object] = {"case": f"{scenario}, {score['policy']}"}
    row |= {name: round(metrics[name]["estimate"], 4) for name in ("ttft_mean_s", *LATENCIES)}
    row["goodput_percent"] = round(100 * metrics[GOODPUT]["estimate"], 2)
    if differences:
        worse = sum(differences[name]["high"] < 0 for name in LATENCIES) + (differences[GOODPUT]["low"] > 0)
        better = sum(differences[name]["low"] > 0 for name in LATENCIES) + (differences[GOODPUT]["high"] < 0)
        row |= {"homing_better": better, "homing_worse": worse}
    else:
        row |= {"homing_better": 0, "homing_worse": 0}
    return row


def main(folder: Path) -> None:
    """Bring the comparisons below a folder together, and print them as a table."""
    found = sorted(path.parent for path in folder.glob("*/comparison.json"))
    assert found, f"{folder}: no comparison is below it"
    rows = [row for each in found for row in rows_of(each)]
    machine = {"machine": platform.processor() or platform.machine(), "python": platform.python_version()}
    RESULTS.write_text(json.dumps({**machine, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    print("| case | TTFT mean s | p50 s | p90 s | p99 s | goodput % | Homing better | worse |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        cells = (f"{row[n]:.3f}" for n in ("ttft_mean_s", *LATENCIES))
        print(f"| {row['case']} | {' | '.join(cells)} | {row['goodput_percent']:.1f} ", end="")
        print(f"| {row['homing_better']} | {row['homing_worse']} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

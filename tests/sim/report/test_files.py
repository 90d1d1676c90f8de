"""Files come back as they were, are the same every time, and say what they are."""

import csv
import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import msgspec
import numpy as np
import pytest
from pyarrow import parquet

from homing.router.core.errors import ConfigError
from homing.sim.measure.compare import Comparison, compare
from homing.sim.measure.log import RequestLog
from homing.sim.measure.schema import Slo, Summary
from homing.sim.measure.summary import summarize
from homing.sim.report.files import COLUMNS, read_json, to_json, write_json, write_table

from .runs import busy_run, result

SLO = Slo(ttft_s=1.0, tpot_s=0.05)
HERE = Path(__file__).resolve().parent


def test_a_summary_comes_back(tmp_path):
    summary = summarize(busy_run(), SLO)
    write_json(summary, tmp_path / "run.json")
    back = read_json(tmp_path / "run.json", Summary)
    assert back.requests == summary.requests
    assert back.ttft_s.p99 == pytest.approx(summary.ttft_s.p99, rel=1e-8)
    assert to_json(back) == to_json(summary), "rounding twice is rounding once"


def test_a_comparison_comes_back(tmp_path):
    comparison = compare([busy_run()], SLO, np.random.default_rng(0), resamples=20)
    write_json(comparison, tmp_path / "c.json")
    assert to_json(read_json(tmp_path / "c.json", Comparison)) == to_json(comparison)


def test_json_has_sorted_keys_and_a_version():
    text = to_json(summarize(result(), SLO)).decode()
    document = json.loads(text, object_pairs_hook=lambda pairs: [key for key, _ in pairs] if pairs else [])
    assert document == sorted(document)
    assert json.loads(text)["schema"] == "homing.sim.run/1"
    assert json.loads(text)["ttft_s"]["p50"] is None


def test_the_layout_is_public():
    """Fields that readers rely on; one that goes or changes its meaning needs a new SCHEMA."""
    names = {field.name for field in msgspec.structs.fields(Summary)}
    assert names >= {
        "schema", "scenario", "policy", "seed", "from_s", "to_s", "slo", "requests", "rates", "ttft_s", "tpot_s",
        "itl_s", "e2e_s", "waited_s", "queued_s", "tokens", "fairness", "prediction", "cost", "plans", "commands",
        "links", "pools", "origins", "notes",
    }  # fmt: skip


@pytest.mark.parametrize("text", ["", "{}", "[1]", "{", '{"schema": "homing.sim.run/2"}'])
def test_something_else_is_refused_with_its_name(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"x\.json: expected JSON with schema 'homing.sim.run/1'"):
        read_json(path, Summary)
    with pytest.raises(ConfigError, match="nowhere"):
        read_json(tmp_path / "nowhere.json", Summary)


def test_another_version_is_refused(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(to_json(summarize(result(), SLO)).replace(b"sim.run/1", b"sim.run/9"))
    with pytest.raises(ConfigError, match=r"got 'homing\.sim\.run/9'"):
        read_json(path, Summary)


@pytest.mark.parametrize("log", [busy_run().log, RequestLog()], ids=["busy", "empty"])
def test_tables_hold_every_request(tmp_path, log):
    write_table(log, tmp_path / "t.parquet")
    write_table(log, tmp_path / "t.csv")
    rows = parquet.read_table(tmp_path / "t.parquet").to_pylist()
    assert rows == [{name: getattr(record, name) for name in COLUMNS} for record in log]
    with (tmp_path / "t.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(row["id"], row["outcome"]) for row in lines] == [(record.id, record.outcome) for record in log]
    assert [float(row["ttft_s"]) if row["ttft_s"] else None for row in lines] == [record.ttft_s for record in log]


def test_a_table_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"ends in \.csv or \.parquet, got '\.xlsx'"):
        write_table(RequestLog(), tmp_path / "t.xlsx")


DIGESTS = """
import hashlib, sys, tempfile
from pathlib import Path
import numpy as np
from runs import busy_run
from homing.sim.measure.schema import Slo
from homing.sim.measure.summary import summarize
from homing.sim.report.files import to_json, write_json, write_table
from homing.sim.report.html import write_report
folder = Path(tempfile.mkdtemp())
runs = [busy_run(policy, seed, slowness) for policy, slowness in (("homing", 1), ("random", 2)) for seed in (1, 2)]
slo = Slo(ttft_s=1.0, tpot_s=0.05)
write_json(summarize(runs[0], slo), folder / "run.json")
write_table(runs[0].log, folder / "requests.csv")
write_table(runs[0].log, folder / "requests.parquet")
write_json(write_report(runs, slo, folder / "report.html", resamples=20), folder / "comparison.json")
for path in sorted(folder.iterdir()):
    print(path.name, hashlib.sha256(path.read_bytes()).hexdigest())
"""


def test_equal_results_give_equal_bytes_in_every_process():
    """I5, through every kind of file that there is."""
    path = ":".join([str(HERE), *sys.path])
    running = [
        subprocess.Popen(
            [sys.executable, "-c", DIGESTS],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": path, "SOURCE_DATE_EPOCH": seed, "TZ": zone},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed, zone in (("1", "UTC"), ("2", "Asia/Tokyo"))
    ]
    one, two = (process.communicate(timeout=120)[0].split() for process in running)
    assert one == two
    assert len(one) == 10
    assert one[one.index("requests.csv") + 1] == sha256(csv_bytes()).hexdigest(), "and in this one"


def csv_bytes():
    lines = [",".join(COLUMNS)]
    for record in busy_run("homing", 1, 1).log:
        lines.append(",".join("" if (value := getattr(record, name)) is None else str(value) for name in COLUMNS))
    return ("\n".join(lines) + "\n").encode()

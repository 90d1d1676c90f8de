"""The sub-commands as a user types them: what they print, what they write, how they fail."""

import signal
import subprocess
import sys
import time

import msgspec
import pytest
import yaml

from homing.router.cli.main import main
from homing.sim.experiments.load import FOLDER

SHORT = ("--set", "duration_s=10")


@pytest.fixture
def homing(monkeypatch, capsys):
    """Run a command line; gives exit code, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["homing", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        return ended.value.code or 0, shown.out, shown.err

    return run


def test_run_prints_the_headline_and_says_how_to_get_more(homing):
    code, out, err = homing("sim", "run", "smoke", *SHORT, "--policy", "random", "--seed", 3)
    assert code == 0
    assert "smoke, random, seed 3" in out and "TTFT" in out and "finished, in" in out
    assert "--out DIR writes a report" in err


def test_run_writes_what_it_names(homing, tmp_path):
    folder = tmp_path / "results"
    code, _, err = homing("sim", "run", "smoke", *SHORT, "--out", folder)
    assert code == 0
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["report.html", "requests.csv", "run.json"]
    assert all(f"wrote {folder / name}\n" in err for name in names)
    summary = msgspec.json.decode((folder / "run.json").read_bytes())
    assert summary["schema"] == "homing.sim.run/1" and "duration_s = 10" in summary["notes"]


def test_run_without_a_report_and_with_parquet(homing, tmp_path):
    homing("sim", "run", "smoke", *SHORT, "--out", tmp_path, "--no-report", "--table", "parquet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["requests.parquet", "run.json"]


def test_a_journal_is_replayed(homing, tmp_path):
    journal = tmp_path / "j.jsonl"
    homing("sim", "run", "smoke", *SHORT, "--journal", journal)
    code, out, _ = homing("sim", "replay", journal)
    assert code == 0 and out.endswith(" events, same commands\n")
    lines = journal.read_bytes().splitlines(keepends=True)
    place = next(number for number, line in enumerate(lines) if b'"digest"' in line)
    journal.write_bytes(
        b"".join(lines[:place]) + lines[place].replace(b'"digest":"', b'"digest":"f') + b"".join(lines[place + 1 :])
    )
    code, out, _ = homing("sim", "replay", journal)
    assert code == 1 and f"line {place + 1}: RequestArrived" in out


def test_compare_prints_a_row_per_policy_and_writes_each_run(homing, tmp_path):
    command = (
        "sim",
        "compare",
        "smoke",
        *SHORT,
        "--policies",
        "least-loaded,homing",
        "--seeds",
        "0,1",
        "--processes",
        1,
    )
    code, out, err = homing(*command, "--out", tmp_path)
    assert code == 0 and out.index("least-loaded") < out.index("homing")
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        f"{policy}-{seed}.{kind}"
        for policy in ("homing", "least-loaded")
        for seed in (0, 1)
        for kind in ("csv", "json")
    ]
    assert msgspec.json.decode((tmp_path / "comparison.json").read_bytes())["baseline"] == "least-loaded"
    assert f"wrote {tmp_path / 'report.html'}" in err


def test_sweep_runs_a_grid_goes_on_and_draws(homing, tmp_path):
    scenario = tmp_path / "two.yaml"
    code, _, _ = homing("sim", "scenarios")
    assert code == 0
    worker = {"profile": {"b_s": 1e-4}, "kv_tokens": 50_000}
    scenario.write_text(
        yaml.safe_dump(
            {
                "name": "two",
                "duration_s": 5,
                "sites": [{"name": "a"}, {"name": "b"}],
                "links": [{"source": "a", "target": "b", "bytes_per_s": 1e9, "rtt_s": 0.01}],
                "workers": [{"name": "x", "site": "a", **worker}, {"name": "y", "site": "b", **worker}],
                "workload": {"kind": "prompts"},
                "sweep": {"links[*].bytes_per_s": [1e8, 1e9], "links[*].rtt_s": [0.01]},
            }
        )
    )
    file, plot = tmp_path / "s.jsonl", tmp_path / "s.png"
    command = ("sim", "sweep", scenario, "--set", "router.policy=homing,random", "--out", file, "--processes", 1)
    code, out, err = homing(*command, "--plot", plot)
    assert code == 0 and "two, 4 runs" in out and f"wrote {plot}" in err and plot.stat().st_size > 10_000
    assert len(file.read_bytes().splitlines()) == 4
    _, again, err = homing(*command)
    assert again == out and f"4 of 4 are in {file} already" in err


def test_published_numbers_reuse_and_fits_are_printed(homing, tmp_path):
    code, out, _ = homing("sim", "prfaas")
    assert code == 0 and "lambda max" in out and "3.24" in out and "printed split" in out
    trace = tmp_path / "t.jsonl"
    trace.write_text('{"timestamp": 0, "input_length": 600, "output_length": 2, "hash_ids": [1, 2]}\n' * 2)
    code, out, _ = homing("sim", "reuse", trace)
    assert code == 0 and "2 requests, 1,200 prompt tokens" in out and "0.5000" in out
    points = tmp_path / "points.csv"
    points.write_text(
        "cached_tokens,end_tokens,seconds\n" + "".join(f"0,{n},{0.01 + 1e-4 * n}\n" for n in (512, 1024, 4096, 8192))
    )
    code, out, err = homing("calibrate", "fit", points, "--out", tmp_path / "p.json", "--name", "mine", "--gpus", 2)
    assert code == 0 and "a_s 0.01" in out and "wrote" in err
    assert msgspec.json.decode((tmp_path / "p.json").read_bytes())["gpus"] == 2


def test_the_requests_of_a_scenario_make_a_trace_that_runs_the_same(homing, tmp_path):
    trace = tmp_path / "t.jsonl.gz"
    code, out, err = homing("sim", "trace", "smoke", *SHORT, "--out", trace)
    assert (code, out) == (0, "") and err.startswith(f"wrote {trace}, ")
    scenario = yaml.safe_load((FOLDER / "smoke.yaml").read_text())
    replayed = scenario | {"duration_s": 10, "workload": {"kind": "mooncake", "path": trace.name}}
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(replayed))
    tables = []
    for name in ("smoke", tmp_path / "again.yaml"):
        homing("sim", "run", name, *SHORT, "--out", tmp_path, "--no-report")
        tables.append((tmp_path / "requests.csv").read_text().splitlines())
    assert len(tables[0]) == len(tables[1]) > 5
    assert [line.split(",")[0] for line in tables[0]] == [line.split(",")[0] for line in tables[1]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sim", "run", "nope"), "scenario: none that ships is named 'nope'; there are agent-fanout"),
        (("sim", "run", "nope.yaml"), "nope.yaml: cannot be read: No such file or directory"),
        (("sim", "run", "smoke", "--policy", "best"), "smoke.yaml: router.policy: unknown policy 'best'; known are"),
        (("sim", "run", "smoke", "--set", "workers[7].count=2"), "workers[7].count: there are 1 entries"),
        (("sim", "run", "smoke", "--set", "workers[0].cuont=2"), "cuont"),
        (("sim", "run", "smoke", "--set", "seed"), "--set seed: expected path=value"),
        (("sim", "run", "smoke", "--journal", "/nowhere/j"), "--journal /nowhere/j: cannot be written: No such file"),
        (("sim", "compare", "smoke", "--policies", "homing,x"), "--policies: unknown policy 'x'"),
        (("sim", "compare", "smoke", "--seeds", "a"), "--seeds a: expected whole numbers"),
        (("sim", "compare", "smoke", "--on", "spark://x"), "--on spark://x: expected ray://host:port"),
        (("sim", "sweep", "smoke"), "nothing to sweep over; give --set path=value,value"),
        (("sim", "sweep", "smoke", "--set", "seed=1", "--plot", "x.png"), "--plot: a heat map needs axes such as"),
        (("sim", "replay", "nope.jsonl"), "nope.jsonl: cannot be read: No such file"),
        (("sim", "reuse", "nope.jsonl"), "nope.jsonl: expected a trace in Mooncake's format, found no file"),
        (("calibrate", "fit", "nope.csv"), "nope.csv: cannot be read"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(homing, arguments, message):
    code, out, err = homing(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and message in err and err.count("\n") == 1


def test_a_bad_line_of_a_trace_is_named_by_file_and_line(homing, tmp_path):
    (tmp_path / "t.jsonl").write_text('{"timestamp": 0, "input_length": 9, "output_length": 2}\n{"timestamp": 1}\n')
    worker = {"name": "w", "site": "a", "profile": {"b_s": 1e-4}, "kv_tokens": 50_000}
    scenario = {
        "name": "t",
        "sites": [{"name": "a"}],
        "workers": [worker],
        "workload": {"kind": "mooncake", "path": "t.jsonl"},
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(scenario))
    code, _, err = homing("sim", "run", tmp_path / "s.yaml")
    assert code == 2 and err.count("\n") == 1 and f"{tmp_path / 't.jsonl'}:2: " in err and "input_length" in err


def test_an_interrupted_sweep_keeps_what_is_done_and_says_how_to_go_on(tmp_path):
    out = tmp_path / "s.jsonl"
    command = [
        sys.executable,
        "-m",
        "homing.router.cli.main",
        "sim",
        "sweep",
        "smoke",
        "--out",
        str(out),
        "--processes",
        "1",
    ]
    command += ["--set", f"seed={','.join(map(str, range(400)))}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as sweep:
        until_s = time.monotonic() + 60
        while (not out.exists() or not out.stat().st_size) and time.monotonic() < until_s:
            time.sleep(0.05)
        sweep.send_signal(signal.SIGINT)
        shown, told = sweep.communicate(timeout=30)
    assert (sweep.returncode, shown) == (130, "")
    assert told == f"interrupted: what is done is in {out}; the same command goes on from there\n"
    lines = out.read_bytes().splitlines()
    assert lines and all(msgspec.json.decode(line)["digest"] for line in lines)


def test_without_the_extra_a_run_still_tells_its_headline(tmp_path):
    """Where numpy and the plots cannot be imported."""
    code = (
        "import sys\n"
        "for name in ('numpy', 'matplotlib', 'jinja2', 'pyarrow', 'markupsafe'): sys.modules[name] = None\n"
        "from homing.router.cli.main import main\n"
        "main()"
    )

    def run(*arguments):
        command = [sys.executable, "-c", code, "sim", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    plain = run("run", "smoke", *SHORT, "--no-report", "--out", str(tmp_path))
    assert plain.returncode == 0 and "TTFT" in plain.stdout and "goodput" in plain.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["requests.csv"]
    assert "pip install 'homing[sim]'" in plain.stderr
    for arguments in (
        ("run", "smoke", "--out", str(tmp_path)),
        ("run", "smoke", *SHORT, "--no-report", "--table", "parquet", "--out", str(tmp_path)),
        ("compare", "smoke"),
        ("sweep", "smoke", "--set", "seed=1"),
    ):
        refused = run(*arguments)
        assert refused.returncode == 2 and "pip install 'homing[sim]'" in refused.stderr
        assert refused.stderr.count("\n") == 1

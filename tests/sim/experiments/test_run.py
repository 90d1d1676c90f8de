import gc
import subprocess
import sys
from dataclasses import fields
from itertools import pairwise

import msgspec
import pytest

from homing.router.core.errors import ConfigError
from homing.router.garbage import ALLOCATIONS
from homing.sim.experiments.document import read_document
from homing.sim.experiments.load import FOLDER, load, prepare
from homing.sim.experiments.run import run

SHORT = {"duration_s": 20}


def same(one, other):
    """Whether two results are equal, record by record."""
    assert list(one.log) == list(other.log)
    for field in fields(one):
        if field.name not in {"log", "itl", "timeline"}:
            assert getattr(one, field.name) == getattr(other, field.name), field.name
    assert one.itl.quantile(0.9) == other.itl.quantile(0.9)
    assert one.timeline.kinds() == other.timeline.kinds()


def test_whoever_watches_changes_nothing():
    seen = []
    same(run(load("smoke", SHORT)), run(load("smoke", SHORT), seen.append))
    assert [progress.simulated_s for progress in seen][:3] == [0.0, 1.0, 2.0]
    assert seen[-1].share == 1.0, "all had arrived"
    assert all(a.share <= b.share and a.ended <= b.ended for a, b in pairwise(seen))
    assert 0.2 < seen[10].share < 0.8, "half of the time, about half of the arrivals"


@pytest.mark.parametrize(
    "workload",
    [
        {"kind": "prompts", "limit": 40, "arrivals": {"kind": "poisson", "rate_per_s": 4}},
        {"kind": "prompts", "until_s": 10, "arrivals": {"kind": "poisson", "rate_per_s": 4}},
        {"kind": "mooncake", "path": "traces/conversation-10min.jsonl.gz", "limit": 40, "time_scale": 2},
    ],
)
def test_the_share_that_has_arrived_is_known_for_workloads_that_end(workload):
    changes = {"duration_s": None, "workload": workload, "workers[0].kv_tokens": 2e6, "router.max_output_tokens": 4000}
    seen = []
    run(load("smoke", changes), seen.append)
    shares = [progress.share for progress in seen]
    assert shares == sorted(shares) and shares[-1] == 1.0
    assert any(0.3 < share < 0.9 for share in shares)


def test_a_trace_is_done_with_its_last_line(tmp_path):
    trace = tmp_path / "t.jsonl"
    trace.write_text(
        "".join(f'{{"timestamp": {1000 * n}, "input_length": 99, "output_length": 2}}\n' for n in range(40))
    )
    document = read_document(FOLDER / "smoke.yaml")
    changes = {"workload": {"kind": "mooncake", "path": "t.jsonl"}, "duration_s": None}
    seen = []
    run(prepare(document, tmp_path / "s.yaml", changes), seen.append)
    assert seen[20].share == pytest.approx(0.5, abs=0.1) and seen[-1].share == 1.0


def test_bad_lines_and_foreign_origins_are_told_with_the_scenario(tmp_path):
    document = read_document(FOLDER / "smoke.yaml")
    trace = tmp_path / "t.jsonl"
    changes = {"workload": {"kind": "mooncake", "path": "t.jsonl"}, "duration_s": None}
    good = '{"timestamp": 0, "input_length": 100, "output_length": 2}\n'
    trace.write_text(good + '{"timestamp": 5, "input_length": -1, "output_length": 2}\n')
    with pytest.raises(ConfigError, match=r"s\.yaml: .*t\.jsonl:2: input_length: .*got -1"):
        run(prepare(document, tmp_path / "s.yaml", changes))
    lenient = run(prepare(document, tmp_path / "s.yaml", changes | {"workload.strict": False}))
    assert len(lenient.log) == 1
    assert any(note.startswith("1 bad lines of the workload were skipped; the first: ") for note in lenient.notes)
    trace.write_text(good + '{"timestamp": 5, "input_length": 9, "output_length": 2, "origin": "mars"}\n')
    with pytest.raises(ConfigError, match=r"workload: r1 comes from 'mars', which is no site; known are home"):
        run(prepare(document, tmp_path / "s.yaml", changes))


def test_equal_seeds_give_equal_bytes_in_every_process():
    code = (
        "from dataclasses import astuple\n"
        "from homing.sim.experiments.load import load\nfrom homing.sim.experiments.run import run\n"
        "from xxhash import xxh3_64_hexdigest\n"
        "print(xxh3_64_hexdigest(repr([astuple(r) for r in run(load('smoke', {'duration_s': 20})).log]).encode()))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def test_garbage_is_collected_as_often_as_before():
    """Also behind a run that fails, and never more often than somebody asked for."""
    usual, seen = gc.get_threshold(), []

    def look(_):
        seen.append(gc.get_threshold())
        if seen[1:]:
            raise InterruptedError

    try:
        for asked in (usual, (10**6, 5, 5), (0, 10, 10)):
            gc.set_threshold(*asked)
            seen.clear()
            with pytest.raises(InterruptedError):
                run(load("smoke", SHORT), look)
            assert gc.get_threshold() == asked
            assert seen[0] == ((ALLOCATIONS, *usual[1:]) if asked == usual else asked)
    finally:
        gc.set_threshold(*usual)


def test_an_experiment_travels():
    experiment = load("smoke")
    assert (
        msgspec.json.decode(msgspec.json.encode(experiment.scenario), type=type(experiment.scenario))
        == experiment.scenario
    )

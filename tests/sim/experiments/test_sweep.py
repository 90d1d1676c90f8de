import msgspec
import pytest

from homing.router.core.errors import ConfigError
from homing.sim.experiments.document import read_document
from homing.sim.experiments.load import FOLDER
from homing.sim.experiments.sweep import plan, read_rows, sweep

SMOKE = FOLDER / "smoke.yaml"
GRID = {"duration_s": [5], "router.policy": ["homing", "random"], "seed": [0, 1]}


@pytest.fixture(scope="module")
def asked():
    return plan(read_document(SMOKE), SMOKE, GRID)


@pytest.fixture(scope="module")
def finished(asked, tmp_path_factory):
    """A sweep that ran to its end: its rows, and its file."""
    out = tmp_path_factory.mktemp("sweep") / "s.jsonl"
    return sweep(asked, out, processes=2), out.read_bytes()


def test_rows_are_in_the_order_asked_whatever_finishes_first(asked, finished):
    rows, data = finished
    assert [row.overrides for row in rows] == [point.overrides for point in asked]
    assert [(row.summary.policy, row.summary.seed) for row in rows] == [
        ("homing", 0),
        ("homing", 1),
        ("random", 0),
        ("random", 1),
    ]
    assert len(data.splitlines()) == 4


def test_an_interrupted_sweep_goes_on_where_it_stopped(asked, finished, tmp_path):
    rows, data = finished
    lines = data.splitlines(keepends=True)
    out = tmp_path / "s.jsonl"
    out.write_bytes(lines[0] + lines[1] + lines[2][:100])
    told = []
    assert sweep(asked, out, processes=1, done=lambda done, of: told.append(done)) == rows
    assert told == [2, 3, 4], "two were there, the torn one was run again"
    assert out.read_bytes().startswith(lines[0] + lines[1])
    assert sorted(out.read_bytes().splitlines()) == sorted(data.splitlines())
    told.clear()
    assert sweep(asked, out, processes=1, done=lambda done, of: told.append(done)) == rows
    assert told == [4], "nothing was left to do"


def test_what_is_kept_is_of_this_experiment(finished, tmp_path):
    _, data = finished
    out = tmp_path / "s.jsonl"
    out.write_bytes(data)
    other = plan(read_document(SMOKE), SMOKE, {"duration_s": [6], "seed": [0]})
    told = []
    sweep(other, out, processes=1, done=lambda done, of: told.append((done, of)))
    assert told == [(0, 1), (1, 1)]
    assert len(list(read_rows(out))) == 5


def test_equal_points_are_run_once():
    assert len(plan(read_document(SMOKE), SMOKE, {"seed": [1, 1], "router.policy": ["homing"]})) == 1


def test_a_wrong_point_is_told_before_any_runs():
    with pytest.raises(ConfigError, match=r"smoke\.yaml: router\.policy: unknown policy 'x'"):
        plan(read_document(SMOKE), SMOKE, {"router.policy": ["homing", "x"]})


def test_a_file_of_something_else_is_left_alone(asked, tmp_path):
    out = tmp_path / "precious.txt"
    for text, message in (("my notes", "is not the file of a sweep"), ("my notes\n", r"precious\.txt:1: is not a row")):
        out.write_text(text)
        with pytest.raises(ConfigError, match=message):
            sweep(asked, out)
        assert out.read_text() == text


def test_a_row_says_what_it_is(finished):
    _, data = finished
    line = msgspec.json.decode(data.splitlines()[0])
    assert line.keys() == {"digest", "set", "summary"}
    assert line["summary"]["schema"] == "homing.sim.run/1"

import gzip
from functools import cache
from io import BytesIO

import msgspec
import pytest

from homing.router.core.errors import ConfigError
from homing.sim.experiments.load import load
from homing.sim.experiments.replay import Recording, replay
from homing.sim.experiments.run import run

FAULTS = [{"kind": "router", "at_s": 8}, {"kind": "crash", "at_s": 12, "for_s": 5}]


@cache
def journal(policy="power-of-two", faults=0):
    """A run's journal, as the lines of its file."""
    file = BytesIO()
    changes = {"duration_s": 25, "router.policy": policy, "faults": FAULTS[:faults], "router.queue_max": 3}
    run(load("smoke", changes), prepare=Recording(file).begin)
    return tuple(file.getvalue().splitlines(keepends=True))


def saved(tmp_path, lines):
    path = tmp_path / "j.jsonl"
    path.write_bytes(b"".join(lines))
    return path


@pytest.mark.parametrize(("policy", "faults"), [("homing", 0), ("homing", 2), ("power-of-two", 2), ("gorgo", 1)])
def test_a_recorded_run_replays_to_the_same_commands(tmp_path, policy, faults):
    lines = journal(policy, faults)
    found = replay(saved(tmp_path, lines))
    events = sum(b'"event"' in line for line in lines)
    assert (found.events, found.difference, found.stopped) == (events, None, "")
    assert events > 200 and sum(b"restart" in line for line in lines) == min(faults, 1)
    assert sum(b'"digest"' in line for line in lines) > 20


def test_a_compressed_journal_is_read_too(tmp_path):
    path = tmp_path / "j.jsonl.gz"
    path.write_bytes(gzip.compress(b"".join(journal())))
    assert replay(path).difference is None


def first_with(lines, key):
    return next(number for number, line in enumerate(lines) if key in msgspec.json.decode(line))


def tampered(lines, number, **changes):
    line = msgspec.json.decode(lines[number]) | changes
    return [*lines[:number], msgspec.json.encode(line) + b"\n", *lines[number + 1 :]]


def test_a_tampered_answer_is_found_at_its_line(tmp_path):
    lines = journal()
    number = first_with(lines, "digest")
    forged = tampered(lines, number, digest="0" * 16, out=["dispatch x: local w-9"])
    found = replay(saved(tmp_path, forged)).difference
    assert found.line == number + 1
    assert str(found).startswith(f"line {number + 1}: RequestArrived at ")
    assert "recorded: dispatch x: local w-9\n  replayed: dispatch s" in str(found)


def test_a_tampered_event_is_found_where_it_first_matters(tmp_path):
    lines = journal("homing")
    number = first_with(lines, "digest")
    of = msgspec.json.decode(lines[number])["of"]
    of["request"]["prompt_tokens"] += 64
    found = replay(saved(tmp_path, tampered(lines, number, of=of))).difference
    assert found.line == number + 1
    assert found.recorded == found.replayed and "at other prices" in str(found)


def test_an_answer_that_was_not_recorded_is_found(tmp_path):
    lines = journal()
    number = first_with(lines, "digest")
    line = {key: value for key, value in msgspec.json.decode(lines[number]).items() if key not in {"digest", "out"}}
    forged = [*lines[:number], msgspec.json.encode(line) + b"\n", *lines[number + 1 :]]
    assert "recorded: nothing" in str(replay(saved(tmp_path, forged)).difference)


def test_a_journal_that_was_stopped_says_so(tmp_path):
    lines = [*journal()[:100], b'{"stopped":"it is full"}\n']
    found = replay(saved(tmp_path, lines))
    assert (found.stopped, found.difference) == ("it is full", None)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], r"j\.jsonl: is no journal: it is empty"),
        ([b"nonsense\n"], r"j\.jsonl:1: is not a line of JSON"),
        (
            [b'{"at": 1, "event": "TimerFired", "of": {}}\n'],
            r"j\.jsonl:1: is no journal: its first line is not a header",
        ),
        ([b'{"model": {}}\n'], r"j\.jsonl:1: is no journal"),
        ([b'{"header": {"site": 3}}\n'], r"j\.jsonl:1: site: expected str, got 3"),
    ],
)
def test_a_file_that_is_no_journal_is_refused(tmp_path, lines, message):
    with pytest.raises(ConfigError, match=message):
        replay(saved(tmp_path, lines))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"at": "x", "event": "TimerFired", "of": {}}\n', r"j\.jsonl:2: at: expected seconds, got 'x'"),
        (b'{"at": 1, "event": "Timer", "of": {}}\n', r"j\.jsonl:2: event: expected one of"),
        (b'{"what": 1}\n', r"j\.jsonl:2: expected a header, a model, an event or a restart, got what"),
        (b'{"at": 1,\n', r"j\.jsonl:2: is not a line of JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    with pytest.raises(ConfigError, match=message):
        replay(saved(tmp_path, [journal()[0], line]))
    with pytest.raises(ConfigError, match=r"none\.jsonl: cannot be read: No such file"):
        replay(tmp_path / "none.jsonl")

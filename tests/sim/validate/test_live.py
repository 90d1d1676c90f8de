"""The simulator against the live system: a run of the demo as it was recorded, simulated with the same requests."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import msgspec
import pytest

from homing.router.core.errors import ConfigError
from homing.sim.validate.live import (
    SAME_PLAN_MIN,
    SHIPPED,
    TTFT_ERROR_MAX,
    Comparison,
    check_live,
    compare,
    play,
    scenario_of,
)
from homing.sim.validate.recording import read_recording


@pytest.fixture(scope="module")
def recording():
    return read_recording(SHIPPED)


@pytest.fixture(scope="module")
def found(recording):
    return compare(recording)


def test_the_simulated_demo_is_as_fast_as_the_live_one_and_decides_alike(found):
    assert found.ttft_error_median < TTFT_ERROR_MAX
    assert found.same_plans >= SAME_PLAN_MIN
    assert found.passed
    assert all(check.passed for check in check_live(quick=True, progress=lambda text: None))


def test_the_recording_shows_what_a_fleet_is_for(recording):
    """Otherwise it would be easy to decide alike."""
    assert len(recording.requests) == 12
    assert len({live.plan for live in recording.requests}) >= 3
    assert len({worker.site for worker in recording.fleet.workers}) == 3
    assert recording.about


@pytest.mark.parametrize("factor", [0.6, 1.6])
def test_a_simulator_with_other_step_times_would_not_pass(recording, factor):
    speed = recording.speed
    slower = tuple((first, second, seconds * factor) for first, second, seconds in speed.prefill)
    changed = compare(_with(recording, speed=_with(speed, prefill=slower)))
    assert changed.ttft_error_median > TTFT_ERROR_MAX


def test_a_simulator_that_decides_otherwise_would_not_pass(found):
    pairs = tuple(replace(pair, plan="fetch" if pair.live.plan != "fetch" else "local") for pair in found.pairs)
    assert not Comparison(pairs=pairs, speed=found.speed).passed


@pytest.mark.parametrize("factor", [0.25, 4.0])
def test_requests_wait_for_what_they_waited_for_however_long_that_takes(recording, factor):
    speed = recording.speed
    slower = tuple((batch, context, seconds * factor) for batch, context, seconds in speed.decode)
    changed = _with(recording, speed=_with(speed, decode=slower))
    records = play(changed, scenario_of(changed, compare(changed).speed))
    for number, (live, record) in enumerate(zip(recording.requests, records, strict=True)):
        assert record.id == live.request
        assert record.outcome == "finished"
        before = records[:number]
        if live.when == "quiet":
            assert all(record.at_s > one.finished_at_s for one in before)
        else:
            assert before[-1].at_s + before[-1].ttft_s < record.at_s < before[-1].finished_at_s


def test_the_fleet_is_the_recorded_one(recording, found):
    scenario, fleet = scenario_of(recording, found.speed), recording.fleet
    size = fleet.model.block_tokens
    assert [worker.kv_tokens for worker in scenario.workers] == [worker.kv_blocks * size for worker in fleet.workers]
    assert [link.bytes_per_s for link in scenario.links] == [link.bytes_per_s for link in fleet.links]
    assert any(link.believed_bytes_per_s != link.bytes_per_s for link in scenario.links)


def test_equal_recordings_give_equal_bytes_in_every_process():
    """I5."""
    code = (
        "from homing.sim.validate.live import SHIPPED, compare\n"
        "from homing.sim.validate.recording import read_recording\n"
        "print([(p.plan, p.prefill, p.decode, p.ttft_s.hex()) for p in compare(read_recording(SHIPPED)).pairs])"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(answers) == 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda told: told.pop("speed"), "missing required field `speed`"),
        (lambda told: told["requests"][0].pop("blocks"), r"`blocks` - at `\$.requests"),
        (lambda told: told["requests"].clear(), "length >= 1"),
    ],
)
def test_a_file_that_the_demo_did_not_write_is_refused(tmp_path, change, told):
    file = tmp_path / "demo.json"
    content = json.loads(SHIPPED.read_text())
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=told):
        read_recording(file)


def test_no_file_and_no_json_are_told(tmp_path):
    with pytest.raises(ConfigError, match="homing demo --out"):
        read_recording(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        read_recording(tmp_path / "bad.json")


def _with(struct, **changes):
    return msgspec.structs.replace(struct, **changes)

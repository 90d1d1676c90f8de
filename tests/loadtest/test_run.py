"""The load test as people start it: real processes, real sockets, an echo worker at the other end."""

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest

from homing.loadtest.processes import StartError, echo_command, started

# Importing it would patch the sockets of all other tests.
pytestmark = pytest.mark.skipif(find_spec("locust") is None, reason="locust is not installed: homing[loadtest]")

QUICK = ["--homing-system-tokens", "20", "--homing-turn-tokens", "10", "--homing-output-tokens", "5"]


@pytest.fixture(scope="module")
def worker():
    with started(echo_command("--decode-s", "0.001", "--prefill-a-s", "0")) as process:
        yield process.http_url()


def load(*options):
    command = [sys.executable, "-m", "homing.loadtest.run", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def lines_of(done):
    lines = (line.split() for line in done.stdout.splitlines())
    return {" ".join(line[:-5]): line[-5:] for line in lines if len(line) > 5 and line[-1].count(".") == 1}


def test_conversations_are_answered_and_timed(worker, tmp_path):
    think = ["--homing-think-s", "0.02", "--report", str(tmp_path)]
    done = load("--url", worker, "--seconds", "2", "--users", "3", *QUICK, *think)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = lines_of(done)
    assert int(lines["SSE later turn"][0]) > int(lines["SSE first turn"][0]) > 0
    assert int(lines["ITL first turn"][0]) >= 3 * int(lines["SSE first turn"][0])
    assert float(lines["TTFT first turn"][2]) <= float(lines["SSE first turn"][2])
    assert (tmp_path / "load_stats.csv").exists()


def test_a_trace_is_replayed_to_its_end(worker, tmp_path):
    path = tmp_path / "trace.jsonl"
    row = {"input_length": 40, "output_length": 4, "block_size": 16, "hash_ids": [1, 2]}
    path.write_text("".join(json.dumps({"timestamp": 50 * at, **row}) + "\n" for at in range(12)))
    done = load("--url", worker, "--seconds", "30", "--homing-trace", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = lines_of(done)
    assert lines["SSE trace"][:2] == ["12", "0"]
    assert lines["LAG trace"][0] == "12"
    assert lines["ITL trace"][0] == str(12 * 3), "answers are exactly as long as in the trace"


def test_a_failed_request_fails_the_run(worker):
    done = load("--url", worker, "--model", "absent", "--seconds", "1", "--users", "1", *QUICK)
    assert done.returncode == 1
    assert "The model `absent` does not exist" in done.stdout + done.stderr


def test_idle_streams_are_held_and_given_back():
    quick = ["--streams", "40", "--hold-s", "0.2", "--close-s", "1", "--direct"]
    command = [sys.executable, "-m", "homing.loadtest.idle_streams", *quick]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["streams"], found["broken"], found["left_open"]) == (40, 0, 0)


def test_a_process_that_ends_says_why():
    with started(echo_command("--kv-blocks", "0")) as process, pytest.raises(StartError, match="kv_blocks"):
        process.http_url(timeout_s=20)


def test_a_process_that_never_answers_is_told():
    with started([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        with pytest.raises(StartError, match="does not answer"):
            process.http_url(timeout_s=0.3)
        assert process.rss_bytes() > 0

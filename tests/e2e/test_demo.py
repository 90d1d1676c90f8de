"""The demo, run as a user runs it, with the tiny model: every process, every move and the check at its end are real."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(240)
def test_demo_answers_every_request_with_the_tokens_of_one_worker_alone(tmp_path: Path) -> None:
    """Which plans win depends on the machine; that no token changes does not (I8)."""
    out = tmp_path / "demo.json"
    command = [sys.executable, "-m", "homing.router.cli.main", "demo", "--model", "tiny", "--out", str(out)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=230, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    told = json.loads(out.read_text())
    assert told["summary"]["requests"] == 12
    assert told["summary"]["same_tokens"] == 12
    assert told["summary"]["plans"]["local"] > 0
    assert told["summary"]["prefill_tokens_saved"] > 0
    assert "have the very tokens" in ran.stdout

"""The stopwatch and the command of the echo worker."""

import json
import signal
import subprocess
import sys

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from homing.workers.echo.engine import EchoEngine
from homing.workers.echo.settings import EchoSettings, StepTimes

from .serving import on_a_loop


@given(st.integers(1, 400), st.integers(1, 64), st.integers(0, 3))
def test_a_prompt_takes_its_time_however_it_is_cut(prompt, step_tokens, cached_blocks):
    times = StepTimes(prefill_a_s=0.5, prefill_b_s=0.01, prefill_q_s=0.0001, decode_s=0)

    @on_a_loop
    async def check():
        engine = EchoEngine(EchoSettings(step_tokens_max=step_tokens, kv_blocks=100))
        batcher, tokens = engine.batcher, list(range(prompt))
        taken_s, hits = 0.0, []
        for name, length in (("before", min(prompt, cached_blocks * 16)), ("after", prompt)):
            if not length:
                continue
            job = engine.submit(name, tokens[:length], echo=(), max_output_tokens=1)
            batcher.submit(job.sequence)
            batcher.admit()
            taken_s = 0.0
            while (batch := batcher.next_step()) is not None:
                taken_s += times.batch_s(batch)
                batcher.complete(batch, engine._sampled(batch))
            hits.append(job.sequence.hit_tokens)
        assert taken_s == pytest.approx(times.prefill_s(hits[-1], prompt))

    check()


@pytest.mark.parametrize("wrong", [{"prefill_a_s": -1}, {"decode_s": 1e9}])
def test_times_must_be_possible(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        StepTimes(**wrong)


def test_sizes_must_be_possible():
    with pytest.raises(ValueError, match="kv_blocks"):
        EchoSettings(kv_blocks=0)


def test_the_command_says_where_it_listens_and_ends_when_told():
    command = [sys.executable, "-m", "homing.workers.echo", "--model", "m", "--kv-events", "--decode-s", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        hello = json.loads(process.stdout.readline())

        @on_a_loop
        async def check():
            async with aiohttp.ClientSession(hello["url"]) as client:
                answer = await (await client.post("/v1/completions", json={"prompt": "hello", "max_tokens": 3})).json()
                assert answer["choices"][0]["text"] == "hel"

        check()
        assert hello["model"] == "m"
        assert hello["kv_endpoint"].startswith("tcp://127.0.0.1:")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()


def test_the_command_needs_no_torch():
    code = "import sys, homing.workers.echo.main; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

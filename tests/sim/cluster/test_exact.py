"""Passes that are run through at once against passes one by one, and the same run in another process."""

import subprocess
import sys
from dataclasses import astuple
from math import ceil, floor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homing.sim.cluster.stopwatch import Run
from homing.workers.engine.step import Batch

from .storms import storm
from .worlds import arrival, document, link, run, worker, world

ROOT = Path(__file__).resolve().parents[3]
TRACE = ROOT / "sim" / "scenarios" / "traces" / "conversation-10min.jsonl.gz"
SPREAD = {"kind": "poisson", "rate_per_s": 2.0}


def light(**keys) -> dict:
    workload = {
        "kind": "families",
        "block_tokens": 64,
        "limit": 120,
        "arrivals": SPREAD,
        "families": 6,
        "prefix": {"kind": "uniform", "min_tokens": 500, "max_tokens": 4000},
        "suffix": {"kind": "uniform", "min_tokens": 1, "max_tokens": 800},
        "output": {"kind": "uniform", "min_tokens": 1, "max_tokens": 200},
    }
    return document(worker(count=3, kv_tokens=60_000), workload=workload, **keys)


def mean(values) -> float:
    found = list(values)
    return sum(found) / len(found)


def test_pass_by_pass_gives_the_same_plans_hits_and_means():
    fast_world, fast = run(light(), check_every=0)
    slow_world, slow = run(light(exact=True), check_every=0)
    assert slow_world.kernel.happened > 3 * fast_world.kernel.happened
    same = sum(
        (fast[name].plan, fast[name].decode, fast[name].device_hit_tokens) == (r.plan, r.decode, r.device_hit_tokens)
        for name, r in slow.items()
    )
    assert same >= 0.98 * len(slow)
    for field in ("ttft_s", "tpot_s", "e2e_s", "device_hit_tokens"):
        fast_mean, slow_mean = (
            mean(getattr(r, field) for r in records.values() if r.output_tokens > 1) for records in (fast, slow)
        )
        assert fast_mean == pytest.approx(slow_mean, rel=0.01), field
    for field in ("decode_tokens", "busy_s", "passes"):
        fast_sum, slow_sum = (
            sum(getattr(w.counters, field) for w in made.workers.values()) for made in (fast_world, slow_world)
        )
        assert fast_sum == pytest.approx(slow_sum, rel=0.01), field


def test_pass_by_pass_on_conversations():
    """Five minutes of a real trace: what is run through at once changes the tail by less than one in forty."""
    if not TRACE.is_file():
        pytest.skip(f"no trace at {TRACE}")
    workload = {"kind": "mooncake", "path": str(TRACE), "block_tokens": 512, "limit": 500}
    profile = "llama3.1-70b-bf16_h100_sxm_tp8"
    workers = [worker(count=8, profile=profile, kv_tokens=1_200_000)]
    models = [{"shape": "llama-3.1-70b"}]
    ttft_s = {}
    for exact in (False, True):
        _, records = run(document(*workers, models=models, workload=workload, exact=exact), check_every=0)
        ttft_s[exact] = sorted(record.ttft_s for record in records.values())
    for share, within in ((0.5, 0.025), (0.9, 0.025), (0.99, 0.025)):
        at = ceil(share * len(ttft_s[True])) - 1
        assert ttft_s[False][at] == pytest.approx(ttft_s[True][at], rel=within), share
    assert mean(ttft_s[False]) == pytest.approx(mean(ttft_s[True]), rel=0.01)


def test_a_prompt_that_joins_ends_a_run_with_the_pass_that_runs():
    """The second request begins when the pass ends in which it came, as it does pass by pass."""
    for at_s in (0.5, 0.5123, 0.7001):
        begun = []
        for exact in (False, True):
            _, records = run(document(exact=exact), [arrival(output=300), arrival("s", at_s, output=40)])
            begun.append({name: (round(r.ttft_s, 7), round(r.e2e_s, 6), r.worst_itl_s) for name, r in records.items()})
        for name, found in begun[0].items():
            assert found == pytest.approx(begun[1][name], abs=1e-6)


@settings(deadline=None, max_examples=60)
@given(
    passes=st.integers(1, 1000),
    first_s=st.floats(1e-3, 0.2),
    growth=st.floats(-0.5, 2.0),
    share=st.floats(0.0, 1.2),
)
def test_the_stopwatch_inverts_its_own_times(passes, first_s, growth, share):
    """How many passes have begun and ended at a time is what adding the passes up one by one says."""
    slope_s = 0.0 if passes == 1 else first_s * growth / (passes - 1)
    stopwatch = Run(Batch([], []), 5.0, passes, first_s, slope_s)
    lasts_s = [first_s + slope_s * number for number in range(passes)]
    assert stopwatch.lasts_s(passes) == pytest.approx(sum(lasts_s), rel=1e-9)
    assert stopwatch.worst_s() == pytest.approx(max(lasts_s))
    elapsed_s = share * sum(lasts_s)
    ended, passed_s = 0, 0.0
    while ended < passes and passed_s + lasts_s[ended] <= elapsed_s:
        passed_s += lasts_s[ended]
        ended += 1
    assert abs(stopwatch.ended_by(5.0 + elapsed_s) - ended) <= 1
    between = elapsed_s - passed_s > 1e-6 and (ended == passes or passed_s + lasts_s[ended] - elapsed_s > 1e-6)
    if between:
        assert stopwatch.ended_by(5.0 + elapsed_s) == ended
        assert stopwatch.begun_by(5.0 + elapsed_s) == min(passes, ended + 1)
    for number in (1, passes):
        assert stopwatch.ended_by(5.0 + stopwatch.lasts_s(number)) == number
        assert stopwatch.begun_by(5.0 + stopwatch.lasts_s(number)) == number


PROGRAM = """
import sys
from tests.sim.cluster.test_exact import written
sys.stdout.write(written(int(sys.argv[1])))
"""


def written(seed: int) -> str:
    """The records of a storm, digit by digit, and the marks of its timeline."""
    made, records = run(storm(seed), check_every=0)
    lines = [repr(astuple(record)) for record in records.values()]
    return "\n".join([*lines, repr(made.marks), repr(sorted(made.commands.items())), repr(made.kernel.happened)])


@pytest.mark.parametrize("seed", [3, 5])
def test_a_seed_decides_a_run_in_every_process(seed):
    """I5: the same bytes whatever the hash seed; another seed gives others."""
    here = written(seed)
    for hash_seed in ("1", "77"):
        there = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(seed)],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": f"{ROOT}:{ROOT / '.dev'}"},
        )
        assert there.stdout == here
    assert written(seed + 100) != here


def test_watching_changes_nothing():
    """Assertions after every message, and a stream that somebody else takes, leave the run as it was."""
    plain = run(light(), check_every=0)[1]
    assert run(light(), check_every=50)[1] == plain
    made = world(light(), check_every=0)
    made.run()
    assert {record.id: record for record in made.log} == plain


def test_where_nothing_is_drawn_the_seed_is_nothing():
    """A link without jitter, no losses, a policy without dice, arrivals by hand: nothing else hides a draw."""
    workers = worker(count=2), worker("v", "away")
    scenario = {"links": [link("home", "away")], "router": {"kv_events": {"lag_s": 0.1}}}
    coming = [arrival(f"r{number}", number / 7, shared=640, output=50) for number in range(30)]
    ends = [run(document(*workers, **scenario, seed=seed), coming)[1] for seed in (1, 2)]
    assert ends[0] == ends[1]
    assert floor(ends[0]["r29"].at_s) == 4

"""Prompts that share a long prefix and come together: it is computed once."""

import pytest

from homing.sim.measure.records import RequestRecord

from .worlds import arrival, document, run, worker

SHARED = 16_384


def siblings(count: int = 8, **keys) -> list:
    return [arrival(f"r{n}", tokens=SHARED + 160, shared=SHARED, output=20, **keys) for n in range(count)]


def computed(records: dict[str, RequestRecord]) -> int:
    return sum(record.computed_tokens for record in records.values())


@pytest.mark.parametrize("step_tokens", [1024, 8192, 100_000])
def test_siblings_on_one_worker(step_tokens):
    """Eight of them: 16k tokens once and 160 each, however much fits into a pass."""
    scenario = document(worker(kv_tokens=200_000, step_tokens_max=step_tokens))
    made, records = run(scenario, siblings(), check_every=20)
    assert computed(records) == SHARED + 8 * 160
    assert made.workers["w-1"].counters.prefill_tokens == SHARED + 8 * 160
    assert sorted(record.device_hit_tokens for record in records.values()) == [0] + [SHARED] * 7


def test_siblings_share_memory_too():
    """Found blocks are held once: eight prompts fit where one and seven tails do."""
    blocks = (SHARED + 8 * 192) // 16 + 16
    scenario = document(worker(kv_tokens=blocks * 16), router={"max_output_tokens": 20})
    _, records = run(scenario, siblings(), check_every=20)
    assert computed(records) == SHARED + 8 * 160


def test_siblings_through_a_prefill_worker():
    """The prefill worker ships to the decode worker what it computed once; the last block is computed there."""
    workers = worker("p", role="prefill", kv_tokens=200_000), worker("d", role="decode", kv_tokens=200_000)
    made, _ = run(document(*workers), siblings(4), check_every=20)
    assert made.workers["p-1"].counters.prefill_tokens == SHARED + 4 * 144
    assert made.workers["d-1"].counters.prefill_tokens == 4 * 16


def test_strangers_do_not_wait_for_each_other():
    """Prompts with nothing in common share a pass."""
    coming = [arrival(f"r{n}", tokens=1000, output=1) for n in range(4)]
    made, records = run(document(worker()), coming)
    assert made.workers["w-1"].counters.passes == 2, "one began when the first came, the other took the rest"
    assert len({round(record.ttft_s, 9) for record in records.values()}) == 2

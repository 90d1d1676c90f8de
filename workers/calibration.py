"""What a worker measures of itself when it starts, so that a router need not learn its speed from users' requests."""

import time
from random import Random

from homing.protos import common_pb2

from .engine.step import SequenceStep, StepPlan
from .model.kv import KvTensor
from .model.llama import LlamaModel

RANGES = ((0, 64), (0, 256), (256, 512), (512, 1024))
"""Prefills (first token, end) that together tell overhead, slope and the growth of attention."""
WARM_UP = (0, 32)
REPEATS = 2
"""Of so many runs the quickest counts: what else a machine does only ever adds."""


def calibrate(model: LlamaModel, kv: KvTensor, worker_id: str, *, vocab_tokens: int) -> list[common_pb2.PrefillOutcome]:
    """Time a few prefills on random tokens, some 2,200 in all. Writes into blocks, so nobody may use any yet."""
    random = Random(0)  # noqa: S311 - any tokens will do
    longest = min(kv.blocks * kv.block_tokens, max(end for _, end in RANGES))
    tokens = tuple(random.randrange(vocab_tokens) for _ in range(longest))
    outcomes = []
    for start, wanted in (WARM_UP, *RANGES):
        end = min(wanted, longest)
        if start >= end:
            continue
        step = SequenceStep(
            request_id="calibration",
            tokens=tokens[start:end],
            start=start,
            block_table=tuple(range(-(-end // kv.block_tokens))),
            sample=True,
        )
        plan = StepPlan(steps=(step,))
        seconds = min(_timed_s(model, plan, kv) for _ in range(REPEATS))
        if (start, wanted) != WARM_UP:
            outcome = common_pb2.PrefillOutcome(
                worker=worker_id, computed_from_tokens=start, computed_to_tokens=end, compute_s=seconds
            )
            outcomes.append(outcome)
    return outcomes


def _timed_s(model: LlamaModel, plan: StepPlan, kv: KvTensor) -> float:
    began_s = time.perf_counter()
    model.forward(plan, kv)
    return time.perf_counter() - began_s

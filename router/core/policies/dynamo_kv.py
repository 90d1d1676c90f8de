"""Dynamo's KV router: blocks to prefill, less a credit for cached ones, plus blocks being decoded."""

from collections import Counter
from collections.abc import Sequence
from math import exp
from random import Random

from ..commands import Command
from ..events import Event
from ..fleet import WorkerState
from ..question import Question
from ..types import BlockKey, Plan, RequestId, Tier, WorkerId
from .baseline import place
from .options import NotNegative
from .watching import ended, sent


class DynamoKv:
    """`--router-mode kv` of NVIDIA Dynamo 1.6 (`lib/kv-router/src/scheduling/selector.rs`), with its defaults.

    `cost = prefill_load_scale * max(queued + prompt - credit, 0) + decode`, in KV blocks; `credit =
    device_credit*device + host_credit*host + disk_credit*disk + shared_credit*shared`; the lowest cost wins, ties are
    drawn. `decode` are the distinct blocks of prompts in flight on a worker, with this one. With `temperature` above 0
    a worker is drawn by the softmax of its cost, scaled to [0, 1]. Decode workers: `decode` alone.

    Sees the exact index of all tiers and the router's own account of what it sent. Does not see bytes, bandwidth, round
    trips or speeds, nor (by its default) blocks of answers.
    """

    name = "dynamo-kv"

    def __init__(
        self,
        *,
        device_credit: NotNegative = 1.0,
        host_credit: NotNegative = 0.75,
        disk_credit: NotNegative = 0.25,
        shared_credit: NotNegative = 0.5,
        prefill_load_scale: NotNegative = 1.0,
        temperature: NotNegative = 0.0,
    ) -> None:
        self._device_credit = device_credit
        self._lower = ((Tier.HOST, host_credit), (Tier.DISK, disk_credit), (Tier.STORE, shared_credit))
        self._prefill_load_scale = prefill_load_scale
        self._temperature = temperature
        self.active = ActiveBlocks()

    def choose(self, question: Question, random: Random) -> list[Plan]:
        """The lowest cost."""

        def pick(workers: Sequence[WorkerState]) -> WorkerState:
            return self._draw(workers, [self.cost_blocks(question, w) for w in workers], random)

        def pick_decode(workers: Sequence[WorkerState]) -> WorkerState:
            return self._draw(workers, [self._decode_blocks(question, w) for w in workers], random)

        return place(question, pick, pick_decode=pick_decode)

    def observe(self, event: Event, commands: Sequence[Command], now: float) -> None:
        """Count the blocks of what was sent, and give back those of what ended."""
        for request in ended(event, commands):
            self.active.release(request)
        for decision in sent(commands):
            self.active.add(decision.request.id, decision.plan.workers, decision.request.block_keys)

    def cost_blocks(self, question: Question, worker: WorkerState) -> float:
        """What a worker would have to do, in KV blocks."""
        block_tokens = question.profile.block_tokens
        queued = question.fleet.ledger.queued_tokens(worker.worker.id) / block_tokens
        prompt = question.request.prompt_tokens / block_tokens
        held = question.held(worker)
        credit = self._device_credit * held
        for tier, weight in self._lower:
            found = question.held_on(worker, tier, held)
            credit += weight * found
            held += found
        return self._prefill_load_scale * max(queued + prompt - credit, 0.0) + self._decode_blocks(question, worker)

    def _decode_blocks(self, question: Question, worker: WorkerState) -> float:
        return self.active.blocks_with(worker.worker.id, question.request.block_keys)

    def _draw(self, workers: Sequence[WorkerState], costs: Sequence[float], random: Random) -> WorkerState:
        least, most = min(costs), max(costs)
        if self._temperature == 0 or least == most:
            return random.choice([w for w, cost in zip(workers, costs, strict=True) if cost == least])
        scaled = [(least - cost) / (most - least) / self._temperature for cost in costs]
        return random.choices(workers, weights=[exp(logit) for logit in scaled])[0]


class ActiveBlocks:
    """The distinct prompt blocks of requests in flight, per worker: siblings share what they have in common."""

    def __init__(self) -> None:
        self._requests: dict[RequestId, tuple[tuple[WorkerId, ...], tuple[BlockKey, ...]]] = {}
        self._blocks: dict[WorkerId, Counter[BlockKey]] = {}

    def __len__(self) -> int:
        """How many requests with any full block are in flight."""
        return len(self._requests)

    def blocks_with(self, worker: WorkerId, keys: Sequence[BlockKey]) -> int:
        """How many distinct blocks would be in flight on a worker with this prompt among them."""
        active = self._blocks.get(worker)
        if not active:
            return len(keys)
        low, high = 0, len(keys)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if keys[middle] in active else (low, middle)
        return len(active) + len(keys) - low

    def add(self, request: RequestId, workers: tuple[WorkerId, ...], keys: tuple[BlockKey, ...]) -> None:
        """A request is in flight on these workers."""
        self.release(request)
        if not keys:
            return
        self._requests[request] = workers, keys
        for worker in workers:
            self._blocks.setdefault(worker, Counter()).update(keys)

    def release(self, request: RequestId) -> None:
        """A request ended; unknown ones are ignored."""
        workers, keys = self._requests.pop(request, ((), ()))
        for worker in workers:
            active = self._blocks[worker]
            for key in keys:
                active[key] -= 1
                if not active[key]:
                    del active[key]
            if not active:
                del self._blocks[worker]

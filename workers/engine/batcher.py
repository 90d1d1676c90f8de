"""Continuous batching with chunked prefill: which tokens the next forward pass computes.

Every pass first decodes one token of each sequence that generates, then fills up to `step_tokens_max` with chunks of
prompts, first come first served; a prompt that waits for arrivals is passed over. A sequence gets all blocks that it
may ever need when it is admitted, so that nothing that runs is ever thrown out again.

Rule 1: told what happened, it answers what to compute; it measures no time.
Rule 2: while a pass runs, only that pass's own positions are `computing`; arrivals, new sequences and cancels may be
told at any moment. Blocks of a cancelled sequence are given back after the pass that writes them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from .kvcache import KvCache
from .sequence import Sequence
from .step import SequenceStep, StepPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What one pass meant for one sequence."""

    sequence: Sequence
    token: int | None
    """The token it generated, if any."""
    full_blocks: range
    """Positions of blocks that became whole."""
    finished: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a worker has to do."""

    queued_prefill_tokens: int
    running_requests: int
    kv_blocks_used: int


class Batcher:
    """The sequences of one worker and their blocks."""

    def __init__(self, cache: KvCache, *, step_tokens_max: int, sequences_max: int) -> None:
        self.cache = cache
        self._step_tokens_max = step_tokens_max
        self._sequences_max = sequences_max
        self._waiting: dict[str, Sequence] = {}
        self._running: dict[str, Sequence] = {}
        self._in_step: set[str] = set()
        self._ending: dict[str, Sequence] = {}

    def __len__(self) -> int:
        return len(self._waiting) + len(self._running)

    def submit(self, sequence: Sequence) -> None:
        """Take a sequence in; it waits until `admit`. Its id must be new and its blocks must fit an empty cache."""
        assert sequence.request_id not in self._waiting and sequence.request_id not in self._running
        assert sequence.blocks_needed <= self.cache.total, f"{sequence.request_id} can never fit"
        self._waiting[sequence.request_id] = sequence

    def admit(self) -> list[Sequence]:
        """Give blocks to those who wait, in order, as far as they last; returns who got them."""
        admitted = []
        for sequence in list(self._waiting.values()):
            if len(self._running) + len(self._ending) >= self._sequences_max or not self._begin(sequence):
                break
            del self._waiting[sequence.request_id]
            self._running[sequence.request_id] = sequence
            admitted.append(sequence)
        return admitted

    def next_step(self) -> StepPlan | None:
        """What to compute next; None when there is nothing that can be computed now."""
        assert not self._in_step, "the last step was not completed"
        steps = [self._decode_step(s) for s in self._running.values() if s.is_decoding]
        budget = self._step_tokens_max - len(steps)
        for sequence in self._running.values():
            if budget <= 0:
                break
            start, stop = sequence.next_range()
            stop = min(stop, start + budget)
            if start < stop and not sequence.is_decoding:
                budget -= stop - start
                steps.append(self._prefill_step(sequence, start, stop))
        self._in_step = {step.request_id for step in steps}
        return StepPlan(steps=tuple(steps)) if steps else None

    def complete(self, plan: StepPlan, tokens: Mapping[str, int]) -> list[Progress]:
        """The pass is done; `tokens` are what was sampled. Sequences that finished are given back."""
        self._in_step.clear()
        progress = []
        for step in plan.steps:
            ending = self._ending.pop(step.request_id, None)
            if ending is not None:
                self.cache.unpin(ending.blocks)
                continue
            progress.append(self._advance(self._running[step.request_id], step, tokens))
        return progress

    def finished_without_step(self) -> list[Sequence]:
        """Prefill-only sequences whose blocks are all there already; they are given back."""
        done = [s for s in self._running.values() if s.is_prefill_only and s.present >= s.end]
        for sequence in done:
            if sequence.request_id not in self._in_step:
                self._settle(sequence)
                self._release(sequence)
        return [s for s in done if s.request_id not in self._running]

    def settle_arrivals(self, sequence: Sequence) -> range:
        """Let blocks that arrived be found by others too; returns the positions that became whole."""
        return self._settle(sequence) if sequence.request_id in self._running else range(0)

    def cancel(self, request_id: str) -> bool:
        """Give a sequence up; False if it is not here. Blocks that a pass is writing are given back after it."""
        if self._waiting.pop(request_id, None) is not None:
            return True
        sequence = self._running.pop(request_id, None)
        if sequence is None:
            return False
        # The pass may be of an earlier sequence of this id, which is ending already.
        if request_id in self._in_step and request_id not in self._ending:
            self._ending[request_id] = sequence
        else:
            self.cache.unpin(sequence.blocks)
        return True

    def load(self) -> Load:
        """What there is to do."""
        everyone = [*self._waiting.values(), *self._running.values()]
        return Load(
            queued_prefill_tokens=sum(sequence.prompt_left_tokens for sequence in everyone),
            running_requests=len(everyone),
            kv_blocks_used=self.cache.used,
        )

    def check(self) -> None:
        """Assert that every running sequence has its blocks and nobody else uses them for other content."""
        self.cache.check()
        assert self._in_step <= self._running.keys() | self._ending.keys()
        for sequence in self._running.values():
            assert len(sequence.blocks) == sequence.blocks_needed
            assert sequence.present <= sequence.computing <= len(sequence.tokens)

    def _begin(self, sequence: Sequence) -> bool:
        cached = self.cache.match(sequence.keys[: sequence.reusable_blocks])
        self.cache.pin(cached)
        fresh = self.cache.allocate(sequence.blocks_needed - len(cached))
        if fresh is None:
            self.cache.unpin(cached)
            return False
        sequence.begin(cached + fresh, len(cached))
        return True

    def _decode_step(self, sequence: Sequence) -> SequenceStep:
        start = len(sequence.tokens) - 1
        return SequenceStep(
            request_id=sequence.request_id,
            tokens=(sequence.tokens[-1],),
            start=start,
            block_table=tuple(sequence.blocks[: start // sequence.block_tokens + 1]),
            sample=True,
        )

    def _prefill_step(self, sequence: Sequence, start: int, stop: int) -> SequenceStep:
        sequence.computing = stop
        return SequenceStep(
            request_id=sequence.request_id,
            tokens=tuple(sequence.tokens[start:stop]),
            start=start,
            block_table=tuple(sequence.blocks[: (stop - 1) // sequence.block_tokens + 1]),
            sample=stop == sequence.prompt_tokens and not sequence.is_prefill_only,
        )

    def _advance(self, sequence: Sequence, step: SequenceStep, tokens: Mapping[str, int]) -> Progress:
        sequence.computed(step.end)
        token = tokens[step.request_id] if step.sample else None
        if token is not None:
            sequence.generate(token)
        full = self._settle(sequence)
        done_prefill = sequence.is_prefill_only and sequence.present >= sequence.end
        finished = sequence.finish_reason is not None or done_prefill
        if finished:
            self._release(sequence)
        return Progress(sequence=sequence, token=token, full_blocks=full, finished=finished)

    def _settle(self, sequence: Sequence) -> range:
        full = sequence.newly_full()
        for position in full:
            parent = sequence.keys[position - 1] if position else None
            self.cache.commit(sequence.blocks[position], sequence.keys[position], parent)
        return full

    def _release(self, sequence: Sequence) -> None:
        del self._running[sequence.request_id]
        self.cache.unpin(sequence.blocks)

"""Continuous batching with chunked prefill: which tokens the next forward pass computes.

Every pass first decodes one token of each sequence that generates, then fills up to `step_tokens_max` with chunks of
prompts, first come first served; a prompt that waits for arrivals is passed over. A sequence gets all blocks that it
may ever need when it is admitted, so that nothing that runs is ever thrown out again.

A prompt looks into the cache when it is admitted and again before its computation begins, and it does not begin in a
pass that computes the block it needs next for another: of siblings that came together, the first computes what they
share and the others find it.

Rule 1: told what happened, it answers what to compute; it measures no time.
Rule 2: while a pass runs, only that pass's own positions are `computing`; arrivals, new sequences and cancels may be
told at any moment. Blocks of a cancelled sequence are given back after the pass that writes them.
Rule 3: at most `sequences_max` take part in a pass; those that decode come first.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

from .kvcache import KvCache
from .sequence import Sequence
from .step import Batch, Chunk
from .tokens import TokenSequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What one pass meant for one sequence."""

    sequence: Sequence
    token: int | None
    """The token it generated, if any; None also where tokens are only counted."""
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
        self._prefilling: dict[str, Sequence] = {}
        self._decoding: dict[str, Sequence] = {}
        self._in_step: Batch | None = None
        self._ending: set[Sequence] = set()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._prefilling) + len(self._decoding)

    @property
    def has_prompts(self) -> bool:
        """Whether any prompt is being computed or waits for arrivals."""
        return bool(self._prefilling)

    def anew(self, cache: KvCache) -> "Batcher":
        """An empty batcher of the same bounds over another cache: a worker that begins again."""
        return Batcher(cache, step_tokens_max=self._step_tokens_max, sequences_max=self._sequences_max)

    def submit(self, sequence: Sequence) -> None:
        """Take a sequence in; it waits until `admit`. Its id must be new and its blocks must fit an empty cache."""
        assert sequence.request_id not in self._waiting and self._running(sequence.request_id) is None
        assert sequence.blocks_needed <= self.cache.total, f"{sequence.request_id} can never fit"
        self._waiting[sequence.request_id] = sequence

    def admit(self) -> list[Sequence]:
        """Give blocks to those who wait, in order, as far as they last; returns who got them."""
        admitted = []
        while self._waiting:
            sequence = next(iter(self._waiting.values()))
            if not self._begin(sequence):
                break
            del self._waiting[sequence.request_id]
            self._prefilling[sequence.request_id] = sequence
            admitted.append(sequence)
        return admitted

    def next_step(self) -> Batch | None:
        """What to compute next; None when there is nothing that can be computed now."""
        assert self._in_step is None, "the last step was not completed"
        decoding = list(islice(self._decoding.values(), self._sequences_max))
        chunks: list[Chunk] = []
        if self._prefilling:
            self._fill(chunks, self._step_tokens_max - len(decoding), self._sequences_max - len(decoding))
        if not decoding and not chunks:
            return None
        self._in_step = Batch(decoding, chunks)
        return self._in_step

    def complete(self, batch: Batch, tokens: Mapping[str, int]) -> list[Progress]:
        """The pass is done; `tokens` are what was sampled. Sequences that finished are given back."""
        progress = []
        for sequence in self._survivors(batch):
            token = tokens[sequence.request_id]
            assert isinstance(sequence, TokenSequence)
            sequence.computed(sequence.present + 1)
            sequence.take(token)
            progress.append(self._progress(sequence, token))
        for chunk in self._survived(batch):
            sequence = chunk.sequence
            sequence.computed(chunk.stop)
            sampled = tokens[sequence.request_id] if chunk.samples else None
            if sampled is not None:
                assert isinstance(sequence, TokenSequence)
                sequence.take(sampled)
                self._begin_decoding(sequence)
            progress.append(self._progress(sequence, sampled))
        self._end_step()
        return progress

    def count(self, batch: Batch, passes: int = 1) -> list[Progress]:
        """The pass is done, so many times in a row, on a worker that only counts tokens.

        Returns what happened to prompts and which answers ended. A batch with prompts in it is one pass; the answers
        of a longer run end with its last pass at the soonest.
        """
        assert passes == 1 or not batch.chunks, "prompts advance pass by pass"
        progress = []
        for sequence in self._survivors(batch):
            sequence.present += passes
            sequence.computing = sequence.present
            sequence.generated += passes
            if sequence.present // sequence.block_tokens > sequence.committed < len(sequence.keys):
                self._settle(sequence)
            if sequence.generated >= sequence.answer_tokens:
                sequence.finish_reason = "length"
                progress.append(self._progress(sequence, None))
        for chunk in self._survived(batch):
            sequence = chunk.sequence
            sequence.computed(chunk.stop)
            if chunk.samples:
                sequence.generate()
                self._begin_decoding(sequence)
            progress.append(self._progress(sequence, None))
        self._end_step()
        return progress

    def finished_without_step(self) -> list[Sequence]:
        """Prefill-only sequences whose blocks are all there already; they are given back."""
        done = [s for s in self._prefilling.values() if s.is_prefill_only and s.present >= s.end]
        done = [s for s in done if self._in_step is None or not self._in_step.has(s)]
        for sequence in done:
            self._settle(sequence)
            self._release(sequence)
        return done

    def settle_arrivals(self, sequence: Sequence) -> range:
        """Let blocks that arrived be found by others too; returns the positions that became whole."""
        return self._settle(sequence) if self._running(sequence.request_id) is not None else range(0)

    def cancel(self, request_id: str) -> bool:
        """Give a sequence up; False if it is not here. Blocks that a pass is writing are given back after it."""
        if self._waiting.pop(request_id, None) is not None:
            return True
        sequence = self._running(request_id)
        if sequence is None:
            return False
        self._forget(sequence)
        if self._in_step is not None and self._in_step.has(sequence):
            self._ending.add(sequence)
        else:
            self.cache.unpin(sequence.blocks)
        return True

    def load(self) -> Load:
        """What there is to do."""
        queued = sum(s.prompt_left_tokens for group in (self._waiting, self._prefilling) for s in group.values())
        return Load(
            queued_prefill_tokens=queued,
            running_requests=len(self),
            kv_blocks_used=self.cache.used,
        )

    def check(self) -> None:
        """Assert that every running sequence has its blocks and nobody else uses them for other content."""
        self.cache.check()
        assert not self._prefilling.keys() & self._decoding.keys()
        assert all(sequence.is_decoding for sequence in self._decoding.values())
        running = [*self._prefilling.values(), *self._decoding.values()]
        if self._in_step is not None:
            taking_part = [*self._in_step.decoding, *(chunk.sequence for chunk in self._in_step.chunks)]
            assert all(s in self._ending or s in running for s in taking_part)
        for sequence in running:
            assert len(sequence.blocks) == sequence.blocks_needed
            assert sequence.present <= sequence.computing <= sequence.prompt_tokens + sequence.generated

    def _running(self, request_id: str) -> Sequence | None:
        return self._prefilling.get(request_id) or self._decoding.get(request_id)

    def _begin(self, sequence: Sequence) -> bool:
        cached = self.cache.match(sequence.keys[: sequence.reusable_blocks])
        self.cache.pin(cached)
        fresh = self.cache.allocate(sequence.blocks_needed - len(cached))
        if fresh is None:
            self.cache.unpin(cached)
            return False
        sequence.begin(cached + fresh, len(cached))
        return True

    def _fill(self, chunks: list[Chunk], budget: int, seats: int) -> None:
        """Add chunks of prompts, first come first served, as far as tokens and seats last."""
        for sequence in self._prefilling.values():
            if budget <= 0 or len(chunks) >= seats:
                return
            if not sequence.has_begun and not sequence.has_fixed_blocks:
                self._look_again(sequence)
                if chunks and _is_coming(sequence, chunks):
                    continue
            start, stop = sequence.next_range()
            stop = min(stop, start + budget)
            if start < stop:
                budget -= stop - start
                sequence.computing = stop
                samples = stop == sequence.prompt_tokens and not sequence.is_prefill_only
                chunks.append(Chunk(sequence, start, stop, samples))

    def _look_again(self, sequence: Sequence) -> None:
        """What others computed since it was admitted need not be computed again."""
        following = sequence.keys[sequence.committed : _exchangeable_blocks(sequence)]
        more = self.cache.match(following)
        if more:
            self.cache.pin(more)
            self.cache.unpin(sequence.extend_hit(sequence.blocks[: sequence.committed] + more))

    def _survivors(self, batch: Batch) -> list[Sequence]:
        """Those of a pass that decode and were not cancelled meanwhile."""
        return [s for s in batch.decoding if s not in self._ending] if self._ending else batch.decoding

    def _survived(self, batch: Batch) -> list[Chunk]:
        """The chunks of a pass whose sequences were not cancelled meanwhile."""
        return [c for c in batch.chunks if c.sequence not in self._ending] if self._ending else batch.chunks

    def _end_step(self) -> None:
        """Give back what was cancelled while the pass was writing it."""
        batch, self._in_step = self._in_step, None
        if self._ending and batch is not None:
            for sequence in (*batch.decoding, *(chunk.sequence for chunk in batch.chunks)):
                if sequence in self._ending:
                    self._ending.discard(sequence)
                    self.cache.unpin(sequence.blocks)

    def _begin_decoding(self, sequence: Sequence) -> None:
        del self._prefilling[sequence.request_id]
        self._decoding[sequence.request_id] = sequence

    def _progress(self, sequence: Sequence, token: int | None) -> Progress:
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

    def _forget(self, sequence: Sequence) -> None:
        if self._prefilling.pop(sequence.request_id, None) is None:
            del self._decoding[sequence.request_id]

    def _release(self, sequence: Sequence) -> None:
        self._forget(sequence)
        self.cache.unpin(sequence.blocks)


def _exchangeable_blocks(sequence: Sequence) -> int:
    """Leading blocks that may be taken from the cache after admission.

    Of a prefill only, the last block is not: what takes part in no pass would be noticed by nobody.
    """
    return sequence.reusable_blocks - sequence.is_prefill_only


def _is_coming(sequence: Sequence, chunks: list[Chunk]) -> bool:
    """Whether one of these chunks computes the very block that a sequence needs next.

    Keys are chained: where two are equal they stand at the same position.
    """
    position = sequence.committed
    if position >= min(_exchangeable_blocks(sequence), len(sequence.keys)):
        return False
    key, start = sequence.keys[position], position * sequence.block_tokens
    return any(
        chunk.start < start + sequence.block_tokens
        and start < chunk.stop
        and position < len(chunk.sequence.keys)
        and chunk.sequence.keys[position] == key
        for chunk in chunks
    )

"""What one forward pass has to compute: first as a batch of sequences, then as a frozen plan for a model.

Rule 1: a plan is a frozen snapshot. Whoever runs it may take its time; nothing in it changes meanwhile.
Rule 2: positions are absolute in the sequence; block numbers are rows of the worker's KV tensor.
"""

from dataclasses import dataclass

from .sequence import Sequence
from .tokens import TokenSequence


@dataclass(slots=True, eq=False)
class Chunk:
    """Tokens `[start, stop)` of a prompt, computed in one pass; `samples`: the first token of the answer follows."""

    sequence: Sequence
    start: int
    stop: int
    samples: bool


@dataclass(slots=True, eq=False)
class Batch:
    """The sequences of one forward pass (continuous batching): those that decode one token each, and prefill chunks."""

    decoding: list[Sequence]
    chunks: list[Chunk]

    def has(self, sequence: Sequence) -> bool:
        """Whether this very sequence takes part. Runtime complexity: O(sequences)."""
        return any(s is sequence for s in self.decoding) or any(c.sequence is sequence for c in self.chunks)

    def plan(self) -> "StepPlan":
        """The batch as a model needs it; all its sequences know their tokens."""
        steps = [_decode_step(sequence) for sequence in self.decoding]
        return StepPlan(steps=(*steps, *(_prefill_step(chunk) for chunk in self.chunks)))


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceStep:
    """The tokens of one sequence that a forward pass computes.

    `tokens[i]` stands at position `start + i`. The KV of positions `[0, start)` is already in the blocks of
    `block_table`; the pass writes the KV of `[start, start + len(tokens))` there. Position `p` lives in block
    `block_table[p // block_tokens]`, slot `p % block_tokens`. `sample` asks for the logits of the last token.
    """

    request_id: str
    tokens: tuple[int, ...]
    start: int
    block_table: tuple[int, ...]
    sample: bool

    def __post_init__(self) -> None:
        assert self.tokens, "a step computes at least one token"
        assert self.start >= 0

    @property
    def end(self) -> int:
        """One past the last position that this step computes."""
        return self.start + len(self.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """One forward pass over several sequences (continuous batching): decodes first, then prefill chunks."""

    steps: tuple[SequenceStep, ...]

    @property
    def tokens(self) -> int:
        """Tokens that the pass computes."""
        return sum(len(step.tokens) for step in self.steps)


def _decode_step(sequence: Sequence) -> SequenceStep:
    assert isinstance(sequence, TokenSequence)
    start = len(sequence.tokens) - 1
    return SequenceStep(
        request_id=sequence.request_id,
        tokens=(sequence.tokens[-1],),
        start=start,
        block_table=tuple(sequence.blocks[: start // sequence.block_tokens + 1]),
        sample=True,
    )


def _prefill_step(chunk: Chunk) -> SequenceStep:
    sequence = chunk.sequence
    assert isinstance(sequence, TokenSequence)
    return SequenceStep(
        request_id=sequence.request_id,
        tokens=tuple(sequence.tokens[chunk.start : chunk.stop]),
        start=chunk.start,
        block_table=tuple(sequence.blocks[: (chunk.stop - 1) // sequence.block_tokens + 1]),
        sample=chunk.samples,
    )

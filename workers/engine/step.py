"""What one forward pass has to compute: the only thing that a batcher tells an engine.

Rule 1: a step is a frozen snapshot. Whoever runs it may take its time; nothing in it changes meanwhile.
Rule 2: positions are absolute in the sequence; block numbers are rows of the worker's KV tensor.
"""

from dataclasses import dataclass


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

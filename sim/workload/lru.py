"""One pool of KV blocks with least-recently-used eviction, and what of a prompt it holds when the prompt comes.

Nothing takes time here: a prompt is looked up, then all of it is in the pool. Only the sequence of requests counts.
"""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt as a cache sees it: `blocks` are prefix-chained ids; a last one that is not full may be among them."""

    tokens: int
    block_tokens: int
    blocks: Sequence[int]
    output_tokens: int = 1
    answer_blocks: Sequence[int] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheRules:
    """What counts as cached.

    `partial`: the last, incomplete block is kept too, and found again by a prompt that holds the very same.
    `root_last`: of one prompt the first block is evicted last, as engines do; otherwise it goes first.
    `answers`: the blocks that fill up with the answer are kept too. Those that a trace does not name take room and are
    never found.
    `opening_tokens`: unless None, count what is shared within the block in which two prompts part, and which hashes of
    whole blocks hide. All prompts share an opening of so many tokens; and a prompt that goes on behind all full blocks
    of an earlier one shares the rest of that one too.
    """

    partial: bool = True
    root_last: bool = True
    answers: bool = False
    opening_tokens: int | None = None


class LruPool:
    """A pool of `capacity_tokens`, or without a bound if None. Each block takes a whole block's room."""

    def __init__(self, capacity_tokens: int | None, rules: CacheRules) -> None:
        self._capacity_tokens = capacity_tokens
        self._rules = rules
        self._tails: OrderedDict[Hashable, int] = OrderedDict()
        """Least recently used first; of a block that ended a prompt's full blocks, the tokens that came behind it."""
        self._anonymous = 0

    def __len__(self) -> int:
        """Blocks held."""
        return len(self._tails)

    def serve(self, prompt: Prompt) -> tuple[int, int]:
        """Blocks and tokens of a prompt that are held; then the whole prompt is. Runtime complexity: O(blocks)."""
        blocks = prompt.blocks
        full = prompt.tokens // prompt.block_tokens
        if not self._rules.partial:
            blocks = blocks[:full]
        hits = 0
        for block in blocks:
            if block not in self._tails:
                break
            hits += 1
        tokens = min(hits * prompt.block_tokens, prompt.tokens)
        if self._rules.opening_tokens is not None and 0 < hits <= full:
            within = self._within(blocks[hits - 1], self._rules.opening_tokens - tokens, prompt.block_tokens)
            tokens = min(prompt.tokens, tokens + within)
        self._hold(prompt, blocks, full)
        return hits, tokens

    def _within(self, last: int, opening_left_tokens: int, block_tokens: int) -> int:
        """Tokens shared behind the last block that is, in the block where the prompts part."""
        return min(block_tokens - 1, opening_left_tokens if opening_left_tokens > 0 else self._tails[last])

    def _hold(self, prompt: Prompt, blocks: Sequence[int], full: int) -> None:
        tails = self._tails
        kept: list[Hashable] = [*blocks, *self._answer(prompt)] if self._rules.answers else list(blocks)
        for block in reversed(kept) if self._rules.root_last else kept:
            tails[block] = tails.pop(block, 0)
        if 0 < full <= len(blocks):
            tails[blocks[full - 1]] = prompt.tokens % prompt.block_tokens
        if self._capacity_tokens is not None:
            most = self._capacity_tokens // prompt.block_tokens
            while len(tails) > most:
                tails.popitem(last=False)

    def _answer(self, prompt: Prompt) -> Sequence[Hashable]:
        if prompt.answer_blocks:
            return prompt.answer_blocks
        block = prompt.block_tokens
        new = (prompt.tokens + prompt.output_tokens) // block - prompt.tokens // block
        self._anonymous += new
        return [("answer", self._anonymous - place) for place in range(new)]

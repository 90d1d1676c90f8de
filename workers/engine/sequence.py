"""One request on one worker: how far its prompt is there, what is on its way, what was generated.

A prompt becomes present from the front: `[0, present)` is computed, was cached, or has arrived. Blocks that another
worker sends are *expected*; each is claimed before its first byte is received and counts only when it arrived whole:

    [0, present)                 there: the next pass may attend to it
    [present, computing)         being computed by the pass that runs
    claimed, not arrived         being received: the computation must not touch it
    arrived, beyond present      there, but something before it is missing
    expected, not claimed        may still be computed instead, if the arrivals are met rather than waited for

Rule 1: computation and arrivals never write the same block.
Rule 2: when arrivals end, however they end, what did not arrive is computed.
Rule 3: tokens are counted here, not kept: what they are is known to `tokens.TokenSequence` alone, so that a simulated
worker, which computes nothing, runs on the same counts.
"""

from collections.abc import Iterable
from enum import StrEnum

from homing.router.core.types import BlockKey

MEET_CHUNK_TOKENS = 128
"""How far a computation that meets arrivals reaches ahead in one pass at the least: the two meet within so many tokens
of the best place, for the price of a pass's overhead per chunk."""
MEET_PART = 4
"""Far apart it takes this part of the way between them in one pass: a few passes instead of many, and no further than
the best place unless blocks arrive more than three times as fast as they are computed."""


class Waiting(StrEnum):
    """What a sequence does while blocks are expected."""

    FOR_ALL = "for_all"
    """It waits for them (fetch, ship)."""
    TO_MEET = "to_meet"
    """It computes towards them from the front (split)."""


class Sequence:
    """The state of one request. `end` is where its prompt ends, or, for a prefill only, its last full block.

    `keys` are the chained keys of its full blocks from the front: of the prompt's, and of as much of the answer as is
    known; a block without a key is used and never found.
    """

    __slots__ = (
        "_arrived",
        "_claimed",
        "_expected",
        "_waiting",
        "answer_tokens",
        "block_tokens",
        "blocks",
        "committed",
        "computing",
        "finish_reason",
        "generated",
        "has_fixed_blocks",
        "hit_tokens",
        "keys",
        "max_output_tokens",
        "present",
        "prompt_tokens",
        "request_id",
    )

    def __init__(
        self,
        request_id: str,
        prompt_tokens: int,
        *,
        keys: Iterable[BlockKey],
        block_tokens: int,
        max_output_tokens: int,
    ) -> None:
        assert prompt_tokens > 0, "a prompt has at least one token"
        self.request_id = request_id
        self.prompt_tokens = prompt_tokens
        self.block_tokens = block_tokens
        self.max_output_tokens = max_output_tokens
        self.answer_tokens = max_output_tokens
        """Where its answer ends at the latest: sooner than its longest where somebody knows the future."""
        self.keys: list[BlockKey] = list(keys)
        self.blocks: list[int] = []
        self.hit_tokens = 0
        self.present = 0
        self.computing = 0
        self.committed = 0
        self.generated = 0
        """Tokens generated so far."""
        self.finish_reason: str | None = None
        self.has_fixed_blocks = False
        """Whether somebody else reads or writes its blocks, so that none may be exchanged for a cached one."""
        self._waiting = Waiting.FOR_ALL
        self._expected = range(0)
        self._claimed: set[int] = set()
        self._arrived: set[int] = set()

    @property
    def is_prefill_only(self) -> bool:
        """Whether nothing is generated: the full blocks are the result."""
        return self.max_output_tokens == 0

    @property
    def reusable_blocks(self) -> int:
        """Leading blocks that may come from elsewhere: the last token of a prompt is always computed here."""
        return (self.prompt_tokens - 1) // self.block_tokens

    @property
    def end(self) -> int:
        """Where the prompt's computation ends."""
        return self.reusable_blocks * self.block_tokens if self.is_prefill_only else self.prompt_tokens

    @property
    def blocks_needed(self) -> int:
        """Blocks for the prompt and the longest answer."""
        longest = self.end if self.is_prefill_only else self.prompt_tokens + self.max_output_tokens
        return -(-longest // self.block_tokens)

    @property
    def is_decoding(self) -> bool:
        """Whether the prompt is there and the first token is known."""
        return self.generated > 0 and self.finish_reason is None

    @property
    def prompt_left_tokens(self) -> int:
        """Tokens of the prompt that are neither there nor expected: the prefill work that this sequence queues."""
        coming = 0
        if self._waiting is Waiting.FOR_ALL:
            coming = max(0, self._expected.stop - max(self._expected.start, self.present // self.block_tokens))
        return max(0, self.end - self.present - coming * self.block_tokens)

    # -- arrivals ------------------------------------------------------------------------------------------------

    def expect(self, first: int, end: int, waiting: Waiting) -> range:
        """Blocks `[first, end)` will be sent; returns those of them that are still needed (maybe none)."""
        self.has_fixed_blocks = True
        have = self.present // self.block_tokens
        first = max(first, have)
        self._expected = range(first, max(first, min(end, self.reusable_blocks)))
        self._waiting = waiting
        return self._expected

    @property
    def still_expected(self) -> range:
        """The blocks that will be sent and that nothing has overtaken."""
        have = max(self.present, self.computing) // self.block_tokens
        return range(max(self._expected.start, have), max(self._expected.stop, have)) if self._expected else range(0)

    def claim(self, positions: range) -> bool:
        """Ask to receive these blocks now; no when one is computed, being computed, or not expected (any more)."""
        reached = max(self.present, self.computing)
        if any(p not in self._expected or p * self.block_tokens < reached for p in positions):
            return False
        self._claimed.update(positions)
        return True

    def arrived(self, position: int) -> None:
        """A claimed block is there, whole and checked."""
        assert position in self._claimed, f"{self.request_id}: block {position} arrived unclaimed"
        self._arrived.add(position)
        self._absorb()

    def arrivals_ended(self) -> None:
        """Nothing more will arrive: what did not is computed."""
        self._expected = range(0)
        self._claimed &= self._arrived
        self._absorb()

    @property
    def is_meeting(self) -> bool:
        """Whether it computes towards its arrivals instead of waiting for them."""
        return self._waiting is Waiting.TO_MEET

    @property
    def wants_arrivals(self) -> bool:
        """Whether a block that is expected could still be claimed."""
        reached = max(self.present, self.computing)
        return any(p not in self._claimed and p * self.block_tokens >= reached for p in reversed(self._expected))

    # -- computation ---------------------------------------------------------------------------------------------

    def begin(self, blocks: list[int], cached: int) -> None:
        """The sequence has its block table; the first `cached` blocks hold its prefix already."""
        self.blocks = blocks
        self.committed = cached
        self.present = self.computing = self.hit_tokens = cached * self.block_tokens

    def extend_hit(self, cached: list[int]) -> list[int]:
        """More of the prefix was computed by others meanwhile: use their blocks, and give back ours in their place."""
        own = self.blocks[self.committed : len(cached)]
        self.blocks[: len(cached)] = cached
        self.committed = len(cached)
        self.present = self.computing = self.hit_tokens = len(cached) * self.block_tokens
        return own

    @property
    def has_begun(self) -> bool:
        """Whether anything of its prompt was computed here or arrived."""
        return self.computing > self.hit_tokens or self.generated > 0

    def next_range(self) -> tuple[int, int]:
        """The prompt tokens that may be computed next; empty when all are there or must be waited for."""
        start = max(self.present, self.computing)
        if not self._expected and not self._claimed:
            return start, max(start, self.end)
        position = start // self.block_tokens
        if start >= self.end or position in self._claimed:
            return start, start
        if position in self._expected and self._waiting is Waiting.FOR_ALL:
            return start, start
        barrier = min((p for p in self._claimed if p > position), default=None)
        if self._waiting is Waiting.FOR_ALL and self._expected and self._expected.start > position:
            barrier = self._expected.start if barrier is None else min(barrier, self._expected.start)
        stop = self.end if barrier is None else min(self.end, barrier * self.block_tokens)
        if self.is_meeting and self.wants_arrivals:
            between = min(stop, self._expected.stop * self.block_tokens) - start
            stop = min(stop, start + max(MEET_CHUNK_TOKENS, between // MEET_PART))
        return start, stop

    def computed(self, end: int) -> None:
        """A pass computed up to `end`: of the prompt, or the position of a generated token."""
        self.present = end
        self.computing = max(self.computing, end)
        if self._arrived:
            self._absorb()

    def generate(self, count: int = 1) -> None:
        """So many more tokens of the answer; ends the sequence at its length."""
        self.generated += count
        if self.generated >= self.answer_tokens:
            self.finish_reason = "length"

    def newly_full(self) -> range:
        """Positions of blocks that became whole since last asked: their keys may be committed."""
        full = min(self.present // self.block_tokens, len(self.keys))
        ready = range(self.committed, full)
        self.committed = max(self.committed, full)
        return ready

    def _absorb(self) -> None:
        """Move `present` over blocks that arrived right behind it."""
        while self.present % self.block_tokens == 0 and self.present // self.block_tokens in self._arrived:
            self.present += self.block_tokens
        self.computing = max(self.computing, self.present)

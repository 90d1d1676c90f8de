"""How much of a workload's prompts an ideal cache would have held, for several capacities and several definitions.

No simulator, no time: one pool with LRU eviction sees the sequence of requests (`lru.py`). One trace has quite
different ratios under different definitions, so each row of a table says which one it is.

Mooncake's conversation trace, unlimited: 37.36 % of the tokens and 36.64 % of the blocks, where a prompt's last,
incomplete block counts (with its own tokens; as one block) and all prompts count from the first on. Figure 9 of
Mooncake (FAST'25) ends at 40.1 %, and lies 3 points above at every capacity but the smallest: as much as blocks of 512
tokens hide. The row "sub-block" estimates that from the trace alone and meets the figure within 0.15 points everywhere.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import fill

from .arrival import Arrival
from .lru import CacheRules, LruPool, Prompt
from .mooncake import TRACE_BLOCK_TOKENS, read_records
from .tracefile import ReadCounts

CAPACITIES_TOKENS = (10_000, 100_000, 1_000_000, 2_000_000, 5_000_000, 10_000_000, 50_000_000, None)
"""Those of figure 9; None is a pool without a bound."""
FIGURE_9_CONVERSATION = (0.045, 0.073, 0.087, 0.120, 0.247, 0.326, 0.398, 0.401)
"""Mooncake, FAST'25, figure 9, conversation, LRU: read off the vector figure to about 1 %."""
CONVERSATION = (12_031, 144_793_823)
"""Requests and prompt tokens by which the conversation trace is known."""
WARM_UP = 0.25
MEANINGS = {
    "tokens": "prompt tokens in leading blocks that are held, of all prompt tokens; the last, incomplete block counts"
    " with its own tokens; of one prompt the first block is evicted last",
    "blocks": "leading blocks that are held, of all blocks",
    "requests": "mean over requests of the share of tokens held: a short prompt, which is mostly opening, weighs as"
    " much as a long one",
    "warm tokens": f"as tokens, but the first {WARM_UP:.0%} of the requests only fill the pool",
    "full tokens": "as tokens, but incomplete blocks are not kept, as in an engine; that leaves room for others",
    "full blocks": "as full tokens, counted in full blocks",
    "root first": "as tokens, but of one prompt the first block is evicted first: a prompt longer than the pool drives"
    " out what all others begin with",
    "with answers": "as tokens, but blocks that fill up with answers are kept too; those that a trace does not name"
    " only take room",
    "sub-block": "as full tokens and root first, plus an estimate of what is shared within the block in which two"
    " prompts part: {opening}and the rest of the prompt continued",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReuseRow:
    """Hit ratios of one definition, one per capacity."""

    name: str
    meaning: str
    ratios: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReuseTable:
    """What was counted, and a row per definition."""

    requests: int
    prompt_tokens: int
    prompt_blocks: int
    distinct_blocks: int
    opening_tokens: int
    capacities_tokens: tuple[int | None, ...]
    rows: tuple[ReuseRow, ...]

    def row(self, name: str) -> ReuseRow:
        """One definition's row; KeyError for a name that is none."""
        return {row.name: row for row in self.rows}[name]


@dataclass(slots=True)
class _Pool:
    """A pool, and what it held of all prompts so far."""

    lru: LruPool
    blocks: int = 0
    tokens: int = 0
    shares: float = 0.0
    warm_tokens: int = 0

    def serve(self, prompt: Prompt, *, warm: bool) -> None:
        blocks, tokens = self.lru.serve(prompt)
        self.blocks += blocks
        self.tokens += tokens
        self.shares += tokens / prompt.tokens
        if warm:
            self.warm_tokens += tokens


@dataclass(slots=True)
class _Totals:
    """What all prompts have: the denominators, and how long an opening they can have in common."""

    requests: int = 0
    tokens: int = 0
    blocks: int = 0
    full_blocks: int = 0
    warm_tokens: int = 0
    shortest_tokens: int = 0
    first_blocks: set[int | None] = field(default_factory=set)
    distinct: set[int] = field(default_factory=set)

    @property
    def opening_tokens(self) -> int:
        """The length of the shortest prompt if all begin with the same block, 0 if they do not."""
        return self.shortest_tokens if len(self.first_blocks) == 1 and None not in self.first_blocks else 0

    def add(self, prompt: Prompt) -> None:
        self.shortest_tokens = min(prompt.tokens, self.shortest_tokens or prompt.tokens)
        self.requests += 1
        self.tokens += prompt.tokens
        self.blocks += len(prompt.blocks)
        self.full_blocks += min(len(prompt.blocks), prompt.tokens // prompt.block_tokens)
        self.distinct.update(prompt.blocks)
        if len(self.first_blocks) < 2:
            self.first_blocks.add(prompt.blocks[0] if prompt.blocks else None)


def prompts_of_trace(
    path: Path, *, trace_block_tokens: int = TRACE_BLOCK_TOKENS, strict: bool = True, counts: ReadCounts | None = None
) -> Iterator[Prompt]:
    """The prompts of a trace in Mooncake's format, with the incomplete blocks that arrivals lack."""
    for record, block in read_records(path, trace_block_tokens=trace_block_tokens, strict=strict, counts=counts):
        yield Prompt(
            tokens=record.input_length,
            block_tokens=block,
            blocks=record.hash_ids,
            output_tokens=record.output_length,
            answer_blocks=record.answer_hash_ids,
        )


def prompts_of(arrivals: Iterable[Arrival]) -> Iterator[Prompt]:
    """The prompts of any workload: full blocks alone, so that "tokens" and "full tokens" are the same."""
    for arrival in arrivals:
        yield Prompt(
            tokens=arrival.prompt_tokens,
            block_tokens=arrival.block_tokens,
            blocks=arrival.keys,
            output_tokens=arrival.output_tokens,
            answer_blocks=arrival.answer_keys,
        )


def reuse_table(
    source: Callable[[], Iterable[Prompt]], capacities_tokens: Sequence[int | None] = CAPACITIES_TOKENS
) -> ReuseTable:
    """Hit ratios at each capacity under each definition; `source` gives the same prompts each time, and is asked twice.

    Runtime complexity: O(definitions x capacities x blocks); holds the blocks of the pools and no prompts.
    """
    totals = _Totals()
    for prompt in source():
        totals.add(prompt)
    warm_from = int(totals.requests * WARM_UP)
    opening_tokens = totals.opening_tokens
    runs = {
        "plain": CacheRules(),
        "full": CacheRules(partial=False),
        "root first": CacheRules(root_last=False),
        "answers": CacheRules(answers=True),
        "sub-block": CacheRules(partial=False, root_last=False, opening_tokens=opening_tokens),
    }
    pools = {name: [_Pool(LruPool(tokens, rules)) for tokens in capacities_tokens] for name, rules in runs.items()}
    every = [pool for row in pools.values() for pool in row]
    for number, prompt in enumerate(source()):
        totals.warm_tokens += prompt.tokens if number >= warm_from else 0
        for pool in every:
            pool.serve(prompt, warm=number >= warm_from)
    return ReuseTable(
        requests=totals.requests,
        prompt_tokens=totals.tokens,
        prompt_blocks=totals.blocks,
        distinct_blocks=len(totals.distinct),
        opening_tokens=opening_tokens,
        capacities_tokens=tuple(capacities_tokens),
        rows=tuple(_rows(pools, totals)),
    )


def render(table: ReuseTable) -> str:
    """The table as plain text: a line per definition, what each means, and figure 9 where it is the same trace."""
    width = max(len(row.name) for row in table.rows) + 2
    lines = [
        f"{table.requests:,} requests, {table.prompt_tokens:,} prompt tokens",
        f"{table.prompt_blocks:,} blocks, {table.distinct_blocks:,} of them distinct",
        "",
        "hit ratio by capacity of one LRU pool, in tokens",
        " " * width + "".join(f"{_capacity(capacity):>8}" for capacity in table.capacities_tokens),
    ]
    lines += [f"{row.name:<{width}}" + "".join(f"{ratio:8.4f}" for ratio in row.ratios) for row in table.rows]
    if (table.requests, table.prompt_tokens) == CONVERSATION and table.capacities_tokens == CAPACITIES_TOKENS:
        figure = "".join(f"{ratio:8.3f} " for ratio in FIGURE_9_CONVERSATION)
        lines.append(f"{'figure 9':<{width}}" + figure.rstrip())
    meanings = (fill(f"{row.name}: {row.meaning}", 110, subsequent_indent="  ") for row in table.rows)
    return "\n".join([*lines, "", *meanings, ""])


def _rows(pools: dict[str, list[_Pool]], totals: _Totals) -> Iterator[ReuseRow]:
    shortest = totals.opening_tokens
    opening = f"an opening of {shortest} tokens, as long as the shortest prompt, " if shortest else ""
    for name, run, counted, of in (
        ("tokens", "plain", "tokens", totals.tokens),
        ("blocks", "plain", "blocks", totals.blocks),
        ("requests", "plain", "shares", totals.requests),
        ("warm tokens", "plain", "warm_tokens", totals.warm_tokens),
        ("full tokens", "full", "tokens", totals.tokens),
        ("full blocks", "full", "blocks", totals.full_blocks),
        ("root first", "root first", "tokens", totals.tokens),
        ("with answers", "answers", "tokens", totals.tokens),
        ("sub-block", "sub-block", "tokens", totals.tokens),
    ):
        ratios = tuple(getattr(pool, counted) / of if of else 0.0 for pool in pools[run])
        yield ReuseRow(name=name, meaning=MEANINGS[name].format(opening=opening), ratios=ratios)


def _capacity(tokens: int | None) -> str:
    if tokens is None:
        return "inf"
    for unit, size in (("M", 1_000_000), ("k", 1_000)):
        if tokens >= size and tokens % (size // 10) == 0:
            return f"{tokens / size:g}{unit}"
    return str(tokens)

"""Reuse without a simulator: the numbers of the published trace, and a naive model of the pool."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homing.sim.workload.lru import CacheRules, LruPool, Prompt
from homing.sim.workload.mooncake import read_mooncake
from homing.sim.workload.reuse import (
    CAPACITIES_TOKENS,
    FIGURE_9_CONVERSATION,
    MEANINGS,
    prompts_of,
    prompts_of_trace,
    render,
    reuse_table,
)

ROOT = Path(__file__).resolve().parents[3]
EXCERPT = ROOT / "sim" / "scenarios" / "traces" / "conversation-10min.jsonl.gz"
WHOLE = ROOT.parent / "shared" / "traces" / "conversation_trace.jsonl"
BLOCK = 4


@pytest.fixture(scope="module")
def conversation():
    if not WHOLE.exists():
        pytest.skip("the whole conversation trace is not here")
    return reuse_table(lambda: prompts_of_trace(WHOLE))


def test_unlimited_reuse_of_the_conversation_trace(conversation):
    assert (conversation.requests, conversation.distinct_blocks) == (12_031, 182_790)
    assert round(conversation.row("tokens").ratios[-1], 4) == 0.3736
    assert round(conversation.row("blocks").ratios[-1], 4) == 0.3664


def test_figure_9_of_mooncake(conversation):
    """What 512-token blocks hide is about 3 points at each capacity; the estimate of it meets the figure."""
    tokens, estimate = conversation.row("tokens").ratios, conversation.row("sub-block").ratios
    assert all(abs(found - paper) < 0.002 for found, paper in zip(estimate, FIGURE_9_CONVERSATION, strict=True))
    hidden = [paper - found for found, paper in zip(tokens, FIGURE_9_CONVERSATION, strict=True)]
    assert all(0.025 < share < 0.037 for share in hidden[1:])


def test_ratios_grow_with_capacity(conversation):
    for row in conversation.rows:
        assert list(row.ratios) == sorted(row.ratios), row.name


def test_the_table_as_text(conversation):
    text = render(conversation)
    assert "12,031 requests, 144,793,823 prompt tokens" in text
    assert "figure 9         0.045    0.073" in text
    assert all(f"\n{name}: " in text for name in MEANINGS)
    assert max(map(len, text.splitlines())) <= 120


def test_arrivals_and_lines_agree_on_full_blocks():
    lines = reuse_table(lambda: prompts_of_trace(EXCERPT), (1_000_000, None))
    arrivals = reuse_table(
        lambda: prompts_of(read_mooncake(EXCERPT, block_tokens=128, namespace="a")), (1_000_000, None)
    )
    whole = reuse_table(lambda: prompts_of(read_mooncake(EXCERPT)), (1_000_000, None))
    for name in ("full tokens", "full blocks"):
        assert whole.row(name).ratios == lines.row(name).ratios
    assert arrivals.row("full tokens").ratios == pytest.approx(lines.row("full tokens").ratios, abs=0.01)
    assert "figure 9" not in render(lines)


def test_nothing_has_no_reuse():
    table = reuse_table(lambda: iter(()))
    assert all(set(row.ratios) == {0.0} for row in table.rows)
    assert len(table.rows[0].ratios) == len(CAPACITIES_TOKENS)
    assert render(table)


PROMPTS = st.lists(
    st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=5), st.integers(1, BLOCK), st.integers(1, 6)),
    max_size=25,
)


def prompt_of(path, last_tokens, output_tokens):
    """Ids are whole paths, so that they are chained; an incomplete last block is not the full one of that path."""
    full = len(path) if last_tokens == BLOCK else len(path) - 1
    ids = [hash(tuple(path[: end + 1])) for end in range(full)]
    if full < len(path):
        ids.append(hash((*path, last_tokens, "partial")))
    return Prompt(
        tokens=(len(path) - 1) * BLOCK + last_tokens, block_tokens=BLOCK, blocks=ids, output_tokens=output_tokens
    )


@given(PROMPTS, st.integers(0, 12), st.booleans(), st.booleans())
def test_a_pool_is_a_list_in_the_order_of_use(prompts, capacity_blocks, partial, root_last):
    pool = LruPool(capacity_blocks * BLOCK, CacheRules(partial=partial, root_last=root_last))
    recent = []
    for prompt in (prompt_of(*shape) for shape in prompts):
        blocks = list(prompt.blocks) if partial else list(prompt.blocks)[: prompt.tokens // BLOCK]
        hits = 0
        while hits < len(blocks) and blocks[hits] in recent:
            hits += 1
        assert pool.serve(prompt) == (hits, min(hits * BLOCK, prompt.tokens))
        used = blocks[::-1] if root_last else blocks
        recent = ([block for block in recent if block not in blocks] + used)[-capacity_blocks or len(recent) + 99 :]
        assert len(pool) == len(recent) <= capacity_blocks


@given(PROMPTS)
def test_a_larger_pool_never_holds_less(prompts):
    """LRU includes: with the root last this is true of prefixes too."""
    pools = [LruPool(blocks * BLOCK, CacheRules()) for blocks in range(0, 20, 3)] + [LruPool(None, CacheRules())]
    for prompt in (prompt_of(*shape) for shape in prompts):
        found = [pool.serve(prompt) for pool in pools]
        assert found == sorted(found)


def test_answers_take_room_or_are_found():
    first = Prompt(tokens=8, block_tokens=4, blocks=(1, 2), output_tokens=8)
    named = Prompt(tokens=8, block_tokens=4, blocks=(1, 2), output_tokens=8, answer_blocks=(3, 4))
    following = Prompt(tokens=18, block_tokens=4, blocks=(1, 2, 3, 4), output_tokens=1)
    for prompt, hits in ((first, 2), (named, 4)):
        pool = LruPool(None, CacheRules(answers=True))
        pool.serve(prompt)
        assert len(pool) == 4
        assert pool.serve(following)[0] == hits


def test_what_blocks_hide_is_estimated():
    rules = CacheRules(partial=False, root_last=False, opening_tokens=7)
    pool = LruPool(None, rules)
    assert pool.serve(Prompt(tokens=11, block_tokens=4, blocks=(1, 2))) == (0, 0)
    assert pool.serve(Prompt(tokens=12, block_tokens=4, blocks=(1, 9, 8))) == (1, 7), (
        "one block and 3 more of the opening"
    )
    assert pool.serve(Prompt(tokens=20, block_tokens=4, blocks=(1, 2, 5, 6, 7))) == (2, 11), "and the rest of the first"

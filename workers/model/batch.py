"""Turn a step plan into index tensors, once per forward pass, so that a layer only gathers and multiplies.

Rule 1: the KV tensor is read and written as rows of its flat layout, and every index here is for layer 0:
the same index into the tensor from layer `l` on gives that layer's rows.
Rule 2: a plan that does not fit the model or the cache is refused before anything is computed or written.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch

from homing.workers.engine.step import SequenceStep, StepPlan

from .config import LlamaConfig
from .kv import KvTensor

_GROUP_TOKENS_MAX = 2048  # SmolLM2's float32 KV of one layer: 3 MB, within one core's share of most L3 caches


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillChunk:
    """Several tokens of one sequence, at `rows` of the batch, that attend to positions `[0, end)`."""

    rows: slice
    end: int
    blocks: torch.Tensor
    """`[2 x sequence blocks]`: the flat block rows of K, then of V."""
    mask: torch.Tensor | None
    """`[tokens, end]`, added to the scores; None where plain causal attention is right (start 0)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeGroup:
    """Sequences of about equal length that each compute one token, at `rows` of the batch."""

    rows: torch.Tensor
    vectors: torch.Tensor
    """`[2 x sequences x kv_heads x padded positions]`: the flat head vectors of K, then of V.

    Gathered per head, K and V come out ready for a batched product; gathered per block they would have to be
    copied once more, which takes longer than the products.
    """
    mask: torch.Tensor
    """`[sequences, 1, 1, padded positions]`, added to the scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """All sequences of a plan, concatenated: `tokens` and `positions` are `[tokens]`."""

    tokens: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    """`[2 x tokens]`: the flat token rows to write, first of every K, then of every V."""
    sampled: torch.Tensor
    """`[steps that sample]`: the row of each one's last token."""
    prefills: tuple[PrefillChunk, ...]
    decodes: tuple[DecodeGroup, ...]


def build_batch(plan: StepPlan, config: LlamaConfig, kv: KvTensor) -> Batch:
    """Check the plan and lay it out; `ValueError` names the request and the rule that it breaks."""
    if not plan.steps:
        raise ValueError("the plan has no steps: do not run a pass when there is nothing to compute")
    starts: list[int] = []
    row = 0
    for step in plan.steps:
        _check(step, config, kv)
        starts.append(row)
        row += len(step.tokens)
    positions = torch.tensor(list(chain.from_iterable(range(step.start, step.end) for step in plan.steps)))
    sampled = [first + len(step.tokens) - 1 for first, step in zip(starts, plan.steps, strict=True) if step.sample]
    decoding = [(first, step) for first, step in zip(starts, plan.steps, strict=True) if len(step.tokens) == 1]
    return Batch(
        tokens=torch.tensor(list(chain.from_iterable(step.tokens for step in plan.steps)), device=kv.device),
        positions=positions.to(kv.device),
        slots=_slots(plan, positions, kv),
        sampled=torch.tensor(sampled, dtype=torch.long, device=kv.device),
        prefills=tuple(
            _prefill(first, step, kv) for first, step in zip(starts, plan.steps, strict=True) if len(step.tokens) > 1
        ),
        decodes=tuple(_decode(members, config, kv) for members in _by_length(decoding, kv)),
    )


def _check(step: SequenceStep, config: LlamaConfig, kv: KvTensor) -> None:
    who = f"request {step.request_id!r}"
    if step.end > config.context_tokens:
        raise ValueError(f"{who}: position {step.end - 1} is beyond the context of {config.context_tokens} tokens")
    if min(step.tokens) < 0 or max(step.tokens) >= config.vocab_tokens:
        raise ValueError(f"{who}: a token is outside the vocabulary of {config.vocab_tokens}")
    if len(step.block_table) * kv.block_tokens < step.end:
        raise ValueError(
            f"{who}: {len(step.block_table)} blocks of {kv.block_tokens} tokens do not reach position "
            f"{step.end - 1}: allocate the step's blocks before it runs"
        )
    if min(step.block_table) < 0 or max(step.block_table) >= kv.blocks:
        raise ValueError(f"{who}: its block table names a block outside the {kv.blocks} blocks of this worker")


def _slots(plan: StepPlan, positions: torch.Tensor, kv: KvTensor) -> torch.Tensor:
    width = kv.block_tokens
    blocks = torch.tensor(
        [step.block_table[position // width] for step in plan.steps for position in range(step.start, step.end)]
    )
    keys = _block_rows(blocks, kv) * width + positions % width
    return torch.cat((keys, keys + width)).to(kv.device)


def _block_rows(blocks: torch.Tensor, kv: KvTensor) -> torch.Tensor:
    """The flat block row of K of layer 0; V follows at +1, the next layer at +2."""
    return blocks * (2 * kv.layers)


def _used_blocks(step: SequenceStep, kv: KvTensor) -> tuple[int, ...]:
    return step.block_table[: -(-step.end // kv.block_tokens)]


def _prefill(first: int, step: SequenceStep, kv: KvTensor) -> PrefillChunk:
    keys = _block_rows(torch.tensor(_used_blocks(step, kv)), kv)
    tokens = len(step.tokens)
    mask = None
    if step.start:
        mask = torch.full((tokens, step.end), -torch.inf, dtype=kv.dtype, device=kv.device)
        mask.triu_(diagonal=step.start + 1)
    return PrefillChunk(
        rows=slice(first, first + tokens),
        end=step.end,
        blocks=torch.cat((keys, keys + 1)).to(kv.device),
        mask=mask,
    )


def _by_length(decoding: Sequence[tuple[int, SequenceStep]], kv: KvTensor) -> list[list[tuple[int, SequenceStep]]]:
    """Group by length, so that padding at most doubles what is read and a group's KV stays in the CPU cache."""
    groups: list[list[tuple[int, SequenceStep]]] = []
    width = 0
    for first, step in sorted(decoding, key=lambda member: -member[1].end):
        blocks = len(_used_blocks(step, kv))
        fits = groups and (len(groups[-1]) + 1) * width * kv.block_tokens <= _GROUP_TOKENS_MAX
        if not fits or 2 * blocks < width:
            groups.append([])
            width = blocks
        groups[-1].append((first, step))
    return groups


def _decode(members: Sequence[tuple[int, SequenceStep]], config: LlamaConfig, kv: KvTensor) -> DecodeGroup:
    tables = [_used_blocks(step, kv) for _, step in members]
    width = max(map(len, tables))
    # Padding repeats a block of the same sequence, so that no foreign or unwritten block is ever read.
    padded = torch.tensor([table + table[-1:] * (width - len(table)) for table in tables])
    keys = _block_rows(padded, kv)
    slots = torch.stack((keys, keys + 1))[..., None] * kv.block_tokens + torch.arange(kv.block_tokens)
    heads = torch.arange(config.kv_heads)[:, None]
    vectors = slots.flatten(2)[:, :, None] * config.kv_heads + heads
    ends = torch.tensor([step.end for _, step in members]).view(-1, 1, 1, 1)
    beyond = torch.arange(width * kv.block_tokens) >= ends
    mask = torch.zeros(beyond.shape, dtype=kv.dtype).masked_fill_(beyond, -torch.inf)
    return DecodeGroup(
        rows=torch.tensor([first for first, _ in members], device=kv.device),
        vectors=vectors.flatten().to(kv.device),
        mask=mask.to(kv.device),
    )

"""What the store holds, as vLLM's KV events: they go out beside those of the engine's own cache, on medium "CPU"."""

from collections.abc import Iterable, Sequence
from typing import Any

from vllm.distributed.kv_events import MEDIUM_CPU, BlockRemoved, BlockStored
from vllm.v1.core.kv_cache_utils import maybe_convert_block_hash

from .scheduler_side import BlockName


def kv_events(
    stored: Sequence[BlockName], removed: Iterable[Any], block_tokens: int
) -> list[BlockStored | BlockRemoved]:
    """Removals first: a block that went and came again is there."""
    events: list[BlockStored | BlockRemoved] = []
    gone = [maybe_convert_block_hash(engine_hash) for engine_hash in removed]
    if gone:
        events.append(BlockRemoved(block_hashes=gone, medium=MEDIUM_CPU))
    events.extend(_stored(chain, block_tokens) for chain in _chains(stored))
    return events


def _chains(names: Sequence[BlockName]) -> list[list[BlockName]]:
    """Runs of blocks in which each is the parent of the next."""
    chains: list[list[BlockName]] = []
    for name in names:
        if chains and name.engine_parent == chains[-1][-1].engine_hash and name.lora == chains[-1][-1].lora:
            chains[-1].append(name)
        else:
            chains.append([name])
    return chains


def _stored(chain: list[BlockName], block_tokens: int) -> BlockStored:
    parent = chain[0].engine_parent
    return BlockStored(
        block_hashes=[maybe_convert_block_hash(name.engine_hash) for name in chain],
        parent_block_hash=None if parent is None else maybe_convert_block_hash(parent),
        token_ids=[token for name in chain for token in name.tokens],
        block_size=block_tokens,
        lora_id=None,
        medium=MEDIUM_CPU,
        lora_name=chain[0].lora,
        extra_keys=[(name.salt,) if name.salt else None for name in chain] if any(n.salt for n in chain) else None,
    )

"""What tests say in an engine's words, and what an index that listens comes to hold."""

import hashlib
import json
from pathlib import Path

import msgspec

from homing.router.core.blocks import block_keys, group_seed, pack_tokens
from homing.router.core.events import BlocksRemoved, BlocksStored, CacheCleared
from homing.router.core.prefix_index import PrefixIndex
from homing.router.core.types import Tier, WorkerId
from homing.router.kv_events.events import EngineBatch, EngineRemoved, EngineStored, Place

BLOCK = 4
WORKER = WorkerId("w0")
GPU, CPU = Place(medium="GPU"), Place(medium="CPU")
HERE = Path(__file__).parent
FIXTURE = HERE.parents[3] / "shared" / "fixtures" / "vllm_kv_events.jsonl"
EXCERPT = HERE / "data" / "vllm_0_32.jsonl"
"""Six messages that vLLM 0.32 published on a CPU (SmolLM2-135M, blocks of 32): stores, removals, a clear, a salt."""


def captured(path):
    """(topic, seq, payload) of captured messages."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [(row["topic"], row["seq"], bytes.fromhex(row["payload_hex"])) for row in rows]


def tokens_of(path):
    """The tokens of a path of block numbers: each block's tokens say its number."""
    return [number for block in path for number in range(block * BLOCK, block * BLOCK + BLOCK)]


def name_of(path, salt="", lora=""):
    """An engine's hash of a path: any function of the whole prefix does."""
    text = f"{salt}/{lora}/" + ",".join(map(str, path))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def keys_of(path, salt="", lora=""):
    """The router's keys of a path."""
    return block_keys(pack_tokens(tokens_of(path)), BLOCK, seed=group_seed(lora=lora, tenant_salt=salt))


def stored(path, first=0, *, place=GPU, salt="", lora="", **fields):
    """The blocks of a path from `first` on are stored."""
    names = [name_of(path[: end + 1], salt, lora) for end in range(first, len(path))]
    told = {
        "hashes": tuple(names),
        "parent": name_of(path[:first], salt, lora) if first else None,
        "packed_tokens": pack_tokens(tokens_of(path[first:])),
        "block_tokens": BLOCK,
        "place": place,
        "salt": "" if first else salt,
        "lora": lora,
        "text_blocks": len(names),
    }
    return EngineStored(**(told | fields))


def named(*paths, place=CPU, salt="", lora="", **fields):
    """Blocks are stored that are only named: the ends of these paths."""
    names = tuple(name_of(path, salt, lora) for path in paths)
    return EngineStored(hashes=names, place=place, text_blocks=len(names), **fields)


def removed(*paths, place=GPU, salt="", lora="", **fields):
    """The ends of these paths are removed."""
    return EngineRemoved(hashes=tuple(name_of(path, salt, lora) for path in paths), place=place, **fields)


def batch(*events, told_s=1.0):
    return EngineBatch(told_s=told_s, events=events)


def wire_stored(path, first=0, *, salt=None, medium="GPU"):
    """The same as vLLM encodes it."""
    event = stored(path, first, salt=salt or "")
    return {
        "type": "BlockStored",
        "block_hashes": list(event.hashes),
        "parent_block_hash": event.parent,
        "token_ids": tokens_of(path[first:]),
        "block_size": BLOCK,
        "lora_id": None,
        "medium": medium,
        "lora_name": None,
        "extra_keys": [[salt] if salt and first + i == 0 else None for i in range(len(event.hashes))],
        "group_idx": 0,
        "kv_cache_spec_kind": "full_attention",
    }


def wire_removed(*paths, salt="", medium="GPU"):
    return {
        "type": "BlockRemoved",
        "block_hashes": [name_of(path, salt) for path in paths],
        "medium": medium,
        "group_idx": 0,
    }


CLEARED = {"type": "AllBlocksCleared"}


def payload(told_s, *events, rank=0):
    return msgspec.msgpack.encode([told_s, list(events), rank])


class Mirror:
    """Real indexes, one per tier, that hear what is told; any contradiction raises."""

    def __init__(self):
        self.tiers = {tier: PrefixIndex() for tier in Tier}
        self.keys = {tier: set() for tier in Tier}

    def hear(self, events):
        for event in events:
            match event:
                case BlocksStored():
                    assert not self.keys[event.tier] & set(event.keys), "told twice"
                    self.tiers[event.tier].stored(0, event.keys, event.parent)
                    self.keys[event.tier].update(event.keys)
                case BlocksRemoved():
                    assert set(event.keys) <= self.keys[event.tier], "removed what was not there"
                    self.tiers[event.tier].removed(0, event.keys)
                    self.keys[event.tier].difference_update(event.keys)
                case CacheCleared():
                    for tier in Tier:
                        self.tiers[tier].cleared(0)
                        self.keys[tier].clear()
        self.check()

    def check(self):
        for tier, index in self.tiers.items():
            index.check()
            assert index.blocks_of(0) == len(self.keys[tier])

    def held(self, tier=Tier.DEVICE):
        return self.keys[tier]

    def depth(self, keys, tier=Tier.DEVICE):
        """How many leading blocks of a prompt are held."""
        levels = self.tiers[tier].match(keys)
        return levels[0].depth if levels else 0

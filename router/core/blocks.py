"""Block keys: how a prompt's prefix is named.

A block's *local* hash is XXH3-64 of its tokens as little-endian u32. A block's *key* chains the hashes of all blocks
before it, so that one 64-bit number stands for a whole prefix: equal keys, equal prefixes. The scheme and the seed are
those of NVIDIA Dynamo's KV router, so that its events and relays can be read.
"""

import struct
from collections.abc import Sequence

from xxhash import xxh3_64_intdigest

from .types import BlockKey

SEED = 1337
TOKEN_BYTES = 4
_PAIR = struct.Struct("<QQ")
_MASK_64 = (1 << 64) - 1


def group_seed(*, lora: str = "", tenant_salt: str = "") -> int:
    """The seed of a key chain: it names whose KV is interchangeable beside the model.

    A LoRA adapter shifts the seed as Dynamo does. A tenant's salt shifts it again, so that one tenant neither hits nor
    probes another's prefixes.

    >>> group_seed()
    1337
    >>> group_seed(lora="a") == group_seed(lora="b")
    False
    """
    seed = SEED
    if lora:
        seed = (seed + xxh3_64_intdigest(lora.encode())) & _MASK_64
    if tenant_salt:
        seed = xxh3_64_intdigest(_PAIR.pack(seed, xxh3_64_intdigest(tenant_salt.encode())))
    return seed


def pack_tokens(tokens: Sequence[int]) -> bytes:
    r"""Token ids as little-endian u32, the form in which they are hashed and sent.

    >>> pack_tokens([1, 258])
    b'\x01\x00\x00\x00\x02\x01\x00\x00'
    """
    return struct.pack(f"<{len(tokens)}I", *tokens)


def unpack_tokens(packed: bytes) -> tuple[int, ...]:
    """The inverse of `pack_tokens`; `packed` must be a multiple of four bytes long."""
    return struct.unpack(f"<{len(packed) // TOKEN_BYTES}I", packed)


def block_keys(
    packed: bytes, block_tokens: int, *, seed: int = SEED, parent: BlockKey | None = None
) -> tuple[BlockKey, ...]:
    """The chained keys of all full blocks of a packed prompt; a last, incomplete block has none.

    `parent` continues a chain: the key of the block before the first of these. Runtime complexity: O(tokens).

    >>> keys = block_keys(pack_tokens(range(40)), 16)
    >>> len(keys)
    2
    >>> keys[1:] == block_keys(pack_tokens(range(16, 40)), 16, parent=keys[0])
    True
    """
    block_bytes = block_tokens * TOKEN_BYTES
    keys: list[BlockKey] = []
    key = parent
    pack = _PAIR.pack
    for start in range(0, len(packed) - block_bytes + 1, block_bytes):
        local = xxh3_64_intdigest(packed[start : start + block_bytes], seed)
        key = BlockKey(local if key is None else xxh3_64_intdigest(pack(key, local), seed))
        keys.append(key)
    return tuple(keys)


def reusable_blocks(prompt_tokens: int, block_tokens: int) -> int:
    """How many leading blocks of a prompt can come out of a cache: its last token is always computed.

    >>> reusable_blocks(32, 16), reusable_blocks(33, 16)
    (1, 2)
    """
    return (prompt_tokens - 1) // block_tokens

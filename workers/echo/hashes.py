"""vLLM's own block hashes (0.32, `sha256`, its default): how it names a block in its KV events.

Rule 1: a block's digest is SHA-256 over the pickled tuple of its parent's digest, its tokens and what else tells its KV
from another's; the first parent is the digest of a fixed word.
Rule 2: on the wire a digest is its low 64 bits, read as a big-endian number.

Source: vLLM, `vllm/v1/core/kv_cache_utils.py`, `hash_block_tokens`, `NONE_HASH` and `maybe_convert_block_hash`.
"""

import hashlib
import pickle
from collections.abc import Sequence

Extra = tuple[tuple[str, ...], ...]
"""What else a block's KV depends on: `("lora", name, path)`, and `("cache_salt", salt)` for the first block."""


def _sha256(value: object) -> bytes:
    return hashlib.sha256(pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)).digest()


ROOT = _sha256("vllm-none-hash")
"""The parent of a prompt's first block, where PYTHONHASHSEED is not set."""


def block_digest(parent: bytes | None, tokens: Sequence[int], extra: Extra = ()) -> bytes:
    """The digest of a full block. Runtime complexity: O(tokens).

    >>> first = block_digest(None, range(100, 116))
    >>> on_the_wire(first), on_the_wire(block_digest(first, range(116, 132)))
    (15126711022707342677, 3356471519746799895)
    """
    return _sha256((ROOT if parent is None else parent, tuple(tokens), extra or None))


def on_the_wire(digest: bytes) -> int:
    """A digest as events carry it."""
    return int.from_bytes(digest[-8:], "big")

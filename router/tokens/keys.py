"""Block keys of prompts that begin alike: the keys of what was seen before are looked up, not computed.

Keys are computed in spans of about eight thousand tokens, and what does not fill one in spans of about a thousand. The
keys of a span follow from its bytes and from the key of the block before it. A conversation's next turn therefore looks
up all spans but its last ones, wherever its tokens came from.
"""

from collections.abc import Sequence

from xxhash import xxh3_128_intdigest

from homing.router.core.blocks import SEED, TOKEN_BYTES, block_keys
from homing.router.core.types import BlockKey

from .lru import BoundedCache

SPANS_TOKENS = (8192, 1024)
KEY_BYTES = 40
"""A 64-bit number as a Python object, and the place in the tuple that points to it."""

_Span = tuple[int, int, BlockKey | None, int]


class KeyMemo:
    """`block_keys` with a memory of at most `bytes_max` bytes.

    A span is named by a 128-bit hash and by the 64-bit key before it, so that it is mistaken for another no sooner than
    two prefixes are.
    """

    def __init__(self, bytes_max: int = 32 << 20) -> None:
        self._spans: BoundedCache[_Span, tuple[BlockKey, ...]] = BoundedCache(bytes_max)

    @property
    def used_bytes(self) -> int:
        """What it holds."""
        return self._spans.used_bytes

    def keys(self, packed: bytes, block_tokens: int, *, seed: int = SEED) -> tuple[BlockKey, ...]:
        """The same as `block_keys(packed, block_tokens, seed=seed)`."""
        return tuple(self._chain(packed, block_tokens, seed, None, SPANS_TOKENS))

    def _chain(
        self, packed: bytes, block_tokens: int, seed: int, parent: BlockKey | None, spans_tokens: tuple[int, ...]
    ) -> Sequence[BlockKey]:
        """The keys below `parent`: of whole spans of the first size by the memory, of the rest by the smaller sizes."""
        if not spans_tokens:
            return block_keys(packed, block_tokens, seed=seed, parent=parent)
        span_tokens, *smaller = spans_tokens
        span_bytes = max(1, span_tokens // block_tokens) * block_tokens * TOKEN_BYTES
        whole_bytes = len(packed) - len(packed) % span_bytes
        keys: list[BlockKey] = []
        for start in range(0, whole_bytes, span_bytes):
            span = packed[start : start + span_bytes]
            name = (seed, block_tokens, parent, xxh3_128_intdigest(span))
            found = self._spans.get(name)
            if found is None:
                found = tuple(self._chain(span, block_tokens, seed, parent, tuple(smaller)))
                self._spans.put(name, found, KEY_BYTES * len(found))
            keys.extend(found)
            parent = found[-1]
        keys.extend(self._chain(packed[whole_bytes:], block_tokens, seed, parent, tuple(smaller)))
        return keys

    def check(self) -> None:
        """Its account is right and within the bound."""
        self._spans.check()

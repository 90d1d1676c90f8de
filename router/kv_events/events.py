"""What engines tell of their caches, in their own words: hashes are the engine's, not the router's keys.

The shapes are those of vLLM's KV events (`vllm/distributed/kv_events.py`), which SGLang and others speak too.
"""

from dataclasses import dataclass

from ..core.blocks import TOKEN_BYTES
from ..core.errors import EventError

EngineHash = int | bytes
"""How an engine names a block: 64 bits, taken as unsigned, or its digest. It means something to that engine alone."""


class KvEventError(EventError):
    """What an engine told of its cache cannot be read, or not be used: says what was found and what was expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an engine holds blocks, in its own words."""

    medium: str | None = None
    """`GPU`, `CPU`, `STORAGE` and so on; None where it does not say, which means its device."""
    owner: str = ""
    """The secondary tier that holds it, where an engine has several."""
    is_remote: bool = False
    """Whether it is out of the engine's own host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStored:
    """A chain of blocks, each the parent of the next, is held at a place.

    `packed_tokens` are the chain's token ids as little-endian u32; empty where an engine names blocks that it told of
    before. Only the first `text_blocks` are made of tokens and nothing else (no image, no embedding).
    """

    hashes: tuple[EngineHash, ...]
    parent: EngineHash | None = None
    packed_tokens: bytes = b""
    block_tokens: int = 0
    place: Place = Place()
    lora: str = ""
    salt: str = ""
    """Known on a prompt's first block alone; what is below it has its parent's."""
    text_blocks: int
    group: int | None = None
    """The KV cache group, of engines that keep a cache per kind of attention."""
    kind: str | None = None
    """The kind of attention of that group: `full_attention`, `sliding_window`, `mamba` and so on."""

    @property
    def names_only(self) -> bool:
        """Whether the blocks are only named, and must have been told of before."""
        return not self.packed_tokens

    @property
    def is_whole(self) -> bool:
        """Whether there are as many tokens as the blocks have."""
        return len(self.packed_tokens) == len(self.hashes) * self.block_tokens * TOKEN_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRemoved:
    """Blocks are no more held: at a place, or, without one, once less wherever they are held."""

    hashes: tuple[EngineHash, ...]
    place: Place | None = None
    group: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCleared:
    """The cache is empty."""


EngineEvent = EngineStored | EngineRemoved | EngineCleared


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineBatch:
    """One message: what happened in one step of an engine. `told_s` is the engine's wall clock (Unix time)."""

    told_s: float
    events: tuple[EngineEvent, ...]
    rank: int | None = None
    unknown: int = 0
    """Events of a type that is not known here, left out."""

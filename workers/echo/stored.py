"""What changed in a cache in one pass, joined with the requests that know the tokens of the blocks.

A block book tells keys alone; KV events carry tokens, and whose KV it is.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from homing.router.core.blocks import group_seed
from homing.router.core.types import BlockKey
from homing.workers.engine.batcher import Progress
from homing.workers.engine.kvcache import KvEvent, Stored
from homing.workers.engine.tokens import TokenSequence


class EchoSequence(TokenSequence):
    """A request with whose KV it makes: an adapter's, a tenant's, or everybody's."""

    __slots__ = ("lora", "salt")

    def __init__(
        self,
        request_id: str,
        tokens: Sequence[int],
        *,
        block_tokens: int,
        max_output_tokens: int,
        eos_ids: frozenset[int],
        lora: str = "",
        salt: str = "",
    ) -> None:
        super().__init__(
            request_id,
            tokens,
            block_tokens=block_tokens,
            key_seed=group_seed(lora=lora, tenant_salt=salt),
            max_output_tokens=max_output_tokens,
            eos_ids=eos_ids,
        )
        self.lora = lora
        self.salt = salt


class StoredBlock(NamedTuple):
    """The block at `position` of a request can be found now."""

    sequence: EchoSequence
    position: int

    @property
    def key(self) -> BlockKey:
        """The router's name of it."""
        return self.sequence.keys[self.position]

    @property
    def tokens(self) -> list[int]:
        """The tokens in it."""
        return self.tokens_at(self.position)

    def tokens_at(self, position: int) -> list[int]:
        """The tokens of another block of the same request."""
        size = self.sequence.block_tokens
        return self.sequence.tokens[position * size : (position + 1) * size]

    def follows(self, other: "StoredBlock") -> bool:
        """Whether it is the next block of the same request."""
        return self.sequence is other.sequence and self.position == other.position + 1


class RemovedBlock(NamedTuple):
    """A block that can be found no more."""

    key: BlockKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """In order; `cleared` comes before them."""

    blocks: tuple[StoredBlock | RemovedBlock, ...] = ()
    cleared: bool = False

    @classmethod
    def of(cls, events: Iterable[KvEvent], progress: Iterable[Progress]) -> "Changes":
        """Events of the block book, with the sequences whose pass caused them."""
        filled = {block.key: block for part in progress for block in _filled(part)}
        return cls(blocks=tuple(filled[e.key] if isinstance(e, Stored) else RemovedBlock(e.key) for e in events))


def _filled(part: Progress) -> Iterable[StoredBlock]:
    sequence = part.sequence
    assert isinstance(sequence, EchoSequence)
    return (StoredBlock(sequence, position) for position in part.full_blocks)

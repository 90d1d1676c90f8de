"""The nouns of the data plane: block memory, pieces of an export, offers, sinks.

Rule 1: positions in a `Piece` count within the export's block list; block numbers never cross the wire, since the
same KV lies in other rows at source and target.
Rule 2: nothing here does I/O.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import xxhash

TOKEN_BYTES = 16

# A lying peer's offer must not make us allocate: 2^20 blocks of 16 tokens are 16 M tokens of context.
BLOCKS_MAX = 1 << 20
LAYERS_MAX = 4096


class BlockMemory(Protocol):
    """Where a worker's KV lies: `[blocks, layers, layer_block_bytes]`, so a run of layers of a block is contiguous.

    `format` names everything that makes KV interchangeable (model, data type, block tokens, head layout): two
    workers move KV between them only if their formats are equal.
    """

    @property
    def format(self) -> str:
        """The name of the KV's layout and meaning."""

    @property
    def layers(self) -> int:
        """Layers of the model that this worker holds."""

    @property
    def layer_block_bytes(self) -> int:
        """Bytes of one layer of one block (keys and values)."""

    def view(self, block: int, layer_first: int, layer_count: int) -> memoryview:
        """The writable bytes of `layer_count` layers of `block`, `layer_count * layer_block_bytes` long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A rectangle of an export: some layers of some consecutive positions. It travels as one frame."""

    layer_first: int
    layer_count: int
    block_first: int
    block_count: int

    def __post_init__(self) -> None:
        if min(self.layer_first, self.block_first) < 0 or min(self.layer_count, self.block_count) < 1:
            raise ValueError(f"piece {self}: firsts must be >= 0 and counts >= 1")

    @property
    def layer_end(self) -> int:
        """One past the last layer."""
        return self.layer_first + self.layer_count

    @property
    def block_end(self) -> int:
        """One past the last position in the export's block list."""
        return self.block_first + self.block_count

    @property
    def positions(self) -> range:
        """The positions within the export's block list."""
        return range(self.block_first, self.block_end)

    def __str__(self) -> str:
        layers = f"layers {self.layer_first}..{self.layer_end - 1}"
        return f"{layers} of blocks {self.block_first}..{self.block_end - 1}"


class Order(StrEnum):
    """From which end a cached prefix is sent."""

    FRONT_TO_BACK = "front_to_back"
    BACK_TO_FRONT = "back_to_front"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The extent of one export; every length on the wire is checked against it."""

    format: str
    blocks: int
    layers: int
    layer_block_bytes: int

    def __post_init__(self) -> None:
        if min(self.blocks, self.layers, self.layer_block_bytes) < 1:
            raise ValueError(f"layout {self}: blocks, layers and layer_block_bytes must be >= 1")
        if self.blocks > BLOCKS_MAX or self.layers > LAYERS_MAX:
            raise ValueError(f"layout {self}: at most {BLOCKS_MAX} blocks and {LAYERS_MAX} layers in one export")

    @property
    def block_bytes(self) -> int:
        """Bytes of one block, all layers."""
        return self.layers * self.layer_block_bytes

    @property
    def total_bytes(self) -> int:
        """Bytes of the whole export."""
        return self.blocks * self.block_bytes

    @property
    def whole(self) -> Piece:
        """The piece that covers everything."""
        return Piece(layer_first=0, layer_count=self.layers, block_first=0, block_count=self.blocks)

    @property
    def format_digest(self) -> int:
        """XXH3-64 of format, layers and layer_block_bytes: what both ends of a connection must share."""
        return xxhash.xxh3_64_intdigest(f"{self.format}|{self.layers}|{self.layer_block_bytes}".encode())

    def contains(self, piece: Piece) -> bool:
        """Whether `piece` lies wholly within this layout."""
        return piece.layer_end <= self.layers and piece.block_end <= self.blocks

    def bytes_of(self, piece: Piece) -> int:
        """Payload bytes of `piece`."""
        return piece.layer_count * piece.block_count * self.layer_block_bytes

    def matches(self, memory: BlockMemory) -> bool:
        """Whether blocks of this layout can be put into `memory`."""
        own = (memory.format, memory.layers, memory.layer_block_bytes)
        return own == (self.format, self.layers, self.layer_block_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A source's answer to "send me these blocks": where to connect, with which token, and what will come."""

    host: str
    port: int
    token: bytes
    format: str
    blocks: int
    layers: int
    layer_block_bytes: int

    def __post_init__(self) -> None:
        if len(self.token) != TOKEN_BYTES:
            raise ValueError(f"offer token has {len(self.token)} bytes; it must have {TOKEN_BYTES}")
        _ = self.layout

    @property
    def layout(self) -> Layout:
        """The extent of what is offered."""
        return Layout(
            format=self.format,
            blocks=self.blocks,
            layers=self.layers,
            layer_block_bytes=self.layer_block_bytes,
        )

    def __repr__(self) -> str:
        # The token is a credential: whoever logs an offer must not leak it.
        return f"Offer({self.host}:{self.port}, {self.blocks} blocks x {self.layers} layers, {self.format!r})"


class Sink(Protocol):
    """Where a transfer's bytes go, and who learns that they came.

    All methods are called from the event loop and must be quick. A buffer that was handed out may be written until
    `arrived` was called for its piece or the pull has returned, so its blocks must not be read or computed before.
    """

    def wanted(self, piece: Piece) -> bool:
        """Called before anything else of a piece; False ends the transfer as STOPPED (no later piece is wanted)."""

    def buffers(self, piece: Piece) -> Sequence[memoryview]:
        """Where to receive: writable bytes, position by position, layers in order within each."""

    def arrived(self, piece: Piece) -> None:
        """The piece is in its buffers and its checksum matched."""

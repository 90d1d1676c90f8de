"""The wire: one handshake from the target, then frames from the source. All numbers are little-endian.

    handshake (56 bytes)  magic "HOMINGKV", version u16, flags u16, stripe index u16, stripe count u16,
                          format digest u64, token 16 bytes, congestion control name 16 bytes (zero-padded)
    frame (36 bytes)      kind u8, flags u8, zero u16, layer_first u32, layer_count u32, block_first u32,
                          block_count u32, payload_bytes u64, checksum u64; then the payload

The checksum is XXH3-64 over the header's first 28 bytes and the payload: a flipped bit in a position would put good
bytes in the wrong place. It finds accidents; whoever can change bytes on the path can change it too, so a network
that is not trusted needs its own encryption below.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

import xxhash

from .errors import CorruptFrameError, ProtocolViolationError
from .types import TOKEN_BYTES, Piece

MAGIC = b"HOMINGKV"
VERSION = 1
STRIPES_MAX = 64
MESSAGE_BYTES_MAX = 1024
# A handover that waits for compute says so this often; a receiver's idle time-out must be a few times this.
KEEPALIVE_S = 1.0

_HELLO = struct.Struct(f"<8sHHHHQ{TOKEN_BYTES}s16s")
_HEADER = struct.Struct("<BBHIIIIQQ")
HELLO_BYTES = _HELLO.size
HEADER_BYTES = _HEADER.size
_CHECKED_BYTES = HEADER_BYTES - 8

_FLAG_CHECKSUM = 1
_FLAG_AFTER_PAUSE = 1
_FLAG_FAILED = 1

# The one byte that a target may send after its handshake: it has enough, the rest is not wanted.
STOP_BYTE = b"S"


class Kind(IntEnum):
    """What a frame is."""

    PIECE = 1
    KEEPALIVE = 2
    END = 3
    ERROR = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """What a target says first on each of its connections."""

    token: bytes
    format_digest: int
    stripe: int = 0
    stripes: int = 1
    checksum: bool = True
    congestion: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.stripe < self.stripes <= STRIPES_MAX:
            raise ProtocolViolationError(
                f"stripe {self.stripe} of {self.stripes}: the index counts from 0, at most {STRIPES_MAX} stripes"
            )

    def encode(self) -> bytes:
        """The handshake's bytes."""
        flags = _FLAG_CHECKSUM * self.checksum
        congestion = self.congestion.encode("ascii")
        return _HELLO.pack(MAGIC, VERSION, flags, self.stripe, self.stripes, self.format_digest, self.token, congestion)

    @classmethod
    def decode(cls, data: bytes) -> "Hello":
        """Read `HELLO_BYTES` bytes; raises `ProtocolViolationError`."""
        magic, version, flags, stripe, stripes, digest, token, congestion = _HELLO.unpack(data)
        if magic != MAGIC:
            raise ProtocolViolationError("not a handshake of this protocol")
        if version != VERSION:
            raise ProtocolViolationError(f"protocol version {version}; this end speaks version {VERSION}")
        name = congestion.rstrip(b"\0")
        if not name.replace(b"_", b"").isalnum() and name:
            raise ProtocolViolationError("the congestion control's name must be letters, digits and underscores")
        return cls(
            token=token,
            format_digest=digest,
            stripe=stripe,
            stripes=stripes,
            checksum=bool(flags & _FLAG_CHECKSUM),
            congestion=name.decode("ascii"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A decoded frame header; `checked` is the part of its bytes that the checksum covers."""

    kind: Kind
    flags: int
    piece: Piece | None
    payload_bytes: int
    checksum: int
    checked: bytes

    @property
    def after_pause(self) -> bool:
        """Whether the source had to wait before it could send this piece."""
        return self.kind is Kind.PIECE and bool(self.flags & _FLAG_AFTER_PAUSE)

    @property
    def failed(self) -> bool:
        """Whether an END says that the source gave up."""
        return self.kind is Kind.END and bool(self.flags & _FLAG_FAILED)

    @classmethod
    def decode(cls, data: bytes) -> "Header":
        """Read `HEADER_BYTES` bytes; raises `ProtocolViolationError` on anything that no sender of ours writes."""
        kind, flags, zero, *extent, payload_bytes, checksum = _HEADER.unpack(data)
        if zero or flags > 1 or kind not in Kind.__members__.values():
            raise ProtocolViolationError(f"unknown frame: kind {kind}, flags {flags}")
        piece = None
        if kind == Kind.PIECE:
            piece = _decode_piece(*extent)
        elif any(extent) or payload_bytes > MESSAGE_BYTES_MAX:
            raise ProtocolViolationError(f"frame of kind {Kind(kind).name} with an extent or a long message")
        return cls(
            kind=Kind(kind),
            flags=flags,
            piece=piece,
            payload_bytes=payload_bytes,
            checksum=checksum,
            checked=bytes(data[:_CHECKED_BYTES]),
        )

    def digest(self) -> "xxhash.xxh3_64":
        """A running checksum that has taken in the header and waits for the payload."""
        return xxhash.xxh3_64(self.checked)

    def check(self, digest: "xxhash.xxh3_64") -> None:
        """Compare the checksum of what arrived; raises `CorruptFrameError` naming the frame."""
        if digest.intdigest() != self.checksum:
            what = f"piece with {self.piece}" if self.piece else f"frame {self.kind.name}"
            raise CorruptFrameError(f"checksum of the {what} does not match its bytes")


def _decode_piece(layer_first: int, layer_count: int, block_first: int, block_count: int) -> Piece:
    if not layer_count or not block_count:
        raise ProtocolViolationError("a piece without layers or blocks")
    return Piece(layer_first=layer_first, layer_count=layer_count, block_first=block_first, block_count=block_count)


def encode_piece(
    piece: Piece, payload: Iterable[memoryview], payload_bytes: int, *, after_pause: bool, checksum: bool
) -> bytes:
    """The header of a PIECE frame over `payload` (read only if `checksum`)."""
    extent = (piece.layer_first, piece.layer_count, piece.block_first, piece.block_count)
    flags = _FLAG_AFTER_PAUSE * after_pause
    return _encode(Kind.PIECE, flags, extent, payload, payload_bytes, checksum=checksum)


def encode_keepalive() -> bytes:
    """A whole KEEPALIVE frame."""
    return _encode_message(Kind.KEEPALIVE, 0, "")


def encode_end(failure: str = "") -> bytes:
    """A whole END frame; with a `failure`, the source gave up for that reason."""
    return _encode_message(Kind.END, _FLAG_FAILED * bool(failure), failure)


def encode_error(reason: str) -> bytes:
    """A whole ERROR frame: the source refuses this connection."""
    return _encode_message(Kind.ERROR, 0, reason)


def _encode_message(kind: Kind, flags: int, message: str) -> bytes:
    payload = message.encode()[:MESSAGE_BYTES_MAX]
    header = _encode(kind, flags, (0, 0, 0, 0), [memoryview(payload)], len(payload), checksum=True)
    return header + payload


def _encode(
    kind: Kind,
    flags: int,
    extent: tuple[int, int, int, int],
    payload: Iterable[memoryview],
    payload_bytes: int,
    *,
    checksum: bool,
) -> bytes:
    header = _HEADER.pack(kind, flags, 0, *extent, payload_bytes, 0)[:_CHECKED_BYTES]
    digest = 0
    if checksum:
        running = xxhash.xxh3_64(header)
        for view in payload:
            running.update(view)
        digest = running.intdigest()
    return header + digest.to_bytes(8, "little")

"""What two connectors say to each other before the bytes flow: one question and one answer, on the data port.

    question  magic "HOMINGAS", length u32, MessagePack of `Ask`
    answer    length u32, MessagePack of `Answer`

All numbers are little-endian. Questions may follow one another on a connection; the one that carries the mover's
handshake afterwards becomes the transfer's first connection, which saves a round trip.
"""

import struct
from typing import Final

import msgspec

from ..transfer.types import BLOCKS_MAX

MAGIC: Final = b"HOMINGAS"
_LENGTH = struct.Struct("<I")
LENGTH_BYTES: Final = _LENGTH.size
MESSAGE_BYTES_MAX: Final = 1 << 20
"""A hundred thousand keys; more is refused before it is read."""


class Ask(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    """Which blocks, and of which format they must be.

    follow: whether to wait for those that are still being computed; else the leading run that is here is offered.
    """

    format: str
    keys: list[int]
    follow: bool = False
    back_to_front: bool = False


class AskReport(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What became of the loads of the request with this ticket."""

    ticket: str


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An offer of `blocks` blocks, or a `refusal`; or the report that was asked for."""

    refusal: str = ""
    token: bytes = b""
    format: str = ""
    blocks: int = 0
    layers: int = 0
    layer_block_bytes: int = 0
    report: dict[str, object] | None = None


_ASKS = msgspec.msgpack.Decoder(Ask | AskReport)
_ANSWERS = msgspec.msgpack.Decoder(Answer)


def encode_ask(ask: Ask | AskReport) -> bytes:
    """A whole question."""
    body = msgspec.msgpack.encode(ask)
    return MAGIC + _LENGTH.pack(len(body)) + body


def encode_answer(answer: Answer) -> bytes:
    """A whole answer."""
    body = msgspec.msgpack.encode(answer)
    return _LENGTH.pack(len(body)) + body


def decode_length(data: bytes) -> int:
    """The length of the message that follows; ValueError if it is too long."""
    (length,) = _LENGTH.unpack(data)
    if length > MESSAGE_BYTES_MAX:
        raise ValueError(f"a message of {length} bytes; at most {MESSAGE_BYTES_MAX} are read")
    return int(length)


def decode_ask(data: bytes) -> Ask | AskReport:
    """Read a question; ValueError if it is none."""
    ask: Ask | AskReport = _ASKS.decode(data)
    if isinstance(ask, Ask) and not 0 < len(ask.keys) <= BLOCKS_MAX:
        raise ValueError(f"a question for {len(ask.keys)} blocks; ask for 1 to {BLOCKS_MAX}")
    return ask


def decode_answer(data: bytes) -> Answer:
    """Read an answer; ValueError if it is none."""
    return _ANSWERS.decode(data)

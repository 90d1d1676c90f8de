"""The wire format: what one end writes the other reads, and nothing else is taken for it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homing.workers.transfer import Piece
from homing.workers.transfer.errors import CorruptFrameError, ProtocolViolationError
from homing.workers.transfer.frames import (
    HEADER_BYTES,
    HELLO_BYTES,
    Header,
    Hello,
    Kind,
    encode_end,
    encode_error,
    encode_keepalive,
    encode_piece,
)

u32 = st.integers(0, 2**32 - 1)
PIECE = Piece(layer_first=3, layer_count=2, block_first=7, block_count=5)


def read(frame: bytes) -> tuple[Header, bytes]:
    header = Header.decode(frame[:HEADER_BYTES])
    payload = frame[HEADER_BYTES:]
    digest = header.digest()
    digest.update(payload)
    header.check(digest)
    return header, payload


@given(u32, st.integers(1, 2**32 - 1), st.booleans(), st.lists(st.binary(max_size=50), max_size=4))
def test_pieces_come_back_whole(first: int, count: int, paused: bool, payload: list[bytes]) -> None:
    piece = Piece(layer_first=first, layer_count=count, block_first=first, block_count=count)
    size = sum(map(len, payload))
    header_bytes = encode_piece(piece, map(memoryview, payload), size, after_pause=paused, checksum=True)
    header, _ = read(header_bytes + b"".join(payload))
    assert (header.kind, header.piece, header.payload_bytes) == (Kind.PIECE, piece, size)
    assert header.after_pause == paused


def test_messages_come_back_whole() -> None:
    assert read(encode_keepalive())[0].kind is Kind.KEEPALIVE
    assert not read(encode_end())[0].failed
    assert read(encode_end("prefill failed"))[0].failed
    assert read(encode_error("unknown token"))[1] == b"unknown token"


def test_a_long_message_is_cut_and_not_refused() -> None:
    assert len(read(encode_error("x" * 5000))[1]) == 1024


@given(st.integers(0, (HEADER_BYTES + 64) * 8 - 1))
def test_no_single_bit_flips_unseen(bit: int) -> None:
    """Positions are covered too: good bytes in the wrong block are as bad as bad bytes."""
    payload = bytes(range(64))
    frame = bytearray(encode_piece(PIECE, [memoryview(payload)], 64, after_pause=False, checksum=True) + payload)
    frame[bit // 8] ^= 1 << bit % 8
    with pytest.raises((CorruptFrameError, ProtocolViolationError)):
        read(bytes(frame))


@given(st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES))
def test_random_headers_are_read_or_refused(data: bytes) -> None:
    try:
        header = Header.decode(data)
    except ProtocolViolationError:
        return
    assert header.kind in Kind
    assert header.piece is not None or header.payload_bytes <= 1024


@given(st.binary(min_size=16, max_size=16), st.integers(0, 2**64 - 1), st.integers(0, 63), st.booleans())
def test_hello_comes_back(token: bytes, digest: int, stripe: int, checksum: bool) -> None:
    hello = Hello(token=token, format_digest=digest, stripe=stripe, stripes=64, checksum=checksum, congestion="bbr")
    assert Hello.decode(hello.encode()) == hello


@given(st.binary(min_size=HELLO_BYTES, max_size=HELLO_BYTES))
def test_random_hellos_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolViolationError):
        Hello.decode(data)


@given(st.binary(min_size=HELLO_BYTES - 10, max_size=HELLO_BYTES - 10))
def test_random_hellos_behind_the_magic_are_read_or_refused(data: bytes) -> None:
    try:
        hello = Hello.decode(b"HOMINGKV\x01\x00" + data)
    except ProtocolViolationError:
        return
    assert hello.stripe < hello.stripes <= 64


def test_another_version_is_named() -> None:
    data = bytearray(Hello(token=bytes(16), format_digest=0).encode())
    data[8] = 9
    with pytest.raises(ProtocolViolationError, match=r"version 9.*version 1"):
        Hello.decode(bytes(data))

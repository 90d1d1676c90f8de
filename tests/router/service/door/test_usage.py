"""Streams of events on their way through: however they are cut, the same comes out, and the usage is read."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homing.router.engines.usage import Usage
from homing.router.service.door.usage import EVENT_BYTES_MAX, StreamReader, usage_in

CHUNK = {"choices": [{"delta": {"content": "x"}}]}
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}
TOLD = Usage(prompt_tokens=7, completion_tokens=3, cached_tokens=4)


def event(data, end, *, spaced=False, first=""):
    text = json.dumps(data, separators=(", ", ": ") if spaced else (",", ":"))
    return f"{first}data: {text}".encode() + 2 * end


def cut(whole, places):
    places = sorted({place % (len(whole) + 1) for place in places})
    return [whole[a:b] for a, b in zip([0, *places], [*places, len(whole)], strict=True)]


def passed(pieces, *, hides):
    reader = StreamReader(hides_usage=hides)
    return b"".join([*(reader.push(piece) for piece in pieces), reader.finish()]), reader


ENDS = st.sampled_from([b"\n", b"\r\n"])


@st.composite
def streams(draw):
    """A stream, and the same without what brings usage alone."""
    end, whole, hidden = draw(ENDS), b"", b""
    for kind in draw(st.lists(st.sampled_from(["text", "usage", "both", "comment", "raw", "null"]), max_size=8)):
        more = {
            "text": event(CHUNK, end),
            "usage": event({"choices": [], "usage": USAGE}, end, spaced=draw(st.booleans())),
            "both": event({**CHUNK, "usage": USAGE}, end),
            "null": event({**CHUNK, "usage": None}, end),
            "comment": b": ping" + 2 * end,
            "raw": draw(st.binary(max_size=20)).replace(b"\n", b"") + 2 * end,
        }[kind]
        whole += more
        hidden += b"" if kind == "usage" else more
    tail = draw(st.sampled_from([b"", b"data: [DONE]" + 2 * end, b"data: half"]))
    return whole + tail, hidden + tail


@given(stream=streams(), places=st.lists(st.integers(0, 10_000), max_size=10))
def test_any_cut_gives_the_same_bytes(stream, places):
    whole, hidden = stream
    pieces = cut(whole, places)
    assert passed(pieces, hides=False)[0] == whole
    told, reader = passed(pieces, hides=True)
    assert told == hidden
    if b'"prompt_tokens"' in whole:
        assert reader.usage == TOLD
    assert reader.events == passed([whole], hides=True)[1].events


@given(data=st.binary(max_size=200), places=st.lists(st.integers(0, 200), max_size=5), hides=st.booleans())
def test_bytes_of_any_kind_pass(data, places, hides):
    assert passed(cut(data, places), hides=hides)[0] == data


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_whole_events_go_at_once(end):
    reader = StreamReader(hides_usage=True)
    one, usage = event(CHUNK, end), event({"choices": [], "usage": USAGE}, end)
    assert reader.push(one) == one
    assert reader.push(one + one[:-1]) == one
    assert reader.push(one[-1:]) == one
    assert reader.push(usage[:20]) == b""
    assert reader.push(usage[20:]) == b""
    assert reader.usage == TOLD
    assert reader.events == 3


def test_named_events_tell_usage_too():
    _, reader = passed([event({"type": "x", "usage": USAGE}, b"\n", first="event: message_delta\n")], hides=True)
    assert reader.usage == TOLD


@pytest.mark.parametrize(
    ("last", "is_over"),
    [
        (b"data: [DONE]\n\n", True),
        (b"data: [DONE]\r\n\r\n", True),
        (b'event: message_stop\ndata: {"type":"message_stop"}\n\n', True),
        (event({"delta": {"text": '{"type":"message_stop"}'}}, b"\n"), False),
        (event(CHUNK, b"\n"), False),
    ],
)
def test_whose_last_event_came_may_leave(last, is_over):
    reader = StreamReader(hides_usage=False)
    reader.push(event(CHUNK, b"\n"))
    assert not reader.is_over
    reader.push(last)
    assert reader.is_over == is_over


def test_an_event_without_end_is_not_kept_without_end():
    reader = StreamReader(hides_usage=True)
    out, piece = 0, b"data: " + b"x" * 100_000
    for _ in range(50):
        out += len(reader.push(piece))
        assert len(reader._rest) <= EVENT_BYTES_MAX + len(piece)
    assert out + len(reader.finish()) == 50 * len(piece)


def test_a_large_event_in_small_parts_takes_little_time():
    reader = StreamReader(hides_usage=True)
    whole = b"data: " + b"y" * (EVENT_BYTES_MAX - 100) + b"\n\n"
    assert b"".join(reader.push(whole[at : at + 64]) for at in range(0, len(whole), 64)) == whole


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b'{"usage":{"prompt_tokens":1,"completion_tokens":2}}', Usage(prompt_tokens=1, completion_tokens=2)),
        (b'{"usage":{"prompt_tokens":9},"timings":{"cache_n":5}}', Usage(prompt_tokens=9, cached_tokens=5)),
        (b'{"usage":{"prompt_tokens":1},"kv_transfer_params":{"a":1}}', Usage(prompt_tokens=1, handle={"a": 1})),
        (b'{"usage":null}', None),
        (b"{}", None),
        (b"[]", None),
        (b"", None),
        (b'{"usage":{"prompt_tokens":"many"}}', None),
        (b'{"usage":{"prompt_tokens":1},"kv_transfer_params":{"a":"\xff"}}', None),
        (b'{"usage":' * 5000, None),
        (b"[" * 100_000, None),
    ],
    ids=range(11),
)
def test_usage_of_whole_answers(body, told):
    assert usage_in(body) == told

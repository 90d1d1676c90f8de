"""The state machine of one request, message by message, without a gateway."""

from itertools import pairwise

import pytest
from envoy.config.core.v3.base_pb2 import HeaderMap, HeaderValue
from envoy.service.ext_proc.v3.external_processor_pb2 import (
    HttpBody,
    HttpHeaders,
    HttpTrailers,
    ProcessingRequest,
    ProcessingResponse,
    ProtocolConfiguration,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from homing.router.envoy.messages import CHUNK_BYTES_MAX, Answered, ProcessingMode
from homing.router.envoy.processor import Exchange, Question
from homing.router.envoy.types import Pick, PickRefusedError

ENDPOINTS = ("10.0.0.1:8000", "10.0.0.2:8000")
BODY_BYTES_MAX = 400_000
MODES = [ProcessingMode.FULL_DUPLEX_STREAMED, ProcessingMode.BUFFERED]


def exchange():
    return Exchange("s-0", body_bytes_max=BODY_BYTES_MAX)


def headers(mode=None, *, ends=False, response_mode=ProcessingMode.NONE, **more):
    values = {":method": "POST", ":path": "/v1/completions?a=b", **more}
    message = ProcessingRequest(
        request_headers=HttpHeaders(
            headers=HeaderMap(headers=[HeaderValue(key=k, raw_value=v.encode()) for k, v in values.items()]),
            end_of_stream=ends,
        )
    )
    if mode is not None:
        message.protocol_config.CopyFrom(
            ProtocolConfiguration(request_body_mode=mode, response_body_mode=response_mode)
        )
    return message


def body(data, *, ends=False):
    return ProcessingRequest(request_body=HttpBody(body=data, end_of_stream=ends))


def trailers():
    return ProcessingRequest(request_trailers=HttpTrailers())


def response_headers(status="200", served="", *, ends=False):
    values = [HeaderValue(key=":status", raw_value=status.encode())]
    message = ProcessingRequest(response_headers=HttpHeaders(headers=HeaderMap(headers=values), end_of_stream=ends))
    if served:
        message.metadata_context.filter_metadata["envoy.lb"]["x-gateway-destination-endpoint-served"] = served
    return message


def response_body(data, *, ends=False):
    return ProcessingRequest(response_body=HttpBody(body=data, end_of_stream=ends))


def pick(**facts):
    return Pick(**{"request_id": "r", "endpoints": ENDPOINTS, **facts})


def set_headers(common):
    return {one.header.key: one.header.raw_value.decode() for one in common.header_mutation.set_headers}


def destination(reply):
    return reply.dynamic_metadata["envoy.lb"]["x-gateway-destination-endpoint"]


def pieces(data, cuts):
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


@settings(deadline=None, max_examples=60)
@given(
    length=st.integers(0, 200_000),
    cuts=st.lists(st.integers(0, 1 << 20), max_size=6),
    replaced=st.none() | st.integers(0, 200_000),
    has_trailers=st.booleans(),
    says_mode=st.booleans(),
)
def test_a_streamed_request_is_held_until_it_is_whole(length, cuts, replaced, has_trailers, says_mode):
    sent, machine = bytes(i % 251 for i in range(length)), exchange()
    assert machine.receive(headers(MODES[0] if says_mode else None)) == []
    chunks = pieces(sent, cuts)
    for chunk in chunks[:-1]:
        assert machine.receive(body(chunk)) == []
    effects = machine.receive(body(chunks[-1], ends=not has_trailers))
    if has_trailers:
        assert effects == []
        effects = machine.receive(trailers())
    (question,) = effects
    assert (question.path, question.body, question.subset) == ("/v1/completions", sent, None)
    wanted = sent if replaced is None else b"n" * replaced
    first, *rest = machine.picked(pick(body=None if replaced is None else wanted))
    assert destination(first) == ",".join(ENDPOINTS)
    assert first.request_headers.response.clear_route_cache
    if has_trailers:
        assert rest.pop().WhichOneof("response") == "request_trailers"
    streamed = [reply.request_body.response.body_mutation.streamed_response for reply in rest]
    assert b"".join(one.body for one in streamed) == wanted
    assert all(len(one.body) <= CHUNK_BYTES_MAX for one in streamed)
    assert [one.end_of_stream for one in streamed] == [False] * (len(streamed) - 1) + [True] * (not has_trailers) or (
        has_trailers and not any(one.end_of_stream for one in streamed)
    )


@given(data=st.binary(max_size=300), replaced=st.none() | st.binary(max_size=300), ends=st.booleans())
def test_a_buffered_request_gets_its_destination_with_its_body(data, replaced, ends):
    machine = exchange()
    (go_on,) = machine.receive(headers(ProcessingMode.BUFFERED))
    assert go_on.WhichOneof("response") == "request_headers"
    assert not set_headers(go_on.request_headers.response)
    (question,) = machine.receive(body(data, ends=ends))
    assert question.body == data
    (reply,) = machine.picked(pick(body=replaced, headers={"x-homing-plan": "local"}))
    common = reply.request_body.response
    expected = {
        "x-homing-plan": "local",
        "x-gateway-destination-endpoint": "10.0.0.1:8000,10.0.0.2:8000",
        "x-envoy-max-retries": "1",
    }
    if replaced is not None:
        assert common.body_mutation.body == replaced
        expected["content-length"] = str(len(replaced))
    assert set_headers(common) == expected
    assert destination(reply) == expected["x-gateway-destination-endpoint"]
    if not ends:
        assert machine.receive(trailers())[0].WhichOneof("response") == "request_trailers"


@pytest.mark.parametrize("mode", [*MODES, ProcessingMode.NONE, ProcessingMode.STREAMED])
def test_a_request_without_a_body_is_asked_at_once_in_every_mode(mode):
    machine = exchange()
    (question,) = machine.receive(headers(mode, ends=True))
    assert question.body == b""
    (reply,) = machine.picked(pick())
    assert set_headers(reply.request_headers.response)["x-gateway-destination-endpoint"] == ",".join(ENDPOINTS)


@pytest.mark.parametrize("mode", [ProcessingMode.NONE, ProcessingMode.STREAMED, ProcessingMode.BUFFERED_PARTIAL])
def test_a_mode_that_hides_the_body_is_named(mode):
    machine = exchange()
    (reply,) = machine.receive(headers(mode))
    assert reply.immediate_response.status.code == 500
    assert ProcessingMode.BodySendMode.Name(mode).encode() in reply.immediate_response.body
    assert machine.is_over


@pytest.mark.parametrize("served", ["", "10.0.0.2:8000"])
def test_who_answered_is_told_once(served):
    machine = exchange()
    machine.receive(headers(ends=True))
    machine.picked(pick())
    answered, reply = machine.receive(response_headers("201", served))
    assert answered == Answered(endpoint=served or ENDPOINTS[0], status=201)
    assert reply.WhichOneof("response") == "response_headers"
    (again,) = machine.receive(response_headers())
    assert again.immediate_response.status.code == 500


def test_a_body_that_is_too_large_is_refused_before_it_is_whole():
    machine = exchange()
    machine.receive(headers())
    assert machine.receive(body(bytes(BODY_BYTES_MAX))) == []
    (reply,) = machine.receive(body(b"1"))
    assert reply.immediate_response.status.code == 413
    assert machine.receive(body(b"2", ends=True)) == []


def test_picks_outside_the_subset_are_dropped():
    for allowed, expected in (([ENDPOINTS[1]], ENDPOINTS[1]), (["10.9.9.9:1"], None)):
        machine = exchange()
        message = headers(ends=True)
        hint = message.metadata_context.filter_metadata["envoy.lb.subset_hint"]
        hint.get_or_create_list("x-gateway-destination-endpoint-subset").extend(allowed)
        (question,) = machine.receive(message)
        assert question.subset == frozenset(allowed)
        (reply,) = machine.picked(pick())
        assert destination(reply) == expected if expected else reply.immediate_response.status.code == 503
        assert machine.is_cut_off


@pytest.mark.parametrize("value", ["", " 10.0.0.1:8000 ,10.0.0.2:8000,"])
def test_a_subset_may_be_a_text(value):
    message = headers(ends=True)
    message.metadata_context.filter_metadata["envoy.lb.subset_hint"]["x-gateway-destination-endpoint-subset"] = value
    (effect,) = exchange().receive(message)
    if value:
        assert effect.subset == frozenset(ENDPOINTS)
    else:
        assert effect.immediate_response.status.code == 503


@given(chunks=st.lists(st.binary(max_size=100), max_size=5), ends=st.booleans())
def test_response_bodies_come_back_as_they_came(chunks, ends):
    machine = exchange()
    machine.receive(headers(MODES[0], ends=True, response_mode=ProcessingMode.FULL_DUPLEX_STREAMED))
    machine.picked(pick())
    machine.receive(response_headers())
    replies = [reply for chunk in chunks for reply in machine.receive(response_body(chunk))]
    replies += machine.receive(response_body(b"", ends=True)) if ends else []
    streamed = [reply.response_body.response.body_mutation.streamed_response for reply in replies]
    assert b"".join(one.body for one in streamed) == b"".join(chunks)
    assert any(one.end_of_stream for one in streamed) == ends
    assert machine.is_cut_off == (not ends)


def test_the_end_is_unknown_where_it_is_not_shown():
    machine = exchange()
    machine.receive(headers(ends=True))
    machine.picked(pick())
    assert machine.is_cut_off
    machine.receive(response_headers())
    assert machine.is_cut_off is None


@given(st.data())
def test_whatever_arrives_is_survived(data):
    known = [
        headers(),
        headers(ends=True),
        headers(ProcessingMode.BUFFERED),
        body(b"1"),
        body(b"2", ends=True),
        trailers(),
        response_headers(),
        response_headers("what"),
        response_body(b"3", ends=True),
        ProcessingRequest(response_trailers=HttpTrailers()),
        ProcessingRequest(),
    ]
    machine, questions, answers = exchange(), 0, 0
    for message in data.draw(st.lists(st.sampled_from(known), max_size=10)):
        for effect in machine.receive(message):
            if isinstance(effect, Question):
                questions += 1
                refuse = data.draw(st.booleans())
                effects = machine.refused(PickRefusedError(429, "no")) if refuse else machine.picked(pick())
                assert all(isinstance(one, ProcessingResponse) for one in effects)
            answers += isinstance(effect, Answered)
    assert answers <= questions <= 1

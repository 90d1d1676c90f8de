"""Envoy's external processing messages (envoy.service.ext_proc.v3): read and written here alone."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from envoy.config.core.v3.base_pb2 import HeaderMap, HeaderValue, HeaderValueOption, Metadata
from envoy.extensions.filters.http.ext_proc.v3.processing_mode_pb2 import ProcessingMode
from envoy.service.ext_proc.v3.external_processor_pb2 import (
    BodyMutation,
    BodyResponse,
    CommonResponse,
    HeaderMutation,
    HeadersResponse,
    ImmediateResponse,
    ProcessingRequest,
    ProcessingResponse,
    StreamedBodyResponse,
    TrailersResponse,
)
from envoy.type.v3.http_status_pb2 import HttpStatus
from google.protobuf.struct_pb2 import Struct

from .types import DESTINATION, METADATA, SERVED, STREAM, SUBSET, SUBSET_METADATA, Pick, PickRefusedError

__all__ = ["ProcessingMode", "ProcessingRequest", "ProcessingResponse"]

CHUNK_BYTES_MAX = 62_000
"""Some builds of Envoy take no streamed chunk above 64 KiB, the message's frame included."""
RETRIES = "x-envoy-max-retries"
"""Envoy's retries of this request: when no picked endpoint is left it would go on to any other."""
OVERWRITE = HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
"""A header that the client sent itself must not stand beside ours."""
ERROR_TYPES = {429: "rate_limit_exceeded", 503: "service_unavailable", 504: "timeout"}
"""OpenAI's `error.type` by status; below 500 it is else the request's fault, above the server's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """The response's headers, as the proxy tells of them. `endpoint` is empty where it does not say who answered."""

    endpoint: str
    status: int


def headers_of(headers: HeaderMap) -> dict[str, str]:
    """Headers by name; of one that came several times the values are joined as RFC 9110 (5.3) says."""
    found: dict[str, str] = {}
    for header in headers.headers:
        value = header.value or header.raw_value.decode("utf-8", "replace")
        found[header.key] = f"{found[header.key]}, {value}" if header.key in found else value
    return found


def subset_of(metadata: Metadata) -> frozenset[str] | None:
    """Endpoints that may be picked; None where the proxy does not limit them. A text holds them between commas."""
    if SUBSET_METADATA not in metadata.filter_metadata:
        return None
    fields = metadata.filter_metadata[SUBSET_METADATA].fields
    if SUBSET not in fields:
        return None
    hint = fields[SUBSET]
    texts = hint.string_value.split(",") if hint.HasField("string_value") else []
    texts += [value.string_value for value in hint.list_value.values]
    return frozenset(text.strip() for text in texts if text.strip())


def answered(message: ProcessingRequest) -> Answered:
    """Who answered, and how, of a message of response headers."""
    headers = headers_of(message.response_headers.headers)
    endpoint = headers.get(SERVED, "")
    if METADATA in message.metadata_context.filter_metadata:
        fields = message.metadata_context.filter_metadata[METADATA].fields
        endpoint = fields[SERVED].string_value if SERVED in fields else endpoint
    status = headers.get(":status", "")
    return Answered(endpoint=endpoint, status=int(status) if status.isdecimal() else 0)


def to_headers(pick: Pick, stream: str) -> ProcessingResponse:
    """Sends the request's headers on to the picked endpoints."""
    reply = HeadersResponse(response=_routed(pick.headers, pick.endpoints))
    return ProcessingResponse(request_headers=reply, dynamic_metadata=_destination(pick.endpoints, stream))


def to_buffered_body(pick: Pick, stream: str) -> ProcessingResponse:
    """Sends on a request whose body came in one message, as a proxy in mode BUFFERED wants it."""
    common = _routed(pick.headers, pick.endpoints)
    if pick.body is not None:
        common.body_mutation.body = pick.body
        length = {"content-length": str(len(pick.body))}
        common.header_mutation.MergeFrom(_set(length))
    reply = BodyResponse(response=common)
    return ProcessingResponse(request_body=reply, dynamic_metadata=_destination(pick.endpoints, stream))


def to_chunks(kind: str, body: bytes, *, ends: bool) -> Iterator[ProcessingResponse]:
    """A body in pieces, as a proxy in mode FULL_DUPLEX_STREAMED wants it; without `ends` more or trailers follow."""
    for start in range(0, len(body) or int(ends), CHUNK_BYTES_MAX):
        end = start + CHUNK_BYTES_MAX
        piece = StreamedBodyResponse(body=body[start:end], end_of_stream=ends and end >= len(body))
        common = CommonResponse(body_mutation=BodyMutation(streamed_response=piece))
        yield ProcessingResponse(**{kind: BodyResponse(response=common)})


def unchanged(kind: str) -> ProcessingResponse:
    """Lets pass what came in a message of this kind."""
    if kind.endswith("trailers"):
        return ProcessingResponse(**{kind: TrailersResponse()})
    if kind.endswith("headers"):
        return ProcessingResponse(**{kind: HeadersResponse()})
    return ProcessingResponse(**{kind: BodyResponse()})


def refusal(error: PickRefusedError) -> ProcessingResponse:
    """Answers the client itself, with an error as OpenAI's API words it."""
    kind = ERROR_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    said = {"message": error.message, "type": kind, "param": None, "code": error.status}
    headers = {"content-type": "application/json"}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, ceil(error.retry_after_s)))
    return ProcessingResponse(
        immediate_response=ImmediateResponse(
            status=HttpStatus(code=error.status),
            headers=_set(headers),
            body=json.dumps({"error": said}).encode(),
            details=f"homing_{kind}",
        )
    )


def _routed(headers: Mapping[str, str], endpoints: Sequence[str]) -> CommonResponse:
    ours = {DESTINATION: ",".join(endpoints), RETRIES: str(len(endpoints) - 1)}
    return CommonResponse(header_mutation=_set({**headers, **ours}), clear_route_cache=True)


def _destination(endpoints: Sequence[str], stream: str) -> Struct:
    metadata = Struct()
    metadata.update({METADATA: {DESTINATION: ",".join(endpoints), STREAM: stream}})
    return metadata


def _set(headers: dict[str, str]) -> HeaderMutation:
    options = (
        HeaderValueOption(header=HeaderValue(key=name, raw_value=value.encode()), append_action=OVERWRITE)
        for name, value in headers.items()
    )
    return HeaderMutation(set_headers=options)

"""One HTTP request on its way through Envoy, as a state machine without I/O: messages in, effects out.

    headers ──> body ──> picking ──> answering ──> over
       └───────────────────┘            a refusal leads to `over` from everywhere

Rule 1: the destination goes out with the headers, so these are held until the body, on which the choice depends, is
whole. A proxy that streams (FULL_DUPLEX_STREAMED) then gets headers and body in one go; one that buffers (BUFFERED)
sends no body before it has an answer to the headers and gets the destination with the answer to the body.
Rule 2: which of the two it does it says in its first message; one that does not say is taken to stream, as the
Endpoint Picker Protocol demands.
Rule 3: of a response the headers are enough. A proxy that sends its body too (response_body_mode) gets it back as it
came, at a price per token; only then its end is seen here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import TypeAlias

from . import messages
from .messages import Answered, ProcessingMode, ProcessingRequest, ProcessingResponse
from .types import Pick, PickRefusedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """The request is whole: the arguments of `Picker.pick`. The answer is `picked` or `refused`."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    subset: frozenset[str] | None


Effect: TypeAlias = ProcessingResponse | Question | Answered
"""A message to the proxy, a question to the picker, or that an endpoint answered."""


class _State(Enum):
    HEADERS = auto()
    BODY = auto()
    PICKING = auto()
    ANSWERING = auto()
    OVER = auto()


class Exchange:
    """One request and its response. It holds the body, at most `body_bytes_max` of it, until it was sent on.

    `stream` is the name that it has in the gateway's metadata.
    """

    def __init__(self, stream: str, *, body_bytes_max: int) -> None:
        self.stream = stream
        self._state = _State.HEADERS
        self._body_bytes_max = body_bytes_max
        self._mode: int = ProcessingMode.FULL_DUPLEX_STREAMED
        self._response_mode: int = ProcessingMode.NONE
        self._headers: dict[str, str] = {}
        self._subset: frozenset[str] | None = None
        self._chunks: list[bytes] = []
        self._body_bytes = 0
        self._body = b""
        self._last = ""
        self._first_endpoint = ""
        self._has_answer = False
        self._has_end = False

    @property
    def is_over(self) -> bool:
        """Nothing that arrives will be answered any more."""
        return self._state is _State.OVER

    @property
    def is_cut_off(self) -> bool | None:
        """Whether no response came, or not to its end; None where the proxy does not show its end."""
        if self._has_answer and not self._has_end and self._response_mode == ProcessingMode.NONE:
            return None
        return not self._has_end

    @property
    def is_asking(self) -> bool:
        """The picker has not answered."""
        return self._state is _State.PICKING

    @property
    def is_answering(self) -> bool:
        """The request was sent on. A stream that is closed before would let it pass without a destination."""
        return self._state is _State.ANSWERING

    def receive(self, message: ProcessingRequest) -> list[Effect]:
        """What follows from a message of the proxy."""
        kind = message.WhichOneof("request")
        if self._state is _State.OVER or kind is None:
            return []
        match self._state, kind:
            case _State.HEADERS, "request_headers":
                return self._on_headers(message)
            case _State.BODY, "request_body":
                return self._on_body(message)
            case _State.BODY, "request_trailers":
                return self._on_late_trailers()
            case _State.ANSWERING, "request_trailers":
                return [messages.unchanged(kind)]
            case _State.ANSWERING, "response_headers" if not self._has_answer:
                self._has_answer = True
                self._has_end = message.response_headers.end_of_stream
                return [self._answered(message), messages.unchanged(kind)]
            case _State.ANSWERING, "response_body" | "response_trailers":
                return self._on_response(kind, message)
            case _:
                found = f"the proxy sent {kind} while the request was {self._state.name.lower()}"
                return self.refused(PickRefusedError(500, f"ext_proc: {found}; see the documented bootstrap"))

    def picked(self, pick: Pick) -> list[Effect]:
        """Send the request where the picker said; 503 when no endpoint of its choice is allowed."""
        allowed = tuple(e for e in pick.endpoints if self._subset is None or e in self._subset)
        if not allowed:
            return self.refused(PickRefusedError(503, "no endpoint is ready among those that the gateway allows"))
        pick = replace(pick, endpoints=allowed)
        self._first_endpoint = allowed[0]
        body, self._body = self._body if pick.body is None else pick.body, b""
        self._state = _State.ANSWERING
        if self._last == "request_headers":
            return [messages.to_headers(pick, self.stream)]
        if self._mode == ProcessingMode.BUFFERED:
            return [messages.to_buffered_body(pick, self.stream)]
        ends = self._last == "request_body"
        replies = [messages.to_headers(pick, self.stream), *messages.to_chunks("request_body", body, ends=ends)]
        return replies if ends else [*replies, messages.unchanged(self._last)]

    def refused(self, error: PickRefusedError) -> list[Effect]:
        """Answer the client instead of an endpoint."""
        self._state = _State.OVER
        self._chunks.clear()
        self._body = b""
        return [messages.refusal(error)]

    def _on_headers(self, message: ProcessingRequest) -> list[Effect]:
        self._headers = messages.headers_of(message.request_headers.headers)
        self._subset = messages.subset_of(message.metadata_context)
        if message.HasField("protocol_config"):
            self._mode = message.protocol_config.request_body_mode
            self._response_mode = message.protocol_config.response_body_mode
        if message.request_headers.end_of_stream:
            return self._ask("request_headers")
        self._state = _State.BODY
        match self._mode:
            case ProcessingMode.FULL_DUPLEX_STREAMED:
                return []
            case ProcessingMode.BUFFERED:
                return [messages.unchanged("request_headers")]
        found = ProcessingMode.BodySendMode.Name(self._mode)
        rule = "request_body_mode must be FULL_DUPLEX_STREAMED or BUFFERED"
        return self.refused(PickRefusedError(500, f"ext_proc: {rule}, the gateway is set to {found}"))

    def _on_body(self, message: ProcessingRequest) -> list[Effect]:
        body = message.request_body
        self._body_bytes += len(body.body)
        if self._body_bytes > self._body_bytes_max:
            limit = f"the request's body is larger than {self._body_bytes_max} bytes"
            return self.refused(PickRefusedError(413, limit))
        self._chunks.append(body.body)
        if body.end_of_stream or self._mode == ProcessingMode.BUFFERED:
            return self._ask("request_body")
        return []

    def _on_late_trailers(self) -> list[Effect]:
        if self._mode == ProcessingMode.BUFFERED:
            return self.refused(PickRefusedError(400, "the request has trailers but no body"))
        return self._ask("request_trailers")

    def _ask(self, last: str) -> list[Effect]:
        self._last = last
        if self._subset is not None and not self._subset:
            return self.refused(PickRefusedError(503, "the gateway allows no endpoint for this request"))
        self._state = _State.PICKING
        self._body = b"".join(self._chunks)
        self._chunks.clear()
        path = self._headers.get(":path", "").partition("?")[0]
        return [Question(path=path, headers=self._headers, body=self._body, subset=self._subset)]

    def _on_response(self, kind: str, message: ProcessingRequest) -> list[Effect]:
        if kind == "response_trailers":
            self._has_end = True
            return [messages.unchanged(kind)]
        body = message.response_body
        self._has_end = body.end_of_stream
        if self._response_mode == ProcessingMode.FULL_DUPLEX_STREAMED:
            return [*messages.to_chunks(kind, body.body, ends=body.end_of_stream)]
        return [messages.unchanged(kind)]

    def _answered(self, message: ProcessingRequest) -> Answered:
        found = messages.answered(message)
        return found if found.endpoint else replace(found, endpoint=self._first_endpoint)

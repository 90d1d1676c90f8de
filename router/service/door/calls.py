"""Clients' requests, read: what they ask of whom, and what the core needs to know of it."""

import itertools
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from homing.router.core.blocks import group_seed
from homing.router.core.types import BlockKey, ModelProfile, Request, RequestId, Site
from homing.router.tokens.keys import KeyMemo
from homing.router.tokens.types import PromptError, PromptReader, PromptTokens, TokenSource

from ..backends.endpoint import Alias
from .errors import DoorError, bad_request
from .http import HttpRequest

OUTPUT_BOOKED_MAX: Final = 1024
"""Tokens of an answer that are reserved on a worker at most: few answers are as long as they may be, and an engine that
runs out of room makes requests wait by itself."""
OUTPUT_DEFAULT: Final = 256
"""What is reserved for a request that does not limit its answer."""
PROMPT_PATHS: Final = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"})
"""Requests whose prompt's KV can be cached."""
PLAIN_PATHS: Final = frozenset(
    {
        "/v1/embeddings",
        "/v1/rerank",
        "/rerank",
        "/v1/score",
        "/score",
        "/pooling",
        "/classify",
        "/tokenize",
        "/detokenize",
    }
)
"""Requests that go to any worker of their model."""
BYTES_PER_TOKEN: Final = 4
_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")
_OPENING: Final = re.compile(rb"\s*\{")
_NOT_PASSED: Final = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers that are between a client and this door, and go no further."""
_serial = itertools.count(1)


@dataclass(slots=True)
class Call:
    """A request of a client, as it came and as it was understood."""

    path: str
    raw: bytes
    body: dict[str, Any]
    headers: dict[str, str]
    id: str
    model: str
    streams: bool
    engine_id: str = ""
    """Its name among all requests that are being answered, which engines are told: clients may use one id twice."""

    @property
    def asks_usage(self) -> bool:
        """Whether the client wants usage at the end of its stream."""
        options = self.body.get("stream_options")
        return isinstance(options, dict) and bool(options.get("include_usage"))

    def passed_headers(self) -> dict[str, str]:
        """The client's headers that an engine is to see."""
        passed = {name: value for name, value in self.headers.items() if name not in _NOT_PASSED}
        passed["x-request-id"] = self.engine_id or self.id
        return passed

    def with_body(self, changes: Mapping[str, Any]) -> bytes:
        """The body with these keys instead of its own, without reading it again where they are new."""
        if not changes:
            return self.raw
        if any(key in self.body for key in changes):
            return msgspec.json.encode({**self.body, **changes})
        opening = _OPENING.match(self.raw)
        assert opening is not None, "it was read as an object"
        added = msgspec.json.encode(dict(changes))[1:-1]
        comma = b"," if self.body else b""
        return b"{" + added + comma + self.raw[opening.end() :]


def request_id_of(headers: Mapping[str, str]) -> str:
    """The client's own id of its request, or a new one."""
    given = headers.get("x-request-id", "")
    return given if _ID.fullmatch(given) else uuid.uuid4().hex


def read_call(request: HttpRequest, request_id: str) -> Call:
    """Read a request with a JSON body; raises DoorError that names the field."""
    try:
        body = msgspec.json.decode(request.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise bad_request(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise bad_request(f"the body must be a JSON object, not {type(body).__name__}")
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise bad_request("model: missing; name the model that is to answer", "model")
    streams = body.get("stream", False)
    if streams is not None and not isinstance(streams, bool):
        raise bad_request(f"stream: expected true or false, got {streams!r:.40}", "stream")
    return Call(request.path, request.body, body, request.headers, request_id, model, bool(streams))


class CallReader:
    """Makes of a call what the core decides on."""

    def __init__(self, reader_of: Callable[[str], PromptReader], is_open: Callable[[RequestId], bool]) -> None:
        self._reader_of = reader_of
        self._memo = KeyMemo()
        self._is_open = is_open

    async def read(
        self, call: Call, alias: Alias, profile: ModelProfile, now: float
    ) -> tuple[Request, PromptTokens | None]:
        """The request, and its tokens where it has a prompt; raises DoorError."""
        if call.path not in PROMPT_PATHS:
            return self._request(call, alias, profile, (), max(1, len(call.raw) // BYTES_PER_TOKEN), 1, now), None
        try:
            prompt = await self._reader_of(alias.model).read(call.path, call.body)
        except PromptError as error:
            raise bad_request(str(error)) from None
        output_tokens = _output_tokens(call.body)
        prompt_tokens = max(1, prompt.tokens)
        if prompt.source is TokenSource.TEXT:
            # A guess of the length is no reason to refuse.
            prompt_tokens = min(prompt_tokens, max(1, profile.context_tokens - 1))
        room = max(1, profile.context_tokens - prompt_tokens)
        booked = min(output_tokens or OUTPUT_DEFAULT, OUTPUT_BOOKED_MAX, room)
        keys = self._keys(prompt, call.body, alias, profile)[: prompt_tokens // profile.block_tokens]
        return self._request(call, alias, profile, keys, prompt_tokens, booked, now), prompt

    def _keys(
        self, prompt: PromptTokens, body: Mapping[str, Any], alias: Alias, profile: ModelProfile
    ) -> tuple[BlockKey, ...]:
        salt = body.get("cache_salt")
        seed = group_seed(lora=alias.lora, tenant_salt=salt if isinstance(salt, str) else "")
        return self._memo.keys(prompt.packed, profile.block_tokens, seed=seed)

    def _request(
        self,
        call: Call,
        alias: Alias,
        profile: ModelProfile,
        keys: tuple[BlockKey, ...],
        prompt_tokens: int,
        output_tokens: int,
        now: float,
    ) -> Request:
        request_id = RequestId(call.id)
        if self._is_open(request_id):
            request_id = RequestId(f"{call.id}~{next(_serial)}")
        call.engine_id = request_id
        origin = call.headers.get("x-homing-origin")
        return Request(
            id=request_id,
            model=profile.name,
            block_keys=keys,
            prompt_tokens=prompt_tokens,
            max_output_tokens=output_tokens,
            arrived_s=now,
            session=_session(call),
            tenant=call.headers.get("x-tenant-id", ""),
            priority=_priority(call.body),
            origin=Site(origin) if origin else None,
            among=alias.among,
        )


def _output_tokens(body: Mapping[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
        asked = body.get(name)
        if isinstance(asked, int) and not isinstance(asked, bool):
            if asked < 1:
                raise bad_request(f"{name}: expected at least 1, got {asked}", name)
            return asked
        if asked is not None:
            raise bad_request(f"{name}: expected a whole number, got {asked!r:.40}", name)
    return None


def _priority(body: Mapping[str, Any]) -> int:
    """vLLM's: a lower number is more urgent."""
    given = body.get("priority", 0)
    return -max(-1_000_000, min(1_000_000, given)) if isinstance(given, int) else 0


def _session(call: Call) -> str | None:
    for given in (
        call.headers.get("x-session-id"),
        call.body.get("session_id"),
        call.body.get("prompt_cache_key"),
        call.body.get("user"),
    ):
        if isinstance(given, str) and given:
            return given
    return None


def unknown_model(name: str, known: list[str]) -> DoorError:
    """Nobody serves it."""
    message = f"model: no model {name!r}; known are {', '.join(known) or 'none yet'}"
    return DoorError(404, message, code="model_not_found", param="model")

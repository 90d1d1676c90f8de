"""Calls for models that Homing's own workers serve: OpenAI's JSON in and out, tokens in between.

What these workers cannot do is refused by name, so that nobody gets another answer than was asked for.
"""

import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

import grpc
import msgspec

from homing.router.core.errors import RequestError
from homing.router.core.types import Decision, Request

from ..attempt import Wishes
from ..driver import Driver
from ..generation import Generation, RefusedRequestError
from ..prompts import Intake, Prompt
from ..text import CodecOf, TextDecoder
from ..wire import common_pb2, router_pb2
from ..workers import Workers
from .calls import Call
from .errors import DoorError, bad_request
from .forward import plan_headers
from .http import Responder
from .usage import error_event

_STATUS: Final = {
    grpc.StatusCode.INVALID_ARGUMENT: (400, "invalid_request_error"),
    grpc.StatusCode.NOT_FOUND: (404, "invalid_request_error"),
    grpc.StatusCode.ALREADY_EXISTS: (409, "invalid_request_error"),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (429, "rate_limit_error"),
    grpc.StatusCode.UNAVAILABLE: (503, "server_error"),
    grpc.StatusCode.DEADLINE_EXCEEDED: (504, "server_error"),
}
_CHAT: Final = "/v1/chat/completions"
_COMPLETION: Final = "/v1/completions"
_UNSUPPORTED: Final[Mapping[str, tuple[Any, ...]]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "stop": (None, [], ""),
    "logprobs": (None, False, 0),
    "top_logprobs": (None, 0),
    "tools": (None, []),
    "functions": (None, []),
    "response_format": (None, {"type": "text"}),
    "logit_bias": (None, {}),
    "frequency_penalty": (None, 0, 0.0),
    "presence_penalty": (None, 0, 0.0),
    "echo": (None, False),
    "suffix": (None, ""),
}
"""What Homing's workers cannot do, with the values that ask for nothing."""


class NativeAnswers:
    """Answers calls with `Generation`s."""

    def __init__(
        self, driver: Driver, workers: Workers, intake: Intake, codec_of: CodecOf, *, first_token_timeout_s: float
    ) -> None:
        self._driver = driver
        self._workers = workers
        self._intake = intake
        self._codec_of = codec_of
        self._first_token_timeout_s = first_token_timeout_s

    async def answer(self, call: Call, responder: Responder) -> None:
        """Answer a call; raises DoorError."""
        if call.path not in {_CHAT, _COMPLETION}:
            raise DoorError(404, f"{call.model} is served by Homing's own workers, which know no {call.path}")
        message = _route_request(call)
        try:
            request, prompt = self._intake.read(message, self._driver.now())
        except RequestError as error:
            raise bad_request(str(error)) from None
        except LookupError as error:
            raise DoorError(404, str(error.args[0]), code="model_not_found") from None
        if prompt is None:
            raise AssertionError("text and tokens make a prompt")
        if self._driver.is_open(request.id):
            raise DoorError(409, f"x-request-id: {request.id!r} is being answered already", code="duplicate_request")
        wishes = Wishes(
            sampling=_sampling(call.body),
            ignore_eos=bool(call.body.get("ignore_eos")),
            first_token_timeout_s=self._first_token_timeout_s,
        )
        answer = _Answer(call, request, responder)
        generation = Generation(self._driver, self._workers, request, prompt, wishes)
        codec = self._codec_of(request.model)
        try:
            async for part in _texts(generation, None if codec is None else codec.decoder(), answer.decided):
                answer.add(part)
        except RefusedRequestError as error:
            answer.fail(_refusal(error))
        else:
            answer.finish(generation.tally.finish_reason, generation.tally.output_tokens, _hits(generation, prompt))


async def _texts(
    generation: Generation, decoder: TextDecoder | None, on_decision: Callable[[Decision], None]
) -> AsyncIterator[str]:
    parts = generation.parts()
    try:
        async for part in parts:
            if isinstance(part, Decision):
                on_decision(part)
            else:
                yield "" if decoder is None else decoder.push(part)
    finally:
        await parts.aclose()
    yield "" if decoder is None else decoder.finish()


def _hits(generation: Generation, prompt: Prompt) -> int:
    return max(0, prompt.tokens - generation.tally.computed_tokens)


def _refusal(error: RefusedRequestError) -> DoorError:
    status, kind = _STATUS.get(error.code, (502, "server_error"))
    return DoorError(status, str(error), kind, error.code.name.lower(), retry_after_s=error.retry_after_s)


class _Answer:
    """OpenAI's JSON of one answer, whole or in events."""

    def __init__(self, call: Call, request: Request, responder: Responder) -> None:
        self._call = call
        self._request = request
        self._responder = responder
        self._texts: list[str] = []
        self._headers = {"x-request-id": call.id}
        self._created = int(time.time())
        chat = call.path == _CHAT
        self._is_chat = chat
        self._id = f"{'chatcmpl' if chat else 'cmpl'}-{request.id}"

    def decided(self, decision: Decision) -> None:
        """The first plan is what the headers tell of."""
        if not self._responder.started:
            self._headers = plan_headers(decision, self._call.id)

    def add(self, text: str) -> None:
        """More of the answer; the first token may have no text yet."""
        if not self._call.streams:
            self._texts.append(text)
            return
        if not self._responder.started:
            self._responder.start(200, {"content-type": "text/event-stream; charset=utf-8", **self._headers})
            if self._is_chat:
                self._event([self._choice({"role": "assistant", "content": ""}, None)])
        if text:
            self._event([self._choice({"content": text} if self._is_chat else text, None)])

    def finish(self, reason: str, output_tokens: int, cached_tokens: int) -> None:
        """The end of a whole answer."""
        usage = {
            "prompt_tokens": self._request.prompt_tokens,
            "completion_tokens": output_tokens,
            "total_tokens": self._request.prompt_tokens + output_tokens,
            "prompt_tokens_details": {"cached_tokens": cached_tokens},
        }
        if not self._call.streams:
            text = "".join(self._texts)
            message = {"role": "assistant", "content": text}
            body = self._object("", [self._whole(message if self._is_chat else text, reason)])
            self._responder.send(200, msgspec.json.encode({**body, "usage": usage}), self._headers)
            return
        self.add("")
        self._event([self._choice({} if self._is_chat else "", reason)])
        if self._call.asks_usage:
            self._event([], usage)
        self._responder.write(b"data: [DONE]\n\n")
        self._responder.finish()

    def fail(self, error: DoorError) -> None:
        """The end of an answer that is not whole; raises it where nothing was sent."""
        if not self._responder.started:
            raise error
        self._responder.write(error_event(error.body))
        self._responder.finish()

    def _event(self, choices: list[Mapping[str, Any]], usage: Mapping[str, Any] | None = None) -> None:
        told = self._object(".chunk" if self._is_chat else "", choices)
        if usage is not None:
            told["usage"] = usage
        self._responder.write(b"data: " + msgspec.json.encode(told) + b"\n\n")

    def _object(self, suffix: str, choices: list[Mapping[str, Any]]) -> dict[str, Any]:
        kind = f"chat.completion{suffix}" if self._is_chat else "text_completion"
        return {"id": self._id, "object": kind, "created": self._created, "model": self._call.model, "choices": choices}

    def _choice(self, part: Any, reason: str | None) -> dict[str, Any]:
        return {"index": 0, "delta" if self._is_chat else "text": part, "logprobs": None, "finish_reason": reason}

    def _whole(self, part: Any, reason: str) -> dict[str, Any]:
        return {"index": 0, "message" if self._is_chat else "text": part, "logprobs": None, "finish_reason": reason}


def _route_request(call: Call) -> router_pb2.RouteRequest:
    body = call.body
    for name, harmless in _UNSUPPORTED.items():
        if name in body and body[name] not in harmless:
            raise bad_request(f"{name}: Homing's own workers do not know it; leave it out", name)
    message = router_pb2.RouteRequest(
        request_id=call.id,
        model=call.model,
        max_output_tokens=_count(body, "max_completion_tokens") or _count(body, "max_tokens"),
        session=call.headers.get("x-session-id", ""),
        tenant=call.headers.get("x-tenant-id", ""),
    )
    if call.path == _CHAT:
        for place, each in enumerate(_list(body, "messages")):
            if not isinstance(each, dict) or not isinstance(each.get("role"), str):
                raise bad_request(f"messages[{place}]: expected an object with role and content", "messages")
            message.prompt.chat.messages.add(role=each["role"], content=_text(each.get("content"), place))
    else:
        _set_prompt(message, body.get("prompt"))
    return message


def _set_prompt(message: router_pb2.RouteRequest, prompt: Any) -> None:
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        message.prompt.text = prompt
    elif isinstance(prompt, list) and all(isinstance(each, int) and 0 <= each < 1 << 32 for each in prompt):
        message.prompt.token_list.tokens.extend(prompt)
    else:
        raise bad_request("prompt: expected one text or one list of token ids", "prompt")


def _text(content: Any, place: int) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict) and part.get("type") == "text"]
        texts = [part["text"] for part in parts if isinstance(part.get("text"), str)]
        if len(texts) == len(content):
            return "".join(texts)
    raise bad_request(f"messages[{place}].content: expected a text, or parts of type text", "messages")


def _list(body: Mapping[str, Any], name: str) -> list[Any]:
    given = body.get(name)
    if not isinstance(given, list) or not given:
        raise bad_request(f"{name}: expected a list with at least one entry", name)
    return given


def _count(body: Mapping[str, Any], name: str) -> int:
    given = body.get(name)
    if given is None:
        return 0
    if not isinstance(given, int) or isinstance(given, bool) or not 1 <= given < 1 << 31:
        raise bad_request(f"{name}: expected a whole number of at least 1, got {given!r:.40}", name)
    return given


def _number(body: Mapping[str, Any], name: str, default: float, lowest: float, highest: float) -> float:
    given = body.get(name)
    if given is None:
        return default
    if isinstance(given, bool) or not isinstance(given, int | float) or not lowest <= given <= highest:
        raise bad_request(f"{name}: expected a number from {lowest:g} to {highest:g}, got {given!r:.40}", name)
    return float(given)


def _sampling(body: Mapping[str, Any]) -> common_pb2.Sampling:
    seed = body.get("seed")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 1 << 64):
        raise bad_request(f"seed: expected a whole number of at least 0, got {seed!r:.40}", "seed")
    return common_pb2.Sampling(
        temperature=_number(body, "temperature", 1.0, 0.0, 2.0),
        seed=secrets.randbits(63) if seed is None else seed,
        top_p=_number(body, "top_p", 0.0, 0.0, 1.0),
        top_k=int(_number(body, "top_k", 0.0, 0.0, 1e6)),
    )

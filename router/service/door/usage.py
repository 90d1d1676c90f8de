"""What engines tell of tokens at the end of their answers.

It is read on the way through, and taken out again where the client did not ask for it.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

_EVENT_END: Final = b"\n\n"
_MARK: Final = b'"usage":{'
_SPACED_MARK: Final = b'"usage": {'
EVENT_BYTES_MAX: Final = 1024 * 1024
"""Of one event that comes in parts; a longer one is passed on unread."""


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Timings(msgspec.Struct):
    cache_n: int | None = None


class _Answer(msgspec.Struct):
    usage: _Usage | None = None
    timings: _Timings | None = None
    choices: list[msgspec.Raw] | None = None
    kv_transfer_params: dict[str, Any] | None = None


_decode = msgspec.json.Decoder(_Answer).decode


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one answer; None is what was not told."""

    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    handle: Mapping[str, Any] | None = None
    """What a KV connector gave back (`kv_transfer_params`)."""


def usage_of(body: bytes) -> Usage | None:
    """The usage that a JSON answer, or one event's data, tells; None without."""
    found = _read(body)
    return None if found is None else _usage(found)


def _read(body: bytes) -> _Answer | None:
    try:
        return _decode(body)
    except (msgspec.DecodeError, RecursionError):
        return None


def _usage(found: _Answer) -> Usage | None:
    if found.usage is None and found.kv_transfer_params is None:
        return None
    usage = found.usage or _Usage()
    cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else None
    if cached is None and found.timings is not None:
        cached = found.timings.cache_n
    return Usage(usage.prompt_tokens, usage.completion_tokens, cached, found.kv_transfer_params)


class StreamReader:
    """Passes a stream of server-sent events on, whole events at a time, and reads the usage out of it.

    With `hides_usage` the event that brings nothing but usage is taken out.
    """

    def __init__(self, *, hides_usage: bool) -> None:
        self._hides = hides_usage
        self._rest = b""
        self.usage: Usage | None = None
        self.events = 0

    def push(self, data: bytes) -> bytes:
        """The events that this part completes, or their parts where one is too long to wait for."""
        if self._rest:
            data = self._rest + data
        end = data.rfind(_EVENT_END)
        if end < 0:
            if len(data) > EVENT_BYTES_MAX:
                self._rest = b""
                return data
            self._rest = data
            return b""
        whole, self._rest = data[: end + 2], data[end + 2 :]
        self.events += whole.count(_EVENT_END)
        if _MARK in whole or _SPACED_MARK in whole:
            return self._read(whole)
        return whole

    def finish(self) -> bytes:
        """What is left of an event that never ended."""
        rest, self._rest = self._rest, b""
        return rest

    def _read(self, whole: bytes) -> bytes:
        kept = []
        for event in whole.split(_EVENT_END)[:-1]:
            found = _read(event[5:].strip()) if event.startswith(b"data:") else None
            usage = None if found is None else _usage(found)
            if found is not None and usage is not None:
                self.usage = usage
                if self._hides and found.choices is not None and not found.choices:
                    self.events -= 1
                    continue
            kept.append(event + _EVENT_END)
        return b"".join(kept)


def error_event(body: bytes) -> bytes:
    """The end of a stream that broke: an event that clients raise as an error."""
    return b"data: " + body + _EVENT_END

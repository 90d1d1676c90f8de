"""What engines tell of tokens at the end of their answers.

It is read on the way through, and taken out again where the client did not ask for it.
"""

import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from homing.router.engines.usage import Usage, usage_of

_ENDS: Final = (b"\n\n", b"\n\r\n")
"""An event ends with an empty line; lines end with LF or CR LF (WHATWG HTML, 9.2.5; nobody uses the lone CR)."""
_END: Final = re.compile(rb"\n\r?\n")
_LAST: Final = (b"data: [DONE]\n\n", b"data: [DONE]\r\n\r\n")
_STOPPED: Final = b'"type":"message_stop"'
"""The last event of Anthropic's messages; what a text holds has its quotation marks escaped."""
_MARK: Final = b'"usage"'
_TELLS_USAGE: Final = re.compile(rb'"usage"\s*:\s*\{')
EVENT_BYTES_MAX: Final = 1024 * 1024
"""Of one event that comes in parts; a longer one is passed on unread."""


def usage_in(body: bytes) -> Usage | None:
    """The usage that a JSON answer, or one event's data, tells; None without."""
    return usage_of(_read(body))


def _read(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


class StreamReader:
    """Passes a stream of server-sent events on, whole events at a time, and reads the usage out of it.

    With `hides_usage` the event that brings nothing but usage is taken out.
    """

    def __init__(self, *, hides_usage: bool) -> None:
        self._hides = hides_usage
        self._rest = bytearray()
        self.usage: Usage | None = None
        self.events = 0
        self.is_over = False
        """Whether the event came that says that no other will."""

    def push(self, data: bytes) -> bytes:
        """The events that this part completes, or their parts where one is too long to wait for."""
        rest = self._rest
        if not rest and data.endswith(_ENDS):
            return self._pass_on(data)
        looked_at = max(0, len(rest) - 2)
        rest += data
        lf, crlf = rest.rfind(b"\n\n", looked_at), rest.rfind(b"\n\r\n", looked_at)
        if lf < 0 and crlf < 0:
            return self.finish() if len(rest) > EVENT_BYTES_MAX else b""
        end = max(lf + 2, crlf + 3)
        whole = bytes(rest[:end])
        del rest[:end]
        return self._pass_on(whole)

    def finish(self) -> bytes:
        """What is left of an event that never ended."""
        rest, self._rest = bytes(self._rest), bytearray()
        return rest

    def _pass_on(self, whole: bytes) -> bytes:
        self.events += whole.count(b"\n\n")
        if b"\r" in whole:
            self.events += whole.count(b"\n\r\n")
        self.is_over = whole.endswith(_LAST) or _STOPPED in whole
        if _MARK in whole and _TELLS_USAGE.search(whole):
            return b"".join(self._kept(whole))
        return whole

    def _kept(self, whole: bytes) -> Iterator[bytes]:
        start = 0
        for end in _END.finditer(whole):
            event, start = whole[start : end.end()], end.end()
            found = _read(_data(event)) if _MARK in event else None
            usage = usage_of(found)
            if usage is not None:
                self.usage = usage
                if self._hides and found is not None and found.get("choices") == []:
                    self.events -= 1
                    continue
            yield event
        yield whole[start:]


def _data(event: bytes) -> bytes:
    return b"\n".join(line[5:] for line in event.splitlines() if line.startswith(b"data:"))


def error_event(body: bytes) -> bytes:
    """The end of a stream that broke: an event that clients raise as an error."""
    return b"data: " + body + b"\n\n"

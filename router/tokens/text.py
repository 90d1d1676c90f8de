"""Keys without a tokenizer: the bytes of a prompt's text stand for its tokens, four to one.

Each four bytes of UTF-8, counted from the start, are read as one little-endian u32: about as many as an English text
has tokens. A conversation is written message after message, each closed by a mark, without what asks for an answer, so
that its next turn begins with the same bytes. Up to three bytes at the end are left out: they would be another number
in a longer prompt. What is no text, such as a picture, is written as a digest of fixed length.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from xxhash import xxh3_128_hexdigest

from homing.router.core.blocks import TOKEN_BYTES

from .completions import of_completion
from .messages import NotTextError
from .types import PromptError, PromptTokens, TokenSource

MEDIA_TOKENS = 256
"""For how many tokens a picture, or another part that is no text, stands: what it costs vision models is like it."""
_PAD = b"\0" * TOKEN_BYTES
_END = "\x1e"
_UNIT = "\x1f"


class TextReader:
    """Reads any body that holds a prompt, at the speed of copying it."""

    source = TokenSource.TEXT

    async def read(self, path: str, body: Mapping[str, Any]) -> PromptTokens:
        """The bytes of the prompt's text. Token ids that came ready are told as they are, and are exact."""
        return self.read_now(path, body)

    def read_now(self, path: str, body: Mapping[str, Any]) -> PromptTokens:
        """The same, without a loop."""
        if path == "/v1/completions":
            try:
                prompt = of_completion(body)
            except NotTextError:
                prompt = _digest(body.get("prompt_embeds"))
            if isinstance(prompt, bytes):
                return PromptTokens(packed=prompt, source=TokenSource.LOCAL)
            return _told(prompt)
        return _told("".join(_pieces(body)))


def _told(text: str) -> PromptTokens:
    data = text.encode("utf-8", "surrogatepass")
    whole = len(data) - len(data) % TOKEN_BYTES
    packed = data[:whole] if whole else (data + _PAD)[:TOKEN_BYTES]
    return PromptTokens(packed=packed, source=TokenSource.TEXT)


def _pieces(body: Mapping[str, Any]) -> Iterator[str]:
    """What comes first in a prompt comes first here: tools, the system, the messages."""
    if body.get("tools"):
        yield _json(body["tools"]) + _END
    for key in ("instructions", "system"):
        if body.get(key):
            yield f"system{_UNIT}{_content(body[key])}{_END}"
    messages = body.get("messages", body.get("input"))
    if isinstance(messages, str):
        yield f"user{_UNIT}{messages}{_END}"
        return
    if not isinstance(messages, list) or not messages:
        raise PromptError(f"messages: must be a list that is not empty, found {messages!r:.80}")
    for message in messages:
        if not isinstance(message, Mapping):
            yield f"{_json(message)}{_END}"
            continue
        calls = _json(message["tool_calls"]) if message.get("tool_calls") else ""
        yield f"{message.get('role', '')}{_UNIT}{_content(_said(message))}{calls}{_END}"


def _said(message: Mapping[str, Any]) -> Any:
    """A message's content; the whole of an item that has none, as a call in `/v1/responses`."""
    if "content" in message or "role" in message:
        return message.get("content")
    return _json(message)


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if not isinstance(content, list):
        return _json(content)
    return _UNIT.join(_part(part) for part in content)


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return str(part["text"])
    return _digest(part)


def _digest(part: Any) -> str:
    """A part as 128 bits in hexadecimal, as often as makes `MEDIA_TOKENS`."""
    digest = xxh3_128_hexdigest(msgspec.json.encode(part))
    return digest * (MEDIA_TOKENS * TOKEN_BYTES // len(digest))


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()

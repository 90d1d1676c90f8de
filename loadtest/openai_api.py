"""OpenAI's chat completions over server-sent events, for greenlets: one that waits lets the others go on."""

import json
from collections.abc import Iterator
from typing import Any

from geventhttpclient import HTTPClient

from .asks import CHAT_PATH, Ask, AskError

SHOWN_CHARS = 200


class OpenAiApi:
    """`url` is the door's. Connections are kept and used again, at most `connections_max` at once."""

    kind = "SSE"

    def __init__(self, url: str, model: str, *, timeout_s: float, connections_max: int = 1) -> None:
        self._model = model
        self._client = HTTPClient.from_url(
            url,
            concurrency=connections_max,
            connection_timeout=timeout_s,
            network_timeout=timeout_s,
            headers={"Accept": "text/event-stream"},
        )

    def stream(self, ask: Ask) -> Iterator[str]:
        """See `Api.stream`; `network_timeout` bounds the wait for each piece."""
        headers = {"Content-Type": "application/json", "X-Session-Id": ask.session}
        response = self._client.post(CHAT_PATH, body=json.dumps(self._body(ask)).encode(), headers=headers)
        try:
            if response.status_code != 200:
                said = response.read(SHOWN_CHARS).decode(errors="replace")
                raise AskError(f"HTTP {response.status_code}: {said}")
            yield from _pieces(response)
        finally:
            response.release()

    def close(self) -> None:
        """See `Api.close`."""
        self._client.close()

    def _body(self, ask: Ask) -> dict[str, Any]:
        return {
            "model": self._model,
            "messages": ask.messages,
            "max_tokens": ask.output_tokens,
            "stream": True,
            **({"ignore_eos": True} if ask.exact else {}),
        }


def _pieces(response: Any) -> Iterator[str]:
    while line := response.readline(b"\n"):
        if not line.startswith(b"data:"):
            continue
        data = bytes(line[5:]).strip()
        if data == b"[DONE]":
            # The connection can be used again only when the end of the body was read.
            response.read()
            return
        event = json.loads(data)
        if "error" in event:
            raise AskError(f"the stream broke: {str(event['error'])[:SHOWN_CHARS]}")
        for choice in event.get("choices", ()):
            delta = choice.get("delta", {})
            # The chunk that opens an answer names a role and is no token.
            if delta.get("content") or (choice.get("finish_reason") and "role" not in delta):
                yield delta.get("content") or ""
    raise AskError("the stream ended without [DONE]")

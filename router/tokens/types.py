"""Where a request's token ids come from."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol


class TokenSource(StrEnum):
    """Best first."""

    LOCAL = "local"
    """The model's own tokenizer and chat template, in this process."""
    ENGINE = "engine"
    """The engine was asked."""
    TEXT = "text"
    """No tokenizer is to be had: bytes of the text stand for tokens. Keys agree between requests, not with engines."""


class PromptError(ValueError):
    """A request that cannot be turned into a prompt: names the field, the rule and what was found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTokens:
    """A prompt as packed token ids (little-endian u32), and whether an engine would make the same."""

    packed: bytes
    source: TokenSource

    @property
    def tokens(self) -> int:
        """Its length."""
        return len(self.packed) // 4


class PromptReader(Protocol):
    """Turns the JSON body of an OpenAI request into the prompt's tokens."""

    source: TokenSource

    async def read(self, path: str, body: Mapping[str, Any]) -> PromptTokens:
        """The prompt of a request to `path` (`/v1/chat/completions`, `/v1/completions`, ...). Raises PromptError."""
        ...

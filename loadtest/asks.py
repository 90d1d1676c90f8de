"""What a load sends and what it gets back, whichever API is in between."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

CHAT_PATH = "/v1/chat/completions"


class AskError(Exception):
    """A request was refused, or its answer was not whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request. `exact`: exactly `output_tokens` are wanted, an end-of-sequence token does not end the answer."""

    name: str
    """Its line in the statistics."""
    session: str
    messages: tuple[Mapping[str, str], ...]
    output_tokens: int
    exact: bool = False


class Api(Protocol):
    """A way to a router."""

    kind: str
    """The request type in the statistics."""

    def stream(self, ask: Ask) -> Iterator[str]:
        """Send a request; the pieces of its answer as they come, each at least one token, maybe without text.

        Raises AskError, or what the network raised.
        """
        ...

    def close(self) -> None:
        """Close the connections."""
        ...

"""Text in and out, for prompts that are not token ids. Whoever builds the router hands codecs in (router/cli)."""

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol


class TextDecoder(Protocol):
    """Tokens of one answer to text, holding back what is not a whole character yet."""

    def push(self, ids: Iterable[int]) -> str:
        """The text that these tokens complete."""
        ...

    def finish(self) -> str:
        """What was held back."""
        ...


class TextCodec(Protocol):
    """A model's tokenizer and chat template."""

    def encode(self, text: str) -> list[int]:
        """Text as token ids."""
        ...

    def chat(self, messages: Iterable[Mapping[str, str]]) -> list[int]:
        """A conversation as token ids, up to where the assistant answers; ValueError for roles it does not know."""
        ...

    def decoder(self) -> TextDecoder:
        """A decoder for one answer."""
        ...


CodecOf = Callable[[str], TextCodec | None]
"""The codec of a model by its name; None when the router has none for it."""

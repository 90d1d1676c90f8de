"""Text to tokens and back, without torch: router and workers share this module.

Rule 1: a token stands for bytes, not for text. Text comes out when its bytes form whole characters, so a
stream and a full decode give the same string.
"""

import codecs
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from .chat import ChatRenderer, PlainChat, renderer_for
from .config import UnsupportedModelError


class Tokenizer(Protocol):
    """What router and workers need of a tokenizer."""

    @property
    def vocab_tokens(self) -> int:
        """Ids run from 0 to one below this."""
        ...

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Any of these ends an answer."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Ids of a text; special tokens written out in it (`<|im_end|>`) become their ids.

        `add_special_tokens` lets the model's own post-processor add a begin-of-text token, if it has one.
        """
        ...

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """Text of ids; broken UTF-8 becomes U+FFFD, ids outside the vocabulary raise `ValueError`."""
        ...

    def token_bytes(self, token: int, *, skip_special: bool = False) -> bytes:
        """The bytes that a token stands for."""
        ...

    def render_chat(self, messages: Iterable[Mapping[str, str]]) -> str:
        """The prompt text of OpenAI-style messages, up to where the assistant's answer begins."""
        ...

    def chat(self, messages: Iterable[Mapping[str, str]]) -> list[int]:
        """Ids of `render_chat`."""
        ...


class StreamDecoder:
    """Decodes tokens as they come, holding back bytes until they form a whole character.

    >>> decoder = StreamDecoder(ByteTokenizer())
    >>> [decoder.push([byte]) for byte in "é!".encode()], decoder.finish()
    (['', 'é', '!'], '')
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, ids: Iterable[int]) -> str:
        """The text that these tokens complete; empty while a character is unfinished."""
        skip = self._skip_special
        return self._utf8.decode(b"".join(self._tokenizer.token_bytes(token, skip_special=skip) for token in ids))

    def finish(self) -> str:
        """The text held back at the end: U+FFFD for an unfinished character, else empty."""
        return self._utf8.decode(b"", final=True)


class ByteTokenizer:
    """Bytes as tokens: 0-255 are bytes, 256 begins and 257 ends a text, further ids show as `<id>`."""

    bos_id = 256
    eos_id = 257

    def __init__(self, vocab_tokens: int = 512) -> None:
        if vocab_tokens <= self.eos_id:
            raise ValueError(f"vocab_tokens {vocab_tokens} must be above {self.eos_id}: bytes, begin and end")
        self.vocab_tokens = vocab_tokens
        self.eos_ids: tuple[int, ...] = (self.eos_id,)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The UTF-8 bytes of a text."""
        return list(text.encode())

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """See `Tokenizer.decode`."""
        return b"".join(self.token_bytes(token, skip_special=skip_special) for token in ids).decode(errors="replace")

    def token_bytes(self, token: int, *, skip_special: bool = False) -> bytes:
        """See `Tokenizer.token_bytes`."""
        _check_token(token, self.vocab_tokens)
        if token < 256:
            return bytes((token,))
        if token in {self.bos_id, self.eos_id} and skip_special:
            return b""
        return f"<{token}>".encode()

    def render_chat(self, messages: Iterable[Mapping[str, str]]) -> str:
        """See `Tokenizer.render_chat`."""
        return PlainChat().render(messages)

    def chat(self, messages: Iterable[Mapping[str, str]]) -> list[int]:
        """See `Tokenizer.chat`."""
        return self.encode(self.render_chat(messages))


class HfTokenizer:
    """A byte-level BPE from a Hugging Face `tokenizer.json`, with the chat template beside it."""

    def __init__(self, tokenizer_json: str, *, eos_ids: Sequence[int] = (), chat_template: str | None = None) -> None:
        """`tokenizer_json` is the file's text. `UnsupportedModelError` if it is not byte-level."""
        if '"ByteLevel"' not in json.dumps(json.loads(tokenizer_json).get("decoder")):
            raise UnsupportedModelError(
                "tokenizer.json has no ByteLevel decoder, and only byte-level BPE is supported: "
                "choose a model with such a tokenizer (SmolLM2, Llama 3)"
            )
        self._tokenizer = _tokenizers().Tokenizer.from_str(tokenizer_json)
        self._chat_template = chat_template
        self._renderer: ChatRenderer | None = None
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = frozenset(token for token, spec in added.items() if spec.special)
        self._bytes = _vocabulary_bytes(self._tokenizer.get_vocab(with_added_tokens=True))
        self.vocab_tokens = len(self._bytes)
        self.eos_ids = tuple(eos_ids)

    @classmethod
    def from_directory(cls, directory: Path, *, eos_ids: Sequence[int] = ()) -> "HfTokenizer":
        """Read `tokenizer.json` and, if there, the chat template (a file of its own or in the config)."""
        file = directory / "tokenizer.json"
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing: the directory needs a tokenizer.json")
        return cls(file.read_text(), eos_ids=eos_ids, chat_template=_read_chat_template(directory))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """See `Tokenizer.encode`."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """See `Tokenizer.decode`."""
        return b"".join(self.token_bytes(token, skip_special=skip_special) for token in ids).decode(errors="replace")

    def token_bytes(self, token: int, *, skip_special: bool = False) -> bytes:
        """See `Tokenizer.token_bytes`."""
        _check_token(token, self.vocab_tokens)
        return b"" if skip_special and token in self._special else self._bytes[token]

    def render_chat(self, messages: Iterable[Mapping[str, str]]) -> str:
        """See `Tokenizer.render_chat`. `UnsupportedModelError` if the model's template is not known."""
        if self._renderer is None:
            self._renderer = renderer_for(self._chat_template)
        return self._renderer.render(messages)

    def chat(self, messages: Iterable[Mapping[str, str]]) -> list[int]:
        """See `Tokenizer.chat`. The template writes its own special tokens, so none are added."""
        return self.encode(self.render_chat(messages), add_special_tokens=False)


def _check_token(token: int, vocab_tokens: int) -> None:
    if not 0 <= token < vocab_tokens:
        raise ValueError(f"token {token} is outside the vocabulary of {vocab_tokens}")


def _tokenizers() -> Any:
    try:
        import tokenizers  # noqa: PLC0415 - an optional dependency
    except ImportError as error:
        raise ImportError("reading a tokenizer.json needs 'tokenizers': pip install 'homing[worker]'") from error
    return tokenizers


def _vocabulary_bytes(vocabulary: Mapping[str, int]) -> list[bytes]:
    """Bytes of every id. A token with a character that is no byte's stand-in is literal text."""
    table = [b""] * (max(vocabulary.values()) + 1)
    byte_of = _byte_of_character()
    for text, token in vocabulary.items():
        try:
            table[token] = bytes(byte_of[character] for character in text)
        except KeyError:
            table[token] = text.encode()
    return table


def _byte_of_character() -> dict[str, int]:
    """GPT-2's stand-ins: printable bytes are themselves, the others take code points from 256 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + rank): byte for rank, byte in enumerate(others)}


def _read_chat_template(directory: Path) -> str | None:
    own = directory / "chat_template.jinja"
    if own.is_file():
        return own.read_text()
    config = directory / "tokenizer_config.json"
    if not config.is_file():
        return None
    template = json.loads(config.read_text()).get("chat_template")
    # A list names several templates for several uses.
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template if isinstance(template, str) else None

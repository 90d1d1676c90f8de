"""Tokens of plain text, word by word: those of a word that was seen before are looked up, not computed.

A pre-tokenizer of GPT-2's kind cuts a text into words, and each of them is encoded by itself. The words of ASCII text
are found here, with Python's `re`; text beyond ASCII is left to the tokenizer, whose tables of Unicode are its own.
Added tokens are found before words are, the leftmost first and of those the longest, and count as words of their own.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from homing.router.core.blocks import pack_tokens

from .patterns import ascii_pattern, word_pattern

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WORDS_MAX = 16_384
"""Words of a generation: of the two that are kept, the older one goes when the younger is full."""
WORD_CHARS_MAX = 64
"""Longer words seldom come again."""
NEW_WORDS_MAX = 16
"""A text with more new words than this is cheaper encoded as a whole; so many of them are learned."""

_ASCII = "".join(map(chr, range(128)))
_SAMPLE = f"{_ASCII}\n Two  words,\tit's we'll IT'S\r\n\r\n 12 3456\n\n\nx != y;  \n {' '.join(_ASCII)} {_ASCII[::-1]} "


class WordTokens:
    """The tokens of words, made by a tokenizer when they are first met. See `words_of`."""

    def __init__(self, tokenizer: "Tokenizer", words: re.Pattern[str], added: re.Pattern[str] | None) -> None:
        self._tokenizer = tokenizer
        self._find = words.findall
        self._split = None if added is None else added.split
        self._young: dict[str, bytes] = {}
        self._old: dict[str, bytes] = {}

    def encode(self, text: str, *, new_max: int = NEW_WORDS_MAX) -> bytes | None:
        """The packed tokens of a text; None if it is for the tokenizer to encode: beyond ASCII, or too new."""
        if not text.isascii():
            return None
        words = self._words(text)
        found = list(map(self._young.get, words))
        if None in found and not self._complete(words, found, new_max):
            return None
        return b"".join(found)  # type: ignore[arg-type] # complete

    def check(self) -> None:
        """Both generations are within their bound."""
        assert max(len(self._young), len(self._old)) <= WORDS_MAX
        assert all(len(word) <= WORD_CHARS_MAX for words in (self._young, self._old) for word in words)

    def _words(self, text: str) -> list[str]:
        if self._split is None:
            return self._find(text)
        pieces = self._split(text)
        words = self._find(pieces[0])
        for position in range(1, len(pieces), 2):
            words.append(pieces[position])
            words += self._find(pieces[position + 1])
        return words

    def _complete(self, words: Sequence[str], found: list[bytes | None], new_max: int) -> bool:
        """Fill the gaps in what was found; False if there are too many."""
        left = new_max
        for position, word in enumerate(words):
            if found[position] is not None:
                continue
            known = self._young.get(word) or self._old.get(word)
            if known is None:
                if not left:
                    return False
                left -= 1
                known = pack_tokens(self._tokenizer.encode_batch_fast([word], add_special_tokens=False)[0].ids)
            self._keep(word, known)
            found[position] = known
        return True

    def _keep(self, word: str, packed: bytes) -> None:
        if len(word) > WORD_CHARS_MAX:
            return
        if len(self._young) >= WORDS_MAX:
            self._young, self._old = {}, self._young
        self._young[word] = packed


def words_of(tokenizer: "Tokenizer", spec: Mapping[str, Any]) -> WordTokens | None:
    """The memory of a tokenizer's words, `spec` being its `tokenizer.json`; None if its words are not known here.

    What its description promises is tried on a sample, so that a version of the library that reads one in another way
    costs speed and nothing else.
    """
    pattern = word_pattern(spec)
    model = spec.get("model") or {}
    if pattern is None or model.get("type") != "BPE" or model.get("dropout"):
        return None
    added = spec.get("added_tokens") or []
    if any(token.get(flag) for token in added for flag in ("normalized", "lstrip", "rstrip", "single_word")):
        return None
    contents = sorted((token["content"] for token in added if token["content"]), key=len, reverse=True)
    tokens = re.compile(f"({'|'.join(map(re.escape, contents))})") if contents else None
    words = WordTokens(tokenizer, ascii_pattern(pattern), tokens)
    sample = "".join([_SAMPLE, *(f"a {content} b{content}" for content in contents if content.isascii())])
    whole = pack_tokens(tokenizer.encode(sample, add_special_tokens=False).ids)
    return words if words.encode(sample, new_max=len(sample)) == whole else None

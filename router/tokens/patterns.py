"""How pre-tokenizers of GPT-2's kind cut text into words, each of which is encoded by itself.

They are known by their description in a `tokenizer.json`: `ByteLevel`, after `Digits` or not, or one `Split` by a
pattern that is known here, then bytes. What a pattern does to ASCII text is told as a pattern of Python's `re`, class
of characters by class.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

NORMAL_FORMS: Final = frozenset({"NFC", "NFD", "NFKC", "NFKD"})

_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_MARK = r"[^\r\n\p{L}\p{N}]?"
_WORDS_OF_CASES = (
    rf"{_MARK}{_UPPER}*{_LOWER}+{_ENDINGS}?|{_MARK}{_UPPER}+{_LOWER}*{_ENDINGS}?|\p{{N}}{{1,3}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
LINE_PATTERNS: Final = frozenset({
    rf"{_ENDINGS}|{_MARK}\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}",
    rf"{_ENDINGS}|{_MARK}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}",
    _WORDS_OF_CASES,
    rf"{_MARK}{_UPPER}*{_LOWER}+|{_MARK}{_UPPER}+{_LOWER}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}",
})  # fmt: skip
"""Patterns of `Split` that never go on from a line feed: Llama 3's (cl100k), Qwen 2's, o200k's and Tekken's."""
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_GPT2_BETWEEN_DIGITS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
"""The same for the pieces that `Digits` leaves: whitespace before a digit is at the end of one."""

_ASCII = {
    r"\p{L}": "A-Za-z", r"\p{Lu}": "A-Z", r"\p{Ll}": "a-z", r"\p{N}": "0-9", r"\s": r"\t-\r ",
    r"\p{Lt}": "", r"\p{Lm}": "", r"\p{Lo}": "", r"\p{M}": "",
}  # fmt: skip
_NOT_SPACE = r"[^\t-\r ]"
_SYMBOL = re.compile(r"\\p\{\w+\}|\\.|[\[\]]|[^\\\[\]]+")


def _steps(node: Mapping[str, Any] | None, inner: str) -> Iterator[Mapping[str, Any]]:
    """A normaliser or pre-tokenizer and all that it is made of."""
    if node is not None:
        yield node
        for child in node.get(inner) or []:
            yield from _steps(child, inner)


def normalizers(tokenizer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """All normalisers of a tokenizer that is given as its `tokenizer.json`."""
    return list(_steps(tokenizer.get("normalizer"), "normalizers"))


def pre_tokenizers(tokenizer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """All its pre-tokenizers."""
    return list(_steps(tokenizer.get("pre_tokenizer"), "pretokenizers"))


def word_pattern(tokenizer: Mapping[str, Any]) -> str | None:
    """The pattern whose matches are the words of a text without added tokens; None if it is none of those known here,
    or if the text is changed by more than one of Unicode's normal forms before.
    """
    if not {step["type"] for step in normalizers(tokenizer)} <= NORMAL_FORMS | {"Sequence"}:
        return None
    return _pattern_of([step for step in pre_tokenizers(tokenizer) if step["type"] != "Sequence"])


def ascii_pattern(pattern: str) -> re.Pattern[str]:
    """A word pattern as far as it is about ASCII text."""
    written = []
    between_brackets = False
    for symbol in _SYMBOL.findall(pattern):
        if symbol in {"[", "]"}:
            between_brackets = symbol == "["
        if symbol in _ASCII:
            written.append(_ASCII[symbol] if between_brackets else f"[{_ASCII[symbol]}]")
        else:
            written.append(_NOT_SPACE if symbol == r"\S" else symbol)
    return re.compile("".join(written))


def _pattern_of(pre_tokenizers: Sequence[Mapping[str, Any]]) -> str | None:
    last = pre_tokenizers[-1] if pre_tokenizers else {}
    if last.get("add_prefix_space"):
        return None
    match [step["type"] for step in pre_tokenizers]:
        case ["ByteLevel"] if last.get("use_regex", True):
            return _GPT2
        case ["Digits", "ByteLevel"] if last.get("use_regex", True):
            digits = r"\p{N}" if pre_tokenizers[0].get("individual_digits") else r"\p{N}+"
            return f"{digits}|{_GPT2_BETWEEN_DIGITS}"
        case ["Split", "ByteLevel"] if not last.get("use_regex"):
            split = pre_tokenizers[0]
            pattern = (split.get("pattern") or {}).get("Regex")
            is_isolated = split.get("behavior") == "Isolated" and not split.get("invert")
            return pattern if is_isolated and pattern in LINE_PATTERNS else None
    return None

"""Where a text may be cut so that the tokens of its parts are, one after the other, the tokens of the whole.

A tokenizer of Hugging Face's `tokenizers` first looks for added tokens that are not normalised, then normalises,
pre-tokenises and encodes each piece between them by itself (`AddedVocabulary::extract_and_normalize`). So the place
after an added token is such a cut, if that token is always found and takes no whitespace along: no other one contains
it, nor can one begin before it and end inside it. One thing looks further: `Metaspace` with `prepend_scheme: first`
asks whether a piece is the very first. Parts are then encoded behind an *anchor*, a token that is taken off again.

Inside such a piece, the place after a line feed is a cut for the pre-tokenizers of GPT-2's kind, when the character
before it is no whitespace and the one after it is an ASCII letter or digit. None of their patterns has a match that
goes on from a line feed to a letter or digit, and none looks back; a single line feed is a match of its own, or the
end of one, whatever follows. Unicode's normal forms leave such a place alone: both its sides are starters that never
compose with what is before them.

What is not known to keep these promises is refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .patterns import NORMAL_FORMS, normalizers, pre_tokenizers, word_pattern

MODELS = frozenset({"BPE", "WordPiece", "WordLevel", "Unigram"})
NORMALIZERS = NORMAL_FORMS | {
    "Sequence", "Lowercase", "Prepend", "Replace", "Strip", "StripAccents", "Nmt", "Precompiled", "BertNormalizer",
    "ByteLevel",
}  # fmt: skip
PRE_TOKENIZERS = frozenset({
    "Sequence", "ByteLevel", "Metaspace", "Split", "Digits", "Punctuation", "Whitespace", "WhitespaceSplit",
    "BertPreTokenizer", "CharDelimiterSplit", "UnicodeScripts", "FixedLength",
})  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class CutRules:
    """Where texts may be cut for one tokenizer: after the added token `token`, and after line feeds if `lines`.

    With `anchored`, all parts but the first have to be encoded behind that token. `refusal` says why there are no cuts,
    and is empty if there are some.
    """

    token: str = ""
    anchored: bool = False
    lines: bool = False
    refusal: str = ""


def cut_rules(tokenizer: Mapping[str, Any], wanted: Sequence[str]) -> CutRules:
    """The rules for a tokenizer, given as its `tokenizer.json`, with the first of the `wanted` tokens that serves."""
    added = tokenizer.get("added_tokens") or []
    refusal = _refusal(tokenizer, added)
    if refusal:
        return CutRules(refusal=refusal)
    token = next((token for token in wanted if _is_cut(token, added)), "")
    lines = _cuts_lines(tokenizer, added)
    if not token and not lines:
        return CutRules(refusal=f"no added token serves as a cut (asked for {list(wanted)}), nor do line feeds")
    return CutRules(token=token, lines=lines, anchored=_looks_for_the_first(tokenizer))


def _refusal(tokenizer: Mapping[str, Any], added: Sequence[Mapping[str, Any]]) -> str:
    """Why nothing can be promised of this tokenizer; empty if it can."""
    model = tokenizer.get("model") or {}
    if model.get("type") not in MODELS:
        return f"model {model.get('type')!r} is not known to encode each piece by itself"
    if model.get("dropout"):
        return "the model drops merges at random"
    for known, found in ((NORMALIZERS, normalizers(tokenizer)), (PRE_TOKENIZERS, pre_tokenizers(tokenizer))):
        unknown = sorted({str(step.get("type")) for step in found} - known)
        if unknown:
            return f"{', '.join(unknown)} is not known to treat each piece by itself"
    words = [token["content"] for token in added if token.get("single_word")]
    if words:
        return f"added token {words[0]!r} is sought as a single word, which depends on what is around it"
    return ""


def _is_cut(token: str, added: Sequence[Mapping[str, Any]]) -> bool:
    """Whether each occurrence of an added token is taken for it, and nothing after it along."""
    own = [entry for entry in added if entry["content"] == token]
    if len(own) != 1 or own[0].get("normalized", True) or own[0].get("rstrip") or token != token.strip():
        return False
    return bool(token) and not any(
        _hides(entry["content"], token) for entry in added if not entry.get("normalized", True)
    )


def _hides(other: str, token: str) -> bool:
    """Whether a match of `other` can keep `token` from being found: matches are sought from the left, longest first."""
    if other != token and token in other:
        return True
    return any(token.startswith(other[-size:]) for size in range(1, min(len(other), len(token))))


def _looks_for_the_first(tokenizer: Mapping[str, Any]) -> bool:
    return any(
        step["type"] == "Metaspace" and step.get("prepend_scheme") == "first" for step in pre_tokenizers(tokenizer)
    )


def _cuts_lines(tokenizer: Mapping[str, Any], added: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the place after a line feed is a cut; see the top of the module."""
    if any("\n" in token["content"] or token.get("lstrip") for token in added):
        return False
    return word_pattern(tokenizer) is not None

"""Tokens of a text of which most was seen before, exactly as if it were encoded whole.

A text is cut at places that `safety` vouches for, into parts whose tokens do not depend on what is around them. The
tokens of parts are kept; a conversation's next turn encodes only its new parts. Where to cut follows from the text
before the cut alone, so that texts that begin alike are cut alike. A long text is looked up in groups of parts first,
and part by part only where a group is new.
"""

import asyncio
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from homing.router.core.blocks import pack_tokens

from .affixes import affixes
from .lru import ExactCache
from .safety import cut_rules
from .words import words_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PART_BYTES_MIN = 128
"""Shorter parts cost more to look up than they save."""
LINE_PART_BYTES_MIN = 1024
"""Text without added tokens is cut at the first fitting line feed after so much of it."""
GROUP_BYTES_MIN = 16_384
"""A group ends at the first cut after so much text: a dozen of them are a prompt of 200 kB, where parts are 200."""
INLINE_BYTES_MAX = 8192
"""More than this is encoded in turns or in a thread: a millisecond or two, in which other requests would wait."""
CACHE_BYTES = 64 << 20

_WHOLE, _REST = 0, 1
_LINE_END = rb"\n(?=[0-9A-Za-z])"
_LINE = re.compile(_LINE_END)


class IncrementalTokenizer:
    """A tokenizer that remembers the tokens of parts of texts, in at most `cache_bytes`, and those of words (`words`).

    `cut_tokens` are texts of added tokens, such as `<|im_end|>`; the first of them that serves is what texts are cut
    after. `refusal` says why texts are not cut, and is empty if they are; uncut, they are remembered whole. The
    tokenizer is made to neither shorten nor pad. `around` are the packed tokens that it puts before and after a whole
    prompt, or None if it does anything else to one.
    """

    def __init__(
        self, tokenizer: "Tokenizer", cut_tokens: Sequence[str] = (), *, cache_bytes: int = CACHE_BYTES
    ) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = False
        self._tokenizer = tokenizer
        spec = json.loads(tokenizer.to_str())
        self.around = _around(tokenizer, spec)
        self._rules = cut_rules(spec, cut_tokens)
        self._cuts = re.compile(re.escape(self._rules.token.encode())) if self._rules.token else None
        self._group_ends = self._any_cut()
        self._anchor = self._rules.token if self._rules.anchored else ""
        self._words = None if self._anchor else words_of(tokenizer, spec)
        self._cache = ExactCache(cache_bytes)

    @property
    def refusal(self) -> str:
        """Why texts are not cut."""
        return self._rules.refusal

    @property
    def used_bytes(self) -> int:
        """What the cache holds."""
        return self._cache.used_bytes

    async def encode(self, text: str) -> bytes:
        """The packed tokens of a text without special ones around it. Raises UnicodeEncodeError for lone surrogates."""
        parts, found, missing, groups = self._look_up(text)
        if missing:
            self._keep(parts, found, missing, await self._fresh_in_turns(parts, missing))
        self._keep_groups(parts, found, groups)
        return b"".join(found)

    def encode_now(self, text: str) -> bytes:
        """The same without giving way to others."""
        parts, found, missing, groups = self._look_up(text)
        if missing:
            self._keep(parts, found, missing, self._fresh(parts, missing))
        self._keep_groups(parts, found, groups)
        return b"".join(found)

    def encode_whole(self, text: str) -> bytes:
        """The packed tokens of a text with the special ones around it, without the memory."""
        return pack_tokens(self._tokenizer.encode(text, add_special_tokens=True).ids)

    def split(self, text: str) -> list[bytes]:
        """The parts of a text, in UTF-8: each of them but the last one ends in a cut."""
        return [part for group in self._groups(text.encode()) for part in self._parts(group)]

    def check(self) -> None:
        """What is remembered is within its bounds."""
        self._cache.check()
        if self._words is not None:
            self._words.check()

    def _any_cut(self) -> re.Pattern[bytes] | None:
        """What a group may end with: the added token, or a line feed before a letter or digit."""
        token = [re.escape(self._rules.token.encode())] if self._rules.token else []
        ends = token + ([_LINE_END] if self._rules.lines else [])
        return re.compile(b"|".join(ends)) if ends else None

    def _groups(self, data: bytes) -> Iterator[bytes]:
        """A text in long pieces: each of them but the last one ends in a cut."""
        start = 0
        while self._group_ends is not None and len(data) - start > GROUP_BYTES_MIN:
            end = _first_cut(self._group_ends, data, start + GROUP_BYTES_MIN)
            if end is None:
                break
            yield data[start:end]
            start = end
        if start < len(data) or not start:
            yield data[start:]

    def _parts(self, group: bytes) -> list[bytes]:
        """The parts of a group."""
        if self._cuts is None:
            return _lines(group) if self._rules.lines else [group]
        parts = []
        start = 0
        for cut in self._cuts.finditer(group):
            end = cut.end()
            if end - start >= PART_BYTES_MIN:
                parts.append(group[start:end])
                start = end
        if start < len(group) or not start:
            parts.append(group[start:])
        if not self._rules.lines:
            return parts
        return [line for part in parts for line in (_lines(part) if len(part) > LINE_PART_BYTES_MIN else (part,))]

    def _look_up(self, text: str) -> tuple[list[bytes], list[bytes], list[int], list[range]]:
        """The parts of a text, their tokens, where these are not known, and which parts are groups to be remembered.
        A group that is known is one part.
        """
        parts: list[bytes] = []
        found: list[bytes] = []
        missing: list[int] = []
        groups: list[range] = []
        for group in self._groups(text.encode()):
            known = self._cache.get(group, kind=self._kind(len(parts)))
            if known is not None:
                parts.append(group)
                found.append(known)
                continue
            first = len(parts)
            for part in self._parts(group):
                packed = self._cache.get(part, kind=self._kind(len(parts)))
                if packed is None:
                    missing.append(len(parts))
                parts.append(part)
                found.append(packed or b"")
            if len(parts) > first + 1 and len(group) > GROUP_BYTES_MIN:
                groups.append(range(first, len(parts)))
        return parts, found, missing, groups

    def _kind(self, index: int) -> int:
        """Under what a part is remembered: the first one and all others differ where there is an anchor."""
        return _REST if self._anchor and index else _WHOLE

    def _keep_groups(self, parts: list[bytes], found: list[bytes], groups: list[range]) -> None:
        for group in groups:
            of = slice(group.start, group.stop)
            self._cache.put(b"".join(parts[of]), b"".join(found[of]), kind=self._kind(group.start))

    def _keep(self, parts: list[bytes], found: list[bytes], missing: list[int], tokens: list[bytes]) -> None:
        for index, packed in zip(missing, tokens, strict=True):
            found[index] = packed
            self._cache.put(parts[index], packed, kind=self._kind(index))

    def _fresh(self, parts: list[bytes], missing: list[int]) -> list[bytes]:
        """Tokens of some parts, one after the other."""
        known = ((index, self._of_words(parts[index])) for index in missing)
        return [self._encoded(parts, [index])[0] if packed is None else packed for index, packed in known]

    async def _fresh_in_turns(self, parts: list[bytes], missing: list[int]) -> list[bytes]:
        """The same; others have their turn in between, and the tokenizer a thread where it has much to do."""
        fresh: dict[int, bytes] = {}
        left: list[int] = []
        turn_bytes = 0
        for index in missing:
            turn_bytes += len(parts[index])
            if turn_bytes > INLINE_BYTES_MAX:
                turn_bytes = 0
                await asyncio.sleep(0)
            packed = self._of_words(parts[index])
            if packed is None:
                left.append(index)
            else:
                fresh[index] = packed
        if sum(len(parts[index]) for index in left) > INLINE_BYTES_MAX:
            fresh.update(zip(left, await asyncio.to_thread(self._encoded, parts, left), strict=True))
        else:
            fresh.update((index, self._encoded(parts, [index])[0]) for index in left)
        return [fresh[index] for index in missing]

    def _of_words(self, part: bytes) -> bytes | None:
        """A part's tokens if most of its words are known, and it is no more than fits into a turn."""
        if self._words is None or len(part) > INLINE_BYTES_MAX:
            return None
        return self._words.encode(part.decode())

    def _encoded(self, parts: list[bytes], missing: list[int]) -> list[bytes]:
        """Tokens of some parts by the tokenizer: on all cores, but one alone stays in this thread; without offsets."""
        texts = [(self._anchor if index else "") + parts[index].decode() for index in missing]
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [
            pack_tokens(encoding.ids[1:] if self._anchor and index else encoding.ids)
            for index, encoding in zip(missing, encodings, strict=True)
        ]


def _around(tokenizer: "Tokenizer", spec: Mapping[str, Any]) -> tuple[bytes, bytes] | None:
    """What the post-processor puts around a prompt by its description, if a prompt shows the same."""
    found = affixes(spec.get("post_processor"))
    if found is None:
        return None
    bare, full = (tokenizer.encode("a b", add_special_tokens=special).ids for special in (False, True))
    before, after = found
    return (pack_tokens(before), pack_tokens(after)) if [*before, *bare, *after] == full else None


def _first_cut(ends: re.Pattern[bytes], data: bytes, seek: int) -> int | None:
    """The first place after `seek` where a group may end."""
    for found in ends.finditer(data, seek):
        if found[0] != b"\n" or _is_after_text(data, found.start()):
            return found.end()
    return None


def _is_after_text(data: bytes, at: int) -> bool:
    """Whether the character before a line feed is no whitespace; there must be one."""
    return not data[max(0, at - 4) : at].decode(errors="ignore")[-1:].isspace()


def _lines(part: bytes) -> list[bytes]:
    """A part, cut after line feeds: alike, whatever follows it."""
    parts = []
    start = 0
    seek = LINE_PART_BYTES_MIN
    while (found := _LINE.search(part, seek)) is not None:
        seek = found.end()
        if _is_after_text(part, seek - 1):
            parts.append(part[start:seek])
            start = seek
            seek += LINE_PART_BYTES_MIN
    parts.append(part[start:])
    return parts

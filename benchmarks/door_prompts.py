"""What the door's benchmark asks: conversations of plain words in lines, each request with a number that is its own.

Rule 1: all routers get the same bodies, byte for byte.
Rule 2: no text comes twice while a router is measured: its number stands in the last words of a short prompt, and at
the beginning of the last turn of a long one, so that this whole turn is new text to whoever compares prefixes.
Rule 3: what stands before the number was said before. A short prompt (500 B) is a system message, alike in all, and one
question out of 4,096. A long one (200 kB) is one of 16 conversations, each a system message and some hundred turns of
2 kB, alike every time, and a new last turn of 400 B.
Rule 4: `prompt_bytes` counts the text of all messages, without JSON around it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Final

from homing.loadtest.prompts import WORDS

MARK: Final = "#########"
"""In a body's place for its number, which has as many digits."""
NUMBERS: Final = 10 ** len(MARK)
ASKED_TOKENS: Final = 32
LINE_BYTES: Final = 72
TURN_BYTES: Final = 2000
LAST_TURN_BYTES: Final = 400
CONVERSATIONS: Final = {500: 4096, 200_000: 16}
"""Bytes of a prompt, and how many different ones there are beside their numbers."""
SYSTEM: Final = (
    "You help people with their plans and letters.\n"
    "Answer in whole sentences, and say so where you do not know.\n"
    "Keep it short."
)
Message = dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request that wants its number between `head` and `tail`; `messages` hold the mark."""

    messages: tuple[Message, ...]
    head: bytes
    tail: bytes

    def body(self, number: int) -> bytes:
        """The request of this number."""
        return b"%b%0*d%b" % (self.head, len(MARK), number, self.tail)

    def messages_of(self, number: int) -> list[Message]:
        """What is said in it."""
        return [{**message, "content": message["content"].replace(MARK, f"{number:09d}")} for message in self.messages]


def asks(model: str, prompt_bytes: int, *, streams: bool, random: Random) -> list[Ask]:
    """All conversations of one size."""
    make = _long if prompt_bytes > 2 * TURN_BYTES else _short
    made = []
    for _ in range(CONVERSATIONS[prompt_bytes]):
        messages = tuple(make(prompt_bytes, random))
        said = {"model": model, "messages": messages, "max_tokens": ASKED_TOKENS, "stream": streams}
        head, _, tail = json.dumps(said).encode().partition(MARK.encode())
        made.append(Ask(messages=messages, head=head, tail=tail))
    return made


def _short(prompt_bytes: int, random: Random) -> Iterator[Message]:
    yield {"role": "system", "content": SYSTEM}
    end = f" My number is {MARK}."
    yield {"role": "user", "content": _text(prompt_bytes - len(SYSTEM) - len(end), random) + end}


def _long(prompt_bytes: int, random: Random) -> Iterator[Message]:
    yield {"role": "system", "content": SYSTEM}
    left = prompt_bytes - len(SYSTEM) - LAST_TURN_BYTES
    roles = ("user", "assistant")
    turns = 2 * (left // TURN_BYTES // 2)
    for turn in range(turns):
        size = left // turns + (left % turns if turn == 0 else 0)
        yield {"role": roles[turn % 2], "content": _text(size, random)}
    start = f"Case {MARK}: "
    yield {"role": "user", "content": start + _text(LAST_TURN_BYTES - len(start), random)}


def _text(size: int, random: Random) -> str:
    """So many bytes of sentences, one to a line."""
    lines: list[str] = []
    length = 0
    while length <= size:
        words = random.choices(WORDS, k=LINE_BYTES // 6)
        lines.append(" ".join(words).capitalize() + ".")
        length += len(lines[-1]) + 1
    return "\n".join(lines)[:size]

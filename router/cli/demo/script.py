"""What the demo asks: short and long prompts from real text, alone and at once, and what each is there to show.

No request is told how to be answered. The script only arranges when requests come, as users do: while another answer is
still streaming, or when all is quiet.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import files

Messages = list[dict[str, str]]

SYSTEM = (
    "You are the assistant of a small public library. You answer in one or two short sentences, in plain words, "
    "and you never invent a title. When a reader asks for a book that the library does not have, say so and name "
    "a librarian who can order it. Opening hours are nine to six from Monday to Friday and ten to four on "
    "Saturdays; on Sundays and on public holidays the library is closed. Children under twelve may borrow five "
    "books for three weeks, everybody else ten books for four weeks. Books that are late cost twenty cents a day, "
    "at most five euros for each book, and nobody who owes more than twenty euros may borrow another. Films and "
    "music may be kept for one week. Reading rooms can be booked for two hours a day, and silence is kept in all "
    "of them but the blue one, where groups may meet. The building has a lift, a ramp at the north door, and "
    "lockers that need a one-euro coin. Visitors may use the computers on the first floor for an hour when nobody "
    "waits. Printing costs ten cents a page. Dogs stay outside, unless they guide."
)


class When(StrEnum):
    """When a request comes."""

    QUIET = "quiet"
    """All earlier answers are complete."""
    STREAMING = "streaming"
    """The request before it has its first token and is still being answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One request. `messages` makes its conversation out of the answers so far, by step name."""

    name: str
    says: str
    when: When
    messages: Callable[[dict[str, str]], Messages]
    max_output_tokens: int = 12
    to_the_end: bool = False
    """Generate all of max_output_tokens, so that the answer lasts while others come."""


def document() -> str:
    """The beginning of "Alice's Adventures in Wonderland" (Lewis Carroll, 1865; in the public domain)."""
    return (files(__package__) / "alice.txt").read_text(encoding="utf-8").strip()


def paragraphs() -> list[str]:
    """The document's paragraphs."""
    return document().split("\n\n")


def _ask(question: str) -> Callable[[dict[str, str]], Messages]:
    return lambda _: [{"role": "user", "content": question}]


def _library(question: str) -> Callable[[dict[str, str]], Messages]:
    return lambda _: [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]


def _book(question: str, first: int = 0, last: int | None = None) -> Callable[[dict[str, str]], Messages]:
    text = "\n\n".join(paragraphs()[first:last])
    return lambda _: [{"role": "user", "content": f"Read this.\n\n{text}\n\n{question}"}]


def _talk(*turns: str) -> Callable[[dict[str, str]], Messages]:
    """A conversation whose earlier answers are those of the steps talk-1, talk-2, ..."""

    def messages(answers: dict[str, str]) -> Messages:
        spoken: Messages = [{"role": "system", "content": "You help with a story. Answer briefly."}]
        for number, turn in enumerate(turns, start=1):
            spoken.append({"role": "user", "content": turn})
            if number < len(turns):
                spoken.append({"role": "assistant", "content": answers[f"talk-{number}"]})
        return spoken

    return messages


_TURNS = (
    "A rabbit runs past a girl on a river bank. Name the rabbit.",
    "She follows it down a hole. What does she see there?",
    "She finds a jar on a shelf. What is in it?",
)

LONG_ANSWER = 40

STEPS = (
    Step(name="cold", says="a short prompt, nothing cached", when=When.QUIET, messages=_ask("Where is Paris?")),
    Step(name="talk-1", says="a conversation begins", when=When.QUIET, messages=_talk(*_TURNS[:1])),
    Step(name="talk-2", says="its second turn", when=When.QUIET, messages=_talk(*_TURNS[:2])),
    Step(name="talk-3", says="its third turn", when=When.QUIET, messages=_talk(*_TURNS)),
    Step(
        name="library-1",
        says="a system prompt seen for the first time",
        when=When.QUIET,
        messages=_library("When are you open on Saturdays?"),
        max_output_tokens=LONG_ANSWER,
        to_the_end=True,
    ),
    Step(
        name="library-2",
        says="the same system prompt, its holder busy with the answer before",
        when=When.STREAMING,
        messages=_library("May I bring my dog?"),
    ),
    Step(
        name="library-3",
        says="and once more, when all is quiet",
        when=When.QUIET,
        messages=_library("How many books may I take?"),
    ),
    Step(
        name="chapter-1",
        says="a longer text, cold",
        when=When.QUIET,
        messages=_book("Who ran close by Alice?", last=8),
        max_output_tokens=LONG_ANSWER,
        to_the_end=True,
    ),
    Step(
        name="chapter-2",
        says="the same text from elsewhere, its holder busy",
        when=When.STREAMING,
        messages=_book("What was in the jar?", last=8),
    ),
    Step(
        name="book-1",
        says="a text too long for the small sites, cold",
        when=When.QUIET,
        messages=_book("What does Alice fear?"),
        max_output_tokens=LONG_ANSWER,
        to_the_end=True,
    ),
    Step(
        name="book-1-again",
        says="the very same prompt while it is being answered",
        when=When.STREAMING,
        messages=_book("What does Alice fear?"),
    ),
    Step(
        name="book-2",
        says="another question about it, when all is quiet",
        when=When.QUIET,
        messages=_book("What is the cat's name?"),
    ),
)


def longest_prompts(tokens_of: Callable[[Messages], list[int]]) -> tuple[int, int]:
    """Tokens, answer included, of the longest prompt about a chapter and of the longest about the book."""
    lengths = {step.name: len(tokens_of(step.messages({}))) for step in STEPS if not step.name.startswith("talk")}
    chapter = max(tokens for name, tokens in lengths.items() if name.startswith("chapter"))
    book = max(tokens for name, tokens in lengths.items() if name.startswith("book"))
    return chapter + LONG_ANSWER, book + LONG_ANSWER

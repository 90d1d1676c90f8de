"""Conversations: a system prompt that many share, then turns that each begin with all that was said before.

Rule 1: what a session says depends on the seed and its number alone; what it is answered becomes part of it.
"""

from dataclasses import dataclass

from .asks import Ask
from .prompts import Texts, with_system


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionShape:
    """How conversations look. Lengths are in tokens."""

    system_prompts: int = 4
    """How many different ones there are."""
    system_tokens: int = 1024
    turns: int = 4
    turn_tokens: int = 128
    output_tokens: int = 64
    think_s: float = 1.0
    """The mean of the time that a user thinks before the next turn."""

    def __post_init__(self) -> None:
        for name in ("system_prompts", "turns", "turn_tokens", "output_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.system_tokens < 0 or self.think_s < 0:
            raise ValueError("system_tokens, think_s: expected at least 0")


class Session:
    """One conversation; `number` tells it from the others of a run."""

    def __init__(self, texts: Texts, shape: SessionShape, number: int) -> None:
        self._texts = texts
        self._shape = shape
        self._name = f"session-{number}"
        self._system = texts.text(f"system-{number % shape.system_prompts}", shape.system_tokens)
        self._turns: list[tuple[str, str]] = []

    @property
    def is_over(self) -> bool:
        """Whether all turns are answered."""
        return len(self._turns) >= 2 * self._shape.turns

    def next_ask(self) -> Ask:
        """The next turn, whose answer is told with `answered`."""
        said = self._texts.text(f"{self._name}/turn-{len(self._turns) // 2}", self._shape.turn_tokens)
        first = not self._turns
        return Ask(
            name="first turn" if first else "later turn",
            session=self._name,
            messages=with_system(self._system, [*self._turns, ("user", said)]),
            output_tokens=self._shape.output_tokens,
        )

    def answered(self, ask: Ask, answer: str) -> None:
        """The answer of the turn that was asked last."""
        self._turns += [("user", ask.messages[-1]["content"]), ("assistant", answer)]

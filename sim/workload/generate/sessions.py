"""Conversations: each prompt is the one before, its answer, and what the user says next.

The keys of a conversation are one growing row. What a decode worker holds of an answer is named by `answer_keys`, and
the next prompt begins with just those blocks. The workload is open-loop: the next turn comes after the time that an
answer takes at `answer_token_s`, and a think time, however long the answer really took.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from random import Random
from typing import Annotated

from msgspec import Meta

from homing.router.core.types import BlockKey

from ..arrival import Arrival
from ..keys import KeySpace
from ..section import NotNegative, NoTokens, Positive, Tokens, Workload
from .lengths import Length, LogNormal
from .moments import Moments
from .poisson import Poisson
from .processes import Process


@dataclass(slots=True)
class _Session:
    """A conversation under way, and what was said so far."""

    name: str
    site: str | None
    turn: int = 0
    said_tokens: int = 0
    keys: tuple[BlockKey, ...] = ()


class Sessions(Workload, frozen=True, kw_only=True, tag="sessions"):
    """Conversations that begin at the moments of `arrivals`; a system prompt of `system_tokens` begins them all.

    One ends after any turn with probability 1 / `turns_mean`, or before a prompt and its answer would take more than
    `context_tokens`.
    """

    arrivals: Process = Poisson(rate_per_s=0.2)
    turns_mean: Annotated[float, Meta(ge=1, le=1e6)] = 5.0
    system_tokens: NoTokens = 0
    user: Length = LogNormal(mu=5.5, sigma=1.0, max_tokens=32_768)
    output: Length = LogNormal(mu=5.5, sigma=0.8, max_tokens=4096)
    think_mean_s: Positive = 30.0
    answer_token_s: NotNegative = 0.02
    context_tokens: Tokens = 131_072

    def generate(self, moments: Moments, random: Random, keys: KeySpace, label: str) -> Iterator[Arrival]:
        """Arrivals as long as there are moments, and the rest of each conversation. Holds what is under way."""
        system = keys.take(self.system_tokens // self.block_tokens)
        pending: list[tuple[float, int, _Session]] = []
        for number, (at_s, site) in enumerate(moments):
            while pending and pending[0][0] <= at_s:
                yield from self._next(pending, random, keys)
            session = _Session(f"{label}s{number}", site, said_tokens=self.system_tokens, keys=system)
            heappush(pending, (at_s, number, session))
        while pending:
            yield from self._next(pending, random, keys)

    def _next(self, pending: list[tuple[float, int, _Session]], random: Random, keys: KeySpace) -> Iterator[Arrival]:
        """The turn that is due first, unless its context is full; the turn after it becomes pending."""
        at_s, number, session = heappop(pending)
        prompt_tokens = session.said_tokens + self.user.draw(random)
        output_tokens = self.output.draw(random)
        said_tokens = prompt_tokens + output_tokens
        if said_tokens > self.context_tokens:
            return
        said = session.keys + keys.take(said_tokens // self.block_tokens - len(session.keys))
        full = prompt_tokens // self.block_tokens
        yield Arrival(
            id=f"{session.name}t{session.turn}",
            at_s=at_s,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            block_tokens=self.block_tokens,
            keys=said[:full],
            answer_keys=said[full:],
            session=session.name,
            origin=session.site,
        )
        session.turn, session.said_tokens, session.keys = session.turn + 1, said_tokens, said
        if random.random() >= 1 / self.turns_mean:
            wait_s = output_tokens * self.answer_token_s + random.expovariate(1 / self.think_mean_s)
            heappush(pending, (at_s + wait_s, number, session))

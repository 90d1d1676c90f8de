"""Agents that fan out: a parent reads a long context, then many siblings at once continue it, then perhaps they join.

The siblings of a task share the parent's context and differ in their suffixes. They arrive together: a router that lets
each of them compute the context somewhere else computes it many times.
"""

from collections.abc import Iterator
from heapq import heappop, heappush
from random import Random
from typing import Annotated

from msgspec import Meta

from ..arrival import Arrival
from ..keys import KeySpace
from ..section import NotNegative, Workload
from .lengths import Length, LogNormal, Uniform
from .moments import Moments
from .poisson import Poisson
from .processes import Process

_Pending = list[tuple[float, int, Arrival]]


class Fanout(Workload, frozen=True, kw_only=True, tag="fanout"):
    """Tasks that begin at the moments of `arrivals`.

    The parent's prompt is the `context`. After `fan_after_s`, `siblings` requests follow within `stagger_s`, each with
    the context and a suffix of its own; `join_after_s` later, unless it is None, one request holds the context and all
    their answers. One task is one session.
    """

    arrivals: Process = Poisson(rate_per_s=0.05)
    context: Length = Uniform(min_tokens=16_384, max_tokens=32_768)
    siblings: Annotated[int, Meta(ge=1, le=1000)] = 8
    suffix: Length = LogNormal(mu=6.0, sigma=0.5, max_tokens=8192)
    output: Length = LogNormal(mu=5.5, sigma=0.8, max_tokens=4096)
    fan_after_s: NotNegative = 10.0
    stagger_s: NotNegative = 0.0
    join_after_s: NotNegative | None = 30.0

    def generate(self, moments: Moments, random: Random, keys: KeySpace, label: str) -> Iterator[Arrival]:
        """Arrivals as long as there are moments, and the rest of each task. Holds the tasks under way."""
        pending: _Pending = []
        sequence = 0
        for number, (at_s, site) in enumerate(moments):
            while pending and pending[0][0] <= at_s:
                yield heappop(pending)[2]
            for arrival in self._task(at_s, site, f"{label}s{number}", random, keys):
                heappush(pending, (arrival.at_s, sequence, arrival))
                sequence += 1
        while pending:
            yield heappop(pending)[2]

    def _task(self, at_s: float, site: str | None, name: str, random: Random, keys: KeySpace) -> list[Arrival]:
        context_tokens = self.context.draw(random)
        context = keys.take(context_tokens // self.block_tokens)

        def request(part: str, after_s: float, more_tokens: int) -> Arrival:
            prompt_tokens = context_tokens + more_tokens
            return Arrival(
                id=f"{name}{part}",
                at_s=at_s + after_s,
                prompt_tokens=prompt_tokens,
                output_tokens=self.output.draw(random),
                block_tokens=self.block_tokens,
                keys=context + keys.take(prompt_tokens // self.block_tokens - len(context)),
                session=name,
                origin=site,
            )

        siblings = [
            request(f"c{number}", self.fan_after_s + self.stagger_s * random.random(), self.suffix.draw(random))
            for number in range(self.siblings)
        ]
        task = [request("p", 0.0, 0), *siblings]
        if self.join_after_s is not None:
            answers = sum(sibling.output_tokens for sibling in siblings)
            task.append(request("j", self.fan_after_s + self.stagger_s + self.join_after_s, answers))
        return task

"""Families of prompts: each begins with a long text that its members share, and ends with one of its own.

Popularity is Zipf over the families. With a hot spot that moves, ranks are dealt anew from time to time: what was
cached for yesterday's favourite is of no use today.
"""

from collections.abc import Iterator
from random import Random
from typing import Annotated

from msgspec import Meta

from homing.router.core.types import BlockKey

from ..arrival import Arrival
from ..keys import KeySpace
from ..section import Count, Positive, Workload
from .lengths import Length, LogNormal, Uniform, Zipf
from .moments import Moments
from .poisson import Poisson
from .processes import Process


class Families(Workload, frozen=True, kw_only=True, tag="families"):
    """Requests of `families` families. Every `shift_every_s`, each rank moves on by `shift_by` families."""

    arrivals: Process = Poisson()
    families: Annotated[int, Meta(ge=1, le=1_000_000)] = 100
    zipf: Annotated[float, Meta(ge=0, le=10)] = 1.0
    prefix: Length = Uniform(min_tokens=2048, max_tokens=8192)
    suffix: Length = LogNormal(mu=6.0, sigma=0.8, max_tokens=16_384)
    output: Length = LogNormal(mu=5.5, sigma=0.8, max_tokens=4096)
    shift_every_s: Positive | None = None
    shift_by: Count = 1

    def generate(self, moments: Moments, random: Random, keys: KeySpace, label: str) -> Iterator[Arrival]:
        """Arrivals as long as there are moments; their session is None: members of a family do not know each other."""
        ranks = Zipf(self.families, self.zipf)
        shared: dict[int, tuple[int, tuple[BlockKey, ...]]] = {}
        for number, (at_s, site) in enumerate(moments):
            family = (ranks.draw(random) + self._shift(at_s)) % self.families
            if family not in shared:
                tokens = self.prefix.draw(random)
                shared[family] = tokens, keys.take(tokens // self.block_tokens)
            prefix_tokens, prefix = shared[family]
            prompt_tokens = prefix_tokens + self.suffix.draw(random)
            yield Arrival(
                id=f"{label}r{number}",
                at_s=at_s,
                prompt_tokens=prompt_tokens,
                output_tokens=self.output.draw(random),
                block_tokens=self.block_tokens,
                keys=prefix + keys.take(prompt_tokens // self.block_tokens - len(prefix)),
                origin=site,
            )

    def _shift(self, at_s: float) -> int:
        return 0 if self.shift_every_s is None else int(at_s // self.shift_every_s) * self.shift_by

"""Prompts that have nothing in common, and those of the PrfaaS case study among them."""

from collections.abc import Iterator
from random import Random

from ..arrival import Arrival
from ..keys import KeySpace
from ..section import Workload
from .lengths import Constant, Length, LogNormal
from .moments import Moments
from .poisson import Poisson
from .processes import Process


class Prompts(Workload, frozen=True, kw_only=True, tag="prompts"):
    """Independent requests with prompts of their own: nothing is reused."""

    arrivals: Process = Poisson()
    input: Length = LogNormal(mu=8.0, sigma=1.0)
    output: Length = LogNormal(mu=5.5, sigma=0.8, max_tokens=4096)

    def generate(self, moments: Moments, random: Random, keys: KeySpace, label: str) -> Iterator[Arrival]:
        """Arrivals as long as there are moments."""
        for number, (at_s, site) in enumerate(moments):
            prompt_tokens = self.input.draw(random)
            yield Arrival(
                id=f"{label}r{number}",
                at_s=at_s,
                prompt_tokens=prompt_tokens,
                output_tokens=self.output.draw(random),
                block_tokens=self.block_tokens,
                keys=keys.take(prompt_tokens // self.block_tokens),
                origin=site,
            )


class Prfaas(Prompts, frozen=True, kw_only=True, tag="prfaas"):
    """The case study of Prefill-as-a-Service, section 4.1: log-normal prompts of mu 9.90 and sigma 1.00, truncated to
    128 .. 128K tokens (mean about 27K), answers of 1,024 tokens, no reuse.
    """

    input: Length = LogNormal(mu=9.90, sigma=1.00, min_tokens=128, max_tokens=131_072)
    output: Length = Constant(tokens=1024)

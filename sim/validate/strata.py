"""Draws whose means settle soon: each block of draws has one from every stratum of equal probability, in random order.

Every single draw has its distribution exactly, and a block of them has its mean almost exactly: of a thousand prompts
drawn one by one the total work is off by several percent, which a search for a capacity would mistake for capacity.
"""

from collections.abc import Iterator
from math import log
from random import Random

from ..prfaas.lengths import TruncatedLogNormal
from ..workload.arrival import Arrival
from ..workload.keys import KeySpace

STRATA = 200


def shares(random: Random, strata: int = STRATA) -> Iterator[float]:
    """Numbers in (0, 1), without end: inverses of distribution functions make anything of them.

    >>> drawn = shares(Random(0), strata=4)
    >>> sorted(int(4 * next(drawn)) for _ in range(4))
    [0, 1, 2, 3]
    """
    order = list(range(strata))
    while True:
        random.shuffle(order)
        for stratum in order:
            yield (stratum + (1.0 - random.random())) / strata - 1e-12


def poisson_like(
    random_gaps: Random,
    random_lengths: Random,
    *,
    rate_per_s: float,
    lengths: TruncatedLogNormal,
    output_tokens: int,
    block_tokens: int,
) -> Iterator[Arrival]:
    """Requests without reuse: exponential gaps and lengths of a distribution, both in strata. Sorted, without end."""
    keys = KeySpace("strata")
    at_s = 0.0
    for number, (gap, length) in enumerate(zip(shares(random_gaps), shares(random_lengths), strict=False)):
        at_s -= log(1.0 - gap) / rate_per_s
        tokens = round(lengths.quantile(length))
        yield Arrival(
            id=f"r{number}",
            at_s=at_s,
            prompt_tokens=tokens,
            output_tokens=output_tokens,
            block_tokens=block_tokens,
            keys=keys.take(tokens // block_tokens),
        )

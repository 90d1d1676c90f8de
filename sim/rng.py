"""Randomness of a run: one seed, and from it one stream per part.

Rule 1: each part draws from its own stream, so that one more draw in one part changes nothing in another.
Rule 2: a stream depends on the seed and its name alone: not on the order of asking, the process or its hash seed (I5).
"""

from random import Random

from xxhash import xxh3_128_intdigest


class Streams:
    """Hands out the streams of one run, each name once: two parts that share a stream would disturb each other.

    >>> first, again = Streams(7), Streams(7)
    >>> _ = again.stream("links")
    >>> first.stream("arrivals").random() == again.stream("arrivals").random()
    True
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._given: set[str] = set()

    def stream(self, name: str) -> Random:
        """The stream of one part; ValueError for a name that was given out before."""
        if name in self._given:
            raise ValueError(f"name: the stream {name!r} was given out before; each part has a name of its own")
        self._given.add(name)
        return Random(xxh3_128_intdigest(f"{self._seed}/{name}".encode()))  # noqa: S311 - dice, no secrets

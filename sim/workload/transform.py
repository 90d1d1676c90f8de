"""Transforms of workloads: each takes arrivals sorted by time and gives arrivals sorted by time, lazily.

Rule 1: a conversation stays whole where a transform chooses (`by="session"`), and at one origin always. A request
without a session is a conversation of its own.
Rule 2: what is chosen is chosen by a hash of the name under a salt from a handed-in Random: nothing is remembered, and
leaving one request out changes nothing for the others (I5).
Rule 3: nothing holds more than one cell of a trace's time grid.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from heapq import merge as heap_merge
from itertools import accumulate, groupby, islice, takewhile
from operator import attrgetter
from random import Random
from typing import Any, Literal

from xxhash import xxh3_64_intdigest

from .arrival import Arrival

By = Literal["session", "request"]
SESSIONS_MAX = 100_000
"""How many conversations a round robin remembers the origin of."""


def scale_time(arrivals: Iterable[Arrival], factor: float) -> Iterator[Arrival]:
    """Stretch time: 2 makes it last twice as long at half the rate, think times included."""
    return (replace(arrival, at_s=arrival.at_s * factor) for arrival in arrivals)


def scale_rate(arrivals: Iterable[Arrival], factor: float, random: Random) -> Iterator[Arrival]:
    """Change the rate of arrivals.

    Below 1 it thins: each conversation is kept with that probability and its times stay. Above 1 it speeds up: the same
    arrivals, in proportionally less time.
    """
    if factor < 1:
        return sample(arrivals, factor, random)
    return scale_time(arrivals, 1 / factor)


def sample(arrivals: Iterable[Arrival], fraction: float, random: Random, *, by: By = "session") -> Iterator[Arrival]:
    """Keep a fraction of the conversations, or of the requests whatever their conversation."""
    salt, below = random.getrandbits(64), round(fraction * 2**64)
    name: Callable[[Arrival], str] = conversation if by == "session" else attrgetter("id")
    return (arrival for arrival in arrivals if xxh3_64_intdigest(name(arrival).encode(), salt) < below)


def conversation(arrival: Arrival) -> str:
    """What stays together: the session, or else the request."""
    return arrival.session if arrival.session is not None else arrival.id


def name_sessions(arrivals: Iterable[Arrival], shared_tokens: int) -> Iterator[Arrival]:
    """Guess conversations where a trace names none: prompts whose first block after `shared_tokens` is the same.

    `shared_tokens` is the opening that unrelated prompts share, a system prompt: 512 in Mooncake's conversation trace,
    of which all requests have the first block in common. A prompt that ends before is on its own.
    """
    for arrival in arrivals:
        block = shared_tokens // arrival.block_tokens
        if arrival.session is None and block < len(arrival.keys):
            yield replace(arrival, session=f"{arrival.keys[block]:016x}")
        else:
            yield arrival


def assign_origins(
    arrivals: Iterable[Arrival],
    weights: Mapping[str, float],
    random: Random,
    *,
    by: Literal["session", "round_robin"] = "session",
) -> Iterator[Arrival]:
    """Let requests come from sites: by a hash of the conversation, in proportion to the weights, or in turn.

    In turn means that each new conversation comes from the next site, whatever the weights; the last `SESSIONS_MAX`
    conversations are remembered.
    """
    assert weights and all(weight >= 0 for weight in weights.values()) and sum(weights.values()) > 0, weights
    choose = _in_turn(tuple(weights)) if by == "round_robin" else _by_hash(weights, random.getrandbits(64))
    return (replace(arrival, origin=choose(conversation(arrival))) for arrival in arrivals)


def _by_hash(weights: Mapping[str, float], salt: int) -> Callable[[str], str]:
    sites, total = tuple(weights), sum(weights.values())
    bounds = [round(bound / total * 2**64) for bound in accumulate(weights.values())]

    def choose(name: str) -> str:
        place = xxh3_64_intdigest(name.encode(), salt)
        return next((site for site, bound in zip(sites, bounds, strict=True) if place < bound), sites[-1])

    return choose


def _in_turn(sites: tuple[str, ...]) -> Callable[[str], str]:
    known: OrderedDict[str, str] = OrderedDict()
    turn = 0

    def choose(name: str) -> str:
        nonlocal turn
        if name in known:
            known.move_to_end(name)
            return known[name]
        site = known[name] = sites[turn % len(sites)]
        turn += 1
        if len(known) > SESSIONS_MAX:
            known.popitem(last=False)
        return site

    return choose


def spread(arrivals: Iterable[Arrival], grid_s: float, random: Random) -> Iterator[Arrival]:
    """Spread arrivals that a trace has rounded to a grid evenly over the cell that follows, in their order.

    Times go to the nearest point of the grid first, since traces jitter around it. Mooncake's conversation trace lies
    on a grid of 3 s: replayed as it stands, ten requests arrive in one moment and then none for three seconds.
    """

    def cell_of(arrival: Arrival) -> int:
        return int(arrival.at_s / grid_s + 0.5)

    for cell, group in groupby(arrivals, key=cell_of):
        together = list(group)
        places = sorted(random.random() for _ in together)
        for arrival, place in zip(together, places, strict=True):
            yield replace(arrival, at_s=(cell + place) * grid_s)


def offset(arrivals: Iterable[Arrival], seconds: float) -> Iterator[Arrival]:
    """Let it all happen so much later; earlier if negative, and what would come before 0 is left out."""
    moved = (replace(arrival, at_s=arrival.at_s + seconds) for arrival in arrivals)
    return (arrival for arrival in moved if arrival.at_s >= 0)


def limit(arrivals: Iterable[Arrival], requests: int | None = None, until_s: float | None = None) -> Iterator[Arrival]:
    """No more than so many requests, and none at or after `until_s`."""
    kept = iter(arrivals) if until_s is None else takewhile(lambda arrival: arrival.at_s < until_s, arrivals)
    return kept if requests is None else islice(kept, requests)


def relabel(
    arrivals: Iterable[Arrival], *, tenant: str | None = None, priority: int | None = None
) -> Iterator[Arrival]:
    """Give all requests a tenant, a priority, or both; None leaves them as they are."""
    changes: dict[str, Any] = {}
    if tenant is not None:
        changes["tenant"] = tenant
    if priority is not None:
        changes["priority"] = priority
    return (replace(arrival, **changes) for arrival in arrivals) if changes else iter(arrivals)


def merge(*workloads: Iterable[Arrival]) -> Iterator[Arrival]:
    """Several workloads at once; what arrives at one moment keeps the order of the workloads."""
    return heap_merge(*workloads, key=attrgetter("at_s"))

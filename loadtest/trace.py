"""A trace made into requests: whose prompts are equal as far as the trace says so.

Rule 1: each full block of a prompt becomes a text that depends on its key alone, so equal leading keys give equal
leading texts; what follows the last full block is the request's own.
Rule 2: lines are read as they are due; nothing of the trace is kept.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

from homing.sim.workload.arrival import Arrival
from homing.sim.workload.mooncake import read_mooncake
from homing.sim.workload.transform import scale_time, spread

from .asks import Ask
from .prompts import Texts, with_system


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSettings:
    """Which trace, and how of it is played."""

    path: Path
    time_scale: float = 1.0
    """2 makes it last twice as long."""
    length_scale: float = 1.0
    """Scales prompts and answers in tokens, blocks included, so that what is shared stays the same part."""
    grid_s: float = 0.0
    """A grid to which the trace's times were rounded, and within whose cells requests are spread; 0: as they stand."""
    requests_max: int | None = None
    exact: bool = True
    """Whether answers are exactly as long as in the trace."""

    def __post_init__(self) -> None:
        if self.time_scale <= 0 or self.length_scale <= 0:
            raise ValueError("time_scale, length_scale: expected more than 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """A request and when it is due, from the first on."""

    at_s: float
    ask: Ask


def read_trace(settings: TraceSettings, texts: Texts, random: Random) -> Iterator[Timed]:
    """The requests of a trace in Mooncake's format, in order. ConfigError names a line that is wrong."""
    arrivals: Iterator[Arrival] = read_mooncake(settings.path)
    if settings.grid_s:
        arrivals = spread(arrivals, settings.grid_s, random)
    begin_s: float | None = None
    for arrival in islice(scale_time(arrivals, settings.time_scale), settings.requests_max):
        begin_s = arrival.at_s if begin_s is None else begin_s
        yield Timed(at_s=arrival.at_s - begin_s, ask=ask_of(arrival, texts, settings))


def ask_of(arrival: Arrival, texts: Texts, settings: TraceSettings) -> Ask:
    """One request of a trace as a prompt."""
    block_tokens = max(1, round(arrival.block_tokens * settings.length_scale))
    blocks = [texts.text(f"block-{key}", block_tokens) for key in arrival.keys]
    rest_tokens = arrival.prompt_tokens - len(arrival.keys) * arrival.block_tokens
    if rest_tokens:
        blocks.append(texts.text(f"rest-{arrival.id}", max(1, round(rest_tokens * settings.length_scale))))
    return Ask(
        name="trace",
        session=arrival.session or arrival.id,
        messages=with_system("", [("user", " ".join(blocks))]),
        output_tokens=max(1, round(arrival.output_tokens * settings.length_scale)),
        exact=settings.exact,
    )

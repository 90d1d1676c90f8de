"""One request on this worker: its sequence, its arrivals, its answer, and what is measured of it.

Lives on the event loop alone.
"""

import asyncio
from dataclasses import dataclass, field
from typing import ClassVar

from .engine.sequence import Waiting
from .engine.tokens import TokenSequence
from .handover import Handover
from .model.sampling import Sampling
from .transfer import Order


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where blocks `[first, end)` of a prompt come from: a worker's control address."""

    worker_id: str
    address: str
    kind: str
    """"fetch", "meet" or "ship"."""
    first: int
    end: int

    @property
    def is_handover(self) -> bool:
        """Whether the source computes the blocks for this very request."""
        return self.kind == "ship"

    @property
    def waiting(self) -> Waiting:
        """What the target does meanwhile."""
        return Waiting.TO_MEET if self.kind == "meet" else Waiting.FOR_ALL

    @property
    def order(self) -> Order:
        """From which end the blocks are sent."""
        return Order.BACK_TO_FRONT if self.kind == "meet" else Order.FRONT_TO_BACK


@dataclass(frozen=True, slots=True, kw_only=True)
class Transferred:
    """How one arrival went. `flowing_s` and `rtt_s` are 0 where they say nothing of the link.

    `complete`: it ended as it should, with all blocks or where the computation met it.
    """

    source: Source
    bytes: int
    blocks: int
    lasted_s: float
    flowing_s: float
    rtt_s: float
    complete: bool
    reason: str


@dataclass(slots=True)
class Computed:
    """Tokens `[start, end)` of a prompt were computed here in `seconds` of this worker's own time."""

    start: int
    end: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Generated:
    """A token of the answer; `finish_reason` ("stop" or "length") comes with the last one."""

    token: int
    finish_reason: str | None


@dataclass(frozen=True, slots=True)
class Prefilled:
    """All blocks of a prefill are there."""


@dataclass(frozen=True, slots=True)
class Broken:
    """The job could not be done."""

    error: BaseException


Output = Generated | Prefilled | Broken


@dataclass(slots=True, eq=False)
class Job:
    """A sequence and everything around it.

    `outputs` carries its tokens in order; a Prefilled, a Broken, or a token with a finish reason is the last.
    """

    sequence: TokenSequence
    sampling: Sampling
    source: Source | None
    submitted_s: float
    outputs: asyncio.Queue[Output] = field(default_factory=asyncio.Queue)
    began_s: float | None = None
    computed: list[Computed] = field(default_factory=list)
    transferred: list[Transferred] = field(default_factory=list)
    pulling: list[asyncio.Task[None]] = field(default_factory=list)
    stop_pulling: asyncio.Event = field(default_factory=asyncio.Event)
    handover_blocks: range = range(0)
    """Blocks that are kept for the worker that decodes; empty unless this is the prefill of a remote plan."""
    HANDOVER_LEASE_S: ClassVar[float] = 120.0
    handover_lease_s: float = HANDOVER_LEASE_S
    handover: Handover | None = None

    @property
    def queued_s(self) -> float:
        """From submission until its first token was computed; transfers may have gone on meanwhile."""
        return 0.0 if self.began_s is None else self.began_s - self.submitted_s

    @property
    def computed_tokens(self) -> int:
        """Tokens of the prompt that were computed here."""
        return sum(part.end - part.start for part in self.computed)

    async def pulled(self, timeout_s: float) -> None:
        """Wait until the arrivals have ended, at most for `timeout_s`."""
        if self.pulling:
            await asyncio.wait(self.pulling, timeout=timeout_s)

    def note_computed(self, start: int, end: int, seconds: float) -> None:
        """Add one pass's share; a range that continues the last is one with it."""
        if self.computed and self.computed[-1].end == start:
            self.computed[-1].end = end
            self.computed[-1].seconds += seconds
        else:
            self.computed.append(Computed(start, end, seconds))

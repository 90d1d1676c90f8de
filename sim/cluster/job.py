"""One request's part on one simulated worker."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from homing.router.core.types import Tier
from homing.workers.engine.sequence import Sequence, Waiting

from .ports import Transfer


class Owner(Protocol):
    """Who wants to know what becomes of a job."""

    is_over: bool

    def prefilled(self, job: "Job") -> None:
        """All blocks of a prefill only are there."""

    def first_token(self, job: "Job") -> None:
        """The prompt is there and the first token of the answer known."""

    def finished(self, job: "Job") -> None:
        """The answer is complete."""


class Outgoing(Protocol):
    """Who wants the blocks that a job computes as they come."""

    def begun(self, job: "Job", blocks: range) -> None:
        """The job has its room; these blocks of the prompt are there before anything is computed or has arrived."""

    def computing(self, blocks: range, seconds: float) -> None:
        """A pass that takes so long computes these blocks, layer by layer."""

    def arrived(self, blocks: range) -> None:
        """These came from elsewhere."""

    def done(self) -> None:
        """All that there will be is there."""


@dataclass(frozen=True, slots=True)
class Expected:
    """Blocks `[first, end)` of a prompt that somebody else sends; `begin` is called when there is room for them."""

    first: int
    end: int
    waiting: Waiting
    begin: Callable[["Job", range], None]


@dataclass(slots=True)
class Computed:
    """Tokens `[start, stop)` of a prompt were computed in `seconds` of the worker's time."""

    start: int
    stop: int
    seconds: float


@dataclass(slots=True, eq=False)
class Job:
    """A sequence, what it waits for, and what is measured of it. Times are seconds of virtual time."""

    sequence: Sequence
    owner: Owner
    submitted_s: float
    expected: Expected | None = None
    outgoing: Outgoing | None = None
    began_s: float | None = None
    computed: list[Computed] = field(default_factory=list)
    first_token_s: float | None = None
    ended: bool = False
    is_shipping: bool = False
    """Whether `outgoing` was told that it has begun."""
    load: Transfer | None = None
    """What comes up for it from the worker's own lower tiers."""
    tier_hit_tokens: dict[Tier, int] = field(default_factory=dict)

    def note_computed(self, start: int, stop: int, seconds: float) -> None:
        """A pass computed tokens `[start, stop)` of the prompt in so much of the worker's time."""
        if self.computed and self.computed[-1].stop == start:
            self.computed[-1].stop = stop
            self.computed[-1].seconds += seconds
        else:
            self.computed.append(Computed(start, stop, seconds))

    @property
    def computed_tokens(self) -> int:
        """Tokens of the prompt that were computed here."""
        return sum(part.stop - part.start for part in self.computed)

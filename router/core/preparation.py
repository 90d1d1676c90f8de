"""Ways for a worker to have a prompt's blocks: what it computes, what it gets from whom, and what that costs."""

from dataclasses import dataclass

from .fleet import WorkerState
from .types import Move, MoveKind, PlanKind


@dataclass(frozen=True, slots=True)
class Source:
    """A worker that holds the first `blocks` blocks of the prompt."""

    state: WorkerState
    blocks: int


@dataclass(frozen=True, slots=True)
class Way:
    """One direction between two sites, at the moment of the question, for one more flow beside those in flight."""

    rtt_s: float
    latency_s: float
    """From asking for blocks until the first byte arrives, and what is lost where none does."""
    byte_s: float
    """Seconds per byte of this flow's share."""
    risk_s: float = 0.0
    """What is expected to be lost by transfers that do not get through; no computing hides it."""


@dataclass(slots=True, eq=False)
class Preparation:
    """A way for a worker to have blocks `[0, end)` of the prompt: what it computes, and what it gets from where.

    `ready_s = max(queue_s, fetch_s) + prefill_s`, counted from the moment when the worker hears of the request. Many
    are priced for each that becomes a plan, so it is a bare record.
    """

    kind: PlanKind
    worker: WorkerState
    queue_s: float
    fetch_s: float
    prefill_s: float
    compute_s: float
    hit_tokens: int
    computed_tokens: int
    toll_s: float
    source: WorkerState | None = None
    block_first: int = 0
    block_end: int = 0
    moved_bytes: int = 0

    @property
    def ready_s(self) -> float:
        """When the blocks are there."""
        return max(self.queue_s, self.fetch_s) + self.prefill_s

    @property
    def score_s(self) -> float:
        """What preparations are compared by."""
        return self.ready_s + self.toll_s

    @property
    def moves(self) -> tuple[Move, ...]:
        """What is moved out of caches before or while the worker computes."""
        if self.source is None:
            return ()
        kind = MoveKind.MEET if self.kind is PlanKind.SPLIT else MoveKind.FETCH
        move = Move(
            kind=kind,
            source=self.source.worker.id,
            target=self.worker.worker.id,
            block_first=self.block_first,
            block_end=self.block_end,
            bytes=self.moved_bytes,
        )
        return (move,)

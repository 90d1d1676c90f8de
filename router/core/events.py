"""Everything that can happen to the scheduler: facts, in the past tense."""

from dataclasses import dataclass

from .types import BlockKey, Link, LoadReport, Outcome, Request, RequestId, Site, Tier, Trust, Worker, WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestArrived:
    """A request wants to be placed."""

    request: Request


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestCancelled:
    """The sender went away."""

    request_id: RequestId


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerJoined:
    """A worker is ready, with an empty cache as far as anybody knows."""

    worker: Worker


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerDraining:
    """A worker finishes what it has and wants nothing new; its cache may still be read."""

    worker_id: WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLost:
    """A worker is gone: its stream broke, or its reports stopped."""

    worker_id: WorkerId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReported:
    """A worker told its load. A report whose sequence is not newer than the last is ignored."""

    report: LoadReport


@dataclass(frozen=True, slots=True, kw_only=True)
class BlocksStored:
    """A worker holds these blocks now: a chain, each the parent of the next, below `parent` (None: a prompt's
    start).
    """

    worker_id: WorkerId
    keys: tuple[BlockKey, ...]
    parent: BlockKey | None = None
    tier: Tier = Tier.DEVICE


@dataclass(frozen=True, slots=True, kw_only=True)
class BlocksRemoved:
    """A worker holds these blocks no more, in any order."""

    worker_id: WorkerId
    keys: tuple[BlockKey, ...]
    tier: Tier = Tier.DEVICE


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheCleared:
    """A worker holds nothing, or nothing that can be believed: a gap was seen in its events."""

    worker_id: WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustChanged:
    """What is believed of a worker's cache can be relied on more, or less, than before."""

    worker_id: WorkerId
    trust: Trust


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferFinished:
    """A move ended. `seconds` is how long bytes were really flowing; None where that says nothing of the link."""

    request_id: RequestId
    source: WorkerId
    target: WorkerId
    bytes: int
    seconds: float | None
    complete: bool
    rtt_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillMeasured:
    """A worker computed tokens `[cached_tokens, end_tokens)` of a prompt in `seconds` of its own compute."""

    worker_id: WorkerId
    cached_tokens: int
    end_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeMeasured:
    """A worker generated `tokens` tokens after the first in `seconds`."""

    worker_id: WorkerId
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillFinished:
    """The prefill worker of a remote plan is done computing, whatever still travels."""

    request_id: RequestId


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstToken:
    """The first token came back to the router, `ttft_s` after the request was dispatched."""

    request_id: RequestId
    ttft_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFinished:
    """The answer is complete, or the request ended for another reason that its executor knows."""

    request_id: RequestId
    outcome: Outcome
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchFailed:
    """A dispatched plan broke at `worker_id` (None: nobody in particular).

    `resume_as` is the request that remains to be answered: the same, or, after the first token, its prompt with the
    tokens already sent, so that another worker goes on where this one stopped. None: give up.
    """

    request_id: RequestId
    worker_id: WorkerId | None
    reason: str
    resume_as: Request | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkMeasured:
    """Somebody measured a link, outside of any transfer."""

    source: Site
    target: Site
    rtt_s: float | None = None
    bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LinksConfigured:
    """The operator says anew what the links are: what was learned of those that changed no longer counts."""

    links: tuple[Link, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TimerFired:
    """The time that `next_timer()` named has come."""


Event = (
    RequestArrived
    | RequestCancelled
    | WorkerJoined
    | WorkerDraining
    | WorkerLost
    | LoadReported
    | BlocksStored
    | BlocksRemoved
    | CacheCleared
    | TrustChanged
    | TransferFinished
    | PrefillMeasured
    | DecodeMeasured
    | PrefillFinished
    | FirstToken
    | RequestFinished
    | DispatchFailed
    | LinkMeasured
    | LinksConfigured
    | TimerFired
)

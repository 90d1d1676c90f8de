"""The nouns of the router, from small to large. All are frozen; a unit ends each name.

Times are seconds on one monotonic clock that the caller reads. A true output length is unknown here.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NewType

WorkerId = NewType("WorkerId", str)
RequestId = NewType("RequestId", str)
Site = NewType("Site", str)
ModelName = NewType("ModelName", str)
BlockKey = NewType("BlockKey", int)


class Role(StrEnum):
    """What a worker is there for. A decode worker computes at most the last, incomplete block of a prompt."""

    PREFILL = "prefill"
    DECODE = "decode"
    BOTH = "both"

    @property
    def can_prefill(self) -> bool:
        """Whether prompts may be computed here."""
        return self is not Role.DECODE

    @property
    def can_decode(self) -> bool:
        """Whether answers may be decoded here."""
        return self is not Role.PREFILL


class Tier(StrEnum):
    """Where a worker keeps a block, fastest first."""

    DEVICE = "device"
    HOST = "host"
    DISK = "disk"
    STORE = "store"


class PlanKind(StrEnum):
    """The five ways to answer a request (docs/life-of-a-request.md)."""

    LOCAL = "local"
    FETCH = "fetch"
    SPLIT = "split"
    REMOTE = "remote"
    DIRECT = "direct"


class Trust(StrEnum):
    """How far what is believed of a worker's cache can be relied on."""

    EXACT = "exact"
    """It tells every change, and none was missed."""
    DEGRADED = "degraded"
    """What is known is a guess from what was sent there, or a gap is being closed: good enough to send a request
    there, not to fetch from there."""
    BLIND = "blind"
    """Nothing is known: it counts as holding nothing."""


class MoveKind(StrEnum):
    """How blocks travel, and what the target does meanwhile."""

    FETCH = "fetch"
    """Front to back out of a cache; the target waits for them."""
    MEET = "meet"
    """Back to front out of a cache; the target computes from the front until the two meet."""
    SHIP = "ship"
    """Layer by layer, as the source computes them; the target waits."""


class RejectReason(StrEnum):
    """Why a request ended without an answer: a small, stable vocabulary for metrics, logs and the wire."""

    UNKNOWN_MODEL = "unknown_model"
    DUPLICATE_REQUEST = "duplicate_request"
    PROMPT_TOO_LONG = "prompt_too_long"
    NO_WORKER = "no_worker"
    QUEUE_FULL = "queue_full"
    DEADLINE_PASSED = "deadline_passed"
    TOO_LATE = "too_late"
    """The best plan is foreseen to give the first token after the deadline."""
    RETRIES_SPENT = "retries_spent"


class Outcome(StrEnum):
    """How a request ended (I1: exactly one of these, once)."""

    FINISHED = "finished"
    REJECTED = "rejected"
    CANCELLED = "cancelled"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillPrior:
    """Coefficients of `prefill_s(c, n) = a_s + b_s*(n-c) + q_s*(n^2-c^2)`, before anything was measured."""

    a_s: float = 0.01
    b_s: float = 1e-4
    q_s: float = 1e-9

    def __post_init__(self) -> None:
        assert self.a_s >= 0 and self.b_s > 0 and self.q_s >= 0, self


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProfile:
    """What the router must know of a model: the size of its KV and its limits.

    `state_bytes` is the fixed state of hybrid-attention models, moved beside the blocks; `kv_group` names whose KV is
    interchangeable: the model alone unless several share a frozen prefill module.
    """

    name: ModelName
    block_tokens: int
    bytes_per_token: int
    state_bytes: int = 0
    layers: int = 1
    context_tokens: int = 8192
    vocabulary_tokens: int | None = None
    kv_group: str = ""

    def __post_init__(self) -> None:
        assert self.block_tokens > 0 and self.bytes_per_token > 0 and self.layers > 0, self

    @property
    def group(self) -> str:
        """The KV group, which is the model's own name unless one is given."""
        return self.kv_group or self.name

    def moved_bytes(self, tokens: int) -> int:
        """Bytes that travel when the KV of `tokens` tokens is moved (docs/cost-model.md)."""
        return self.state_bytes + self.bytes_per_token * tokens if tokens > 0 else 0


HOMING_TRANSPORT = "homing"
"""How Homing's own workers move KV."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """The static facts of a worker, from joining.

    KV moves only between workers of one `transport`, and not at all where it is empty; `plans` are what a worker can
    carry out when blocks come to it. Every worker can carry out `local`, which moves none. With `ships_whole` it gets a
    prefill's blocks when all of them are computed, not layer by layer.
    """

    id: WorkerId
    model: ModelName
    role: Role
    site: Site
    block_tokens: int
    kv_blocks_max: int
    requests_max: int = 64
    prior: PrefillPrior = field(default_factory=PrefillPrior)
    transport: str = HOMING_TRANSPORT
    plans: frozenset[PlanKind] = frozenset(PlanKind)
    ships_whole: bool = False

    def __post_init__(self) -> None:
        assert self.kv_blocks_max > 0 and self.block_tokens > 0 and self.requests_max > 0, self


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What a worker said of itself, and when (router's clock)."""

    worker: WorkerId
    sequence: int
    measured_s: float
    queued_prefill_tokens: int
    running_requests: int
    kv_blocks_used: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One direction between two sites: what the operator believes before the router has measured."""

    source: Site
    target: Site
    rtt_s: float
    bytes_per_s: float
    price_per_gb: float = 0.0

    def __post_init__(self) -> None:
        assert self.rtt_s >= 0 and self.bytes_per_s > 0 and self.price_per_gb >= 0, self


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A prompt, named by the keys of its full blocks, and what its sender wants."""

    id: RequestId
    model: ModelName
    block_keys: tuple[BlockKey, ...]
    prompt_tokens: int
    max_output_tokens: int
    arrived_s: float
    ttft_deadline_s: float | None = None
    session: str | None = None
    tenant: str = ""
    priority: int = 0
    origin: Site | None = None
    among: frozenset[WorkerId] | None = None
    """The only workers that may take it; None: any."""

    def __post_init__(self) -> None:
        assert self.prompt_tokens > 0 and self.max_output_tokens > 0, self


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """Blocks `[block_first, block_end)` of the prompt travel from `source` to `target`."""

    kind: MoveKind
    source: WorkerId
    target: WorkerId
    block_first: int
    block_end: int
    bytes: int

    def __post_init__(self) -> None:
        assert 0 <= self.block_first < self.block_end, self
        assert self.source != self.target, self


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The price of a plan, one field per term, in seconds; only what is exposed counts.

    `ttft_s = network_s + max(queue_s, fetch_s) + prefill_s + ship_s`, and a split has its own maximum inside
    `prefill_s` (its `fetch_s` is 0). `toll_s` is what the plan takes from others.
    """

    network_s: float = 0.0
    queue_s: float = 0.0
    fetch_s: float = 0.0
    prefill_s: float = 0.0
    ship_s: float = 0.0
    toll_s: float = 0.0
    hit_tokens: int = 0
    computed_tokens: int = 0
    moved_bytes: int = 0

    @property
    def ttft_s(self) -> float:
        """Predicted time to first token."""
        return self.network_s + max(self.queue_s, self.fetch_s) + self.prefill_s + self.ship_s

    @property
    def score_s(self) -> float:
        """What plans are compared by: seconds for this request plus seconds taken from others."""
        return self.ttft_s + self.toll_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One way to answer: who computes the prompt, who decodes, what is moved first, and what that costs.

    `prefill_compute_s` is how long the plan keeps its prefill worker's compute busy: what the ledger books.
    """

    kind: PlanKind
    prefill: WorkerId
    decode: WorkerId
    moves: tuple[Move, ...]
    estimate: Estimate
    prefill_compute_s: float
    decode_compute_s: float = 0.0

    @property
    def workers(self) -> tuple[WorkerId, ...]:
        """The workers that take part, each once, prefill first; sources of moves are not among them."""
        return (self.prefill,) if self.prefill == self.decode else (self.prefill, self.decode)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The answer and its why: the plan chosen, the best runner-up of each kind, and what was looked at."""

    request: Request
    plan: Plan
    runners_up: tuple[Plan, ...]
    policy: str
    decided_s: float
    attempt: int
    plans_priced: int

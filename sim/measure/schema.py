"""The public layout of a run's summary: what `homing.sim.run/1` means.

Rule 1: `SCHEMA` changes when a field goes or changes its meaning; a field may be added.
Rule 2: None stands for what was not measured; a ratio is 0..1; a name ends in its unit.
"""

import msgspec

SCHEMA = "homing.sim.run/1"


class Slo(msgspec.Struct, frozen=True, kw_only=True):
    """Service-level objectives: a first token by then, and the later ones so fast on average."""

    ttft_s: float
    tpot_s: float

    def __post_init__(self) -> None:
        for name, value in (("ttft_s", self.ttft_s), ("tpot_s", self.tpot_s)):
            if not value > 0.0:
                raise ValueError(f"{name}: expected a positive number of seconds, got {value}")


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """A distribution; None where nothing was measured."""

    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None


class Requests(msgspec.Struct, frozen=True, kw_only=True):
    """How those that arrived within the span ended."""

    arrived: int
    finished: int
    rejected: int
    cancelled: int
    failed: int
    unfinished: int
    reasons: dict[str, int]


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """Per second of the span."""

    goodput_per_s: float
    """Requests that arrived within the span and finished within both SLOs."""
    goodput_share: float | None
    """The same, by those that arrived."""
    requests_per_s: float
    output_tokens_per_s: float
    """Of the requests that finished within the span."""


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """Prompt tokens of the requests that finished: where they came from. Ratios are by `prompt`."""

    prompt: int
    computed: int
    saved: int
    device_ratio: float | None
    host_ratio: float | None
    disk_ratio: float | None
    moved_ratio: float | None
    hit_ratio: float | None
    """All tiers and what was moved."""


class Fairness(msgspec.Struct, frozen=True, kw_only=True):
    """Whether groups of requests wait alike, by their mean TTFT; None below two groups."""

    groups: int
    jain: float | None
    """Jain's index, (Σx)²/(nΣx²): 1 when all are equal, 1/n when one has all (Jain, Chiu and Hawe, DEC-TR-301)."""
    max_by_min: float | None


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """How well the router knew the TTFT: (predicted - measured) by measured, over the requests with both."""

    requests: int
    median_abs: float | None
    p90_abs: float | None
    median: float | None
    """With its sign: negative when the router is an optimist."""


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """Money for the span."""

    gpu_hours: float
    gpu_dollars: float
    link_dollars: float
    dollars_per_million_output_tokens: float | None


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """Workers that are counted together."""

    workers: int
    gpus: int
    utilisation: float
    """Mean over its workers."""
    kv_mean: float
    prefill_tokens: int
    decode_tokens: int


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """One direction between two sites."""

    source: str
    target: str
    bytes: int
    utilisation: float
    mean_flows: float
    peak_flows: int
    dollars: float


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """The requests of the clients at one site."""

    arrived: int
    finished: int
    goodput_share: float
    hit_ratio: float | None
    ttft_s: Spread
    e2e_s: Spread


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about one run that fits into a page."""

    schema: str = SCHEMA
    scenario: str
    policy: str
    seed: int
    from_s: float
    to_s: float
    slo: Slo
    requests: Requests
    rates: Rates
    ttft_s: Spread
    tpot_s: Spread
    itl_s: Spread
    e2e_s: Spread
    waited_s: Spread
    queued_s: Spread
    tokens: Tokens
    fairness: dict[str, Fairness]
    """By tenant and by origin."""
    prediction: Prediction
    cost: Cost
    plans: dict[str, int]
    commands: dict[str, int]
    links: list[Link]
    pools: dict[str, Pool]
    origins: dict[str, Origin]
    notes: list[str]

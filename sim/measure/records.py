"""What one simulated run leaves behind: all that reports and comparisons are made of.

Rule 1: equal scenario, policy and seed give an equal result, bit by bit (I5): no wall-clock time and no machine in it.
Rule 2: it is plain data. Who reads it needs neither the simulated world nor the router.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf

from .histogram import WeightedHistogram
from .log import RequestLog, RequestRecord
from .timeline import Timeline

__all__ = ["LinkUse", "Mark", "RequestLog", "RequestRecord", "RunResult", "Timeline", "WeightedHistogram", "WorkerUse"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkUse:
    """What went over one link, in one direction, within the measured span."""

    source: str
    target: str
    """Sites."""
    bytes: int = 0
    utilisation: float = 0.0
    """Bytes by what the link could have carried, 0..1."""
    mean_flows: float = 0.0
    """Over time."""
    peak_flows: int = 0
    dollars: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerUse:
    """What one worker did within the measured span."""

    id: str
    site: str
    roles: tuple[tuple[float, str], ...]
    """(since when in seconds, role), in order; at least one."""
    pool: str = ""
    """The workers that it is counted with; empty stands for those of its site and first role."""
    busy_s: float = 0.0
    utilisation: float = 0.0
    """`busy_s` by the time for which it was there, 0..1."""
    prefill_tokens: int = 0
    decode_tokens: int = 0
    kv_mean: float = 0.0
    """Share of its KV blocks in use, mean over time."""
    gpus: int = 1
    dollars: float = 0.0

    def __post_init__(self) -> None:
        if not self.roles:
            raise ValueError(f"roles: worker {self.id!r} has at least one, got none")
        if not self.pool:
            object.__setattr__(self, "pool", f"{self.site}/{self.roles[0][1]}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Something that a reader of a timeline should know: a link that fails, a pool that grows."""

    at_s: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """One scenario under one policy with one seed. What it counts lies in `from_s` <= t < `to_s`, after the warm-up."""

    scenario: str
    policy: str
    seed: int
    from_s: float
    to_s: float
    log: RequestLog
    """Every request that ended, also outside the span."""
    unfinished: int = 0
    """Requests that arrived within the span and had not ended when the run did."""
    itl: WeightedHistogram = field(default_factory=WeightedHistogram)
    """Times between tokens: the time of a pass, by the tokens that it made."""
    links: tuple[LinkUse, ...] = ()
    workers: tuple[WorkerUse, ...] = ()
    timeline: Timeline = field(default_factory=lambda: Timeline(every_s=1.0))
    plans: Mapping[str, int] = field(default_factory=dict)
    """Dispatches per kind of plan, retries included."""
    commands: Mapping[str, int] = field(default_factory=dict)
    """What else the router ordered: role changes, copies, rejections by reason."""
    marks: tuple[Mark, ...] = ()
    places: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Where sites lie on a map, as longitude and latitude in degrees; may be empty."""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0.0 <= self.from_s < self.to_s < inf:
            raise ValueError(f"from_s, to_s: expected 0 <= from_s < to_s, got {self.from_s} and {self.to_s}")

    @property
    def span_s(self) -> float:
        """How long was measured."""
        return self.to_s - self.from_s

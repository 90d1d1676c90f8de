"""A scenario file: YAML into typed structures, unknown keys refused, errors that name the path.

One file describes a world: models, sites, links, groups of workers, what arrives, the router and what it believes at
first, and what goes wrong. It is the truth; the router is told of it what an operator would tell it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml
from msgspec import Meta

from homing.router.core.errors import ConfigError

from .contradictions import contradictions
from .network.spec import LinkSpec
from .workload.spec import WorkloadSpec

Positive = Annotated[float, Meta(gt=0, le=1e18)]
NotNegative = Annotated[float, Meta(ge=0, le=1e18)]
Count = Annotated[int, Meta(ge=1)]
Size = Annotated[int, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Name = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$")]
Step = tuple[NotNegative, NotNegative]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of the file; a key that it does not know is an error."""


class ModelSection(Section, frozen=True, kw_only=True):
    """A model: its KV by the name of a known shape, or by numbers, which win."""

    name: Name = "model"
    shape: str | None = None
    bytes_per_token: Count | None = None
    state_bytes: Size | None = None
    layers: Count | None = None
    context_tokens: Count = 262_144


class SiteSection(Section, frozen=True, kw_only=True):
    """A datacentre; `place` is longitude and latitude in degrees, for maps."""

    name: Name
    place: tuple[float, float] | None = None


class LinkSection(Section, frozen=True, kw_only=True):
    """A link as it is (see `sim.network.spec.LinkSpec`) and, where that is another thing, as the router believes it."""

    source: Name
    target: Name
    bytes_per_s: Positive
    rtt_s: NotNegative
    jitter_s: NotNegative = 0.0
    loss: Share = 0.0
    connections: Count = 1
    congestion: Literal["bbr", "cubic"] = "bbr"
    price_per_gb: NotNegative = 0.0
    background: tuple[Step, ...] = ()
    capacity: tuple[Step, ...] = ()
    believed_bytes_per_s: Positive | None = None
    believed_rtt_s: NotNegative | None = None
    both_ways: bool = True

    def specs(self) -> Iterator[LinkSpec]:
        """The truth, one direction each."""
        pairs = [(self.source, self.target)]
        if self.both_ways and self.source != self.target:
            pairs.append((self.target, self.source))
        for source, target in pairs:
            yield LinkSpec(
                source=source,
                target=target,
                bytes_per_s=self.bytes_per_s,
                rtt_s=self.rtt_s,
                jitter_s=self.jitter_s,
                loss=self.loss,
                connections=self.connections,
                congestion=self.congestion,
                price_per_gb=self.price_per_gb,
                background=self.background,
                capacity=self.capacity,
            )


class LinearSection(Section, frozen=True, kw_only=True):
    """A worker without a measured profile: coefficients in seconds (see `sim.truth.profile.linear_profile`)."""

    a_s: NotNegative = 0.0
    b_s: Positive
    q_s: NotNegative = 0.0
    decode_a_s: Positive = 0.02
    decode_b_s: NotNegative = 0.0
    decode_c_s: NotNegative = 0.0


class WorkerSection(Section, frozen=True, kw_only=True):
    """`count` equal workers named `name-1` and so on. KV capacities are in tokens."""

    name: Name
    site: Name
    model: Name = "model"
    count: Count = 1
    role: Literal["prefill", "decode", "both"] = "both"
    profile: str | LinearSection
    kv_tokens: Count
    host_tokens: Size = 0
    host_bytes_per_s: Positive = 5e10
    disk_tokens: Size = 0
    disk_bytes_per_s: Positive = 5e9
    requests_max: Count = 256
    sequences_max: Count | None = None
    step_tokens_max: Count = 8192
    nic_bytes_per_s: Positive = 5e10
    gpus: Count | None = None
    dollars_per_h: NotNegative = 0.0


class FaultSection(Section, frozen=True, kw_only=True):
    """Something that goes wrong at `at_s`, for `for_s` (for good without it).

    `crash`: a worker, named or drawn by seed from all or from a site, loses everything. `slow`: it takes `factor` times
    as long. `link`: `source` to `target` has `factor` of its capacity, both ways; 0 is a cut. `site`: every worker of a
    site crashes. `router`: the router forgets everything and begins anew. Where faults overlap, a worker is back when
    none of its own lasts any more, and factors multiply.
    """

    kind: Literal["crash", "slow", "link", "site", "router"]
    at_s: NotNegative
    for_s: Positive | None = None
    worker: Name | None = None
    site: Name | None = None
    source: Name | None = None
    target: Name | None = None
    factor: NotNegative = 0.0


class KvEventsSection(Section, frozen=True, kw_only=True):
    """How changes of caches reach the router: late by `lag_s` beyond the way there, lost or overtaken by chance.

    A lost message is noticed by its number and mended by asking for everything anew, as live routers do.
    """

    lag_s: NotNegative = 0.0
    loss: Share = 0.0
    reorder: Share = 0.0


class RouterSection(Section, frozen=True, kw_only=True):
    """The router: where it stands, how it decides, what it is told and when."""

    site: Name | None = None
    policy: str = "homing"
    options: dict[str, Any] = {}
    dollars_per_s: NotNegative = 0.0
    queue_max: Count = 100_000
    retries_max: Size = 3
    lease_s: Positive = 86_400.0
    lost_after_s: Positive = 5.0
    dispatch_s: NotNegative = 0.002
    report_every_s: Positive = 1.0
    report_lag_s: NotNegative = 0.0
    max_output_tokens: Count = 2048
    ttft_deadline_s: Positive | None = None
    reject_early: bool = True
    calibrate: bool = True
    kv_events: KvEventsSection = KvEventsSection()


class SloSection(Section, frozen=True, kw_only=True):
    """What counts as good: goodput is what meets both."""

    ttft_s: Positive = 30.0
    tpot_s: Positive = 0.1


class Scenario(Section, frozen=True, kw_only=True):
    """The whole file. What is measured lies between `warmup_s` and the last arrival, or `duration_s`."""

    name: Name
    about: str = ""
    seed: int = 0
    duration_s: Positive | None = None
    drain_s: Positive = 3600.0
    warmup_s: NotNegative = 0.0
    sample_every_s: Positive = 10.0
    exact: bool = False
    models: tuple[ModelSection, ...] = (ModelSection(shape="llama-3.1-70b"),)
    sites: tuple[SiteSection, ...]
    links: tuple[LinkSection, ...] = ()
    workers: tuple[WorkerSection, ...]
    workload: WorkloadSpec
    router: RouterSection = RouterSection()
    slo: SloSection = SloSection()
    faults: tuple[FaultSection, ...] = ()


def load_scenario(path: Path) -> Scenario:
    """Read and check a file; raises ConfigError with the path in the file, the rule and what was found."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text: {error}") from error
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML: {error}") from error
    return parse_scenario(data, where=str(path))


def parse_scenario(data: object, *, where: str = "scenario") -> Scenario:
    """Check what a file holds; `where` begins every error."""
    try:
        scenario = msgspec.convert(data, type=Scenario, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}") from error
    for problem in contradictions(scenario):
        raise ConfigError(f"{where}: {problem}")
    return scenario

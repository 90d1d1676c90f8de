"""The case study of arXiv 2604.15039, section 4: Table 6 recomputed beside what is printed.

32 H200 (4 instances) prefill for 64 H20 (8 instances) over about 100 Gbps; the baseline is 96 H20 (12 instances); the
naive configuration prefills all on the H200 and decodes all on the H20. What is inferred stands in the profiles
`prfaas-1t_h200` and `prfaas-1t_h20`; lengths are tokens, and the K of a threshold is a thousand.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..truth.catalogue import shape_of
from ..truth.files import load_profile
from .lengths import TruncatedLogNormal
from .model import Split, System, Throughput, Ttft, throughput, ttft
from .search import Sensitivity, best, sensitivity

GBPS = 1e9 / 8
"""Bytes per second."""
PD_INSTANCES = 8
HOMOGENEOUS_INSTANCES = 12
PUBLISHED_SPLIT = Split(threshold_tokens=19_400, prefill=3, decode=5)
PUBLISHED_EGRESS_GBPS = 13.0
EGRESS_GBPS = (1, 2, 3, 5, 8, 10, 12, 13, 16, 20, 30, 50, 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A column of Table 6 as printed; thetas of pools that are not there are None."""

    name: str
    split: Split
    ttft: Ttft
    prfaas_per_s: float | None
    prefill_per_s: float | None
    decode_per_s: float
    requests_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A configuration of Table 6, recomputed with its printed split."""

    published: Published
    throughput: Throughput
    ttft: Ttft
    ratio: float

    def numbers(self) -> dict[str, tuple[float, float]]:
        """Each number of the column that is printed: recomputed, printed."""
        found, printed = self.throughput, self.published
        pairs = {
            "theta prfaas": (found.prfaas_per_s, printed.prfaas_per_s),
            "theta pd-p": (found.prefill_per_s, printed.prefill_per_s),
            "theta pd-d": (found.decode_per_s, printed.decode_per_s),
            "lambda max": (found.requests_per_s, printed.requests_per_s),
            "mean ttft": (self.ttft.mean_s, printed.ttft.mean_s),
            "p90 ttft": (self.ttft.p90_s, printed.ttft.p90_s),
        }
        return {name: (value, expected) for name, (value, expected) in pairs.items() if expected is not None}


LENGTHS = TruncatedLogNormal(mu=9.9, sigma=1.0, low_tokens=128, high_tokens=131_072)

PUBLISHED = (
    Published(
        name="PrfaaS-PD",
        split=PUBLISHED_SPLIT,
        ttft=Ttft(mean_s=2.22, p90_s=3.51),
        prfaas_per_s=1.61,
        prefill_per_s=1.64,
        decode_per_s=3.91,
        requests_per_s=3.24,
    ),
    Published(
        name="homogeneous PD",
        split=Split(threshold_tokens=LENGTHS.high_tokens, prefill=9, decode=3),
        ttft=Ttft(mean_s=4.44, p90_s=9.73),
        prfaas_per_s=None,
        prefill_per_s=2.11,
        decode_per_s=2.35,
        requests_per_s=2.11,
    ),
    Published(
        name="naive heterogeneous",
        split=Split(threshold_tokens=0, prefill=0, decode=8),
        ttft=Ttft(mean_s=1.74, p90_s=3.51),
        prfaas_per_s=2.45,
        prefill_per_s=None,
        decode_per_s=6.25,
        requests_per_s=2.45,
    ),
)
"""Table 6 as printed."""


def case_study() -> System:
    """The two clusters of section 4.1."""
    return System(
        lengths=LENGTHS,
        output_tokens=1024,
        shape=shape_of("prfaas-1t"),
        prfaas=load_profile("prfaas-1t_h200"),
        prfaas_instances=4,
        egress_bytes_per_s=100 * GBPS,
        pd=load_profile("prfaas-1t_h20"),
        batch_max=20,
    )


def table6() -> list[Row]:
    """The three configurations, each with the split that is printed for it."""
    system = case_study()
    found = [throughput(_system_of(system, printed), printed.split) for printed in PUBLISHED]
    homogeneous_per_s = found[1].requests_per_s
    return [
        Row(
            published=printed,
            throughput=each,
            ttft=ttft(_system_of(system, printed), printed.split.threshold_tokens),
            ratio=each.requests_per_s / homogeneous_per_s,
        )
        for printed, each in zip(PUBLISHED, found, strict=True)
    ]


def optimum() -> Throughput:
    """The best threshold and split of the two clusters, found without looking at the printed ones."""
    return best(case_study(), PD_INSTANCES)


def homogeneous_optimum() -> Throughput:
    """The best split of the baseline."""
    return best(replace(case_study(), prfaas_instances=0), HOMOGENEOUS_INSTANCES)


def bandwidths(gbps: Sequence[float] = EGRESS_GBPS) -> list[Sensitivity]:
    """What narrower links give with the best split for each, and with the printed one."""
    return sensitivity(case_study(), PD_INSTANCES, PUBLISHED_SPLIT, [each * GBPS for each in gbps])


def _system_of(system: System, printed: Published) -> System:
    return system if printed.prfaas_per_s is not None else replace(system, prfaas_instances=0)

"""Table 6 of Prefill-as-a-Service (arXiv 2604.15039), and what narrower links give, as running systems with queues.

The analytic model (`sim.prfaas`) says what each deployment can serve at most; here the same deployments run, prompt by
prompt, and the highest rate at which nothing piles up is found. Two things differ from the model, and both are known:

- The model represents a pool by the mean length of its prompts. Times grow faster than lengths, so the mean time of a
  pool's prompts is longer than the time of the mean prompt: `mean_time_bound` is the model with mean times.
- A prefill worker computes full blocks, and the decode worker the rest: of blocks of `BLOCK_TOKENS` half a block each,
  0.2 % of a mean prompt. A decode worker's passes have no overhead beside their 25 ms, in which these tokens hide.

A prefill worker takes one prompt a pass, which is what T(l) was measured on. Memory binds nowhere.
"""

from bisect import bisect_right
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate

from ..prfaas.model import Split, System, throughput
from ..prfaas.search import STEP_TOKENS, best
from ..prfaas.table6 import GBPS, PD_INSTANCES, PUBLISHED_SPLIT, case_study
from ..rng import Streams
from ..scenario import Scenario, parse_scenario
from ..workload.arrival import Arrival
from ..workload.generate.poisson import Poisson
from ..workload.generate.prompts import Prfaas
from .capacity import Capacity, sustainable_rate
from .check import Check, close, holds
from .strata import poisson_like

BLOCK_TOKENS = 128
KV_TOKENS = 20_000_000
DECODE_SEATS = 64
"""Requests that a decode worker has at most: 20 that it decodes, others that wait for their KV."""
RTT_S = 2e-3
QUANTILES = 20_000
REQUESTS = 5000
QUICK_REQUESTS = 1500
RESOLUTION = 0.01
QUICK_RESOLUTION = 0.03
TOLERANCE = 0.05
BOUND_TOLERANCE = 0.02
TARGET = 0.97
"""Of what the best threshold serves, for a policy that is told no threshold."""
BANDWIDTHS_GBPS = (100.0, 12.0, 8.0, 5.0)
NARROW_GBPS = 10.0
"""Below this the printed threshold sends more than the link carries."""
Options = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """Instances and a link: H200 that prefill in one site, H20 that prefill and decode in the other."""

    far: int
    prefill: int
    decode: int
    gbps: float = 100.0

    def system(self) -> System:
        """As the analytic model knows it."""
        return replace(case_study(), prfaas_instances=self.far, egress_bytes_per_s=self.gbps * GBPS)

    def split(self, threshold_tokens: float) -> Split:
        """With a threshold; without H200 all prompts are below it, without H20 that prefill all are above."""
        if not self.far:
            threshold_tokens = self.system().lengths.high_tokens
        return Split(
            threshold_tokens=threshold_tokens if self.prefill else 0.0, prefill=self.prefill, decode=self.decode
        )


HOMOGENEOUS = Deployment(far=0, prefill=9, decode=3)
NAIVE = Deployment(far=4, prefill=0, decode=8)
PRFAAS = Deployment(far=4, prefill=PUBLISHED_SPLIT.prefill, decode=PUBLISHED_SPLIT.decode)
TABLE_6 = {"homogeneous": HOMOGENEOUS, "naive heterogeneous": NAIVE, "PrfaaS-PD": PRFAAS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How long a trial is, and how near to each other the rates are that are told apart."""

    requests: int
    resolution: float
    progress: Callable[[str], None]


def check_prfaas(*, quick: bool, progress: Callable[[str], None]) -> Iterator[Check]:
    """Table 6, and unless `quick` all bandwidths."""
    effort = Effort(
        requests=QUICK_REQUESTS if quick else REQUESTS,
        resolution=QUICK_RESOLUTION if quick else RESOLUTION,
        progress=progress,
    )
    fixed = yield from check_table_6(effort)
    if not quick:
        for gbps in BANDWIDTHS_GBPS:
            yield from check_bandwidth(effort, gbps, fixed if gbps == PRFAAS.gbps else None)


def check_table_6(effort: Effort) -> Generator[Check, None, Capacity]:
    """The three columns and both ratios; returns what the third sustains."""
    found, expected = {}, {}
    for name, deployment in TABLE_6.items():
        split = deployment.split(PUBLISHED_SPLIT.threshold_tokens)
        expected[name] = throughput(deployment.system(), split).requests_per_s
        found[name] = sustained(deployment, "prfaas-threshold", effort, split.threshold_tokens)
        yield close(
            f"prfaas: {name}, requests per second",
            source="the analytic model of table 6",
            expected=expected[name],
            measured=found[name].requests_per_s,
            tolerance=TOLERANCE,
            note=_told(found[name]),
        )
        yield close(
            f"prfaas: {name}, by mean times",
            source="the same with the mean time of the prompts of each pool",
            expected=mean_time_bound(deployment, split.threshold_tokens),
            measured=found[name].requests_per_s,
            tolerance=max(BOUND_TOLERANCE, effort.resolution),
        )
    last = "PrfaaS-PD"
    for name in list(TABLE_6)[:2]:
        yield close(
            f"prfaas: {last} by {name}",
            source="the analytic model of table 6; printed are 1.54 by homogeneous and 1.32 by naive",
            expected=expected[last] / expected[name],
            measured=found[last].requests_per_s / found[name].requests_per_s,
            tolerance=TOLERANCE,
        )
    yield close(
        "prfaas: naive heterogeneous by homogeneous",
        source="the analytic model of table 6; printed is 1.16",
        expected=expected["naive heterogeneous"] / expected["homogeneous"],
        measured=found["naive heterogeneous"].requests_per_s / found["homogeneous"].requests_per_s,
        tolerance=TOLERANCE,
    )
    return found[last]


def check_bandwidth(effort: Effort, gbps: float, fixed: Capacity | None = None) -> Iterator[Check]:
    """Homing, which is told no threshold, against the best one for this link and against the printed one.

    Split as printed, and with the split that is best for the link where that is another.
    """
    deployment = replace(PRFAAS, gbps=gbps)
    homing = sustained(deployment, "homing", effort)
    yield _against_grid(deployment, homing)
    if fixed is None:
        fixed = sustained(deployment, "prfaas-threshold", effort, PUBLISHED_SPLIT.threshold_tokens)
    share = fixed.requests_per_s / homing.requests_per_s
    yield holds(
        f"prfaas: the printed threshold at {gbps:g} Gbps, beside homing",
        source="section 3.4.3: a threshold is right for one bandwidth",
        expected="less than homing" if gbps < NARROW_GBPS else f"within {1 - TARGET:.0%} of homing",
        measured=f"{fixed.requests_per_s:.3f}, homing {homing.requests_per_s:.3f} requests per second",
        passed=share < 1 if gbps < NARROW_GBPS else abs(share - 1) <= 1 - TARGET,
        note=_told(fixed),
    )
    split = best(deployment.system(), PD_INSTANCES).split
    if split.prefill != deployment.prefill:
        deployment = replace(deployment, prefill=split.prefill, decode=split.decode)
        yield _against_grid(deployment, sustained(deployment, "homing", effort))


def best_threshold(deployment: Deployment) -> tuple[float, float]:
    """(threshold, requests per second) of the analytic model's optimum with this split, by its grid."""
    system = deployment.system()
    low, high = system.lengths.low_tokens, system.lengths.high_tokens
    thresholds = range(STEP_TOKENS * -(-int(low) // STEP_TOKENS), int(high), STEP_TOKENS)
    rate_per_s, threshold = max(
        (throughput(system, deployment.split(tokens)).requests_per_s, -tokens) for tokens in thresholds
    )
    return -threshold, rate_per_s


def mean_time_bound(deployment: Deployment, threshold_tokens: float) -> float:
    """Equation 6 with the mean of the prompts' times and bytes in each pool."""
    lengths, far_s, near_s, sent_bytes = _sums()
    cut = bisect_right(lengths, threshold_tokens)
    system = deployment.system()
    bounds = [deployment.decode * system.batch_max / (system.pd.decode_s(1, 1) * system.output_tokens)]
    asked = (
        (deployment.far, far_s[-1] - far_s[cut]),
        (system.egress_bytes_per_s, sent_bytes[-1] - sent_bytes[cut]),
        (deployment.prefill, near_s[cut]),
    )
    bounds += [supply * QUANTILES / total for supply, total in asked if total > 0]
    return min(bounds)


def sustained(deployment: Deployment, policy: str, effort: Effort, threshold_tokens: float | None = None) -> Capacity:
    """What a deployment sustains under a policy: one with a threshold, or Homing's, whose roles stay as they are split.

    A search begins where the model says that the end is.
    """
    expected = best_threshold(deployment)[1]
    options: dict[str, object] = {"rebalance": False}
    if threshold_tokens is not None:
        expected = mean_time_bound(deployment, threshold_tokens)
        options = {"threshold_tokens": threshold_tokens}

    def scenario_of_rate(rate_per_s: float) -> Scenario:
        effort.progress(f"{policy} at {rate_per_s:.3f}/s, {deployment}")
        return scenario_of(deployment, rate_per_s, requests=effort.requests, policy=policy, options=options)

    return sustainable_rate(
        scenario_of_rate,
        expected * (0.99 - 2 * effort.resolution),
        expected * (0.99 + 2 * effort.resolution),
        resolution=effort.resolution,
        arrivals_of=arrivals_of,
    )


def arrivals_of(scenario: Scenario, streams: Streams) -> Iterator[Arrival]:
    """The scenario's workload in strata, so that thousands of requests are enough."""
    workload, system = scenario.workload, case_study()
    assert isinstance(workload, Prfaas) and isinstance(workload.arrivals, Poisson), workload
    return poisson_like(
        streams.stream("gaps"),
        streams.stream("lengths"),
        rate_per_s=workload.arrivals.rate_per_s,
        lengths=system.lengths,
        output_tokens=system.output_tokens,
        block_tokens=workload.block_tokens,
    )


def scenario_of(
    deployment: Deployment,
    rate_per_s: float,
    *,
    requests: int,
    policy: str,
    options: Options | None = None,
    seed: int = 0,
) -> Scenario:
    """The deployment at a rate, for as long as so many requests take to arrive."""
    link = {"source": "prfaas", "target": "pd", "bytes_per_s": deployment.gbps * GBPS, "rtt_s": RTT_S}
    return parse_scenario(
        {
            "name": "prfaas",
            "seed": seed,
            "duration_s": requests / rate_per_s,
            "models": [{"name": "model", "shape": "prfaas-1t"}],
            "sites": [{"name": "pd"}, {"name": "prfaas"}],
            "links": [link],
            "workers": [group for group in _groups(deployment) if group["count"]],
            "workload": {
                "kind": "prfaas",
                "block_tokens": BLOCK_TOKENS,
                "arrivals": {"kind": "poisson", "rate_per_s": rate_per_s},
            },
            "router": {"site": "pd", "policy": policy, "options": dict(options or {}), "report_every_s": 5.0},
            "sample_every_s": 1e9,
        }
    )


def _groups(deployment: Deployment) -> list[dict[str, object]]:
    """The workers, also those of which there are none."""
    system = case_study()
    decode_step_s = system.pd.decode_s(1, 1)
    token_s = (system.pd.prefill_s(0, BLOCK_TOKENS) - system.pd.overhead_s) / BLOCK_TOKENS
    prefills = {"role": "prefill", "kv_tokens": KV_TOKENS, "sequences_max": 1, "step_tokens_max": 1 << 18}
    decodes = {
        "role": "decode",
        "kv_tokens": KV_TOKENS,
        "requests_max": DECODE_SEATS,
        "sequences_max": system.batch_max,
        "profile": {"b_s": token_s, "decode_a_s": decode_step_s},
    }
    return [
        {"name": "h200", "site": "prfaas", "count": deployment.far, "profile": "prfaas-1t_h200", **prefills},
        {"name": "h20p", "site": "pd", "count": deployment.prefill, "profile": "prfaas-1t_h20", **prefills},
        {"name": "h20d", "site": "pd", "count": deployment.decode, **decodes},
    ]


@cache
def _sums() -> tuple[tuple[float, ...], ...]:
    """Lengths at the midpoints of equal probability, and sums up to each: far and near seconds, bytes."""
    system = case_study()
    lengths = [system.lengths.quantile((i + 0.5) / QUANTILES) for i in range(QUANTILES)]
    whole = [round(tokens) for tokens in lengths]
    columns = (
        (system.prfaas.prefill_s(0, tokens) for tokens in whole),
        (system.pd.prefill_s(0, tokens) for tokens in whole),
        (float(system.shape.kv_bytes(tokens)) for tokens in whole),
    )
    return tuple(lengths), *(tuple(accumulate(column, initial=0.0)) for column in columns)


def _against_grid(deployment: Deployment, found: Capacity) -> Check:
    threshold, expected = best_threshold(deployment)
    share = found.requests_per_s / expected
    return holds(
        f"prfaas: homing at {deployment.gbps:g} Gbps, {deployment.prefill} prefill and {deployment.decode} decode",
        source="the analytic model's best threshold with this split",
        expected=f"at least {TARGET:.0%} of {expected:.3f} requests per second, at t = {threshold:,.0f}",
        measured=f"{found.requests_per_s:.3f} ({share:.1%})",
        passed=share >= TARGET,
        note=f"this threshold with mean times {mean_time_bound(deployment, threshold):.3f}; {_told(found)}",
    )


def _told(found: Capacity) -> str:
    edge = next(trial for trial in found.trials if trial.rate_per_s == found.unstable_per_s)
    return (
        f"stable at {found.stable_per_s:.3f}, at {found.unstable_per_s:.3f} the backlog grows by"
        f" {edge.growth_per_s:.3f}/s to {edge.backlog}; {len(found.trials)} trials"
    )

"""The throughput model of Prefill-as-a-Service (arXiv 2604.15039, sections 2.1 and 3.4, equations 1 to 6).

A cluster of prefill instances (PrfaaS) takes the prompts longer than a threshold t and sends their KV over a link of
bounded bandwidth; a second cluster (PD) prefills the others and decodes all.

    (1) phi         = S(l) / T(l)                            KV that one instance makes in a second
    (2) B_min       = N * phi(l)                             bandwidth that N instances need
    (3) theta_prfaas = min(N_prfaas / T(l_long), B / S(l_long))
    (4) theta_pd_p  = N_p / T(l_short)                       inside a cluster the network never binds
    (5) theta_pd_d  = N_d * batch / (T_decode * output)
    (6) lambda_max  = min(theta_prfaas / p, theta_pd_p / (1 - p), theta_pd_d)

Rule 1: as in the paper, each pool is represented by the mean length of its prompts, prefill and transfer of a prompt
overlap fully, and nothing queues. An event simulation at lambda_max shows worse times to first token, and must.
Rule 2: no sampling: shares and means are closed forms, quantiles of times a fine midpoint rule.
"""

from dataclasses import dataclass
from math import inf

from ..truth.profile import Profile
from ..truth.shape import ModelShape
from .lengths import TruncatedLogNormal

QUANTILES = 20_000
"""Midpoints of equal probability over which times are averaged: the mean and the P90 are good to four digits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """Two clusters and what is asked of them.

    `prfaas` and `pd` are the profiles of one instance, `egress_bytes_per_s` is what the PrfaaS cluster can send,
    `batch_max` how many sequences a decode instance serves at once.
    """

    lengths: TruncatedLogNormal
    output_tokens: int
    shape: ModelShape
    prfaas: Profile
    prfaas_instances: int
    egress_bytes_per_s: float
    pd: Profile
    batch_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """What is chosen: the threshold t, and how many instances of the PD cluster prefill (N_p) and decode (N_d)."""

    threshold_tokens: float
    prefill: int
    decode: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """What a split gives. Thetas in requests per second; a pool that gets no requests has 0."""

    split: Split
    offloaded: float
    long_tokens: float
    short_tokens: float
    prfaas_per_s: float
    prefill_per_s: float
    decode_per_s: float
    requests_per_s: float
    egress_bytes_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ttft:
    """Times to first token of an empty system, in seconds."""

    mean_s: float
    p90_s: float


def kv_bytes_per_s(profile: Profile, shape: ModelShape, tokens: int) -> float:
    """Equation 1: the KV that one instance makes in a second from prompts of one length."""
    return shape.kv_bytes(tokens) / profile.prefill_s(0, tokens)


def egress_needed_bytes_per_s(profile: Profile, shape: ModelShape, tokens: int, instances: int) -> float:
    """Equation 2: the bandwidth at which so many instances are never held up by the link."""
    return instances * kv_bytes_per_s(profile, shape, tokens)


def throughput(system: System, split: Split) -> Throughput:
    """Equations 3 to 6."""
    lengths, threshold = system.lengths, split.threshold_tokens
    offloaded = lengths.above(threshold)
    long_tokens, short_tokens = lengths.mean(threshold), lengths.mean(None, threshold)
    prfaas_per_s = _prfaas_per_s(system, round(long_tokens))
    prefill_per_s = split.prefill / system.pd.prefill_s(0, round(short_tokens)) if short_tokens else 0.0
    decode_per_s = split.decode * decode_per_instance_s(system)
    requests_per_s = min(_total(prfaas_per_s, offloaded), _total(prefill_per_s, 1.0 - offloaded), decode_per_s)
    return Throughput(
        split=split,
        offloaded=offloaded,
        long_tokens=long_tokens,
        short_tokens=short_tokens,
        prfaas_per_s=prfaas_per_s,
        prefill_per_s=prefill_per_s,
        decode_per_s=decode_per_s,
        requests_per_s=requests_per_s,
        egress_bytes_per_s=requests_per_s * offloaded * system.shape.kv_bytes(round(long_tokens)),
    )


def decode_per_instance_s(system: System) -> float:
    """Equation 5 for one instance: requests per second, half of their output in the context on average."""
    context_tokens = round(system.batch_max * (system.lengths.mean() + system.output_tokens / 2))
    return system.batch_max / (system.pd.decode_s(system.batch_max, context_tokens) * system.output_tokens)


def ttft(system: System, threshold_tokens: float) -> Ttft:
    """Mean and P90 without queueing: the time of each prompt's own prefill, or of its transfer if that takes longer.

    The times of Table 6 are these, although the paper's text speaks of queueing: the P90 of its naive configuration is
    the prefill of the P90 length to three digits.
    """
    times = sorted(
        _alone_s(system, round(tokens), offloaded=tokens > threshold_tokens)
        for tokens in (system.lengths.quantile((i + 0.5) / QUANTILES) for i in range(QUANTILES))
    )
    return Ttft(mean_s=sum(times) / QUANTILES, p90_s=times[QUANTILES * 9 // 10])


def _prfaas_per_s(system: System, tokens: int) -> float:
    if not tokens or not system.prfaas_instances:
        return 0.0
    computed_per_s = system.prfaas_instances / system.prfaas.prefill_s(0, tokens)
    return min(computed_per_s, system.egress_bytes_per_s / system.shape.kv_bytes(tokens))


def _total(pool_per_s: float, share: float) -> float:
    """The rate of all requests at which a pool that gets a share of them is full."""
    return pool_per_s / share if share > 0 else inf


def _alone_s(system: System, tokens: int, *, offloaded: bool) -> float:
    if not offloaded:
        return system.pd.prefill_s(0, tokens)
    return max(system.prfaas.prefill_s(0, tokens), system.shape.kv_bytes(tokens) / system.egress_bytes_per_s)

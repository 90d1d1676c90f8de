"""One run in numbers: latencies, goodput, hits, use of links and pools, money; part of the extra `sim`.

Rule 1: latencies are of the requests that finished; quantiles are numpy's linear ones, those of ITL the histogram's.
Rule 2: what is not there is None, not zero: no request, no latency.
"""

from collections.abc import Iterable

import msgspec
import numpy as np

from .histogram import WeightedHistogram
from .records import LinkUse, RunResult, WorkerUse
from .sample import Column, Sample
from .schema import (
    Cost,
    Fairness,
    Link,
    Origin,
    Pool,
    Prediction,
    Rates,
    Requests,
    Slo,
    Spread,
    Summary,
    Tokens,
)


def summarize(result: RunResult, slo: Slo) -> Summary:
    """Compute the summary of a run, under the SLOs given."""
    sample = Sample(result)
    finished = sample.finished
    rates = _rates(sample, slo)
    return Summary(
        scenario=result.scenario,
        policy=result.policy,
        seed=result.seed,
        from_s=result.from_s,
        to_s=result.to_s,
        slo=slo,
        requests=_requests(sample),
        rates=rates,
        ttft_s=spread(sample.number("ttft_s")[finished]),
        tpot_s=spread(sample.number("tpot_s")[finished]),
        itl_s=_spread_of_histogram(result.itl),
        e2e_s=spread(sample.number("e2e_s")[finished]),
        waited_s=spread(sample.number("waited_s")[finished]),
        queued_s=spread(sample.number("queued_s")[finished]),
        tokens=_tokens(sample, finished),
        fairness={field: _fairness(sample, field) for field in ("origin", "tenant")},
        prediction=_prediction(sample),
        cost=_cost(result, rates.output_tokens_per_s * result.span_s),
        plans=dict(sorted(result.plans.items())),
        commands=dict(sorted(result.commands.items())),
        links=[_link(use) for use in sorted(result.links, key=lambda use: (use.source, use.target))],
        pools=_pools(result.workers),
        origins={name: _origin(sample, mask, slo) for name, mask in sample.groups("origin").items()},
        notes=list(result.notes),
    )


def spread(values: Column) -> Spread:
    """Mean and quantiles of the values that are there."""
    there = values[~np.isnan(values)]
    if not len(there):
        return Spread()
    p50, p90, p95, p99 = (float(value) for value in np.quantile(there, (0.5, 0.9, 0.95, 0.99)))
    return Spread(mean=float(there.mean()), p50=p50, p90=p90, p95=p95, p99=p99)


def jain(values: Iterable[float]) -> float:
    """Jain's fairness index; 1 for nothing and for all zeros."""
    known = list(values)
    squares = sum(value * value for value in known)
    return sum(known) ** 2 / (len(known) * squares) if squares else 1.0


def _spread_of_histogram(itl: WeightedHistogram) -> Spread:
    p50, p90, p95, p99 = (itl.quantile(share) for share in (0.5, 0.9, 0.95, 0.99))
    return Spread(mean=itl.mean(), p50=p50, p90=p90, p95=p95, p99=p99)


def _share(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def _requests(sample: Sample) -> Requests:
    counts = {name: int(mask.sum()) for name, mask in sample.groups("outcome").items()}
    unfinished = sample.result.unfinished
    return Requests(
        arrived=len(sample.rows) + unfinished,
        unfinished=unfinished,
        reasons={name: int(mask.sum()) for name, mask in sample.groups("reason").items() if name},
        **{outcome: counts.get(outcome, 0) for outcome in ("finished", "rejected", "cancelled", "failed")},
    )


def _rates(sample: Sample, slo: Slo) -> Rates:
    result = sample.result
    good = int(sample.good(slo).sum())
    codes, names = result.log.codes("outcome")
    ended_s = result.log.column("finished_at_s")
    done = (ended_s >= result.from_s) & (ended_s < result.to_s)
    done &= codes == (names.index("finished") if "finished" in names else len(names))
    return Rates(
        goodput_per_s=good / result.span_s,
        goodput_share=_share(good, len(sample.rows) + result.unfinished),
        requests_per_s=int(done.sum()) / result.span_s,
        output_tokens_per_s=int(result.log.column("output_tokens")[done].sum()) / result.span_s,
    )


def _tokens(sample: Sample, mask: Column) -> Tokens:
    prompt, computed, device, host, disk, moved = (
        int(sample.number(f"{name}_tokens")[mask].sum())
        for name in ("prompt", "computed", "device_hit", "host_hit", "disk_hit", "moved")
    )
    saved = device + host + disk + moved
    return Tokens(
        prompt=prompt,
        computed=computed,
        saved=saved,
        device_ratio=_share(device, prompt),
        host_ratio=_share(host, prompt),
        disk_ratio=_share(disk, prompt),
        moved_ratio=_share(moved, prompt),
        hit_ratio=_share(saved, prompt),
    )


def _fairness(sample: Sample, field: str) -> Fairness:
    ttft_s, finished = sample.number("ttft_s"), sample.finished
    masks = [mask & finished for mask in sample.groups(field).values()]
    means = [float(ttft_s[mask].mean()) for mask in masks if mask.any()]
    if len(means) < 2:
        return Fairness(groups=len(means), jain=None, max_by_min=None)
    return Fairness(groups=len(means), jain=jain(means), max_by_min=_share(max(means), min(means)))


def _prediction(sample: Sample) -> Prediction:
    predicted, measured = sample.number("predicted_ttft_s"), sample.number("ttft_s")
    both = ~np.isnan(predicted) & (measured > 0)
    error = (predicted[both] - measured[both]) / measured[both]
    sizes = spread(np.abs(error))
    return Prediction(requests=len(error), median_abs=sizes.p50, p90_abs=sizes.p90, median=spread(error).p50)


def _cost(result: RunResult, output_tokens: float) -> Cost:
    gpu_dollars = sum(worker.dollars for worker in result.workers)
    link_dollars = sum(link.dollars for link in result.links)
    return Cost(
        gpu_hours=sum(worker.gpus for worker in result.workers) * result.span_s / 3600,
        gpu_dollars=gpu_dollars,
        link_dollars=link_dollars,
        dollars_per_million_output_tokens=_share(1e6 * (gpu_dollars + link_dollars), output_tokens),
    )


def _link(use: LinkUse) -> Link:
    return msgspec.convert(use, Link, from_attributes=True)


def _pools(workers: Iterable[WorkerUse]) -> dict[str, Pool]:
    members: dict[str, list[WorkerUse]] = {}
    for worker in workers:
        members.setdefault(worker.pool, []).append(worker)
    return {name: _pool(members[name]) for name in sorted(members)}


def _pool(workers: list[WorkerUse]) -> Pool:
    return Pool(
        workers=len(workers),
        gpus=sum(worker.gpus for worker in workers),
        utilisation=sum(worker.utilisation for worker in workers) / len(workers),
        kv_mean=sum(worker.kv_mean for worker in workers) / len(workers),
        prefill_tokens=sum(worker.prefill_tokens for worker in workers),
        decode_tokens=sum(worker.decode_tokens for worker in workers),
    )


def _origin(sample: Sample, mask: Column, slo: Slo) -> Origin:
    finished = mask & sample.finished
    return Origin(
        arrived=int(mask.sum()),
        finished=int(finished.sum()),
        goodput_share=float(sample.good(slo)[mask].mean()),
        hit_ratio=_tokens(sample, finished).hit_ratio,
        ttft_s=spread(sample.number("ttft_s")[finished]),
        e2e_s=spread(sample.number("e2e_s")[finished]),
    )

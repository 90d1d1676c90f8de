"""Policies beside each other, over the same scenario and seeds, with intervals; part of the extra `sim`.

Rule 1: the same seeds for all, and each policy once per seed: otherwise differences are of workloads.
Rule 2: a difference of latencies is over the requests that finished under both; one of goodput over all that arrived,
where one that had not ended when the run did is within none.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from .bootstrap import RESAMPLES, Interval, differences, intervals, mean, mean_and_quantiles
from .records import RunResult
from .sample import Column, Sample
from .schema import Slo

SCHEMA = "homing.sim.compare/1"
LATENCIES = ("ttft_s", "e2e_s")
GOODPUT = "goodput_share"
_STATISTICS = ("mean", "p50", "p90", "p99")
_spread = mean_and_quantiles(0.5, 0.9, 0.99)


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """One policy. A metric is missing when no request finished."""

    policy: str
    metrics: dict[str, Interval]
    differences: dict[str, Interval]
    """This policy less the baseline, paired; empty for the baseline itself."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """All policies, in the order in which they were handed in."""

    schema: str = SCHEMA
    scenario: str
    baseline: str
    seeds: list[int]
    slo: Slo
    scores: list[Score]


@dataclass(frozen=True)
class _Run:
    """One run: its requests by arrival."""

    ids: Column
    at_s: Column
    finished: Column
    good: Column
    latencies: dict[str, Column]
    unfinished: int = 0


def compare(
    results: Sequence[RunResult],
    slo: Slo,
    random: np.random.Generator,
    *,
    baseline: str = "",
    resamples: int = RESAMPLES,
) -> Comparison:
    """Score each policy against `baseline` (the first one if empty). ValueError when they did not run the same."""
    runs = _by_policy(results, slo)
    policies = list(runs)
    baseline = baseline or policies[0]
    if baseline not in runs:
        raise ValueError(f"baseline: expected one of {', '.join(policies)}, got {baseline!r}")
    return Comparison(
        scenario=results[0].scenario,
        baseline=baseline,
        seeds=sorted(runs[baseline]),
        slo=slo,
        scores=[
            Score(
                policy=policy,
                metrics=_metrics(runs[policy], random, resamples),
                differences={} if policy == baseline else _paired(runs[policy], runs[baseline], random, resamples),
            )
            for policy in policies
        ],
    )


def _by_policy(results: Sequence[RunResult], slo: Slo) -> dict[str, dict[int, _Run]]:
    if not results:
        raise ValueError("results: expected at least one run, got none")
    runs: dict[str, dict[int, _Run]] = {}
    for result in results:
        seeds = runs.setdefault(result.policy, {})
        if result.seed in seeds or result.scenario != results[0].scenario:
            raise ValueError(
                f"results: expected one run of {results[0].scenario!r} per policy and seed, got another of "
                f"{result.scenario!r}, {result.policy!r}, seed {result.seed}"
            )
        seeds[result.seed] = _run(Sample(result), slo)
    for policy, seeds in runs.items():
        if seeds.keys() != runs[results[0].policy].keys():
            raise ValueError(f"results: expected the same seeds for every policy, got {sorted(seeds)} for {policy!r}")
    return runs


def _run(sample: Sample, slo: Slo) -> _Run:
    return _Run(
        ids=np.array(sample.ids(), dtype=np.str_),
        at_s=sample.number("at_s"),
        finished=sample.finished,
        good=sample.good(slo).astype(np.float64),
        latencies={name: sample.number(name) for name in LATENCIES},
        unfinished=sample.result.unfinished,
    )


def _metrics(runs: dict[int, _Run], random: np.random.Generator, resamples: int) -> dict[str, Interval]:
    ordered = [runs[seed] for seed in sorted(runs)]
    found: dict[str, Interval] = {}
    for latency in LATENCIES:
        samples = [run.latencies[latency][run.finished] for run in ordered]
        found |= _named(latency, intervals(samples, _spread, random, resamples=resamples))
    good = [np.append(run.good, np.zeros(run.unfinished)) for run in ordered]
    return found | dict(zip((GOODPUT,), intervals(good, mean, random, resamples=resamples), strict=False))


def _paired(
    ours: dict[int, _Run], theirs: dict[int, _Run], random: np.random.Generator, resamples: int
) -> dict[str, Interval]:
    pairs = [_align(ours[seed], theirs[seed]) for seed in sorted(ours)]
    found: dict[str, Interval] = {}
    for latency in LATENCIES:
        sides = [[run.latencies[latency][a.finished & b.finished] for run in (a, b)] for a, b in pairs]
        mine, others = zip(*sides, strict=True)
        found |= _named(latency, differences(mine, others, _spread, random, resamples=resamples))
    good = [a.good for a, _ in pairs], [b.good for _, b in pairs]
    return found | dict(zip((GOODPUT,), differences(*good, mean, random, resamples=resamples), strict=False))


def _named(latency: str, found: list[Interval]) -> dict[str, Interval]:
    """`ttft_s` becomes `ttft_mean_s`, `ttft_p50_s` and so on."""
    return dict(zip((f"{latency[:-2]}_{name}_s" for name in _STATISTICS), found, strict=False))


def _align(ours: _Run, theirs: _Run) -> tuple[_Run, _Run]:
    """Both with the requests that either has, in the same order of arrival."""
    ids = np.union1d(ours.ids, theirs.ids)
    at_s = np.zeros(len(ids))
    for run in (ours, theirs):
        at_s[np.searchsorted(ids, run.ids)] = run.at_s
    order = np.argsort(at_s, kind="stable")
    return _place(ours, ids, order), _place(theirs, ids, order)


def _place(run: _Run, ids: Column, order: Column) -> _Run:
    places = np.searchsorted(ids, run.ids)

    def placed(column: Column) -> Column:
        whole = np.zeros(len(ids), dtype=column.dtype)
        whole[places] = column
        return whole[order]

    return _Run(
        ids=ids[order],
        at_s=placed(run.at_s),
        finished=placed(run.finished),
        good=placed(run.good),
        latencies={name: placed(column) for name, column in run.latencies.items()},
    )

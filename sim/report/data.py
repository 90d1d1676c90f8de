"""What plots show, out of results: plain numbers, and the figures that a report and a talk are made of.

Rule 1: the first policy is the one that the report is about; it is drawn foremost, and over time against the second.
Rule 2: what is pooled is pooled over all seeds; what is drawn over time or on a map is of the first seed.
Rule 3: a plot with nothing to show is left out.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.figure import Figure

from ..measure.compare import Comparison
from ..measure.records import RunResult
from ..measure.sample import Column, Sample
from .plots.flows import Flow, flow_map
from .plots.heat import SweepPoint, heat_maps
from .plots.latency import prediction, ttft_cdf
from .plots.policies import policies
from .plots.times import Panel, plan_kinds, timeline

SHARES = ("utilisation", "ratio")
"""A kind of series that ends so is a share, and drawn from 0 to 100 %."""
PANELS_MAX = 8
"""Per kind: those that are highest on average."""


def figures(
    results: Sequence[RunResult], comparison: Comparison, sweep: Sequence[SweepPoint] = (), metric: str = "TTFT p90"
) -> dict[str, Figure]:
    """Every plot that has something to show, by name, in the order of a report."""
    names = [score.policy for score in comparison.scores]
    runs = {name: [result for result in results if result.policy == name] for name in names}
    ours, second = runs[names[0]], runs[names[1]][0] if len(names) > 1 else None
    drawn: dict[str, Figure] = {}
    ttft_s = {name: pooled(runs[name], "ttft_s") for name in names}
    if any(len(values) for values in ttft_s.values()):
        drawn["ttft"] = ttft_cdf(ttft_s, comparison.slo.ttft_s)
    drawn["policies"] = policies({score.policy: score.metrics for score in comparison.scores})
    if sweep:
        drawn["sweep"] = heat_maps(sweep, metric)
    if panels := list(panels_of(ours[0], second)):
        drawn["timeline"] = timeline(panels, ours[0].marks)
    if flows := flows_of(ours[0]):
        drawn["flows"] = flow_map(flows, ours[0].places)
    if len(predicted := pooled(ours, "predicted_ttft_s")) and not np.all(np.isnan(predicted)):
        drawn["prediction"] = prediction(predicted, pooled(ours, "ttft_s"))
    at_s, kinds = plans_of(ours[0])
    if len(at_s):
        drawn["plans"] = plan_kinds(at_s, kinds)
    return drawn


def pooled(results: Sequence[RunResult], name: str) -> Column:
    """A number of all finished requests of some runs, one run after the other."""
    samples = [Sample(result) for result in results]
    return np.concatenate([sample.number(name)[sample.finished] for sample in samples])


def panels_of(ours: RunResult, other: RunResult | None = None) -> Iterator[Panel]:
    """Small multiples of a run's timeline, with another policy's behind; series that stay at zero are left out."""
    for kind in ours.timeline.kinds():
        means = {name: _mean(ours, name) for name in ours.timeline.names(kind)}
        highest = sorted((name for name in means if means[name] > 0), key=lambda name: (-means[name], name))
        for name in sorted(highest[:PANELS_MAX]):
            yield Panel(
                title=_readable(name.partition("/")[2]) or "all",
                kind=kind.replace("_", " ").capitalize(),
                lines=tuple(_line(run, name) for run in (other, ours) if run and name in run.timeline.names(kind)),
                is_share=kind.endswith(SHARES),
            )


def _line(run: RunResult, name: str) -> tuple[str, Column, Column]:
    return run.policy, np.array(run.timeline.times_s), np.array(run.timeline.series(name))


def _readable(title: str) -> str:
    return title.replace(" -> ", " → ").replace(">", " → ")


def flows_of(result: RunResult) -> list[Flow]:
    """What went over the links of a run."""
    return [
        Flow(source=use.source, target=use.target, bytes=use.bytes, utilisation=use.utilisation) for use in result.links
    ]


def plans_of(result: RunResult) -> tuple[Column, list[str]]:
    """When each request arrived that a plan was carried out for, and that plan's kind."""
    sample = Sample(result)
    codes, names = result.log.codes("plan")
    kinds = [names[code] for code in codes[sample.rows]]
    there = np.array([bool(kind) for kind in kinds], dtype=bool)
    return sample.number("at_s")[there], [kind for kind in kinds if kind]


def _mean(result: RunResult, name: str) -> float:
    values = np.array(result.timeline.series(name))
    there = values[np.isfinite(values)]
    return float(there.mean()) if len(there) else 0.0

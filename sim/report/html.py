"""One page of HTML that holds everything: numbers, plots, tables. It loads nothing and knows no date.

Rule 1: equal results give equal bytes (I5).
Rule 2: text out of a scenario is escaped; only our own SVG is not.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ..measure.bootstrap import RESAMPLES
from ..measure.compare import Comparison, compare
from ..measure.records import RunResult
from ..measure.schema import Slo
from ..measure.summary import summarize
from .data import figures
from .plots.heat import SweepPoint
from .style import bytes_text, seconds, svg
from .tables import DIFFERENCES, HEADLINES, differences, rows, share, time

TEMPLATE = Path(__file__).with_name("report.html.j2")
CAPTIONS = {
    "ttft": "Share of the finished requests that had their first token after so long. The further left, the better.",
    "policies": "Dots are estimates over all seeds, bars their 95 % intervals. Left and small is good for latencies, "
    "right is good for goodput: requests that finished within both SLOs, by those that arrived.",
    "sweep": "Each cell is a network: how fast the links between sites are and how long a round trip takes.",
    "timeline": "First seed. The blue line is the policy that this report is about.",
    "flows": "First seed. An arrow is as wide as the bytes that went that way; its colour is how full the link was.",
    "prediction": "A point per request. Points in the band were predicted to within a fifth.",
    "plans": "First seed. Local: computed where it is decoded. Fetch: cached blocks come first. Split: they come while "
    "the front is computed. Remote: computed elsewhere and shipped. Direct: cached elsewhere, fetched by the decode "
    "worker.",
}


def write_report(
    results: Sequence[RunResult],
    slo: Slo,
    path: Path,
    *,
    title: str = "",
    sweep: Sequence[SweepPoint] = (),
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Comparison:
    """Compare the runs and write the page; returns the comparison. The first run's policy is what it is about.

    `seed` is that of the bootstrap. ValueError as `compare`.
    """
    comparison = compare(results, slo, np.random.default_rng(seed), resamples=resamples)
    path.write_text(render(results, comparison, title=title, sweep=sweep), encoding="utf-8")
    return comparison


def render(
    results: Sequence[RunResult], comparison: Comparison, *, title: str = "", sweep: Sequence[SweepPoint] = ()
) -> str:
    """The page as text."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"seconds": seconds, "percent": share, "bytes": bytes_text, "maybe_seconds": time}
    summaries = [summarize(result, comparison.slo) for result in results]
    first = summaries[0]
    plots = [
        (name, CAPTIONS[name], Markup(svg(figure, name)))  # noqa: S704 - our own SVG, in which all text is outlines
        for name, figure in figures(results, comparison, sweep).items()
    ]
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=title or first.scenario,
        first=first,
        comparison=comparison,
        headlines=HEADLINES,
        rows=rows(comparison, summaries),
        differences=differences(comparison),
        difference_names=DIFFERENCES,
        plots=plots,
        notes=sorted({note for summary in summaries for note in summary.notes}),
    )

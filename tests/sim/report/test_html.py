"""The page holds what it should, loads nothing, and knows no day."""

import re
from html.parser import HTMLParser

import matplotlib as mpl
import numpy as np
import pytest

from homing.sim.measure.compare import compare
from homing.sim.measure.records import LinkUse, Timeline
from homing.sim.measure.schema import Slo
from homing.sim.report.data import figures, panels_of
from homing.sim.report.html import CAPTIONS, render, write_report
from homing.sim.report.plots.heat import SweepPoint
from homing.sim.report.tables import HEADLINES

from .runs import busy_run, finished, result

SLO = Slo(ttft_s=1.0, tpot_s=0.05)
SWEEP = [
    SweepPoint(bandwidth_bytes_per_s=rate, rtt_s=rtt, policy=policy, value_s=value)
    for rate in (1e8, 1e9)
    for rtt in (0.01, 0.1)
    for policy, value in (("homing", 0.2), ("random", 0.4))
]


class Page(HTMLParser):
    """Tags that are open, ids, and what is referred to."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.refers, self.tags = [], [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in {"meta", "br"}:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in {"href", "src", "xlink:href"}:
                self.refers.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    runs = [busy_run(policy, seed, slow) for policy, slow in (("homing", 1.0), ("random", 2.0)) for seed in (1, 2)]
    write_report(runs, SLO, path, sweep=SWEEP, resamples=20)
    return path.read_text(encoding="utf-8")


def test_it_is_whole_and_stands_alone(page):
    parsed = Page(page)
    assert parsed.open == []
    assert not parsed.tags & {"script", "link", "img", "iframe"}
    assert all(target.startswith("#") for target in parsed.refers)
    assert {target[1:] for target in parsed.refers} <= set(parsed.ids)
    assert len(parsed.ids) == len(set(parsed.ids)), "an id names one thing, also with many plots in a page"


def test_every_plot_and_number_is_there(page):
    for name, caption in CAPTIONS.items():
        assert f'<figure id="{name}"' in page
        assert caption in page
    for headline in HEADLINES:
        assert f"<th>{headline}</th>" in page
    assert "homing.sim.run/1" in page
    assert "random" in page


def test_text_of_a_scenario_is_escaped(page):
    assert "busy &lt;little&gt; run" in page
    assert "<little>" not in page


def test_it_knows_no_date_and_no_machine(page):
    assert not re.search(r"\b20[2-9]\d-[01]\d-[0-3]\d|\b[0-2]\d:[0-5]\d:[0-5]\d\b|dc:date|<dc:", page)
    assert mpl.__version__ not in page
    assert "<metadata" not in page


@pytest.mark.parametrize("runs", [[result()], [result([finished(0)])]], ids=["no request", "one request"])
def test_runs_with_next_to_nothing_have_a_page_too(tmp_path, runs):
    comparison = write_report(runs, SLO, tmp_path / "r.html", resamples=5)
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert Page(text).open == []
    assert render(runs, comparison) == text


def test_a_plot_with_nothing_to_show_is_left_out():
    def drawn(run):
        return list(figures([run], compare([run], SLO, np.random.default_rng(0), resamples=5)))

    assert drawn(result()) == ["policies"]
    assert drawn(result([finished(0)])) == ["ttft", "policies"]
    assert drawn(result([finished(0, predicted_ttft_s=0.4, plan="local")])) == [
        "ttft",
        "policies",
        "prediction",
        "plans",
    ]
    assert "flows" in drawn(result(links=(LinkUse(source="a", target="b", bytes=1),)))


def test_only_the_highest_series_of_a_kind_are_drawn():
    timeline = Timeline(every_s=1.0)
    timeline.sample(0.0, {f"queued_requests/p{n:02}": float(n) for n in range(20)})
    panels = list(panels_of(result(timeline=timeline)))
    assert [panel.title for panel in panels] == [f"p{n}" for n in range(12, 20)]


def test_series_are_named_as_people_say_them():
    timeline = Timeline(every_s=1.0)
    timeline.sample(0.0, {"queued_tokens/a": 2.0, "link_utilisation/a -> b": 0.5, "idle/x": 0.0, "hit_ratio": 0.1})
    panels = list(panels_of(result(timeline=timeline), result(policy="random")))
    found = [(panel.kind, panel.title, panel.is_share) for panel in panels]
    assert found == [("Queued tokens", "a", False), ("Link utilisation", "a → b", True), ("Hit ratio", "all", True)]

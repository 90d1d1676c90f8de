"""What is told of a request, and the percentiles of it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homing.loadtest.asks import Ask, AskError
from homing.loadtest.stats import Percentiles, Summary, timed

ASK = Ask(name="one", session="s", messages=(), output_tokens=3)


class Scripted:
    """Answers with pieces, each at its time; an error ends it."""

    kind = "SSE"

    def __init__(self, *script):
        self.script = script
        self.now_s = 100.0

    def stream(self, ask):
        for step in self.script:
            if isinstance(step, Exception):
                raise step
            at_s, piece = step
            self.now_s = 100.0 + at_s
            yield piece

    def clock(self):
        return self.now_s


def told_of(api):
    told = []
    answer = timed(api, ASK, lambda **event: told.append(event), api.clock)
    return answer, [(e["request_type"], pytest.approx(e["response_time"]), e["exception"]) for e in told]


def test_first_token_gaps_and_the_whole_are_told_apart():
    answer, told = told_of(Scripted((0.5, "a"), (0.6, ""), (0.9, "b")))
    assert answer == "ab"
    assert told == [("TTFT", 500, None), ("ITL", 100, None), ("ITL", 300, None), ("SSE", 900, None)]


def test_what_breaks_is_one_failure():
    error = AskError("broke")
    answer, told = told_of(Scripted((0.5, "a"), error))
    assert answer is None
    assert told == [("TTFT", 500, None), ("SSE", 500, error)]


def test_an_answer_without_a_token_is_a_failure():
    answer, told = told_of(Scripted())
    assert answer is None
    assert isinstance(told[0][2], AskError)


@given(st.lists(st.floats(0.001, 1e6), min_size=1, max_size=200), st.floats(0.01, 1))
def test_percentiles_are_within_two_percent(values, part):
    some = Percentiles()
    for value in values:
        some.add(value)
    exact = sorted(values)[math.ceil(part * len(values)) - 1]
    assert some.at(part) == pytest.approx(exact, rel=0.0201)


def test_the_table_has_a_line_for_each_statistic():
    summary = Summary()
    for number in range(1, 101):
        summary.heard(request_type="TTFT", name="one", response_time=number, exception=None, more=1)
    summary.heard(request_type="SSE", name="one", response_time=7.0, exception=AskError("x"))
    head, failed, times = summary.table().splitlines()
    assert head.split() == ["count", "failed", "p50", "ms", "p90", "ms", "p99", "ms"]
    assert failed.split()[:4] == ["SSE", "one", "0", "1"]
    name, _, count, failures, *percentiles = times.split()
    assert (name, count, failures) == ("TTFT", "100", "0")
    assert [float(p) for p in percentiles] == pytest.approx([50, 90, 99], rel=0.02)

"""Checks as data and as text, and which validations there are."""

import pytest

from homing.router.core.errors import ConfigError
from homing.sim.validate import VALIDATIONS, render, validate
from homing.sim.validate.check import close, holds


@pytest.mark.parametrize(("measured", "passed"), [(97.1, True), (96.9, False), (102.9, True), (103.1, False)])
def test_a_number_is_close_up_to_its_tolerance(measured, passed):
    assert close("a", source="b", expected=100.0, measured=measured, tolerance=0.03).passed is passed


def test_the_text_tells_what_failed():
    good = close("wait", source="Erlang C", expected=2.0, measured=2.02, tolerance=0.03, unit=" s", note="long")
    bad = holds("order", source="figure 5", expected="a > b", measured="b > a", passed=False)
    text = render([good, bad])
    assert "ok   wait\n     expected 2 s within 3.0% (Erlang C)\n     measured 2.02 s (+1.0%)\n" in text
    assert "FAIL order" in text
    assert text.endswith("2 checks, 1 failed: order\n")
    assert max(map(len, text.splitlines())) <= 120


def test_unknown_names_and_missing_traces_are_told(tmp_path):
    with pytest.raises(ConfigError, match="'queues'; known are queueing, mooncake, prfaas, "):
        validate(["queues"])
    with pytest.raises(ConfigError, match="found none at"):
        validate(["mooncake"], trace=tmp_path / "none.jsonl")


def test_one_validation_by_name():
    told = []
    checks = validate(["conservation"], quick=True, progress=told.append)
    assert len(checks) == len(told) == 2
    assert {"queueing", "mooncake", "prfaas", "conservation"} <= VALIDATIONS.keys()
    assert all(check.passed for check in checks), render(checks)

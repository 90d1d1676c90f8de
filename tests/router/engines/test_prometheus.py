"""The scanner of metrics against prometheus_client's own writer and parser, and on a real page."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from homing.router.engines.prometheus import Sample, by_rank, samples

from .replay import exchanges, recorded

NAMES = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc", "vllm:cache_config_info")
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
VALUES = st.floats(allow_nan=True, allow_infinity=True)


def parsed(page, names):
    return [
        Sample(sample.name, sample.labels, sample.value)
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name in names and math.isfinite(sample.value)
    ]


@given(st.dictionaries(st.tuples(TEXTS, TEXTS), VALUES, min_size=1, max_size=5), st.booleans())
def test_reads_what_prometheus_client_writes(rows, noise):
    registry = CollectorRegistry()
    gauge = Gauge("engine:running", "How many\nrun.", ["model", "place"], registry=registry)
    for labels, value in rows.items():
        gauge.labels(*labels).set(value)
    if noise:
        Gauge("engine:running_since", "Begins alike.", registry=registry).set(1)
    page = generate_latest(registry).decode()
    finite = {labels: value for labels, value in rows.items() if math.isfinite(value)}
    found = samples(page, ("engine:running",))
    assert {(sample.labels["model"], sample.labels["place"]): sample.value for sample in found} == finite


@pytest.mark.parametrize("name", ["vllm", "vllm_two_ranks", "sglang_metrics", "llama_cpp"])
def test_a_real_page_is_read_as_prometheus_client_reads_it(name):
    page = recorded(name, "/metrics")
    names = {line.split("{")[0].split(" ")[0] for line in page.split("\n") if line and not line.startswith("#")}
    assert len(names) > 2
    key = str
    assert sorted(samples(page, names), key=key) == sorted(parsed(page, names), key=key)


@given(st.text(), st.text(max_size=30))
def test_garbage_is_left_out(before, after):
    page = f'{before}\na{{x="1"}} 2\na{after}'
    for sample in samples(page, ("a",)):
        assert sample.name == "a" and math.isfinite(sample.value)


@pytest.mark.parametrize(
    "line",
    [
        "a",
        "a{",
        "a}",
        'a{x="1"',
        "a{} ",
        "a one",
        "a NaN",
        "a +Inf",
        "ab 1",
        "a 1 2 3",
        "# a 1",
        " a 1",
        "a{x} 1",
        "a} 1",
    ],
)
def test_lines_without_a_sample(line):
    assert samples(line, ("a",)) == []


def test_time_stamps_braces_and_escapes():
    page = 'a{x="}\\n\\"\\\\,y=\\"", z = "1",} 2.5e1 1795643988\r\na\t3\n'
    assert samples(page, ("a",)) == [Sample("a", {"x": '}\n"\\,y="', "z": "1"}, 25.0), Sample("a", {}, 3.0)]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("part", ["}", "x", 'x="', "\\", '"', "x=", "{", " ", ",", 'x="1",'])
def test_a_line_is_read_in_time_linear_in_its_length(part):
    for line in (f"a{{{part * 100_000}}} b c d", f'a{{x="{part * 100_000}"}} 1 1 1', f"a {part * 100_000} x y"):
        assert samples(line, ("a",)) == []


def test_ranks_are_in_the_order_of_their_numbers():
    found = [Sample("a", {"engine": number}, float(number)) for number in ("10", "2", "4")]
    assert by_rank(found, "engine") == [{"a": 2.0}, {"a": 4.0}, {"a": 10.0}]
    assert by_rank([Sample("a", {}, 1.0), Sample("a", {"engine": "x"}, 5.0)], "engine") == [{"a": 5.0}]
    assert by_rank([], "engine") == []


def test_the_recording_is_as_long_as_a_real_page():
    assert sum(len(row["answer"]) > 50_000 for row in exchanges("vllm")) == 1

"""The analytic model of Prefill-as-a-Service, against the paper's own numbers (arXiv 2604.15039)."""

from dataclasses import replace
from math import log
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homing.sim.prfaas import (
    Split,
    TruncatedLogNormal,
    bandwidths,
    best,
    case_study,
    homogeneous_optimum,
    optimum,
    render,
    render_bandwidths,
    table6,
    throughput,
)
from homing.sim.prfaas.model import egress_needed_bytes_per_s, kv_bytes_per_s
from homing.sim.prfaas.table6 import GBPS, LENGTHS, PUBLISHED_SPLIT
from homing.sim.truth import load_profile, shape_of

ROWS = table6()
THETAS = ("theta prfaas", "theta pd-p", "theta pd-d", "lambda max")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.published.name)
def test_table_6_is_met_within_two_percent(row):
    """The lowest is theta of the PrfaaS cluster with 1.9 % below; all throughputs, all times to first token."""
    numbers = row.numbers()
    assert set(THETAS[2:]) < set(numbers)
    for name, (found, printed) in numbers.items():
        assert found == pytest.approx(printed, rel=0.02), name


def test_the_ratios_are_the_printed_ones():
    assert [row.ratio for row in ROWS] == pytest.approx([1.54, 1.0, 1.16], rel=0.025)


def test_the_search_finds_the_printed_optimum():
    found = optimum()
    assert found.split.threshold_tokens == pytest.approx(19_400, rel=0.02)
    assert (found.split.prefill, found.split.decode) == (3, 5)
    assert found.requests_per_s == pytest.approx(3.24, rel=0.02)
    assert found.requests_per_s >= ROWS[0].throughput.requests_per_s
    left, right = found.prfaas_per_s / found.offloaded, found.prefill_per_s / (1 - found.offloaded)
    assert left == pytest.approx(right, rel=0.02), "equation 7"
    baseline = homogeneous_optimum()
    assert (baseline.split.prefill, baseline.split.decode) == (9, 3)


def test_the_shares_and_means_are_the_printed_ones():
    row = ROWS[0].throughput
    assert row.offloaded == pytest.approx(0.496, abs=0.0005)
    assert row.long_tokens == pytest.approx(44 * 1024, rel=0.005)
    assert LENGTHS.mean() == pytest.approx(27_000, rel=0.02)


def test_the_egress_is_a_little_less_than_the_printed_one():
    """12.1 Gbps from the model's own rate, 6.6 % below "about 13"; with the printed 1.61 requests/s it is 12.4."""
    row = ROWS[0].throughput
    assert row.egress_bytes_per_s / GBPS == pytest.approx(12.14, abs=0.01)
    of_printed = 1.61 * shape_of("prfaas-1t").kv_bytes(round(row.long_tokens)) / GBPS
    assert of_printed == pytest.approx(13.0, rel=0.06)


@pytest.mark.parametrize(("tokens", "gbps"), [(1024, 3.61), (8192, 3.59), (32_768, 3.19), (131_072, 2.62)])
def test_equation_1_gives_table_5(tokens, gbps):
    system = case_study()
    assert kv_bytes_per_s(system.prfaas, system.shape, tokens) / GBPS == pytest.approx(gbps, rel=0.025)
    four = egress_needed_bytes_per_s(system.prfaas, system.shape, tokens, 4)
    assert four == pytest.approx(4 * gbps * GBPS, rel=0.025), "equation 2"


@pytest.mark.parametrize(
    ("profile", "gbps"), [("qwen3-235b-a22b-fp8_h200_sxm_tp8", 21.50), ("mimo-v2-flash_h200_sxm_tp8", 4.71)]
)
def test_two_sources_agree_on_open_models(profile, gbps):
    """Table 3 at 128K was measured with SGLang, the profiles are of other people's kernels under vLLM."""
    measured = load_profile(profile)
    assert kv_bytes_per_s(measured, shape_of(measured.model), 131_072) / GBPS == pytest.approx(gbps, rel=0.06)


def test_a_fixed_threshold_loses_on_a_narrow_link():
    rows = {round(row.egress_bytes_per_s / GBPS): row for row in bandwidths((5, 8, 12, 100))}
    assert rows[5].gain > 0.5
    assert rows[8].gain > 0.2
    assert 0.005 < rows[12].gain < 0.05
    assert rows[12].gain > rows[100].gain >= 0
    assert rows[5].best.split.threshold_tokens > 2 * rows[100].best.split.threshold_tokens
    for row in rows.values():
        assert row.best.egress_bytes_per_s <= row.egress_bytes_per_s * (1 + 1e-9)


def test_more_bandwidth_never_serves_less():
    rows = bandwidths((1, 5, 20))
    assert [row.best.requests_per_s for row in rows] == sorted(row.best.requests_per_s for row in rows)


@settings(max_examples=30)
@given(st.floats(0, 140_000), st.integers(1, 7), st.floats(0.1, 100))
def test_no_pool_gets_more_than_it_can_do(threshold, prefill, gbps):
    system = replace(case_study(), egress_bytes_per_s=gbps * GBPS)
    found = throughput(system, Split(threshold_tokens=threshold, prefill=prefill, decode=8 - prefill))
    rate = found.requests_per_s * (1 - 1e-9)
    assert rate * found.offloaded <= found.prfaas_per_s
    assert rate * (1 - found.offloaded) <= found.prefill_per_s or found.offloaded == 1
    assert rate <= found.decode_per_s
    assert found.egress_bytes_per_s <= system.egress_bytes_per_s * (1 + 1e-9)


def test_without_a_prfaas_cluster_nothing_is_offloaded():
    alone = replace(case_study(), prfaas_instances=0)
    assert best(alone, 8).offloaded == 0
    assert throughput(alone, PUBLISHED_SPLIT).requests_per_s == 0, "the long ones find nobody"


@settings(max_examples=20)
@given(st.floats(6, 11), st.floats(0.3, 1.5), st.floats(0.05, 0.95))
def test_the_closed_forms_agree_with_counting(mu, sigma, share):
    lengths = TruncatedLogNormal(mu=mu, sigma=sigma, low_tokens=128, high_tokens=131_072)
    cut = lengths.quantile(share)
    assert lengths.above(cut) == pytest.approx(1 - share, abs=1e-6)
    drawn = [lengths.quantile((i + 0.5) / 4000) for i in range(4000)]
    longer = [tokens for tokens in drawn if tokens > cut]
    assert lengths.mean() == pytest.approx(sum(drawn) / 4000, rel=5e-3)
    assert lengths.mean(cut) == pytest.approx(sum(longer) / len(longer), rel=2e-2)
    whole = lengths.above(cut) * lengths.mean(cut) + (1 - lengths.above(cut)) * lengths.mean(None, cut)
    assert lengths.mean() == pytest.approx(whole, rel=1e-6)


def test_the_closed_forms_agree_with_dice():
    random, drawn = Random(5), []
    while len(drawn) < 40_000:
        tokens = random.lognormvariate(9.9, 1.0)
        if 128 <= tokens <= 131_072:
            drawn.append(tokens)
    assert sum(drawn) / len(drawn) == pytest.approx(LENGTHS.mean(), rel=0.02)
    assert sum(tokens > 19_400 for tokens in drawn) / len(drawn) == pytest.approx(LENGTHS.above(19_400), abs=0.01)
    assert log(LENGTHS.quantile(0.5)) == pytest.approx(log(sorted(drawn)[20_000]), abs=0.02)


def test_the_edges_of_the_distribution():
    assert LENGTHS.above(0) == 1.0
    assert LENGTHS.above(131_072) == LENGTHS.above(1e9) == 0.0
    assert LENGTHS.mean(131_072) == LENGTHS.mean(None, 128) == 0.0


def test_what_is_printed():
    text = render(ROWS)
    assert "3.186 (3.24, -1.7%)" in text
    assert "egress 12.1 Gbps (printed: about 13)" in text
    assert max(map(len, text.splitlines())) <= 100
    lines = render_bandwidths(bandwidths((5,))).splitlines()
    assert lines[1].split() == ["5", "41,800", "5/3", "2.232", "4.99", "1.312", "+70.1%"]

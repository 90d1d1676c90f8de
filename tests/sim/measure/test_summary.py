"""What a summary says, on runs that can be checked by hand and against numpy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homing.sim.measure.records import LinkUse, RequestRecord, WeightedHistogram, WorkerUse
from homing.sim.measure.schema import Slo, Spread
from homing.sim.measure.summary import jain, summarize

from .runs import finished, noisy_run, result

SLO = Slo(ttft_s=1.0, tpot_s=0.05)


@settings(max_examples=30)
@given(st.lists(st.floats(1e-3, 100), min_size=1, max_size=40))
def test_quantiles_are_those_of_numpy(ttfts):
    summary = summarize(result([finished(n, ttft_s=ttft_s) for n, ttft_s in enumerate(ttfts)]), SLO)
    for name, share in (("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99)):
        assert getattr(summary.ttft_s, name) == pytest.approx(np.quantile(ttfts, share))
    assert summary.ttft_s.mean == pytest.approx(np.mean(ttfts))


def test_goodput_counts_who_finished_within_both_slos_by_who_arrived():
    records = [
        finished(0),
        finished(1, ttft_s=1.5),
        finished(2, tpot_s=0.06),
        finished(3, tpot_s=None, output_tokens=1),
        RequestRecord(id="r4", at_s=2.0, outcome="rejected", reason="queue_full"),
        RequestRecord(id="r5", at_s=2.0, outcome="failed", reason="retries_spent", ttft_s=0.1),
    ]
    summary = summarize(result(records, unfinished=2), SLO)
    assert summary.rates.goodput_share == 2 / 8
    assert summary.rates.goodput_per_s == 2 / 10.0
    requests = summary.requests
    assert (requests.arrived, requests.finished, requests.rejected, requests.failed, requests.unfinished) == (
        8,
        4,
        1,
        1,
        2,
    )
    assert requests.reasons == {"queue_full": 1, "retries_spent": 1}


def test_latencies_are_of_who_arrived_within_the_span_and_rates_of_who_finished_within_it():
    records = [
        finished(0, at_s=3.0, ttft_s=1.0, finished_at_s=6.0, output_tokens=7),
        finished(1, at_s=6.0, ttft_s=2.0, finished_at_s=99.0, output_tokens=100),
        finished(2, at_s=10.0, ttft_s=50.0, finished_at_s=60.0),
    ]
    summary = summarize(result(records, from_s=5.0, to_s=10.0), SLO)
    assert summary.requests.arrived == 1
    assert summary.ttft_s.mean == 2.0
    assert (summary.rates.requests_per_s, summary.rates.output_tokens_per_s) == (1 / 5.0, 7 / 5.0)


def test_hits_are_by_tier_and_by_tokens():
    parts = {
        "device_hit_tokens": 40,
        "host_hit_tokens": 20,
        "disk_hit_tokens": 10,
        "moved_tokens": 5,
        "computed_tokens": 25,
    }
    tokens = summarize(result([finished(0, **parts)]), SLO).tokens
    assert (tokens.device_ratio, tokens.host_ratio, tokens.disk_ratio, tokens.moved_ratio) == (0.4, 0.2, 0.1, 0.05)
    assert (tokens.prompt, tokens.saved, tokens.computed, tokens.hit_ratio) == (100, 75, 25, 0.75)


def test_fairness_is_over_the_means_of_groups():
    records = [
        finished(n, ttft_s=ttft_s, origin=origin) for n, (ttft_s, origin) in enumerate([(1, "a"), (3, "a"), (6, "b")])
    ]
    fairness = summarize(result(records), SLO).fairness
    assert fairness["origin"].max_by_min == pytest.approx(3.0)
    assert fairness["origin"].jain == pytest.approx((2 + 6) ** 2 / (2 * (4 + 36)))
    assert fairness["tenant"].jain is None


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20))
def test_jain_lies_between_one_by_n_and_one(values):
    assert 1 / len(values) - 1e-9 <= jain(values) <= 1 + 1e-9
    assert jain([values[0]] * len(values)) == pytest.approx(1.0)
    assert jain([values[0]] + [0.0] * 4) == pytest.approx(0.2)


def test_prediction_is_judged_relative_to_what_was_measured():
    records = [finished(n, ttft_s=1.0, predicted_ttft_s=predicted) for n, predicted in enumerate([0.5, 0.8, 1.1, None])]
    prediction = summarize(result(records), SLO).prediction
    assert prediction.requests == 3
    assert prediction.median_abs == pytest.approx(0.2)
    assert prediction.median == pytest.approx(-0.2)


def test_money_and_pools_add_up():
    workers = [WorkerUse(id=f"w{n}", site="a", roles=((0.0, role),), utilisation=use, gpus=8, dollars=10.0)
               for n, (role, use) in enumerate([("prefill", 0.2), ("prefill", 0.6), ("decode", 1.0)])]  # fmt: skip
    links = [LinkUse(source="a", target="b", bytes=5, dollars=2.0)]
    summary = summarize(result([finished(0, output_tokens=1000)], workers=tuple(workers), links=tuple(links)), SLO)
    assert summary.cost.gpu_hours == pytest.approx(24 * 10 / 3600)
    assert (summary.cost.gpu_dollars, summary.cost.link_dollars) == (30.0, 2.0)
    assert summary.cost.dollars_per_million_output_tokens == pytest.approx(32.0 * 1000)
    assert list(summary.pools) == ["a/decode", "a/prefill"]
    assert summary.pools["a/prefill"].utilisation == pytest.approx(0.4)
    assert [link.bytes for link in summary.links] == [5]


def test_itl_comes_from_the_histogram():
    itl = WeightedHistogram()
    itl.add(0.02, 99)
    itl.add(2.0, 1)
    summary = summarize(result([finished(0)], itl=itl), SLO)
    assert summary.itl_s.p50 == pytest.approx(0.02, rel=0.01)
    assert summary.itl_s.mean == pytest.approx(0.0398)


def test_an_empty_run_has_no_latency_instead_of_a_zero():
    summary = summarize(result(), SLO)
    assert summary.ttft_s == summary.itl_s == Spread()
    assert summary.rates.goodput_share is None
    assert summary.tokens.hit_ratio is None
    assert summary.cost.dollars_per_million_output_tokens is None
    assert summary.origins == {}


def test_a_run_of_one_request_has_it_as_every_quantile():
    summary = summarize(result([finished(0, ttft_s=0.7)]), SLO)
    assert summary.ttft_s == Spread(mean=0.7, p50=0.7, p90=0.7, p95=0.7, p99=0.7)


def test_origins_are_parts_of_the_whole():
    run = noisy_run("homing", 1, 2.0)
    summary = summarize(run, SLO)
    assert sum(origin.arrived for origin in summary.origins.values()) == summary.requests.arrived
    assert sum(origin.finished for origin in summary.origins.values()) == summary.requests.finished
    share = sum(origin.goodput_share * origin.arrived for origin in summary.origins.values())
    assert share / summary.requests.arrived == pytest.approx(summary.rates.goodput_share)


@pytest.mark.parametrize("wrong", [{"from_s": 5.0, "to_s": 5.0}, {"from_s": -1.0}, {"to_s": float("inf")}])
def test_a_span_has_a_length(wrong):
    with pytest.raises(ValueError, match="from_s < to_s"):
        result(**wrong)


@pytest.mark.parametrize("wrong", [{"ttft_s": 0.0}, {"tpot_s": -1.0}])
def test_an_slo_is_a_time(wrong):
    with pytest.raises(ValueError, match="positive"):
        Slo(**({"ttft_s": 1.0, "tpot_s": 1.0} | wrong))

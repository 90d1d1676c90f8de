"""The search for what a deployment sustains, on a worker whose capacity is known, and on the PrfaaS deployments."""

from math import log
from random import Random

import pytest

from homing.sim.prfaas.lengths import TruncatedLogNormal
from homing.sim.prfaas.model import throughput
from homing.sim.prfaas.table6 import LENGTHS, PUBLISHED_SPLIT
from homing.sim.scenario import parse_scenario
from homing.sim.validate.capacity import sustainable_rate, try_rate
from homing.sim.validate.prfaas import PRFAAS, TABLE_6, arrivals_of, best_threshold, mean_time_bound, scenario_of
from homing.sim.validate.strata import STRATA, poisson_like, shares

SERVICE_S = 0.5
REQUESTS = 4 * STRATA


def one_worker(rate_per_s):
    """Prompts of 1000 tokens, 0.5 ms each, one after the other: two a second."""
    return parse_scenario(
        {
            "name": "one",
            "duration_s": REQUESTS / rate_per_s,
            "sites": [{"name": "home"}],
            "workers": [
                {
                    "name": "w",
                    "site": "home",
                    "profile": {"b_s": SERVICE_S / 1000},
                    "kv_tokens": 1_000_000,
                    "requests_max": 1,
                }
            ],
            "workload": {
                "kind": "prompts",
                "block_tokens": 2048,
                "arrivals": {"kind": "poisson", "rate_per_s": rate_per_s},
            },
            "router": {"policy": "least-loaded", "dispatch_s": 0.0, "max_output_tokens": 1},
        }
    )


def prompts(scenario, streams):
    return poisson_like(
        streams.stream("gaps"),
        streams.stream("lengths"),
        rate_per_s=scenario.workload.arrivals.rate_per_s,
        lengths=TruncatedLogNormal(mu=log(1000), sigma=0.01, low_tokens=900, high_tokens=1100),
        output_tokens=1,
        block_tokens=2048,
    )


@pytest.mark.parametrize("bracket", [(1.5, 2.5), (0.9, 1.2), (3.0, 4.0)], ids=["around", "below", "above"])
def test_the_search_finds_what_one_worker_serves(bracket):
    found = sustainable_rate(one_worker, *bracket, resolution=0.02, arrivals_of=prompts)
    assert found.requests_per_s == pytest.approx(1 / SERVICE_S, rel=0.04)
    assert found.stable_per_s < found.unstable_per_s <= 1.02 * found.stable_per_s
    stable = {trial.rate_per_s: trial.is_stable for trial in found.trials}
    assert stable[found.stable_per_s] and not stable[found.unstable_per_s]


def test_what_is_too_much_piles_up():
    trial = try_rate(one_worker(3.0), 3.0, prompts)
    assert trial.growth_per_s == pytest.approx(3.0 - 1 / SERVICE_S, rel=0.03)


def test_brackets_are_checked():
    with pytest.raises(ValueError, match="0 < low < high, got 2 and 1"):
        sustainable_rate(one_worker, 2, 1)


def test_strata_have_the_means_of_their_distribution_soon():
    drawn = shares(Random(1))
    lengths = [LENGTHS.quantile(next(drawn)) for _ in range(5 * STRATA)]
    assert sum(lengths) / len(lengths) == pytest.approx(LENGTHS.mean(), rel=0.005)
    assert all(LENGTHS.low_tokens <= tokens <= LENGTHS.high_tokens for tokens in lengths)


@pytest.mark.parametrize("name", TABLE_6)
def test_mean_times_bound_less_than_times_of_means(name):
    """Times grow faster than lengths: the bound is below the model, by less than the tolerance."""
    deployment = TABLE_6[name]
    split = deployment.split(PUBLISHED_SPLIT.threshold_tokens)
    model = throughput(deployment.system(), split).requests_per_s
    assert 0.95 * model < mean_time_bound(deployment, split.threshold_tokens) < model


def test_the_best_threshold_is_a_best():
    threshold, rate_per_s = best_threshold(PRFAAS)
    for other in (threshold - 500, threshold + 500):
        assert throughput(PRFAAS.system(), PRFAAS.split(other)).requests_per_s < rate_per_s


@pytest.mark.parametrize(("share", "is_stable"), [(0.92, True), (1.12, False)], ids=["below", "above"])
def test_the_case_study_breaks_down_where_it_should(share, is_stable):
    rate_per_s = share * mean_time_bound(PRFAAS, PUBLISHED_SPLIT.threshold_tokens)
    scenario = scenario_of(PRFAAS, rate_per_s, requests=450, policy="prfaas-threshold")
    trial = try_rate(scenario, rate_per_s, arrivals_of)
    assert (trial.growth_per_s < 0.02 * rate_per_s) is is_stable
    assert set(trial.plans) == {"remote"}

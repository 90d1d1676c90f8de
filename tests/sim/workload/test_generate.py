"""Generators: rates, burstiness, popularity and above all which keys are shared."""

from itertools import islice, pairwise
from math import exp
from random import Random
from statistics import fmean, pstdev

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homing.sim.workload.generate.bursty import Gamma, Mmpp, State
from homing.sim.workload.generate.diurnal import Diurnal, Zone
from homing.sim.workload.generate.families import Families
from homing.sim.workload.generate.fanout import Fanout
from homing.sim.workload.generate.lengths import Constant, Empirical, Length, LogNormal, Uniform, Zipf
from homing.sim.workload.generate.poisson import Poisson
from homing.sim.workload.generate.prompts import Prfaas, Prompts
from homing.sim.workload.generate.sessions import Sessions
from homing.sim.workload.keys import KeySpace

DIURNAL = Diurnal(zones=(Zone(site="a", rate_per_s=2), Zone(site="b", rate_per_s=1, utc_offset_h=8)), day_s=1000)
PROCESSES = [Poisson(rate_per_s=3), Gamma(rate_per_s=3, cv=0.5), Gamma(rate_per_s=3, cv=3), Mmpp(), DIURNAL]
WORKLOADS = [
    Prompts(),
    Prfaas(),
    Families(),
    Sessions(system_tokens=100),
    Fanout(stagger_s=1),
    Fanout(join_after_s=None),
]


def generated(workload, count=200, seed=1, label=""):
    moments = islice(workload.arrivals.moments(Random(seed)), count)
    return list(workload.generate(moments, Random(seed + 1), KeySpace("test"), label))


def gaps(process, count):
    times = [at_s for at_s, _ in islice(process.moments(Random(5)), count)]
    return [after - before for before, after in pairwise(times)]


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_processes_go_forward_and_repeat_themselves(process):
    first, again = (list(islice(process.moments(Random(3)), 500)) for _ in range(2))
    assert first == again
    assert first == sorted(first, key=lambda moment: moment[0])
    assert first[0][0] >= 0


@pytest.mark.parametrize(
    ("process", "cv"), [(Poisson(rate_per_s=4), 1), (Gamma(rate_per_s=4, cv=0.5), 0.5), (Gamma(rate_per_s=4, cv=3), 3)]
)
def test_rate_and_burstiness_are_those_asked_for(process, cv):
    found = gaps(process, 40_000)
    assert fmean(found) == pytest.approx(0.25, rel=0.05)
    assert pstdev(found) / fmean(found) == pytest.approx(cv, rel=0.05)


def test_a_modulated_process_has_the_mean_rate_of_its_states():
    process = Mmpp(
        states=(State(rate_per_s=1, mean_s=30), State(rate_per_s=20, mean_s=10), State(rate_per_s=0, mean_s=5))
    )
    found = gaps(process, 60_000)
    assert 1 / fmean(found) == pytest.approx((30 + 200) / 45, rel=0.1)
    assert pstdev(found) / fmean(found) > 1.5


def test_days_follow_the_sun():
    moments = list(islice(DIURNAL.moments(Random(2)), 60_000))
    days = int(moments[-1][0] / 1000)
    for zone in DIURNAL.zones:
        hours = [0] * 24
        for at_s, site in moments:
            if site == zone.site and at_s < days * 1000:
                hours[int((at_s / 1000 * 24 + zone.utc_offset_h) % 24)] += 1
        expected = [
            DIURNAL.rate_per_s(zone, (hour + 0.5 - zone.utc_offset_h) / 24 * 1000) * days * 1000 / 24
            for hour in range(24)
        ]
        assert sum(hours) == pytest.approx(zone.rate_per_s * days * 1000, rel=0.03)
        assert all(abs(seen - rate) < 5 * rate**0.5 + 0.02 * rate for seen, rate in zip(hours, expected, strict=True))
        assert hours[15] > 4 * hours[3], "the peak is in the local afternoon"


@given(st.floats(0, 12), st.floats(0.1, 3), st.integers(1, 10**5), st.integers(1, 10**5), st.integers())
def test_a_truncated_log_normal_stays_inside(mu, sigma, low, width, seed):
    tokens = LogNormal(mu=mu, sigma=sigma, min_tokens=low, max_tokens=low + width).draw(Random(seed))
    assert low <= tokens <= low + width


def test_distributions_have_the_means_they_should():
    random = Random(8)
    wide = LogNormal(mu=6, sigma=0.5, max_tokens=10**6)
    assert fmean(wide.draw(random) for _ in range(20_000)) == pytest.approx(exp(6.125), rel=0.02)
    assert fmean(Uniform(min_tokens=1, max_tokens=9).draw(random) for _ in range(5000)) == pytest.approx(5, rel=0.05)
    seen = Empirical(tokens=(10, 20), weights=(3, 1))
    assert fmean(seen.draw(random) for _ in range(5000)) == pytest.approx(12.5, rel=0.05)
    assert Constant(tokens=7).draw(random) == 7
    ranks = [Zipf(3, 1.0).draw(random) for _ in range(20_000)]
    assert [ranks.count(rank) / 20_000 for rank in range(3)] == pytest.approx([6 / 11, 3 / 11, 2 / 11], abs=0.02)


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ({"kind": "uniform", "min_tokens": 5, "max_tokens": 4}, "expected at least min_tokens 5, got 4"),
        ({"kind": "lognormal", "mu": 1, "sigma": 1, "min_tokens": 9, "max_tokens": 9}, "more than min_tokens 9"),
        ({"kind": "empirical", "tokens": [1], "weights": [1, 2]}, "one for each of 1 lengths, not all 0, got 2"),
        ({"kind": "empirical", "tokens": []}, "length >= 1"),
        ({"kind": "constant", "tokens": 1, "mean": 3}, "unknown field `mean`"),
    ],
)
def test_distributions_that_cannot_be(section, problem):
    with pytest.raises(msgspec.ValidationError, match=problem):
        msgspec.convert(section, type=Length)


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: type(workload).__name__)
def test_arrivals_are_in_order_unique_and_keyed(workload):
    arrivals = generated(workload, label="x.")
    assert [a.at_s for a in arrivals] == sorted(a.at_s for a in arrivals)
    assert len({a.id for a in arrivals}) == len(arrivals) >= 200
    assert all(a.id.startswith("x.") for a in arrivals)
    assert all(len(a.keys) == a.prompt_tokens // a.block_tokens for a in arrivals)
    assert all(len(set(a.keys)) == len(a.keys) for a in arrivals)
    assert arrivals == generated(workload, label="x."), "I5"


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: type(workload).__name__)
def test_equal_keys_mean_equal_prefixes(workload):
    """A key has one predecessor, in prompts and in answers."""
    before = {}
    for arrival in generated(workload, 60):
        chain = arrival.keys + arrival.answer_keys
        for parent, key in zip((None, *chain), chain, strict=False):
            assert before.setdefault(key, parent) == parent


def test_generators_are_lazy():
    endless = Sessions().generate(Poisson().moments(Random(1)), Random(2), KeySpace("test"), "")
    assert len(list(islice(endless, 100))) == 100


def test_prompts_share_nothing():
    keys = [key for arrival in generated(Prompts()) for key in arrival.keys]
    assert len(set(keys)) == len(keys)


def test_the_case_study_of_prfaas():
    """Mean of about 27K tokens, and 49.6 % above 19.4K (section 4.2)."""
    random, lengths = Random(4), Prfaas().input
    drawn = [lengths.draw(random) for _ in range(50_000)]
    assert fmean(drawn) == pytest.approx(27_486, rel=0.015)
    assert sum(tokens > 19_400 for tokens in drawn) / len(drawn) == pytest.approx(0.496, abs=0.01)
    assert min(drawn) >= 128 and max(drawn) <= 131_072
    assert {arrival.output_tokens for arrival in generated(Prfaas(), 20)} == {1024}


def test_families_share_their_prefix_and_nothing_else():
    workload = Families(
        families=10, zipf=1.0, prefix=Constant(tokens=1000), suffix=Constant(tokens=100), block_tokens=16
    )
    arrivals = generated(workload, 3000)
    families = [arrival.keys[0] for arrival in arrivals]
    assert len(set(families)) == 10
    popular = max(families.count(family) for family in set(families))
    assert popular / 3000 == pytest.approx(1 / sum(1 / rank for rank in range(1, 11)), abs=0.04)
    own = [key for arrival in arrivals for key in arrival.keys[1000 // 16 :]]
    assert len(set(own)) == len(own)
    assert len({arrival.keys[: 1000 // 16] for arrival in arrivals}) == 10


def test_a_hot_spot_moves():
    arrivals = generated(Families(families=50, zipf=3.0, shift_every_s=100.0, shift_by=7), 400)

    def favourite(begin_s):
        first = [a.keys[0] for a in arrivals if begin_s <= a.at_s < begin_s + 100]
        return max(set(first), key=first.count)

    assert len({favourite(begin_s) for begin_s in (0, 100, 200)}) == 3


def test_a_conversation_goes_on_where_it_stopped():
    arrivals = generated(Sessions(system_tokens=300, turns_mean=4, context_tokens=20_000), 300)
    last, turns = {}, 0
    for arrival in arrivals:
        assert len(arrival.keys + arrival.answer_keys) == (arrival.prompt_tokens + arrival.output_tokens) // 16
        before = last.get(arrival.session)
        if before is not None:
            said = before.keys + before.answer_keys
            assert arrival.keys[: len(said)] == said, "the answer's blocks are found by the next prompt"
            assert arrival.prompt_tokens > before.prompt_tokens + before.output_tokens
            assert arrival.at_s >= before.at_s + 0.02 * before.output_tokens
            turns += 1
        last[arrival.session] = arrival
    assert len(last) == 300
    assert 1 + turns / 300 == pytest.approx(4, rel=0.15)
    assert len({a.keys[: 300 // 16] for a in arrivals}) == 1, "the system prompt"
    assert len({a.keys[300 // 16] for a in last.values() if len(a.keys) > 300 // 16}) > 290


def test_what_waits_is_what_is_under_way():
    """A conversation that has ended is forgotten: memory does not grow with the length of the workload."""
    workload = Sessions(arrivals=Poisson(rate_per_s=1), turns_mean=3, think_mean_s=5)
    arrivals = generated(workload, 500)
    ends = {}
    for arrival in arrivals:
        ends[arrival.session] = arrival.at_s
    assert max(ends.values()) < arrivals[-1].at_s + 1
    assert len(ends) == 500


@pytest.mark.parametrize("join_after_s", [None, 5.0])
def test_siblings_share_the_context(join_after_s):
    workload = Fanout(siblings=6, stagger_s=0.5, join_after_s=join_after_s)
    tasks = {}
    for arrival in generated(workload, 30):
        tasks.setdefault(arrival.session, []).append(arrival)
    assert len(tasks) == 30
    for parent, *rest in tasks.values():
        siblings, joins = rest[:6], rest[6:]
        assert 16_384 <= parent.prompt_tokens <= 32_768
        assert all(other.keys[: len(parent.keys)] == parent.keys for other in rest)
        assert all(parent.at_s + 10 <= sibling.at_s <= parent.at_s + 10.5 for sibling in siblings)
        own = [key for other in rest for key in other.keys[len(parent.keys) :]]
        assert len(set(own)) == len(own)
        assert len(joins) == (join_after_s is not None)
        for join in joins:
            assert join.prompt_tokens == parent.prompt_tokens + sum(sibling.output_tokens for sibling in siblings)


@settings(max_examples=20)
@given(st.integers(1, 64), st.integers())
def test_any_block_size_will_do(block_tokens, seed):
    for workload in (Families(block_tokens=block_tokens), Sessions(block_tokens=block_tokens)):
        for arrival in generated(workload, 5, seed):
            assert len(arrival.keys) == arrival.prompt_tokens // block_tokens


def test_sites_become_origins():
    arrivals = generated(Sessions(arrivals=DIURNAL), 50)
    assert {arrival.origin for arrival in arrivals} == {"a", "b"}
    assert len({(arrival.session, arrival.origin) for arrival in arrivals}) == 50

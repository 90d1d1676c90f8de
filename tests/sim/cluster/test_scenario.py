"""A scenario file that cannot be meant is refused: the error names the path, the rule and what was found."""

import pytest
import yaml

from homing.router.core.errors import ConfigError
from homing.sim.cluster.building import model_profiles
from homing.sim.scenario import load_scenario, parse_scenario

from .worlds import arrival, document, link, run, worker

TWO = [worker("w", "home", count=2), worker("v", "away", role="decode")]


def two(**keys):
    return document(*TWO, **{"links": [link("home", "away")]} | keys)


def fault(**keys):
    return two(faults=[{"at_s": 1.0} | keys])


def test_a_whole_scenario_is_read(tmp_path):
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(fault(kind="crash", worker="w-2", for_s=3.0)), encoding="utf-8")
    scenario = load_scenario(path)
    assert [section.name for section in scenario.workers] == ["w", "v"]
    assert scenario.faults[0].worker == "w-2"
    pairs = [(spec.source, spec.target, spec.rtt_s) for spec in scenario.links[0].specs()]
    assert pairs == [("home", "away", 0.05), ("away", "home", 0.05)]


CONTRADICTIONS = {
    "models: at least one": two(models=[]),
    "models: 'm' is listed 2 times": two(models=[{"name": "m", "bytes_per_token": 1}] * 2),
    "models[0]: some workers of a model decode, with the role both or decode; found 1 groups": document(
        worker(role="prefill")
    ),
    "models[1]: some workers of a model decode, with the role both or decode; found none": two(
        models=[{"bytes_per_token": 1}, {"name": "other", "bytes_per_token": 1}]
    ),
    "sites: at least one": document(sites=[]),
    "sites: 'home' is listed 2 times": document(sites=[{"name": "home"}] * 2),
    "workers: at least one": two(workers=[]),
    "workers: 'w' is listed 2 times": document(worker(), worker()),
    "workers[1].site: no site is named 'mars'; known are away, home": two(workers=[TWO[0], worker("x", "mars")]),
    "workers[0].model: no model is named 'gpt'; known are model": document(worker(model="gpt"), worker("v")),
    "workers[0].kv_tokens: at least one block of workload.block_tokens 16 must fit; found 15": document(
        worker(kv_tokens=15)
    ),
    "links[0].target: no site is named 'mars'": document(*TWO, links=[link("home", "mars")]),
    "links: none leads from away to home": document(*TWO, links=[link("home", "away", both_ways=False)]),
    "links[1]: away to home is links[0] already": document(*TWO, links=[link("home", "away"), link("away", "home")]),
    "links[0]: link home -> away: loss: expected at most 0.15 under bbr": document(
        *TWO, links=[link("home", "away", loss=0.3)]
    ),
    "links[0]: link home -> away: capacity: expected": document(
        *TWO, links=[link("home", "away", capacity=[[5, 1], [2, 0]])]
    ),
    "router.site: no site is named 'mars'": two(router={"site": "mars"}),
    "router.report_lag_s: must be less than lost_after_s, which is 5.0": two(router={"report_lag_s": 5}),
    "warmup_s: must end before duration_s, which is 60.0; found 60.0": two(duration_s=60, warmup_s=60),
    "faults[0].worker: none is named 'w-3'; they are named after their group, from v-1 to w-2": fault(
        kind="crash", worker="w-3"
    ),
    "faults[0].worker: none is named 'w'": fault(kind="slow", worker="w", factor=2),
    "faults[0].site: worker 'w-1' is named already": fault(kind="crash", worker="w-1", site="home"),
    "faults[0].site: no worker stands in 'mars'": fault(kind="crash", site="mars"),
    "faults[0].site: a site fault names a site": fault(kind="site"),
    "faults[0].factor: a slow worker takes more than 1 times as long; found 0.5": fault(kind="slow", factor=0.5),
    "faults[0]: a link fault names the source and target of a link; found 'home' and None": fault(
        kind="link", source="home"
    ),
    "faults[0]: a link fault names the source and target of a link; found 'home' and 'home'": fault(
        kind="link", source="home", target="home"
    ),
    "faults[0].worker: a link fault takes factor, source, target; leave it out": fault(
        kind="link", source="home", target="away", worker="w-1"
    ),
    "faults[0].factor: a crash fault takes site, worker; leave it out": fault(kind="crash", factor=2),
    "faults[0].site: a router fault takes none of these; leave it out": fault(kind="router", site="home"),
    "faults[0].for_s: a router begins anew at once": fault(kind="router", for_s=3),
}


@pytest.mark.parametrize("expected", CONTRADICTIONS)
def test_contradictions(expected):
    with pytest.raises(ConfigError) as caught:
        parse_scenario(CONTRADICTIONS[expected], where="two.yaml")
    assert str(caught.value).startswith(f"two.yaml: {expected}")


@pytest.mark.parametrize(
    ("wrong", "path"),
    [
        (two(color="red"), "color"),
        (two(workers=[worker("w", "home", kv_token=5)]), "$.workers[0]"),
        (two(workers=[TWO[0], worker("v", "away", kv_tokens=0)]), "$.workers[1].kv_tokens"),
        (two(workers=[worker("w", "home", role="boss")]), "$.workers[0].role"),
        (two(workers=[worker("w", "home", profile={"b_s": 0})]), "$.workers[0].profile.b_s"),
        (two(workers=[worker("bad name", "home")]), "$.workers[0].name"),
        (two(links=[link("home", "away", rtt_s=-1)]), "$.links[0].rtt_s"),
        (two(links=[link("home", "away", congestion="reno")]), "$.links[0].congestion"),
        (two(router={"queue_max": 0}), "$.router.queue_max"),
        (two(router={"kv_events": {"loss": 2}}), "$.router.kv_events.loss"),
        (two(slo={"ttft_s": 0}), "$.slo.ttft_s"),
        (fault(kind="flood"), "$.faults[0].kind"),
        (fault(kind="crash", for_s=0), "$.faults[0].for_s"),
        (two(workload={"kind": "prompt"}), "$.workload.kind"),
        (two(workload={"kind": "prompts", "limit": 0}), "$.workload.limit"),
        ([1, 2], "expected"),
        (None, "expected"),
    ],
)
def test_bad_values_name_their_path(wrong, path):
    with pytest.raises(ConfigError) as caught:
        parse_scenario(wrong, where="two.yaml")
    assert str(caught.value).startswith("two.yaml: ")
    assert path.lower() in str(caught.value).lower()


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_scenario(tmp_path / "none.yaml")
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load_scenario(path)
    path.write_text("a: [", encoding="utf-8")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_scenario(path)


def test_a_model_needs_a_size():
    for section, expected in (
        ({}, r"models\[0\]: give a shape, or bytes_per_token"),
        ({"shape": "gpt-9"}, r"models\[0\]\.shape: model: no shape is named 'gpt-9'"),
    ):
        with pytest.raises(ConfigError, match=expected):
            model_profiles(parse_scenario(document(models=[section])))
    known = model_profiles(parse_scenario(document(models=[{"shape": "llama-3.1-70b", "layers": 7}])))[0]
    assert (known.layers, known.bytes_per_token) == (7, 327_680)


def test_a_run_ends_with_its_duration():
    """What arrives later is not asked for; what is out is answered."""
    scenario = document(duration_s=2.0)
    made, records = run(scenario, [arrival("a"), arrival("b", 1.9, output=100), arrival("c", 2.1)])
    assert set(records) == {"a", "b"}
    result = made.result()
    assert (result.from_s, result.unfinished) == (0.0, 0)

import pytest

from homing.router.core.errors import ConfigError
from homing.router.core.policies import POLICIES
from homing.sim.experiments.compare import compare, experiments
from homing.sim.experiments.executors import executor

SHORT = {"duration_s": 15}


def records(results):
    return [(result.policy, result.seed, list(result.log)) for result in results]


def test_results_come_in_the_order_asked_on_however_many_cores():
    asked = experiments("smoke", ["homing", "random"], [1, 0], SHORT)
    told = []
    alone = compare(asked, processes=1, done=lambda result, done, of: told.append((done, of)))
    assert [(r.policy, r.seed) for r in alone] == [("homing", 1), ("homing", 0), ("random", 1), ("random", 0)]
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert records(compare(asked, processes=3)) == records(alone)


def test_all_stands_for_every_policy_and_each_is_named_once():
    asked = experiments("smoke", ["random", "all"], [0, 0])
    assert [one.scenario.router.policy for one in asked] == ["random", *(name for name in POLICIES if name != "random")]


def test_options_are_those_of_the_policy_in_the_file():
    options = {"router.policy": "gorgo", "router.options": {"rtt_weight": 0.5}}
    found = {
        one.scenario.router.policy: one.scenario.router.options
        for one in experiments("smoke", ["gorgo", "homing"], [0], options)
    }
    assert found == {"gorgo": {"rtt_weight": 0.5}, "homing": {}}


@pytest.mark.parametrize(
    ("policies", "seeds", "message"),
    [
        (["homing", "fastest"], [0], "--policies: unknown policy 'fastest'; known are all, dynamo-kv"),
        ([], [0], "expected at least one of each"),
        (["homing"], [], "expected at least one of each"),
    ],
)
def test_what_cannot_be_compared_is_told(policies, seeds, message):
    with pytest.raises(ConfigError, match=message):
        experiments("smoke", policies, seeds)


def test_a_run_that_fails_ends_the_others(tmp_path):
    (tmp_path / "t.jsonl").write_text("{}\n")
    asked = experiments(
        "smoke", ["homing"], [0, 1], {"workload": {"kind": "mooncake", "path": str(tmp_path / "t.jsonl")}}
    )
    with pytest.raises(ConfigError, match=r"smoke\.yaml: .*t\.jsonl:1: "):
        compare(asked, processes=2)


@pytest.mark.parametrize("address", ["ray://127.0.0.1:1", "dask://127.0.0.1:1"])
def test_a_cluster_needs_its_package(address):
    package = {"ray": "ray", "dask": "distributed"}[address.partition(":")[0]]
    try:
        __import__(package)
    except ImportError:
        message = f"needs the package {package}, which is not installed; pip install"
        with pytest.raises(ConfigError, match=message), executor(address):
            pass
    else:
        pytest.skip(f"{package} is installed here")


def test_an_address_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="expected ray://host:port or dask://host:port"), executor("spark://x"):
        pass

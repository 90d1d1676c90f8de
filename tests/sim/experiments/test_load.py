import msgspec
import pytest
import yaml

from homing.router.core.errors import ConfigError
from homing.sim.experiments.document import override, read_document
from homing.sim.experiments.load import FOLDER, load, prepare, read_scenario, scenario_names, scenario_path

SMOKE = FOLDER / "smoke.yaml"


@pytest.mark.parametrize("name", scenario_names())
def test_every_scenario_that_ships_is_one_and_says_what_it_is_about(name):
    experiment = load(name)
    assert experiment.scenario.name == name
    assert 60 < len(experiment.scenario.about) < 400
    assert experiment.scenario.workload.block_tokens >= 16


def saved(tmp_path, **changes):
    path = tmp_path / "mine.yaml"
    path.write_text(
        yaml.safe_dump(override(read_document(SMOKE), {k.replace("__", "."): v for k, v in changes.items()}))
    )
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"router.policy": "best"}, r"mine\.yaml: router\.policy: unknown policy 'best'; known are dynamo-kv, gorgo"),
        ({"router.options": {"x": 1}}, r"mine\.yaml: router\.options\.x: homing has no such option"),
        ({"router.polcy": "x"}, r"mine\.yaml: .*polcy.*router"),
        ({"workers[0].kv_tokens": -1}, r"mine\.yaml: .*kv_tokens"),
        ({"workers[0].profile": "h100"}, r"mine\.yaml: workers\[0\]: profile: no profile is named 'h100'; there are"),
        (
            {"workers[0].profile": "prfaas-1t_h200"},
            r"workers\[0\]: role: the profile prfaas-1t_h200 has no decode times",
        ),
        ({"workers[0].profile": "gone.json"}, r"workers\[0\]: .*gone\.json: cannot be read"),
        ({"models[0].shape": "llama-9"}, r"mine\.yaml: .*no shape is named 'llama-9'"),
        ({"duration_s": None}, r"mine\.yaml: duration_s: the workload has no end of its own"),
        (
            {"workload": {"kind": "mooncake", "path": "no.jsonl"}},
            r"workload\.path: expected a file, found none at .*no",
        ),
        (
            {"workload": {"kind": "merge", "parts": [{"kind": "prompts", "block_tokens": 64}]}},
            r"workload\.parts\[0\]\.block_tokens: expected 16, that of the whole, got 64",
        ),
    ],
)
def test_what_is_wrong_is_told_before_anything_runs(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        prepare(read_document(SMOKE), tmp_path / "mine.yaml", changes)


def test_a_name_that_is_none_lists_those_there_are():
    with pytest.raises(ConfigError, match=r"none that ships is named 'nope'; there are .*smoke"):
        scenario_path("nope")


def test_a_merge_ends_when_all_of_its_parts_do(tmp_path):
    ends, endless = {"kind": "prompts", "limit": 5}, {"kind": "prompts"}

    def prepared(*parts):
        merged = {"kind": "merge", "parts": list(parts)}
        return prepare(read_document(SMOKE), SMOKE, {"duration_s": None, "workload": merged})

    prepared(ends, ends)
    with pytest.raises(ConfigError, match="has no end of its own"):
        prepared(ends, endless)


def test_the_sweep_section_is_no_part_of_the_scenario(tmp_path):
    path = saved(tmp_path, sweep={"seed": [1, 2]})
    assert read_scenario(str(path))[1] == {"seed": [1, 2]}
    assert load(str(path)).scenario == load("smoke").scenario
    with pytest.raises(ConfigError, match=r"mine\.yaml: sweep: expected paths with lists"):
        read_scenario(str(saved(tmp_path, sweep=[1])))


def test_profiles_are_found_beside_the_scenario(tmp_path, monkeypatch):
    profile = {
        "name": "p",
        "prefill": {"kind": "linear", "a_s": 0.01, "b_s": 1e-4},
        "decode": {"kind": "linear", "a_s": 0.02},
    }
    (tmp_path / "p.json").write_bytes(msgspec.json.encode(profile))
    path = saved(tmp_path, **{"workers[0].profile": "p.json"})
    monkeypatch.chdir("/")
    assert load(str(path)).files() == [tmp_path / "p.json"]


def test_the_digest_is_of_what_determines_a_result(tmp_path):
    trace = tmp_path / "t.jsonl"
    trace.write_text('{"timestamp": 0, "input_length": 100, "output_length": 2}\n')
    path = saved(tmp_path, workload={"kind": "mooncake", "path": "t.jsonl"})
    first = load(str(path)).digest()
    assert load(str(path)).digest() == first
    assert load(str(path), {"seed": 1}).digest() != first
    assert load(str(path), {"slo.ttft_s": 9}).digest() != first
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for file in (trace, path):
        (elsewhere / file.name).write_bytes(file.read_bytes())
    assert load(str(elsewhere / path.name)).digest() == first, "where it lies does not matter"
    trace.write_text('{"timestamp": 1, "input_length": 100, "output_length": 2}\n')
    assert load(str(path)).digest() != first, "what is in the trace does"


def test_notes_tell_what_was_changed():
    notes = load("smoke", {"router.policy": "random", "seed": 3, "workers[0].count": 3}).notes
    assert notes[0].startswith("workload: sessions")
    assert notes[1:] == ("workers[0].count = 3",)

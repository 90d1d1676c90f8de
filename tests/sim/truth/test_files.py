"""Profile files: what is read, what is refused, and what comes back as it was written."""

import json
from pathlib import Path

import pytest

from homing.router.core.errors import ConfigError
from homing.sim.truth import load_profile, parse_profile, profile_names
from homing.sim.truth.files import profile_path, read_file, write_file

ROOT = Path(__file__).resolve().parents[3]

INLINE = {
    "name": "toy",
    "prefill": {"kind": "linear", "a_s": 0.01, "b_s": 1e-4},
    "decode": {"kind": "linear", "a_s": 0.02},
}


def test_a_profile_may_be_written_in_place():
    profile = parse_profile(INLINE, "fast.yaml: workers[0].profile")
    assert (profile.name, profile.gpus, profile.decodes) == ("toy", 1, True)
    assert profile.prefill_s(0, 100) == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"speed": 1}, "here: Object contains unknown field `speed`"),
        ({"prefill": {"kind": "cubic"}}, r"here: Invalid value 'cubic' - at `\$.prefill.kind`"),
        ({"prefill": {"kind": "linear", "a_s": -1.0, "b_s": 1.0}}, r"here: Expected `float` >= 0.*prefill.a_s"),
        ({"prefill": {"kind": "linear", "a_s": 1.0, "b_s": 0.0}}, "here: prefill: expected a_s and q_s of at least 0"),
        ({"decode": {"kind": "linear", "a_s": 0.0}}, "here: decode: expected a_s above 0"),
        ({"decode": {"kind": "table", "points": [[1, 2, 3.0]]}}, "here: decode: expected two batches"),
        ({"name": ""}, r"here: Expected `str` of length >= 1 - at `\$.name`"),
    ],
)
def test_what_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        parse_profile(INLINE | change, "here")


def test_files_that_are_no_profiles(tmp_path):
    path = tmp_path / "mine.json"
    with pytest.raises(ConfigError, match=r"mine.json: cannot be read: No such file"):
        load_profile(path)
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"mine.json: is not JSON"):
        load_profile(path)
    path.write_text(json.dumps({"name": "x"}))
    with pytest.raises(ConfigError, match=r"mine.json: Object missing required field `prefill`"):
        load_profile(str(path))
    with pytest.raises(ConfigError, match=r"no profile is named 'h100'; there are .*path that ends in .json"):
        load_profile("h100")


@pytest.mark.parametrize("name", profile_names())
def test_a_written_file_says_the_same(name, tmp_path):
    file = read_file(profile_path(name))
    write_file(file, tmp_path / "copy.json")
    assert read_file(tmp_path / "copy.json") == file
    assert load_profile(tmp_path / "copy.json").prefill_s(100, 5000) == load_profile(name).prefill_s(100, 5000)


def test_where_nothing_can_be_written(tmp_path):
    file = read_file(profile_path("prfaas-1t_h20"))
    with pytest.raises(ConfigError, match=r"ends in \.json"):
        write_file(file, tmp_path / "copy.yaml")
    with pytest.raises(ConfigError, match="cannot be written: No such file"):
        write_file(file, tmp_path / "nowhere" / "copy.json")


def test_the_tables_are_the_published_ones():
    """Against the tables as they were exported, where those are at hand."""
    exported = sorted((ROOT.parent / "shared" / "facts" / "profiles").glob("*_vllm.json"))
    if not exported:
        pytest.skip("the exported tables of AIConfigurator are not here")
    assert len(exported) == 13
    for path in exported:
        table, file = json.loads(path.read_text()), read_file(profile_path(path.stem.removesuffix("_vllm")))
        assert [[n, pytest.approx(1e3 * s)] for n, s in file.prefill.points] == table["prefill_ms"]
        assert [[n, c, pytest.approx(1e3 * s)] for c, n, s in file.prefill.cached_points] == table["prefill_prefix_ms"]
        assert [[b, c, pytest.approx(1e3 * s)] for b, c, s in file.decode.points] == table["decode_step_ms"]
        assert file.gpus == table["tp"]

from copy import deepcopy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homing.router.core.errors import ConfigError
from homing.sim.experiments.document import override, parse_override, parse_yaml, read_document
from homing.sim.experiments.grid import check_grid, parse_axis, points

keys = st.sampled_from(["a", "b", "c_s"])
scalars = st.integers(-5, 5) | st.booleans() | st.none() | st.text("xyz", max_size=3)
documents = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=12
)


def places(document, path=""):
    """Every path of a document, and what stands there."""
    if path:
        yield path, document
    if isinstance(document, dict):
        for key, value in document.items():
            yield from places(value, f"{path}.{key}".lstrip("."))
    if isinstance(document, list):
        for number, value in enumerate(document):
            yield from places(value, f"{path}[{number}]")


@given(document=st.dictionaries(keys, documents, min_size=1), data=st.data(), value=scalars)
def test_an_override_changes_its_place_and_nothing_else(document, data, value):
    before = deepcopy(document)
    path, old = data.draw(st.sampled_from(list(places(document))))
    changed = override(document, {path: value})
    assert document == before, "the original is left alone"
    assert dict(places(changed))[path] == value
    assert override(changed, {path: old}) == before


def test_a_star_stands_for_every_entry():
    document = {"links": [{"rtt_s": 1}, {"rtt_s": 2}, {}]}
    assert override(document, {"links[*].rtt_s": 5})["links"] == [{"rtt_s": 5}] * 3
    assert override(document, {"links[1].rtt_s": 5})["links"] == [{"rtt_s": 1}, {"rtt_s": 5}, {}]


def test_mappings_on_the_way_are_made():
    assert override({}, {"router.kv_events.lag_s": 1}) == {"router": {"kv_events": {"lag_s": 1}}}
    assert override({"router": None}, {"router.policy": "random"}) == {"router": {"policy": "random"}}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("links[3].rtt_s", r"links\[3\]\.rtt_s: there are 1 entries, numbered from 0; got \[3\]"),
        ("links.rtt_s", "links.rtt_s: 'rtt_s' is a key, and what stands there has none"),
        ("name[0]", r"name\[0\]: expected a list where \[0\] is, got 'x'"),
        ("links[*].rtt_s.x", "links.*'x' is a key, and what stands there has none: 1"),
        ("links[-1]", r"is no step of one"),
        (".name", r"is no step of one"),
        ("a b", r"' b' is no step of one"),
    ],
)
def test_a_path_that_leads_nowhere_is_named(path, message):
    with pytest.raises(ConfigError, match=message):
        override({"name": "x", "links": [{"rtt_s": 1}]}, {path: 0})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e9", 1_000_000_000),
        ("1.5e-3", 0.0015),
        ("-2E+2", -200),
        (".5e1", 5),
        ("1.0e+9", 1_000_000_000),
        ("12", 12),
        ("0.25", 0.25),
        ("true", True),
        ("", None),
        ("least-loaded", "least-loaded"),
        ("1e", "1e"),
        ("e9", "e9"),
        ("[1e3, x]", [1000, "x"]),
        ("{kind: link, at_s: 1e2}", {"kind": "link", "at_s": 100}),
    ],
)
def test_values_are_read_as_people_write_them(text, value):
    path, found = parse_override(f"some.path={text}")
    assert (path, found, type(found)) == ("some.path", value, type(value))


@pytest.mark.parametrize("text", ["router.policy", "=1", "  =1"])
def test_an_override_without_path_or_value_is_refused(text):
    with pytest.raises(ConfigError, match="expected path=value"):
        parse_override(text)


def test_yaml_that_is_none_names_its_place(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("a: [1\nb: 2\n")
    with pytest.raises(ConfigError, match=r"bad\.yaml: is not YAML: .*line 2"):
        read_document(path)
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ConfigError, match=r"bad\.yaml: is not UTF-8"):
        read_document(path)
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read: No such file"):
        read_document(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="here: is not YAML"):
        parse_yaml("a: b: c", where="here")


def test_a_grid_is_every_combination_in_the_order_given():
    grid = dict(
        map(parse_axis, ["links[0].bytes_per_s=1e8,1e9", "router.policy=homing,random", "x=[1,2],{a: 3, b: 4}"])
    )
    found = list(points(grid))
    assert len(found) == 8
    assert found[0] == {"links[0].bytes_per_s": 10**8, "router.policy": "homing", "x": [1, 2]}
    assert found[1]["x"] == {"a": 3, "b": 4}
    assert [point["router.policy"] for point in found] == ["homing", "homing", "random", "random"] * 2


def test_a_grid_that_nobody_can_mean_is_refused():
    with pytest.raises(ConfigError, match="1,000,000 combinations"):
        next(points({"a": range(1000), "b": range(1000)}))
    with pytest.raises(ConfigError, match=r"f\.yaml: sweep\.seed: expected at least one value"):
        check_grid({"seed": []}, "f.yaml: sweep")
    assert check_grid({"seed": 3, "router.policy": ["a"]}, "") == {"seed": [3], "router.policy": ["a"]}
    for text in ("seed", "seed=", "=1"):
        with pytest.raises(ConfigError, match="expected path=value,value"):
            parse_axis(text)

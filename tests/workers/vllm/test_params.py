"""What requests and operators write: what is right is read, what is wrong is told and moves nothing."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homing.workers.vllm.params import Source, Transfer, handle, read_params
from homing.workers.vllm.settings import ConnectorSettings, host_and_port

GOOD = {"address": "10.0.0.1:9000", "block_first": 2, "block_end": 5}


def test_a_request_names_its_sources():
    raw = {"sources": [GOOD, {**GOOD, "kind": "ship", "timeout_s": 2}], "publish": {"lease_s": 60}, "ticket": "t1"}
    params = read_params({"homing": raw, "other": 1})
    assert params.ignored == ""
    assert (params.lease_s, params.ticket) == (60.0, "t1")
    assert params.sources == (
        Source(address="10.0.0.1:9000", first=2, end=5),
        Source(address="10.0.0.1:9000", first=2, end=5, ships=True, timeout_s=2.0),
    )


@pytest.mark.parametrize("raw", [None, {}, {"do_remote_decode": True}, {"homing": None}, [], "x", 3])
def test_other_connectors_params_are_none_of_ours(raw):
    assert read_params(raw) == read_params(None)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"address": "nowhere"}, "host:port"),
        ({"address": "h:99999"}, "host:port"),
        ({"address": 7}, ""),
        ({"block_first": 5}, "first < end"),
        ({"block_first": -1}, "first < end"),
        ({"block_end": "9"}, "whole numbers"),
        ({"kind": "beam"}, "fetch"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": "soon"}, ""),
    ],
)
def test_a_source_that_cannot_be_read_moves_nothing(change, told):
    params = read_params({"homing": {"sources": [{**GOOD, **change}]}})
    assert params.sources == ()
    assert told in params.ignored
    assert params.ignored


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["sources", "publish", "lease_s", "ticket", "address", "kind"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(json_values)
def test_no_request_can_raise(raw):
    read_params({"homing": raw})
    read_params(raw)


def test_an_answer_is_json():
    transfer = Transfer(address="a:1", bytes=7, blocks=1, seconds=0.5, flowing_s=0.4, rtt_s=0.01, complete=True)
    told = handle(
        address="b:2",
        block_tokens=32,
        held_blocks=3,
        loaded_blocks=1,
        computed_from_tokens=32,
        transfers=[transfer],
        ignored="",
    )
    own = json.loads(json.dumps(told))["homing"]
    assert own["transfers"] == [
        {
            "address": "a:1",
            "bytes": 7,
            "blocks": 1,
            "seconds": 0.5,
            "flowing_s": 0.4,
            "rtt_s": 0.01,
            "complete": True,
            "reason": "",
        }
    ]
    assert "ignored" not in own


def test_options_have_units_and_defaults():
    assert ConnectorSettings.read({}) == ConnectorSettings()
    read = ConnectorSettings.read(
        {"listen": "0.0.0.0:7000", "store_bytes": 10, "pull_timeout_s": 3, "congestion": "bbr"}
    )
    assert (read.listen, read.store_bytes, read.pull_timeout_s, read.congestion) == ("0.0.0.0:7000", 10, 3.0, "bbr")
    assert ConnectorSettings.read({"congestion": None}).congestion is None


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"listne": "x:1"}, "'listne' is no option"),
        ({"listen": "x"}, "host:port"),
        ({"store_bytes": "4GiB"}, "must be of type int"),
        ({"store_bytes": True}, "must be of type int"),
        ({"store_bytes": 0}, "store_bytes"),
        ({"idle_timeout_s": -1}, "idle_timeout_s"),
        ({"congestion": 3}, "must be of type str"),
    ],
)
def test_options_that_make_no_sense_are_named(options, told):
    with pytest.raises(ValueError, match=told):
        ConnectorSettings.read(options)


@pytest.mark.parametrize(("text", "parts"), [("h:1", ("h", 1)), ("[::1]:2", ("::1", 2)), ("1.2.3.4:0", ("1.2.3.4", 0))])
def test_addresses(text, parts):
    assert host_and_port(text) == parts

"""The configuration file: what is wrong is said with its path, the rule and what was found."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homing.router.core.errors import ConfigError
from homing.router.core.limits import Limits
from homing.router.core.policies import POLICIES
from homing.router.core.topology import Topology
from homing.router.core.types import Site
from homing.router.service.config import Config, load_config, parse_config

EXAMPLES = sorted((Path(__file__).parents[3] / "examples").glob("*.yaml"))

LINK = "links: [{{source: a, target: b, bytes_per_s: 1000, rtt_s: 0.1, {}}}]"
WORKER = "workers: [{{id: w, site: s, model: m, source: x, {}}}]"

WRONG = {
    # not the shape of a file
    "[1]": "file: expected `object`, got `array`",
    "3": "file: expected `object`, got `int`, got 3",
    "router:": "router: expected `object`, got `null`",
    "links: {a: 1}": "links: expected `array`, got `object`",
    "links: [3]": "links[0]: expected `object`, got `int`, got 3",
    # keys
    "rooter: {}": "rooter: unknown key; remove it or correct its name",
    "router: {sight: a}": "router.sight: unknown key; remove it or correct its name",
    LINK.format("speed: 3"): "links[0].speed: unknown key; remove it or correct its name",
    "links: [{source: a}]": "links[0].target: missing; it has no default",
    WORKER.format("prior: {a_s: 0, b_s: 1}"): "workers[0].prior.q_s: missing; it has no default",
    # types
    "router: {queue_max: many}": "router.queue_max: expected `int`, got `str`, got 'many'",
    "router: {queue_max: 1.5}": "router.queue_max: expected `int`, got `float`, got 1.5",
    "policy: {seed: x}": "policy.seed: expected `int`, got `str`, got 'x'",
    "models: [{name: 1}]": "models[0].name: expected `str`, got `int`, got 1",
    WORKER.format("inline: 3"): "workers[0].inline: expected `bool`, got `int`, got 3",
    # ranges
    "router: {queue_max: 0}": "router.queue_max: expected a number at least 1, got 0",
    "router: {retries_max: 21}": "router.retries_max: expected a number at most 20, got 21",
    "router: {lost_after_s: 0}": "router.lost_after_s: expected a number above 0, got 0",
    "router: {drain_s: -1}": "router.drain_s: expected a number at least 0, got -1",
    "router: {lease_s: .nan}": "router.lease_s: expected a number above 0, got nan",
    "links: [{source: a, target: b, bytes_per_s: 0, rtt_s: 0}]": (
        "links[0].bytes_per_s: expected a number above 0, got 0"
    ),
    LINK.format("price_per_gb: -2"): "links[0].price_per_gb: expected a number at least 0, got -2",
    "policy: {dollars_per_s: -1}": "policy.dollars_per_s: expected a number at least 0, got -1",
    WORKER.format("data_port: 65536"): "workers[0].data_port: expected a number at most 65535, got 65536",
    WORKER.format("connections: 0"): "workers[0].connections: expected a number at least 1, got 0",
    WORKER.format("prior: {a_s: 0, b_s: 0, q_s: 0}"): "workers[0].prior.b_s: expected a number above 0, got 0",
    # names and addresses
    "router: {site: a b}": "router.site: expected a name of letters, digits and . _ : / -, got 'a b'",
    "router: {site: -a}": "router.site: expected a name of letters, digits and . _ : / -, got '-a'",
    "router: {site: ''}": "router.site: expected `str` of length >= 1, got ''",
    "router: {listen: nowhere}": "router.listen: expected host:port, got 'nowhere'",
    "backends: [{url: foo}]": "backends[0].url: expected a URL such as http://host:8000, got 'foo'",
    "backends: [{url: 'http://a:1', role: decode}]": (
        "backends[0].role: 'decode' needs a connector that hands KV over; name one in connector, or let the engine "
        "do both"
    ),
    "backends: [{url: 'http://a:1'}, {url: 'http://a:1/'}]": ("backends: 'a:1' is listed 2 times; each is listed once"),
    "backends: [{url: 'http://a:1', kv_events: {endpoint: 'http://a'}}]": (
        "backends[0].kv_events.endpoint: expected a ZeroMQ address such as tcp://host:5557, got 'http://a'"
    ),
    WORKER.format("routers: ['r:1', nope]"): "workers[0].routers[1]: expected host:port, got 'nope'",
    # a small vocabulary
    "router: {log: xml}": "router.log: invalid enum value 'xml', got 'xml'",
    WORKER.format("role: cook"): "workers[0].role: invalid enum value 'cook', got 'cook'",
    # well formed, and still cannot be meant
    "sites: [{name: home}, {name: home}]": "sites: 'home' is listed 2 times; each is listed once",
    "models: [{name: m}, {name: m}]": "models: 'm' is listed 2 times; each is listed once",
    "policy: {name: best}": f"policy.name: unknown policy 'best'; known are {', '.join(sorted(POLICIES))}",
    "policy: {name: gorgo, options: {queue_wait: 1}}": (
        "policy.options.queue_wait: gorgo has no such option; known are "
        "learn_rates, prefill_weight, queue_weight, rtt_weight, tree_blocks_max, tune"
    ),
    "policy: {name: gorgo, options: {queue_weight: -1}}": (
        "policy.options.queue_weight: expected a number at least 0, got -1"
    ),
    "policy: {options: [1]}": "policy.options: expected `object`, got `array`",
    "sites: [{name: a}, {name: b}]": "router.site: unknown site 'home'; sites lists a, b",
    "sites: [{name: home}]\n" + LINK.format(""): "links[0].source: unknown site 'a'; sites lists home",
    "sites: [{name: home}, {name: a}]\n" + LINK.format(""): "links[0].target: unknown site 'b'; sites lists a, home",
    "sites: [{name: home}]\n" + WORKER.format(""): "workers[0].site: unknown site 's'; sites lists home",
}


@pytest.mark.parametrize(("text", "says"), WRONG.items(), ids=WRONG.values())
def test_an_error_names_path_rule_and_value(text, says):
    with pytest.raises(ConfigError) as caught:
        parse_config(text, where="homing.yaml")
    assert str(caught.value) == f"homing.yaml: {says}"


@pytest.mark.parametrize("text", ["a: [", "\x00", "a: b: c", "!!python/object:os.system x", "a: *unknown"])
def test_what_is_not_yaml_is_said_to_be_none(text):
    """Tags that would run code are refused like any other nonsense."""
    with pytest.raises(ConfigError, match=r"^config: is not YAML: "):
        parse_config(text)


@given(st.text(max_size=80))
def test_any_text_is_a_config_or_a_config_error(text):
    try:
        found = parse_config(text)
    except ConfigError:
        return
    assert isinstance(found, Config)


def test_a_file_that_cannot_be_read(tmp_path):
    missing = tmp_path / "none.yaml"
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read: No such file or directory"):
        load_config(missing)


def test_an_empty_file_is_all_defaults(tmp_path):
    """And the defaults bind to loopback."""
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing\n")
    config = load_config(path)
    assert config == Config()
    assert config.router.listen.startswith("127.0.0.1:")
    assert config.router.http.startswith("127.0.0.1:")
    assert config.limits() == Limits()


def test_examples_are_there():
    assert EXAMPLES, "the folder moved, and the next test would test nothing"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_a_config(path):
    """What people copy must work: each worker stands at a listed site and serves a model with a name."""
    config = load_config(path)
    for section in config.workers:
        assert config.worker(section.id) is section
    assert Topology(config.directions()).known() == sorted(
        {
            pair
            for one in config.links
            for pair in ((one.source, one.target), (one.target, one.source))[: 1 + one.both_ways]
        }
    )


def test_a_worker_is_found_by_its_id():
    config = parse_config(WORKER.format("role: decode"))
    assert config.worker("w").role == "decode"
    with pytest.raises(ConfigError, match="workers: no worker has the id 'v'; known are w"):
        config.worker("v")
    with pytest.raises(ConfigError, match="known are none"):
        Config().worker("v")


def test_a_link_goes_both_ways_unless_told_otherwise():
    a, b = Site("a"), Site("b")
    both = Topology(parse_config(LINK.format("price_per_gb: 0.5")).directions())
    assert both.known() == [(a, b), (b, a)]
    assert (both.price_per_gb(a, b), both.price_per_gb(b, a)) == (0.5, 0.5)
    assert both.rate(b, a).rtt_s == pytest.approx(0.1)
    assert Topology(parse_config(LINK.format("both_ways: false")).directions()).known() == [(a, b)]


def test_limits_are_those_of_the_file():
    text = "router: {queue_max: 7, retries_max: 0, lost_after_s: 2, lease_s: 30}"
    assert parse_config(text).limits() == Limits(queue_max=7, retries_max=0, lost_after_s=2.0, lease_s=30.0)


def test_a_model_is_known_without_workers_when_its_kv_size_is():
    config = parse_config(
        "models: [{name: told-by-workers}, {name: m, block_tokens: 32, bytes_per_token: 9, layers: 2, state_bytes: 5,"
        " context_tokens: 100, vocabulary_tokens: 50, kv_group: g}]"
    )
    (profile,) = config.profiles()
    assert (profile.name, profile.block_tokens, profile.bytes_per_token, profile.layers) == ("m", 32, 9, 2)
    assert (profile.context_tokens, profile.vocabulary_tokens, profile.group) == (100, 50, "g")
    assert profile.moved_bytes(10) == 95
    assert config.model("told-by-workers") is config.models[0]
    assert config.model("unknown") is None

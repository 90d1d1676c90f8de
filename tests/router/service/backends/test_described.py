"""What an engine says of itself and what the file says of it, put together: the file counts."""

import pytest

from homing.router.core.errors import ConfigError
from homing.router.core.types import ModelName, Role
from homing.router.engines.types import EngineFacts, EngineKind, KvSource, ServedModel
from homing.router.service.backends.described import (
    CONTEXT_TOKENS,
    KV_BLOCKS,
    OVERCOMMIT,
    REQUESTS,
    check,
    credentials,
    describe,
)
from homing.router.service.backends.endpoint import Alias
from homing.router.service.config import parse_backend, parse_config
from homing.router.service.sections import BLOCK_TOKENS


def facts(**told):
    models = (ServedModel(name="m"), ServedModel(name="tuned", lora_of="m"))
    return EngineFacts(**{"kind": EngineKind.VLLM, "version": "1", "models": models, **told})


def described(section=None, told=None, config="", known=None):
    section = parse_backend({"url": "http://a:1", "id": "e", **(section or {})})
    return describe(section, facts(**(told or {})), parse_config(config), known or {}, None)


def test_what_nobody_tells_is_taken_to_be_usual():
    made = described()
    (worker,) = made.workers
    assert (worker.id, worker.model, worker.role, worker.site) == ("e", "m", Role.BOTH, "home")
    assert worker.block_tokens == BLOCK_TOKENS
    assert worker.kv_blocks_max == KV_BLOCKS * OVERCOMMIT
    assert worker.requests_max == REQUESTS
    assert made.profile.context_tokens == CONTEXT_TOKENS
    assert made.aliases == {"m": Alias(ModelName("m")), "tuned": Alias(ModelName("m"), "tuned")}
    assert made.kv_sources == {}
    assert made.gives_usage


def test_the_engine_s_word_counts_and_the_file_s_more():
    told = {"block_tokens": 32, "kv_blocks_max": 100, "requests_max": 8, "ranks": 2}
    made = described(told=told)
    assert [worker.id for worker in made.workers] == ["e/dp0", "e/dp1"]
    assert (made.profile.block_tokens, made.kv_blocks_max, made.workers[0].requests_max) == (32, 100, 8)
    file = {
        "block_tokens": 64,
        "kv_blocks_max": 200,
        "requests_max": 4,
        "site": "b",
        "prior": {"a_s": 0.1, "b_s": 1, "q_s": 0},
    }
    made = described(file, told, "models: [{name: m, context_tokens: 99}]")
    assert (made.profile.block_tokens, made.kv_blocks_max, made.workers[0].requests_max) == (64, 200, 4)
    assert made.profile.context_tokens == 99
    assert made.workers[1].site == "b"
    assert made.workers[0].prior.a_s == 0.1


def test_engines_of_one_model_have_one_block_size():
    first = described(told={"block_tokens": 32}).profile
    assert described(told={"block_tokens": 32}, known={first.name: first}).profile is first
    with pytest.raises(ConfigError, match="blocks are of 16 tokens, those of m elsewhere of 32"):
        described(told={"block_tokens": 16}, known={first.name: first})


def test_an_engine_without_a_model_is_none():
    with pytest.raises(ConfigError, match="serves no model"):
        described(told={"models": (ServedModel(name="x", lora_of="y"),)})


def test_where_caches_are_told():
    own = KvSource(rank=0, endpoint="tcp://a:1")
    assert described(told={"kv_sources": (own,)}).kv_sources == {0: own}
    assert described({"kv_events": "off"}, {"kv_sources": (own,)}).kv_sources == {}
    given = [{"endpoint": "tcp://b:2", "rank": 1}, {"endpoint": "tcp://c:3", "rank": 0, "topic": "t"}]
    found = described({"kv_events": given}, {"kv_sources": (own,)}).kv_sources
    assert {rank: source.endpoint for rank, source in found.items()} == {1: "tcp://b:2", 0: "tcp://c:3"}


def test_keys_come_from_the_environment(monkeypatch):
    section = parse_backend({"url": "http://a:1", "api_key_env": "SOME_ENGINE_KEY"})
    monkeypatch.delenv("SOME_ENGINE_KEY", raising=False)
    with pytest.raises(ConfigError, match="SOME_ENGINE_KEY, which is not set"):
        credentials(section)
    monkeypatch.setenv("SOME_ENGINE_KEY", "k")
    assert credentials(section) == {"authorization": "Bearer k"}


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"url": "http://a:99999"}, "Port out of range"),
        ({"url": "http://[::1"}, "url"),
        ({"url": "http://u:geheim@a:1"}, "api_key_env"),
        ({"url": "http://a:1", "role": "decode"}, "needs a connector"),
    ],
)
def test_what_cannot_be_is_said_with_its_place(section, says):
    with pytest.raises(ConfigError, match=says) as caught:
        check(parse_backend(section))
    assert "geheim" not in str(caught.value)

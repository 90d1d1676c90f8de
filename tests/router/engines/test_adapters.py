"""All adapters keep one contract, against answers of real engines and against servers that break."""

import asyncio
from dataclasses import dataclass

import pytest

from homing.router.actuators.registry import ACTUATORS
from homing.router.engines.llama_cpp import LlamaCppEngine
from homing.router.engines.openai import OpenAiEngine
from homing.router.engines.probe import probe
from homing.router.engines.sglang import SglangEngine
from homing.router.engines.types import (
    EngineError,
    EngineFacts,
    EngineKind,
    EngineLoad,
    KvSource,
    Patch,
    ServedModel,
)
from homing.router.engines.vllm import VllmEngine

from .replay import BROKEN, breaking, exchanges, serving

CHAT = next(row["request"] for row in exchanges("vllm") if row["path"] == "/v1/chat/completions")
TEXT = {"model": "smollm2", "prompt": "The capital of France is"}
TEXT_TOKENS = (504, 3575, 282, 4649, 314)
SMOLLM2 = ServedModel(name="smollm2", context_tokens=4096)
NOTHING = Patch()


@dataclass(frozen=True, kw_only=True)
class Case:
    """A recording and all that its adapter has to make of it."""

    facts: EngineFacts
    load: tuple[EngineLoad, ...]
    chat_tokens: int | None
    """How many tokens CHAT has; None where it cannot say."""
    text_tokens: tuple[int, ...] | None = None
    to_rank_0: Patch = NOTHING
    to_rank_1: Patch = NOTHING


def source(rank, port, replay_port, topic, *, bind=False):
    return KvSource(
        rank=rank,
        endpoint=f"tcp://127.0.0.1:{port}",
        replay_endpoint=f"tcp://127.0.0.1:{replay_port}",
        topic=topic,
        bind=bind,
    )


VLLM_FACTS = {
    "kind": EngineKind.VLLM,
    "version": "0.32.0",
    "models": (SMOLLM2,),
    "block_tokens": 32,
    "kv_blocks_max": 1456,
}
SGLANG_MODELS = (
    ServedModel(name="smollm2", context_tokens=8192),
    ServedModel(name="sql", context_tokens=8192, lora_of="smollm2"),
)
SGLANG_TWO = EngineFacts(
    kind=EngineKind.SGLANG,
    version="0.5.23",
    models=SGLANG_MODELS,
    block_tokens=64,
    kv_blocks_max=6438,
    requests_max=128,
    ranks=2,
    kv_sources=(source(0, 5557, 5567, "kv-events"), source(1, 5558, 5568, "kv-events")),
)
LLAMA_FACTS = EngineFacts(
    kind=EngineKind.LLAMA_CPP,
    version="b11434-1a2b3c4",
    models=(ServedModel(name="smollm2-f16.gguf", context_tokens=4096), SMOLLM2),
    requests_max=4,
)

CASES = {
    "vllm": Case(
        facts=EngineFacts(**VLLM_FACTS, kv_sources=(source(0, 18432, 18434, "kv@smollm2"),)),
        load=(EngineLoad(running=0, waiting=0, kv_use=0.0),),
        chat_tokens=121,
        text_tokens=TEXT_TOKENS,
        to_rank_1=Patch(headers={"X-data-parallel-rank": "1"}),
    ),
    "vllm_scale_out": Case(
        facts=EngineFacts(**VLLM_FACTS, kv_sources=(source(0, 18432, 18434, "kv@smollm2", bind=True),)),
        load=(EngineLoad(running=0, waiting=0, kv_use=0.0),),
        chat_tokens=121,
        text_tokens=TEXT_TOKENS,
        to_rank_1=Patch(headers={"X-data-parallel-rank": "1"}),
    ),
    "vllm_two_ranks": Case(
        facts=EngineFacts(
            kind=EngineKind.VLLM,
            version="0.32.0",
            models=(SMOLLM2, ServedModel(name="sql", context_tokens=4096, lora_of="smollm2")),
            block_tokens=16,
            kv_blocks_max=2800,
            ranks=2,
            kv_sources=(source(0, 5557, 5567, ""), source(1, 5558, 5568, "")),
        ),
        load=(EngineLoad(running=3, waiting=2, kv_use=0.25), EngineLoad(running=1, waiting=0, kv_use=0.0625)),
        chat_tokens=None,
        to_rank_0=Patch(headers={"X-data-parallel-rank": "0"}),
        to_rank_1=Patch(headers={"X-data-parallel-rank": "1"}),
    ),
    "vllm_old": Case(
        facts=EngineFacts(
            kind=EngineKind.VLLM, version="0.9.2", models=(SMOLLM2,), block_tokens=16, kv_blocks_max=27980
        ),
        load=(EngineLoad(running=1, waiting=4, kv_use=0.5),),
        chat_tokens=121,
        to_rank_1=Patch(headers={"X-data-parallel-rank": "1"}),
    ),
    "sglang": Case(
        facts=SGLANG_TWO,
        load=(EngineLoad(running=7, waiting=0, kv_use=0.25), EngineLoad(running=5, waiting=1, kv_use=0.5)),
        chat_tokens=121,
        text_tokens=TEXT_TOKENS,
        to_rank_0=Patch(body={"routed_dp_rank": 0, "data_parallel_rank": 0}),
        to_rank_1=Patch(body={"routed_dp_rank": 1, "data_parallel_rank": 1}),
    ),
    "sglang_old": Case(
        facts=EngineFacts(
            kind=EngineKind.SGLANG,
            version="0.5.2",
            models=SGLANG_MODELS[:1],
            block_tokens=1,
            kv_blocks_max=412032,
            requests_max=2048,
        ),
        load=(EngineLoad(running=7, waiting=2),),
        chat_tokens=None,
        to_rank_1=Patch(body={"routed_dp_rank": 1, "data_parallel_rank": 1}),
    ),
    "sglang_metrics": Case(
        facts=EngineFacts(
            kind=EngineKind.SGLANG,
            version="0.5.23",
            models=SGLANG_MODELS[:1],
            block_tokens=64,
            kv_blocks_max=6438,
            requests_max=128,
            ranks=2,
        ),
        load=(EngineLoad(running=7, waiting=0, kv_use=0.25), EngineLoad(running=5, waiting=1, kv_use=0.5)),
        chat_tokens=None,
        to_rank_0=Patch(body={"routed_dp_rank": 0, "data_parallel_rank": 0}),
        to_rank_1=Patch(body={"routed_dp_rank": 1, "data_parallel_rank": 1}),
    ),
    "llama_cpp": Case(
        facts=LLAMA_FACTS,
        load=(EngineLoad(running=2, waiting=1),),
        chat_tokens=9,
        text_tokens=TEXT_TOKENS,
    ),
    "llama_cpp_bare": Case(facts=LLAMA_FACTS, load=(EngineLoad(running=2, waiting=0),), chat_tokens=None),
    "openai": Case(
        facts=EngineFacts(kind=EngineKind.OPENAI, models=(ServedModel(name="large"), ServedModel(name="small"))),
        load=(),
        chat_tokens=None,
    ),
}
KINDS = {
    EngineKind.VLLM: VllmEngine,
    EngineKind.SGLANG: lambda http: SglangEngine(http, health_s=0.25),
    EngineKind.LLAMA_CPP: LlamaCppEngine,
    EngineKind.OPENAI: OpenAiEngine,
}


def with_adapter(name, use):
    async def run():
        async with serving(name) as (replay, http):
            return await use(await probe(http.url, http._session), replay)

    return asyncio.run(run())


@pytest.mark.parametrize("name", CASES)
def test_what_an_engine_tells(name):
    async def ask(adapter, _):
        return adapter.kind, await adapter.facts(), await adapter.is_healthy(), await adapter.load()

    case = CASES[name]
    assert with_adapter(name, ask) == (case.facts.kind, case.facts, True, case.load)


@pytest.mark.parametrize("name", CASES)
def test_tokens_are_the_engines(name):
    async def ask(adapter, _):
        chat = await adapter.tokenize("/v1/chat/completions", CHAT)
        again = await adapter.tokenize("/v1/chat/completions", CHAT)
        return chat, again, await adapter.tokenize("/v1/completions", TEXT)

    chat, again, text = with_adapter(name, ask)
    assert chat == again
    assert (None if chat is None else len(chat)) == CASES[name].chat_tokens
    assert text == CASES[name].text_tokens


@pytest.mark.parametrize("name", CASES)
def test_tokens_that_are_given_are_taken_without_asking(name):
    async def ask(adapter, replay):
        before = len(replay.came)
        one = await adapter.tokenize("/v1/completions", {"prompt": [5, 6]})
        nested = await adapter.tokenize("/v1/completions", {"prompt": [[5, 6]]})
        return one, nested, len(replay.came) - before

    assert with_adapter(name, ask) == ((5, 6), (5, 6), 0)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "body",
    [{}, {"prompt": None}, {"prompt": ["a", "b"]}, {"prompt": [[1], [2]]}, {"prompt": [1, -1]}, {"messages": 3}],
    ids=str,
)
def test_what_has_no_one_prompt_has_no_tokens(name, body):
    async def ask(adapter, _):
        paths = ("/v1/completions", "/v1/chat/completions", "/v1/embeddings")
        return [await adapter.tokenize(path, body) for path in paths]

    assert with_adapter(name, ask) == [None, None, None]


@pytest.mark.parametrize("name", CASES)
def test_ranks_are_addressed_where_there_are_several(name):
    async def ask(adapter, _):
        await adapter.facts()
        return adapter.to_rank(0), adapter.to_rank(1)

    assert with_adapter(name, ask) == (CASES[name].to_rank_0, CASES[name].to_rank_1)


@pytest.mark.parametrize("name", CASES)
def test_cancelling_reaches_the_engines_that_need_it(name):
    async def ask(adapter, replay):
        before = len(replay.came)
        await adapter.cancel("r-1")
        return replay.came[before:]

    needs = CASES[name].facts.kind is EngineKind.SGLANG
    assert with_adapter(name, ask) == ([("POST", "/abort_request", {"rid": "r-1"})] if needs else [])


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_actuators_are_known(make):
    async def run():
        async with breaking("refuses") as http:
            return make(http).actuators

    assert asyncio.run(run()) <= set(ACTUATORS)


CALLS = {
    "facts": lambda adapter: adapter.facts(),
    "is_healthy": lambda adapter: adapter.is_healthy(),
    "load": lambda adapter: adapter.load(),
    "tokenize chat": lambda adapter: adapter.tokenize("/v1/chat/completions", CHAT),
    "tokenize text": lambda adapter: adapter.tokenize("/v1/completions", TEXT),
    "cancel": lambda adapter: adapter.cancel("r-1"),
}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("kind", KINDS)
def test_what_breaks_is_an_engine_error_in_time(kind, how):
    async def run():
        async with breaking(how) as http:
            adapter = KINDS[kind](http)
            calls = (call(adapter) for call in CALLS.values())
            results = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 3.0)
            return http.url, dict(zip(CALLS, results, strict=True))

    url, results = asyncio.run(run())
    errors = {call: result for call, result in results.items() if isinstance(result, BaseException)}
    assert all(type(error) is EngineError for error in errors.values()), errors
    assert "facts" in errors, results
    assert all(url in str(error) and len(str(error)) < 600 for error in errors.values()), errors
    assert errors["facts"].status == {"302": 302, "401": 401, "500": 500, "503": 503}.get(how, errors["facts"].status)
    if how in {"500", "503", "401", "302"}:
        assert results["is_healthy"] is False
    if kind is not EngineKind.OPENAI:
        assert "load" in errors, results


@pytest.mark.parametrize("how", BROKEN)
def test_probing_what_breaks_says_what_was_tried(how):
    async def run():
        async with breaking(how) as http:
            with pytest.raises(EngineError, match=http.url) as caught:
                await asyncio.wait_for(probe(http.url, http._session, timeout_s=0.25), 3.0)
            return str(caught.value)

    said = asyncio.run(run())
    if how in {"500", "503", "401", "302", "empty", "no JSON", "null", "a list", "another JSON"}:
        for path in ("/version", "/server_info", "/props", "/v1/models"):
            assert path in said

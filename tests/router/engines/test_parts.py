"""What the adapters are made of: HTTP, KV addresses, usage, slots, model lists, and asking which engine it is."""

import asyncio
import json

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from homing.router.engines.http import EngineHttp
from homing.router.engines.kv_sources import kv_source, sglang_binds, vllm_binds
from homing.router.engines.llama_cpp import LlamaSlots
from homing.router.engines.openai import ModelCard, ModelList, served_models
from homing.router.engines.probe import probe
from homing.router.engines.sglang import SglangEngine
from homing.router.engines.types import EngineError, EngineKind, ServedModel
from homing.router.engines.usage import Usage, usage_at_end, usage_of
from homing.router.engines.vllm import VllmEngine

from .replay import breaking, exchanges, recorded, serving


def with_server(name, use, **options):
    async def run():
        async with serving(name, **options) as (replay, http):
            return await use(http, replay)

    return asyncio.run(run())


def without_server(use):
    async def run():
        async with aiohttp.ClientSession() as session:
            return await use(session)

    return asyncio.run(run())


# HTTP


def test_headers_are_sent_with_every_request():
    async def use(http, replay):
        adapter = await probe(http.url, http._session, headers={"Authorization": "Bearer secret"})
        await adapter.facts()
        await adapter.tokenize("/v1/chat/completions", {"messages": []})
        return [headers.get("Authorization") for headers in replay.headers]

    sent = with_server("vllm", use)
    assert len(sent) >= 6 and set(sent) == {"Bearer secret"}


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://a", "http://", "http://[::1", "http://a:b", "zmq://a:1"])
def test_a_url_that_is_none_is_refused(url):
    async def use(session):
        with pytest.raises(EngineError, match="engine URL"):
            EngineHttp(url, session)

    without_server(use)


def test_a_closed_session_is_an_engine_error():
    async def use(session):
        http = EngineHttp("http://127.0.0.1:1", session)
        await session.close()
        with pytest.raises(EngineError, match="closed"):
            await http.get("/health")

    without_server(use)


@pytest.mark.parametrize("body", [{"a": object()}, {"a": "\ud800"}, {3.5j: 1}], ids=["object", "surrogate", "key"])
def test_a_request_that_is_no_json_is_an_engine_error(body):
    async def use(http, _):
        with pytest.raises(EngineError, match="cannot be written as JSON"):
            await http.post("/tokenize", body)

    with_server("vllm", use)


def test_a_path_may_follow_the_host():
    async def use(http, replay):
        await EngineHttp(http.url + "/engines/a/", http._session).get("/health")
        return replay.came

    assert with_server("vllm", use) == [("GET", "/engines/a/health", None)]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("is silent", "no whole answer within 0.25 s"),
        ("stops in the body", "no whole answer within 0.25 s"),
        ("huge", "answered 200: the answer is longer than 524288 bytes"),
        ("500", r"answered 500: '{\"error\": \"CUDA out of memory\"}'"),
        ("no JSON", "answered 200: JSON is malformed.*<html>"),
        ("another JSON", r"answered 200: Expected `array`, got `int` - at `\$.data`"),
    ],
)
def test_errors_say_what_was_asked_and_what_came(how, said):
    async def run():
        async with breaking(how) as http:
            with pytest.raises(EngineError, match=f"^GET {http.url}/v1/models: {said}"):
                (await http.get("/v1/models")).json(ModelList)

    asyncio.run(run())


# Which engine it is


@pytest.mark.parametrize("kind", EngineKind)
def test_a_kind_that_is_given_is_not_asked_for(kind):
    async def use(session):
        return (await probe("http://127.0.0.1:1", session, kind)).kind

    assert without_server(use) is kind


def test_vllm_is_known_without_its_metrics_and_tells_no_load_then():
    async def use(http, replay):
        replay.rows = [row for row in replay.rows if row["path"] not in {"/metrics", "/kv_event_sources"}]
        replay.rows.append({**replay.rows[0], "path": "/metrics", "answer": "# HELP other x\nother 1\n"})
        adapter = await probe(http.url, http._session)
        facts = await adapter.facts()
        with pytest.raises(EngineError, match=r"num_requests_running.*--disable-log-stats"):
            await adapter.load()
        return adapter.kind, facts.block_tokens, facts.kv_blocks_max, facts.kv_sources, facts.ranks

    assert with_server("vllm", use) == (EngineKind.VLLM, None, None, (), 1)


@pytest.mark.parametrize(("name", "flag"), [("sglang_metrics", "--enable-metrics"), ("llama_cpp", "requests_deferred")])
def test_metrics_without_a_load_are_an_error_that_names_them(name, flag):
    async def use(http, replay):
        for row in replay.rows:
            if row["path"] == "/metrics":
                row["answer"] = "# HELP other x\nother 1\n"
        adapter = await probe(http.url, http._session)
        with pytest.raises(EngineError, match=flag):
            await adapter.load()

    with_server(name, use)


def test_a_server_with_another_version_is_not_vllm():
    async def use(http, replay):
        replay.rows.append({**replay.rows[0], "path": "/version", "answer": '{"version": "1.0"}'})
        replay.rows.append({**replay.rows[0], "path": "/metrics", "answer": "# HELP other x\nother 1\n"})
        return (await probe(http.url, http._session)).kind

    assert with_server("openai", use) is EngineKind.OPENAI


def test_a_way_to_ask_for_load_that_is_not_there_is_tried_once_until_the_server_changes():
    async def use(http, replay):
        adapter = SglangEngine(http)
        for _ in range(2):
            await adapter.load()
        replay.rows = exchanges("sglang")
        for _ in range(2):
            await adapter.load()
        return [path.partition("?")[0] for _, path, _ in replay.came]

    now, old = "/v1/loads", "/get_load"
    assert with_server("sglang_old", use) == [now, old, old, old, now, now]


def test_vllm_is_asked_to_render_once_where_it_does_not_but_again_after_an_unknown_model():
    chat = {"model": "smollm2", "messages": [{"role": "user", "content": "hi"}]}

    async def ask(http, replay):
        adapter = VllmEngine(http)
        for _ in range(2):
            await adapter.tokenize("/v1/chat/completions", chat)
        return [path for _, path, _ in replay.came if path.endswith("/render")]

    async def refuse(http, replay, status, answer):
        path = "/v1/chat/completions/render"
        row = {"method": "POST", "path": path, "request": chat, "status": status, "content_type": ""}
        replay.rows.insert(0, {**row, "answer": answer})
        return len(await ask(http, replay))

    closed = with_server("vllm", lambda http, replay: refuse(http, replay, 403, "{}"))
    absent = with_server("vllm", lambda http, replay: refuse(http, replay, 404, '{"detail":"Not Found"}'))
    unknown = with_server("vllm", lambda http, replay: refuse(http, replay, 404, '{"error":{"code":404}}'))
    assert (closed, absent, unknown) == (1, 1, 2)


def test_an_anthropic_conversation_is_rendered_where_vllm_does():
    body = {"model": "smollm2", "max_tokens": 4, "messages": [{"role": "user", "content": "hi"}]}

    async def use(http, _):
        return await VllmEngine(http).tokenize("/v1/messages", body)

    rendered = json.loads(recorded("vllm_scale_out", "/v1/messages/render"))["token_ids"]
    assert with_server("vllm_scale_out", use) == tuple(rendered)
    assert with_server("vllm", use) is None


def test_what_a_chat_hands_its_template_is_handed_on():
    body = {
        "model": "smollm2",
        "messages": [],
        "stream": True,
        "reasoning_effort": "low",
        "chat_template_kwargs": {"enable_thinking": False, "x": 1},
        "tools": [{"type": "function"}],
    }

    async def use(http, replay):
        await VllmEngine(http).tokenize("/v1/chat/completions", body)
        return replay.came[-1]

    _, path, asked = with_server("vllm", use)
    assert path == "/tokenize"
    assert asked == {
        "model": "smollm2",
        "messages": [],
        "tools": [{"type": "function"}],
        "chat_template_kwargs": {"enable_thinking": False, "reasoning_effort": "low", "x": 1},
    }


def test_pictures_are_no_tokens_for_llama_cpp():
    body = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}

    async def use(http, replay):
        adapter = await probe(http.url, http._session, EngineKind.LLAMA_CPP)
        return await adapter.tokenize("/v1/chat/completions", body), replay.came

    assert with_server("llama_cpp", use) == (None, [])


def test_sglang_is_never_told_to_abort_all():
    async def use(http, replay):
        with pytest.raises(EngineError, match="every request"):
            await SglangEngine(http).cancel("")
        return replay.came

    assert with_server("sglang", use) == []


# Models


def test_a_lora_has_the_context_of_its_base_by_name_or_place():
    cards = [
        ModelCard(id="big", root="models/big", max_model_len=4096),
        ModelCard(id="alias", root="models/big", max_model_len=4096),
        ModelCard(id="sql", root="loras/sql", parent="models/big"),
        ModelCard(id="chat", root="loras/chat", parent="alias", max_model_len=100),
        ModelCard(id="lost", parent="elsewhere", max_model_len=-1),
    ]
    assert served_models(cards) == (
        ServedModel(name="big", context_tokens=4096),
        ServedModel(name="alias", context_tokens=4096),
        ServedModel(name="sql", context_tokens=4096, lora_of="big"),
        ServedModel(name="chat", context_tokens=100, lora_of="alias"),
        ServedModel(name="lost", lora_of="elsewhere"),
    )


# KV addresses


@pytest.mark.parametrize(
    "change", [{"publisher": "null"}, {"enable_kv_cache_events": False}, {"endpoint": "inproc://a"}]
)
def test_vllm_that_publishes_nothing_has_no_source(change):
    async def use(http, replay):
        row = next(row for row in replay.rows if row["path"] == "/kv_event_sources")
        sources = json.loads(row["answer"])
        row["answer"] = json.dumps({rank: publisher | change for rank, publisher in sources.items()})
        return (await VllmEngine(http).facts()).kv_sources

    assert with_server("vllm", use) == ()


@pytest.mark.parametrize(
    ("endpoint", "url_host", "dialled", "bind"),
    [
        ("tcp://*:5557", "10.0.0.5", "tcp://10.0.0.5:5557", False),
        ("tcp://*:5557", "fe80::5", "tcp://[fe80::5]:5557", False),
        ("tcp://[::]:5557", "node-5", "tcp://node-5:5557", False),
        ("tcp://[fe80::7]:5557", "node-5", "tcp://[fe80::7]:5557", False),
        ("ipc:///run/kv", "node-5", "ipc:///run/kv", False),
        ("tcp://10.0.0.5:43211", "10.0.0.5", "tcp://10.0.0.5:43211", False),
        ("tcp://10.0.0.9:5557", "10.0.0.5", "tcp://10.0.0.9:5557", True),
        ("tcp://127.0.0.1:5557", "127.0.0.1", "tcp://127.0.0.1:5557", True),
        ("tcp://localhost:5557", "localhost", "tcp://localhost:5557", True),
        ("tcp://0.0.0.0:5557", "10.0.0.5", "tcp://0.0.0.0:5557", True),
    ],
)
def test_where_vllm_publishes(endpoint, url_host, dialled, bind):
    source = kv_source(
        0,
        endpoint=endpoint,
        replay_endpoint="tcp://*:5558",
        topic="kv",
        binds=vllm_binds(endpoint, url_host),
        url_host=url_host,
    )
    host = f"[{url_host}]" if ":" in url_host else url_host
    assert (source.endpoint, source.bind, source.replay_endpoint) == (dialled, bind, f"tcp://{host}:5558")


@pytest.mark.parametrize(("host", "binds"), [("*", True), ("0.0.0.0", True), ("[::]", True), ("10.0.0.9", False)])
def test_where_sglang_publishes(host, binds):
    assert sglang_binds(host) is binds


@pytest.mark.parametrize("endpoint", ["", "tcp://", "tcp://*", "tcp://*:0", "tcp://*:99999", "udp://*:1", "inproc://a"])
def test_what_is_no_address_is_an_engine_error(endpoint):
    with pytest.raises(EngineError, match="KV events address"):
        kv_source(0, endpoint=endpoint, replay_endpoint=None, topic="", binds=True, url_host="a")


# Usage


@pytest.mark.parametrize(
    ("name", "path", "turn", "usage"),
    [
        ("vllm", "/v1/chat/completions", 0, (121, 0, 4)),
        ("vllm", "/v1/chat/completions", 1, (121, 96, 4)),
        ("vllm", "/v1/completions", 0, (5, 0, 4)),
        ("sglang", "/v1/chat/completions", 0, (121, 96, 4)),
        ("sglang", "/generate", 0, (5, 4, 4)),
        ("llama_cpp", "/v1/chat/completions", 0, (121, 113, 4)),
        ("openai", "/v1/chat/completions", 0, (1117, 1024, 46)),
        ("openai", "/v1/responses", 0, (328, 256, 52)),
    ],
)
def test_usage_of_an_answer(name, path, turn, usage):
    prompt, cached, completion = usage
    wanted = Usage(prompt_tokens=prompt, cached_tokens=cached, completion_tokens=completion)
    answer = json.loads(recorded(name, path, turn))
    assert usage_of(answer) == wanted
    assert usage_of({"type": "response.completed", "response": answer}) == wanted


@pytest.mark.parametrize(("name", "turn", "cached"), [("vllm", 2, 96), ("llama_cpp", 1, 113)])
@pytest.mark.parametrize("cut", [0, 1, 100])
def test_usage_at_the_end_of_a_stream(name, turn, cached, cut):
    stream = recorded(name, "/v1/chat/completions", turn).encode()
    assert usage_at_end(stream[cut:]) == Usage(prompt_tokens=121, cached_tokens=cached, completion_tokens=4)
    assert usage_at_end(stream[: stream.rindex(b"data: {")]) is None


def test_of_several_events_with_usage_the_last_counts():
    events = [f'data: {{"usage": {{"prompt_tokens": 7, "completion_tokens": {tokens}}}}}\r\n\r\n' for tokens in (1, 2)]
    assert usage_at_end("".join(events).encode()) == Usage(prompt_tokens=7, completion_tokens=2)


def test_what_is_not_told_of_the_cache_is_not_known():
    assert usage_of({"usage": {"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": None}}) == Usage(
        prompt_tokens=7, completion_tokens=2
    )


def test_no_more_comes_out_of_the_cache_than_went_in():
    told = {"usage": {"prompt_tokens": 7, "prompt_tokens_details": {"cached_tokens": 9}}}
    assert usage_of(told) == Usage(prompt_tokens=7, cached_tokens=7)


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        ({}, Usage(prompt_tokens=7, completion_tokens=2)),
        ({"cache_read_input_tokens": 0}, Usage(prompt_tokens=7, cached_tokens=0, completion_tokens=2)),
        ({"cache_read_input_tokens": 32}, Usage(prompt_tokens=39, cached_tokens=32, completion_tokens=2)),
        (
            {"cache_read_input_tokens": 32, "cache_creation_input_tokens": 5},
            Usage(prompt_tokens=44, cached_tokens=32, completion_tokens=2),
        ),
    ],
)
def test_anthropic_counts_what_the_cache_gave_apart(told, wanted):
    """As vLLM 0.32 writes it: `_build_anthropic_usage` takes the cached tokens off the prompt's."""
    usage = {"input_tokens": 7, "output_tokens": 2, **told}
    assert usage_of({"type": "message", "usage": usage}) == wanted
    assert usage_of({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage}) == wanted


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["usage", "timings", "meta_info", "response", "prompt_tokens", "prompt_tokens_details"])
            | st.sampled_from(["cached_tokens", "cache_n", "prompt_n", "input_tokens", "completion_tokens"])
            | st.sampled_from(["cache_read_input_tokens", "cache_creation_input_tokens"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_usage_of_anything_is_sound_or_none(answer):
    usage = usage_of(answer)
    if usage is not None:
        assert usage.prompt_tokens >= 0 and usage.completion_tokens >= 0
        assert usage.cached_tokens is None or 0 <= usage.cached_tokens <= usage.prompt_tokens


@given(st.binary())
def test_a_stream_of_anything_tells_usage_or_none(stream):
    assert usage_at_end(b"data: " + stream) is None


# Slots


def test_slots_are_listed_chosen_saved_and_restored():
    async def use(http, _):
        slots = LlamaSlots(http)
        listed = [(slot.id, slot.is_processing, slot.prompt_tokens, slot.context_tokens) for slot in await slots.list()]
        chosen = [await slots.choose(), await slots.choose(taken={3}), await slots.choose(taken={2, 3})]
        chosen.append(await slots.choose(prompt_tokens=4097))
        moved = await slots.save(0, "seven.bin"), await slots.restore(2, "seven.bin"), await slots.erase(2)
        return listed, chosen, moved

    listed, chosen, moved = with_server("llama_cpp", use)
    assert listed == [(0, True, 1110, 4096), (1, True, 40, 4096), (2, False, 300, 4096), (3, False, 0, 4096)]
    assert chosen == [3, 2, None, None]
    assert moved == (1110, 1110, 1110)


@pytest.mark.parametrize(
    ("name", "slot", "action", "filename", "said"),
    [
        ("llama_cpp", 9, "restore", "seven.bin", "Invalid slot ID"),
        ("llama_cpp", 1, "save", "../x", "Invalid filename"),
        ("llama_cpp_bare", 0, "save", "seven.bin", "--slot-save-path"),
    ],
)
def test_a_slot_that_cannot_be_moved_says_why(name, slot, action, filename, said):
    async def use(http, _):
        with pytest.raises(EngineError, match=said):
            await getattr(LlamaSlots(http), action)(slot, filename)

    with_server(name, use)

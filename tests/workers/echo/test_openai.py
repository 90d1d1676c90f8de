"""The echo worker over real HTTP on loopback: what vLLM's clients rely on."""

import asyncio
import json
import time

import pytest

from homing.workers.echo.settings import StepTimes

from .serving import chat, on_a_loop, serving


async def events_of(response):
    assert response.headers["Content-Type"].startswith("text/event-stream")
    lines = [line async for line in response.content]
    data = [line.removeprefix(b"data: ").strip() for line in lines if line.strip()]
    assert data[-1] == b"[DONE]"
    return [json.loads(line) for line in data[:-1]]


@on_a_loop
async def test_whole_chat():
    async with serving() as (_, client):
        response = await client.post("/v1/chat/completions", json=chat("Hello"), headers={"X-Request-Id": "r1"})
        body = await response.json()
    assert body["id"] == "chatcmpl-r1"
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "Hello"}
    assert body["choices"][0]["finish_reason"] == "stop"
    prompt = len("user: Hello\nassistant: ")
    assert body["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": 6,
        "total_tokens": prompt + 6,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


@on_a_loop
async def test_streamed_chat_is_the_whole_one_in_pieces():
    async with serving() as (_, client):
        body = chat("héllo ∀", stream=True, stream_options={"include_usage": True})
        events = await events_of(await client.post("/v1/chat/completions", json=body))
    *chunks, last = events
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == "héllo ∀"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[-2:]] == [None, "stop"]
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == len("héllo ∀".encode()) + 1
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert len({event["id"] for event in events}) == 1


@pytest.mark.parametrize("prompt", ["abcdef", list(b"abcdef"), [list(b"abcdef")], ["abcdef"]])
@on_a_loop
async def test_completions_take_text_and_tokens(prompt):
    async with serving() as (_, client):
        whole = await (await client.post("/v1/completions", json={"prompt": prompt, "max_tokens": 4})).json()
        body = {"prompt": prompt, "max_tokens": 4, "stream": True}
        events = await events_of(await client.post("/v1/completions", json=body))
    assert whole["choices"][0]["text"] == "abcd" == "".join(e["choices"][0]["text"] for e in events)
    assert whole["choices"][0]["finish_reason"] == "length"


@on_a_loop
async def test_answers_of_a_wanted_length():
    async with serving() as (_, client):
        body = chat("ab", max_tokens=5, ignore_eos=True)
        answer = await (await client.post("/v1/chat/completions", json=body)).json()
    assert answer["choices"][0]["message"]["content"] == "ababa"


@on_a_loop
async def test_cached_tokens_are_whole_blocks_of_what_came_before():
    async with serving(block_tokens=16) as (server, client):
        counts = []
        for body in [chat("x" * 100), chat("x" * 100), chat("x" * 100, cache_salt="mine"), chat("y" * 100)]:
            usage = (await (await client.post("/v1/chat/completions", json=body)).json())["usage"]
            counts.append(usage["prompt_tokens_details"]["cached_tokens"])
        assert server.engine.counts.hit_tokens == sum(counts)
    prompt = len("user: " + "x" * 100 + "\nassistant: ")
    assert counts == [0, (prompt - 1) // 16 * 16, 0, 0]


@on_a_loop
async def test_the_stopwatch_is_kept():
    times = StepTimes(prefill_a_s=0.05, prefill_b_s=0.001, decode_s=0.02)
    async with serving(times=times) as (_, client):
        body = {"prompt": "z" * 100, "max_tokens": 6, "stream": True}
        began_s = time.monotonic()
        response = await client.post("/v1/completions", json=body)
        await response.content.readline()
        ttft_s = time.monotonic() - began_s
        await response.read()
        e2e_s = time.monotonic() - began_s
    assert times.prefill_s(0, 100) == pytest.approx(0.15)
    assert 0.15 <= ttft_s < 1.15
    assert 0.1 <= e2e_s - ttft_s < 1.1


@on_a_loop
async def test_a_closed_connection_frees_its_blocks():
    async with serving(times=StepTimes(decode_s=0.01)) as (server, client):
        body = chat("forever", stream=True, max_tokens=10_000, ignore_eos=True)
        response = await client.post("/v1/chat/completions", json=body)
        await response.content.readline()
        assert (server.engine.running, server.engine.waiting) == (1, 0)
        response.close()
        async with asyncio.timeout(10):
            while server.engine.running or server.engine.cache.used:
                await asyncio.sleep(0.01)
        assert server.engine.counts.cancelled == 1


@on_a_loop
async def test_requests_beyond_the_places_wait_and_all_are_served():
    async with serving(requests_max=2, times=StepTimes(decode_s=0.002)) as (server, client):

        async def ask(number):
            body = chat(f"request {number}", max_tokens=20, ignore_eos=True)
            return (await (await client.post("/v1/chat/completions", json=body)).json())["choices"][0]["message"]

        asked = [asyncio.create_task(ask(number)) for number in range(7)]
        seen = set()
        while not all(task.done() for task in asked):
            seen.add((server.engine.running, server.engine.waiting))
            await asyncio.sleep(0.001)
        answers = [task.result()["content"] for task in asked]
    assert answers == [(f"request {number}" * 3)[:20] for number in range(7)]
    assert max(running for running, _ in seen) == 2
    assert (2, 5) in seen


@pytest.mark.parametrize(
    ("path", "body", "code", "word"),
    [
        ("/v1/chat/completions", {"model": "other", "messages": [{"role": "user", "content": "a"}]}, 404, "other"),
        ("/v1/chat/completions", {"messages": []}, 400, "messages"),
        ("/v1/completions", {"prompt": ""}, 400, "prompt"),
        ("/v1/completions", {"prompt": [1, 9999]}, 400, "token ids"),
        ("/v1/completions", {"prompt": "a", "max_tokens": 0}, 400, "max_tokens"),
        ("/v1/completions", {"prompt": "a" * 300}, 400, "maximum context length"),
        ("/v1/completions", {"prompt": "a", "n": 2}, 400, "n:"),
        ("/tokenize", {"model": "other", "prompt": "a"}, 404, "Valid aliases: echo"),
        ("/v1/completions/render", {"prompt": "a"}, 403, "--enable-scale-out"),
    ],
)
@on_a_loop
async def test_bad_requests_are_told_why(path, body, code, word):
    async with serving(context_tokens=256) as (_, client):
        response = await client.post(path, json=body)
        error = (await response.json())["error"]
    assert response.status == code == error["code"]
    assert word in error["message"]


@on_a_loop
async def test_what_it_says_of_itself():
    async with serving(kv_blocks=77, context_tokens=999, loras=("tuned",)) as (_, client):
        models = (await (await client.get("/v1/models")).json())["data"]
        metrics = await (await client.get("/metrics")).text()
        tokens = await (await client.post("/tokenize", json=chat("hi"))).json()
        back = await (await client.post("/detokenize", json={"tokens": tokens["tokens"]})).json()
        assert (await client.get("/health")).status == 200
        assert (await (await client.get("/version")).json())["version"]
        assert await (await client.get("/kv_event_sources")).json() == {}
    assert [(m["id"], m.get("max_model_len"), m["parent"]) for m in models] == [
        ("echo", 999, None),
        ("tuned", None, "echo"),
    ]
    assert 'vllm:num_requests_running{engine="0",model_name="echo"} 0' in metrics
    assert 'vllm:cache_config_info{block_size="16",num_gpu_blocks="77",engine="0"} 1' in metrics
    assert back["prompt"] == "user: hi\nassistant: "
    assert tokens["count"] == len(tokens["tokens"])


@on_a_loop
async def test_a_stream_can_stand_still():
    async with serving(pause_after_tokens=1, pause_s=0.3) as (_, client):
        began_s = time.monotonic()
        response = await client.post("/v1/completions", json={"prompt": "ab", "max_tokens": 2, "stream": True})
        await response.content.readline()
        first_s = time.monotonic() - began_s
        await response.read()
    assert first_s < 0.3 <= time.monotonic() - began_s


@on_a_loop
async def test_an_engine_that_died_is_not_healthy():
    async with serving() as (server, client):
        await server.engine.close()
        assert (await client.get("/health")).status == 503

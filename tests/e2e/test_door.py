"""The OpenAI door in front of live engines: what clients see, and what happens when engines fail."""

import asyncio
import json
from contextlib import AsyncExitStack

import aiohttp
import openai
import pytest
from aiohttp import web

from .cluster import eventually, run
from .doors import MODEL, SLOW, chat, client_of, engines, fronted, opened, running

MESSAGES = [{"role": "user", "content": "Hello, engine!"}]


async def text_of(stream):
    return "".join([part.choices[0].delta.content or "" async for part in stream if part.choices])


# -- OpenAI's own client -----------------------------------------------------------------------------------------------


def test_openai_s_client_chats():
    async def scenario():
        async with fronted() as system, client_of(system) as client:
            whole = await client.chat.completions.create(model=MODEL, messages=MESSAGES)
            assert whole.choices[0].message.content == "Hello, engine!"
            assert whole.choices[0].finish_reason == "stop"
            assert whole.usage.completion_tokens == 15
            stream = await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
            parts = [part async for part in stream]
            assert "".join(part.choices[0].delta.content or "" for part in parts) == "Hello, engine!"
            assert parts[0].choices[0].delta.role == "assistant"
            assert parts[-1].choices[0].finish_reason == "stop"
            assert all(part.usage is None for part in parts), "nobody asked for it"
            stream = await client.chat.completions.create(
                model=MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
            )
            parts = [part async for part in stream]
            assert parts[-1].choices == []
            assert parts[-1].usage.total_tokens == whole.usage.total_tokens

    run(scenario())


def test_openai_s_client_completes():
    async def scenario():
        async with fronted() as system, client_of(system) as client:
            for prompt in ("Once upon", [79, 110, 99, 101]):
                whole = await client.completions.create(model=MODEL, prompt=prompt, max_tokens=4)
                assert whole.choices[0].text == "Once"
                assert whole.choices[0].finish_reason == "length"
                parts = [
                    part
                    async for part in await client.completions.create(
                        model=MODEL, prompt=prompt, max_tokens=4, stream=True
                    )
                ]
                assert "".join(part.choices[0].text for part in parts) == "Once"

    run(scenario())


def test_openai_s_client_lists_models():
    async def scenario():
        async with fronted(1, loras=("org/tuned",)) as system, client_of(system) as client:
            listed = (await client.models.list()).data
            assert [(model.id, model.root, model.parent) for model in listed] == [
                (MODEL, MODEL, None),
                ("org/tuned", MODEL, MODEL),
            ]
            assert (await client.models.retrieve(MODEL)).id == MODEL
            with pytest.raises(openai.NotFoundError, match="known are echo, org/tuned"):
                await client.models.retrieve("other")
            whole = await client.chat.completions.create(model="org/tuned", messages=MESSAGES)
            assert whole.model == "org/tuned"

    run(scenario())


def test_an_adapter_is_asked_for_where_it_is():
    async def scenario():
        async with (
            engines(1, loras=("tuned",)) as (having,),
            engines(1) as (bare,),
            opened(bare.url, having.url) as system,
        ):
            ended = await asyncio.gather(*(system.chat(f"{number}", model="tuned") for number in range(8)))
            assert {(status, headers["x-homing-worker"]) for status, _, headers in ended} == {(200, "e1")}
            ended = await asyncio.gather(*(system.chat(f"{number}") for number in range(8)))
            assert {headers["x-homing-worker"] for _, _, headers in ended} == {"e0", "e1"}
            await having.close()
            await system.joined(1)
            assert (await system.chat("x", model="tuned"))[0] == 503

    run(scenario())


def test_openai_s_client_finds_a_model_whose_name_has_a_slash():
    async def scenario():
        async with fronted(1, model="org/base") as system, client_of(system) as client:
            assert (await client.models.retrieve("org/base")).id == "org/base"

    run(scenario())


def test_openai_s_client_raises_its_own_errors():
    async def scenario():
        async with fronted() as system, client_of(system) as client:
            create = client.chat.completions.create
            with pytest.raises(openai.NotFoundError) as caught:
                await create(model="other", messages=MESSAGES)
            assert caught.value.code == "model_not_found"
            assert caught.value.param == "model"
            assert caught.value.type == "invalid_request_error"
            with pytest.raises(openai.BadRequestError, match="messages"):
                await create(model=MODEL, messages=[])
            with pytest.raises(openai.BadRequestError, match="max_tokens"):
                await create(model=MODEL, messages=MESSAGES, max_tokens=0)
            with pytest.raises(openai.BadRequestError) as caught:
                await create(model=MODEL, messages=[{"role": "user", "content": "x" * 200_000}])
            assert caught.value.code == "context_length_exceeded"
            with pytest.raises(openai.BadRequestError, match="stream"):
                await create(model=MODEL, messages=MESSAGES, extra_body={"stream": "yes"})

    run(scenario())


# -- what the door says ------------------------------------------------------------------------------------------------


def test_headers_tell_of_the_way():
    async def scenario():
        async with fronted() as system:
            text = "A prompt of some blocks. " * 20
            for turn, streams in enumerate((False, True)):
                status, _, headers = await system.chat(text, {"x-request-id": f"mine-{turn}"}, stream=streams)
                assert status == 200
                assert headers["x-request-id"] == f"mine-{turn}"
                assert headers["x-homing-worker"] in {"e0", "e1"}
                assert headers["x-homing-plan"] == "local"
                await asyncio.sleep(0.2)
            assert int(headers["x-homing-prefix-tokens"]) > 400, "the second time it is cached, and known to be"
            _, _, headers = await system.chat("x")
            assert len(headers["x-request-id"]) == 32
            status, told, headers = await system.chat("x", {"x-request-id": "with space"}, max_tokens=-1)
            assert status == 400
            assert len(headers["x-request-id"]) == 32
            assert told["error"]["param"] == "max_tokens"
            both = await asyncio.gather(*(system.chat("x", {"x-request-id": "twin"}) for _ in range(8)))
            assert [(status, headers["x-request-id"]) for status, _, headers in both] == [(200, "twin")] * 8

    run(scenario())


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not JSON"),
        (b"[1]", "JSON object"),
        (b'{"model":"echo","messages":[{"role":"user","content":"\xff\xfe"}]}', "not JSON"),
        (b'{"model":"echo","x":"\\ud800"}', "not JSON"),
        (b'{"model":"echo","x":1e999}', "not JSON"),
        (b'{"model":"echo","x":NaN}', "not JSON"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a":' * 100_000, "not JSON"),
        (b'{"messages":[]}', "model"),
        (b'{"model":7,"messages":[]}', "model"),
        (b'{"model":"echo"}', "messages"),
        (b'{"model":"echo","messages":7}', "messages"),
        (b'{"model":"echo","messages":[7]}', "messages"),
        (b'{"model":"echo","messages":[{"role":"user","content":"x"}],"max_tokens":"many"}', "max_tokens"),
        (b'{"model":"echo","messages":[{"role":"user","content":"x"}],"stream":1}', "stream"),
    ],
    ids=range(16),
)
def test_bad_bodies_are_the_client_s_fault(body, says):
    async def scenario():
        async with fronted(1) as system:
            status, told, _ = await system.post("/v1/chat/completions", body)
            assert status == 400
            assert says in told["error"]["message"]
            assert told["error"]["type"] in {"invalid_request_error", "BadRequestError"}

    run(scenario())


def test_odd_bodies_reach_the_engine_as_they_came():
    """What the door adds is added without writing the rest anew."""

    async def scenario():
        async with fronted(1) as system:
            chat = b'"model":"echo","messages":[{"role":"user","content":"x"}]'
            odd = [
                b'{%b,"stream":true,"n_probs":1.0000000000000001}' % chat,
                b' \r\n{%b,"stream":true,"stream_options":{}}' % chat,
                b'{"stream_options":{"include_usage":false},%b,"stream":true,"big":%b}' % (chat, b"123456789" * 4),
                b'{"stream":null,%b,"user":7,"priority":"no","name":"\\u00e9"}' % chat,
            ]
            for body in odd:
                status, told, _ = await system.post("/v1/chat/completions", body)
                assert status == 200, told
                assert "prompt_tokens" not in told or "stream" not in body.decode()

    run(scenario())


def test_paths_and_methods():
    async def scenario():
        async with fronted(1) as system:
            assert (await system.get("/health"))[:2] == (200, "ok\n")
            assert (await system.get("/ready"))[:2] == (200, "ready\n")
            status, told, _ = await system.get("/v1/nothing")
            assert status == 404
            assert told["error"]["code"] == "unknown_url"
            status, told, headers = await system.get("/v1/chat/completions")
            assert status == 405
            assert headers["allow"] == "POST"
            status, told, _ = await system.get("/openapi.json")
            assert status == 200
            assert set(told["paths"]) >= {"/v1/chat/completions", "/v1/models"}
            async with system.session.head(system.url + "/v1/models") as answer:
                assert answer.status == 200
                assert await answer.read() == b""
            status, told, _ = await system.post("/tokenize", {"model": MODEL, "prompt": "abc"})
            assert (status, told["tokens"]) == (200, [97, 98, 99])

    run(scenario())


def test_a_dry_run_decides_as_the_request_would_and_changes_nothing():
    async def scenario():
        async with fronted() as system:
            text = "The same beginning for all. " * 20
            await system.chat(text)
            await asyncio.sleep(0.2)
            for other in ("", "and more", "something else entirely" * 30):
                body = chat(text + other)
                dry = [await system.post("/v1/route", body) for _ in range(3)]
                assert {status for status, _, _ in dry} == {200}
                plans = [told["plan"] for _, told, _ in dry]
                assert len({plan["decode"] for plan in plans}) == 1
                assert len({told["plan"]["estimate"]["hit_tokens"] for _, told, _ in dry}) == 1
                assert not system.scheduler.in_flight
                assert [running(engine) for engine in system.engines] == [0, 0]
                status, _, headers = await system.post("/v1/chat/completions", body)
                assert status == 200
                assert headers["x-homing-worker"] == plans[0]["decode"]
                assert headers["x-homing-prefix-tokens"] == str(plans[0]["estimate"]["hit_tokens"])
                await asyncio.sleep(0.2)
            assert (await system.post("/v1/route", {"model": MODEL}))[0] == 400
            assert (await system.post("/v1/route", {"model": "no", "prompt": "x"}))[0] == 404

    run(scenario())


# -- clients that leave, engines that fail -----------------------------------------------------------------------------


@pytest.mark.parametrize("streams", [False, True])
def test_a_client_that_leaves_frees_its_place(streams):
    async def scenario():
        async with fronted(1, times=SLOW) as system:
            (engine,) = system.engines
            body = chat("x", stream=streams, ignore_eos=True, max_tokens=5000)
            asking = asyncio.ensure_future(system.post("/v1/chat/completions", body))
            await eventually(lambda: running(engine) == 1, "it runs")
            asking.cancel()
            await eventually(lambda: running(engine) == 0, "the engine has stopped", 3)
            async with system.session.get(engine.url + "/metrics") as metrics:
                assert 'vllm:num_requests_running{engine="0",model_name="echo"} 0' in await metrics.text()
            await system.assert_idle()

    run(scenario())


def test_openai_s_client_closing_a_stream_frees_its_place():
    async def scenario():
        async with fronted(1, times=SLOW) as system, client_of(system) as client:
            stream = await client.chat.completions.create(
                model=MODEL, messages=MESSAGES, stream=True, max_tokens=5000, extra_body={"ignore_eos": True}
            )
            async for _ in stream:
                break
            await stream.close()
            await eventually(lambda: running(system.engines[0]) == 0, "the engine has stopped", 3)

    run(scenario())


def test_an_engine_that_dies_under_load_costs_no_request_that_had_no_token():
    async def scenario():
        async with engines(2, times=SLOW) as (lasting, dying), opened(lasting.url, dying.url) as system:
            ended = await _load(system, 60, dying)
            errors = [told for told in ended if "error" in told]
            for told in errors:
                assert told["had"], f"it had no token, and failed: {told}"
                assert told["error"]["code"] == "stream_broken"
            assert errors, "some streams had begun there"
            assert len(errors) < 60
            await system.joined(1)
            assert (await system.chat("after"))[2]["x-homing-worker"] == "e0"

    run(scenario())


async def _load(system, count, dying):
    """Streams, of which one engine's die in the middle."""

    async def one(number):
        had = ""
        body = chat(f"Number {number}: some words to be said again, one after the other.", stream=True)
        async with system.session.post(system.url + "/v1/chat/completions", json=body) as answer:
            if answer.status != 200:
                return {**await answer.json(), "had": ""}
            lines = [line async for line in answer.content if line.startswith(b"data: ")]
        for line in lines[:-1]:
            had += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
        if lines[-1] == b"data: [DONE]\n":
            return {"had": had}
        return {**json.loads(lines[-1][6:]), "had": had or "nothing but a role"}

    async def kill():
        await eventually(lambda: running(dying) > 5, "it is at work")
        await asyncio.sleep(0.1)
        for transport in list(dying._runner.server.connections):
            transport.transport.abort()
        await dying.close()

    async def later(number):
        await asyncio.sleep(number * 0.01)
        return await one(number)

    *ended, _ = await asyncio.gather(*(later(number) for number in range(count)), kill())
    return ended


def test_an_engine_that_comes_back_is_used_again():
    async def scenario():
        async with fronted(1) as system:
            (engine,) = system.engines
            port = int(engine.url.rpartition(":")[2])
            await engine.close()
            await system.joined(0)
            status, told, headers = await system.chat("nobody")
            assert status == 503, told
            assert int(headers["retry-after"]) >= 1
            assert (await system.get("/ready"))[0] == 503
            async with engines(1, port=port):
                await system.joined(1)
                assert (await system.chat("again"))[0] == 200
                assert (await system.get("/ready"))[0] == 200

    run(scenario())


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize", "/v1/responses"]
)
def test_without_any_engine_each_request_is_told_to_come_again(path):
    async def scenario():
        async with fronted(1) as system:
            await system.engines[0].close()
            await system.joined(0)
            body = {**chat("x"), "prompt": "x", "input": "x"}
            status, told, headers = await system.post(path, body)
            assert (status, told["error"]["type"]) == (503, "server_error"), told
            assert int(headers["retry-after"]) >= 1

    run(scenario())


class Sick:
    """Stands before an engine and answers chats itself: with a no."""

    def __init__(self, engine, status):
        self.engine = engine
        self.status = status
        self.asked = 0

    async def __aenter__(self):
        self.session = aiohttp.ClientSession()
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.answer)
        self.runner = web.AppRunner(app, access_log=None)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self.runner.addresses[0][1]}"
        return self

    async def answer(self, asked):
        if asked.path.startswith("/v1/chat") and self.status:
            self.asked += 1
            told = {"error": {"message": "I am sick", "type": "x", "param": None, "code": self.status}}
            return web.json_response(told, status=self.status)
        async with self.session.request(asked.method, self.engine.url + asked.path_qs, data=await asked.read()) as told:
            return web.Response(status=told.status, body=await told.read(), content_type=told.content_type)

    async def __aexit__(self, *error):
        await self.runner.cleanup()
        await self.session.close()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_engine_that_says_no_is_another_one_s_chance(status):
    async def scenario():
        async with engines(2) as (well, ill), Sick(ill, status) as sick:
            async with opened(sick.url, well.url) as system:
                asking = (system.chat(f"{number} is the number", stream=bool(number % 2)) for number in range(12))
                for told in await asyncio.gather(*asking):
                    assert told[0] == 200
                    assert told[2]["x-homing-worker"] == "e1"
                assert sick.asked
            async with opened(sick.url) as system:
                told = await system.chat("only it")
                assert told[0] == status
                assert told[1]["error"]["message"] == "I am sick"

    run(scenario())


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
BEGUN = EVENTS + b"%x\r\n%b\r\n" % (len(EVENT), EVENT)


class Broken(Sick):
    """Answers chats with these bytes, and then closes, or stands still."""

    def __init__(self, engine, answer, stands):
        super().__init__(engine, 0)
        self.bytes = answer
        self.stands = stands

    async def answer(self, asked):
        if asked.path != "/v1/chat/completions":
            return await super().answer(asked)
        self.asked += 1
        asked.transport.write(self.bytes)
        await asyncio.sleep(0.01)
        while self.stands and not asked.transport.is_closing():
            await asyncio.sleep(0.02)
        asked.transport.abort()
        return web.Response()


@pytest.mark.parametrize(
    ("answer", "stands"),
    [
        (b"", False),
        (b"SSH-2.0-OpenSSH\r\n", False),
        (HEAD + b"content-length: 100\r\n\r\n{", False),
        (HEAD + b"x: " + b"a" * 100_000 + b"\r\n\r\n", False),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\nabcdeX", False),
        (EVENTS, False),
        (BEGUN[:-20], False),
        (b"", True),
        (HEAD, True),
        (HEAD + b"content-length: 100\r\n\r\n{", True),
        (EVENTS, True),
    ],
    ids=range(11),
)
def test_an_engine_that_answers_wrongly_is_another_one_s_chance(answer, stands):
    async def scenario():
        async with AsyncExitStack() as stack:
            well, ill = await stack.enter_async_context(engines(2))
            broken = await stack.enter_async_context(Broken(ill, answer, stands))
            system = await stack.enter_async_context(opened(broken.url, well.url, router="first_token_timeout_s: 0.4"))
            asking = [system.chat(f"{number} is the number", stream=bool(number % 2)) for number in range(8)]
            for status, told, headers in await asyncio.gather(*asking):
                assert (status, headers["x-homing-worker"]) == (200, "e1"), told
            assert broken.asked
            assert len(system.scheduler.fleet) == 2, "a bad answer is no reason to let an engine go that lives"

    run(scenario())


async def _all_into(stream, had):
    async for part in stream:
        had.append(part.choices[0].delta.content)


@pytest.mark.parametrize("stands", [False, True])
def test_a_stream_that_breaks_after_its_beginning_ends_with_an_error(stands):
    async def scenario():
        async with AsyncExitStack() as stack:
            (ill,) = await stack.enter_async_context(engines(1))
            broken = await stack.enter_async_context(Broken(ill, BEGUN, stands))
            system = await stack.enter_async_context(opened(broken.url, router="first_token_timeout_s: 0.4"))
            client = await stack.enter_async_context(client_of(system))
            stream = await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
            had = []
            with pytest.raises(openai.APIError) as caught:
                await _all_into(stream, had)
            assert had == ["x"]
            assert caught.value.code == "stream_broken"
            assert broken.asked == 1

    run(scenario())


def test_a_queue_that_is_full_says_so():
    async def scenario():
        one_by_one = "models: [{name: echo}]"
        async with engines(1, times=SLOW) as (engine,):
            backends = f"backends: [{{url: '{engine.url}', requests_max: 1}}]\n{one_by_one}"
            async with opened(router="queue_max: 2", config=backends, count=1) as system:
                body = {"ignore_eos": True, "max_tokens": 30}
                ended = await asyncio.gather(*(system.chat("x", **body) for _ in range(8)))
                statuses = sorted(status for status, _, _ in ended)
                assert set(statuses) == {200, 429}, [told for _, told, _ in ended]
                assert statuses.count(200) >= 3
                full = next(each for each in ended if each[0] == 429)
                assert full[1]["error"]["type"] == "rate_limit_error"
                assert int(full[2]["retry-after"]) >= 1
                async with client_of(system) as client:
                    asking = [
                        client.chat.completions.create(model=MODEL, messages=MESSAGES, extra_body=body)
                        for _ in range(8)
                    ]
                    ended = await asyncio.gather(*asking, return_exceptions=True)
                    assert any(isinstance(each, openai.RateLimitError) for each in ended)

    run(scenario())


def test_a_request_has_its_time():
    async def scenario():
        async with fronted(1, router="request_timeout_s: 0.3", times=SLOW) as system:
            body = {"ignore_eos": True, "max_tokens": 5000}
            status, told, _ = await system.chat("x", **body)
            assert status == 504
            assert "0.3 s" in told["error"]["message"]
            await eventually(lambda: running(system.engines[0]) == 0, "the engine has stopped", 3)

    run(scenario())


def test_a_client_that_does_not_read_holds_its_engine_back():
    async def scenario():
        async with fronted(1) as system:
            (engine,) = system.engines
            body = json.dumps(chat("0123456789" * 10, stream=True, ignore_eos=True, max_tokens=120_000)).encode()
            port = system.process.front.door_port
            _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 12)
            writer.get_extra_info("socket").setsockopt(1, 8, 8192)
            writer.write(b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            answers = lambda: next(iter(system.process.front.endpoints)).upstream._busy  # noqa: E731
            await eventually(
                lambda: any(a._transport and not a._transport.is_reading() for a in answers()), "paused", 10
            )
            writer.transport.abort()
            await eventually(lambda: running(engine) == 0, "the engine has stopped", 3)

    run(scenario())


def test_an_only_engine_that_is_too_busy_is_not_asked_again_and_again():
    async def scenario():
        async with engines(1) as (ill,), Sick(ill, 429) as sick, opened(sick.url) as system:
            before = sick.asked
            assert (await system.chat("x", max_tokens=3))[0] == 429
            assert sick.asked - before <= 2  # one may have been to be told the prompt's tokens

    run(scenario())


def test_a_stream_whose_time_is_over_ends_with_an_error():
    async def scenario():
        async with fronted(1, router="request_timeout_s: 0.3", times=SLOW) as system:
            status, told, _ = await system.chat("x", stream=True, ignore_eos=True, max_tokens=5000)
            assert status == 200
            assert '"error"' in told.rstrip().rpartition("\n")[2]

    run(scenario())


def test_a_request_that_the_core_gave_up_ends():
    async def scenario():
        async with fronted(1, router="lease_s: 0.3", times=SLOW) as system:
            status, _, _ = await system.chat("x", ignore_eos=True, max_tokens=150)
            assert status == 504

    run(scenario())


def test_before_any_engine_was_found_each_request_is_told_to_come_again():
    async def scenario():
        async with opened("http://127.0.0.1:9", count=0) as system:
            status, told, _ = await system.chat("x")
            assert status == 503, told

    run(scenario())

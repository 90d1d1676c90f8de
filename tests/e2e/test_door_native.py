"""Homing's own workers behind the door: OpenAI's JSON around the tokens that gRPC tells."""

import asyncio
from contextlib import asynccontextmanager

import openai
import pytest

from homing.protos import common_pb2, router_pb2
from homing.router.cli.codecs import Codecs
from homing.router.service.config import parse_config
from homing.router.service.process import RouterProcess

from .cluster import Cluster, eventually, run, worker

CONFIG = """
router: {listen: '127.0.0.1:0', http: '127.0.0.1:0', door: '127.0.0.1:0'}
models: [{name: tiny, tokenizer: tiny}]
"""
MESSAGES = [{"role": "user", "content": "What is far and yet near?"}]
SURE = {"temperature": 0, "max_tokens": 24}


@asynccontextmanager
async def native(*names, router=""):
    """A router whose door is open, its workers, and OpenAI's client; `router` adds to its section."""
    text = CONFIG.replace("}", f"{', ' + router if router else ''}}}", 1)
    config = parse_config(text)
    system = Cluster(text)
    system.router = RouterProcess(config, Codecs(config))
    await system.open()
    opened = []
    try:
        for name in names:
            node = worker(name, routers=(system.address,))
            system.nodes[name] = await node.__aenter__()
            opened.append(node)
        await system.joined(len(names))
        url = f"http://127.0.0.1:{system.router.front.door_port}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=30) as client:
            yield system, client
        await system.assert_idle()
    finally:
        for node in opened:
            await node.__aexit__(None, None, None)
        await system.channel.close()
        await system.router.close()


async def grpc_text(system, *, prompt, output):
    """What Generate answers, as text."""
    request = router_pb2.RouteRequest(model="tiny", prompt=prompt, max_output_tokens=output)
    call = system.stub.Generate(
        router_pb2.GenerateRequest(request=request, sampling=common_pb2.Sampling(temperature=0))
    )
    ids = [token async for part in call for token in part.tokens.ids]
    decoder = Codecs(parse_config(CONFIG))("tiny").decoder()
    return decoder.push(ids) + decoder.finish()


def test_a_chat_says_what_generate_says():
    async def scenario():
        async with native("a", "b") as (system, client):
            prompt = common_pb2.Prompt(chat=common_pb2.Chat(messages=[common_pb2.ChatMessage(**MESSAGES[0])]))
            expected = await grpc_text(system, prompt=prompt, output=24)
            whole = await client.chat.completions.create(model="tiny", messages=MESSAGES, **SURE)
            assert whole.choices[0].message.content == expected
            assert whole.usage.completion_tokens == 24
            assert whole.usage.prompt_tokens_details.cached_tokens >= 0
            stream = await client.chat.completions.create(
                model="tiny", messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **SURE
            )
            parts = [part async for part in stream]
            assert "".join(p.choices[0].delta.content or "" for p in parts if p.choices) == expected
            assert parts[0].choices[0].delta.role == "assistant"
            assert parts[-2].choices[0].finish_reason == "length"
            assert parts[-1].usage.completion_tokens == 24

    run(scenario())


def test_a_completion_says_what_generate_says():
    async def scenario():
        async with native("a") as (system, client):
            expected = await grpc_text(system, prompt=common_pb2.Prompt(text="Once upon"), output=24)
            whole = await client.completions.create(model="tiny", prompt="Once upon", **SURE)
            assert whole.choices[0].text == expected
            stream = await client.completions.create(model="tiny", prompt="Once upon", stream=True, **SURE)
            parts = [part async for part in stream]
            assert "".join(part.choices[0].text for part in parts) == expected
            assert all(part.usage is None for part in parts)

    run(scenario())


def test_what_these_workers_cannot_do_is_refused_by_name():
    async def scenario():
        async with native("a") as (_, client):
            create = client.chat.completions.create
            for wish in ({"n": 2}, {"stop": ["x"]}, {"logprobs": True}, {"response_format": {"type": "json_object"}}):
                with pytest.raises(openai.BadRequestError, match=next(iter(wish))):
                    await create(model="tiny", messages=MESSAGES, **wish)
            with pytest.raises(openai.BadRequestError, match="temperature"):
                await create(model="tiny", messages=MESSAGES, temperature=7)
            with pytest.raises(openai.BadRequestError, match="content"):
                await create(model="tiny", messages=[{"role": "user", "content": [{"type": "image_url"}]}])
            with pytest.raises(openai.NotFoundError, match="embeddings"):
                await client.embeddings.create(model="tiny", input="x")

    run(scenario())


def test_a_client_that_leaves_frees_its_worker():
    async def scenario():
        async with native("a") as (system, client):
            stream = await client.chat.completions.create(
                model="tiny", messages=MESSAGES, stream=True, max_tokens=2000, extra_body={"ignore_eos": True}
            )
            async for _ in stream:
                break
            await stream.close()
            await eventually(lambda: not system.scheduler.in_flight, "nothing is booked")
            await asyncio.sleep(0)
            await system.assert_idle()

    run(scenario())


def test_a_request_has_its_time():
    async def scenario():
        async with native("a", router="request_timeout_s: 0.5") as (system, client):
            system.nodes["a"].model.pass_s = 0.05
            with pytest.raises(openai.APIStatusError, match=r"0\.5 s") as caught:
                await client.completions.create(
                    model="tiny", prompt="x", max_tokens=1000, extra_body={"ignore_eos": True}
                )
            assert caught.value.status_code == 504
            await system.assert_idle()

    run(scenario())

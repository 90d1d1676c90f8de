"""The echo model in real workers: its answers are made of KV that was really moved."""

from contextlib import asynccontextmanager

import grpc
import pytest

from homing.protos import common_pb2, worker_pb2
from homing.protos.worker_pb2_grpc import WorkerStub
from homing.router.core.blocks import pack_tokens
from homing.workers.echo.settings import StepTimes
from homing.workers.process import WorkerProcess, WorkerSettings

pytest.importorskip("torch")

from homing.workers.echo.native import answer_after, echo_loaded

from .serving import on_a_loop

PROMPT = [number % 251 for number in range(100)]
QUICK = StepTimes(prefill_a_s=0.001, prefill_b_s=0, decode_s=0)


@asynccontextmanager
async def worker(name):
    settings = WorkerSettings(id=name, site="home", model="echo", source="echo", kv_blocks_max=50, calibrate=False)
    process = WorkerProcess(settings, echo_loaded(QUICK))
    await process.start()
    try:
        async with grpc.aio.insecure_channel(process.address) as channel:
            yield process, WorkerStub(channel)
    finally:
        await process.close()


async def decode(stub, sources=()):
    request = worker_pb2.DecodeRequest(
        request_id="r", tokens_le32=pack_tokens(PROMPT), key_seed=1337, max_output_tokens=5, sources=sources
    )
    ids, start = [], None
    async for reply in stub.Decode(request, timeout=20):
        if reply.WhichOneof("part") == "tokens":
            ids += reply.tokens.ids
            start = reply.tokens.start if reply.tokens.HasField("start") else start
    return ids, start


def expected():
    tokens = list(PROMPT)
    for _ in range(5):
        tokens.append(answer_after(tokens))
    return tokens[len(PROMPT) :]


@on_a_loop
async def test_a_fetched_prefix_gives_the_answer_of_a_computed_one():
    async with worker("a") as (a, from_a), worker("b") as (_, from_b):
        assert (await decode(from_a))[0] == expected()
        move = common_pb2.Move(kind=common_pb2.MOVE_KIND_FETCH, source="a", target="b", block_first=0, block_end=6)
        ids, start = await decode(from_b, [worker_pb2.BlockSource(move=move, address=a.address)])
        assert ids == expected()
        assert start.transfers[0].bytes == 6 * 16 * 128
        assert start.computed_tokens == len(PROMPT) - 6 * 16


@on_a_loop
async def test_kv_of_another_prompt_is_noticed():
    async with worker("a") as (a, stub):
        await decode(stub)
        a.runtime.kv.kv[:, 2] += 1
        with pytest.raises(grpc.aio.AioRpcError, match="different prompts"):
            await decode(stub)


def test_kv_has_room_for_a_token():
    with pytest.raises(ValueError, match="multiple of 64"):
        echo_loaded(QUICK, kv_bytes_per_token=100)

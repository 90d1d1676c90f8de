"""Whatever a prefill worker does, the request goes on: a reason, no patch, and nothing left running."""

import asyncio
from random import Random

import pytest

from homing.router.actuators.registry import ACTUATORS, make_actuator
from homing.router.core.types import PlanKind
from homing.router.engines.types import EngineError

from .engines import CHAT, local, move, order, peer, refusing_url, remote, wires

SEQUENTIAL = ["lmcache_pd", "nixl", "trtllm"]
CONCURRENT = ["homing", "mooncake", "offloading_p2p", "sglang"]
KV = {
    "address": "127.0.0.1:1",
    "bootstrap_host": "127.0.0.1",
    "p2p_host": "127.0.0.1",
    "receiver_host": "127.0.0.1",
    "receiver_init_port": "1",
    "receiver_alloc_port": "2",
}


def handover(url, bootstrap):
    kv = KV | {"bootstrap": bootstrap}
    return order(remote(), peer("p", url, **kv), peer("d", **kv))


def others():
    return [task for task in asyncio.all_tasks() if task is not asyncio.current_task() and "_seconds" in repr(task)]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (500, "answered 500"),
        ("hang", "no whole answer within 0.2 s"),
        ({"choices": []}, "answered without"),
        ({"choices": [3], "kv_transfer_params": 3}, "answered without"),
        ({"choices": [{"disaggregated_params": []}], "kv_transfer_params": {}}, "answered without"),
        (b"not json", "JSON is malformed"),
        (b"[1]", "Expected `object`"),
        ("refuse", "onnect"),
    ],
)
@pytest.mark.parametrize("name", SEQUENTIAL)
def test_a_sequential_handover_that_fails(name, answer, reason):
    async def go():
        async with wires(1) as (post, p):
            p.answers[CHAT] = answer
            url = await refusing_url() if answer == "refuse" else p.url
            prepared = await make_actuator(name, {"timeout_s": 0.2}, Random(1)).prepare(handover(url, p.url), post)
            assert reason in prepared.failed and prepared.failed.startswith("p: ")
            assert not prepared.patch and prepared.beside is None and prepared.prefill_s is None

    asyncio.run(go())


def test_nixl_needs_blocks_to_hand_over():
    async def go():
        async with wires(1) as (post, p):
            p.answers[CHAT] = {"kv_transfer_params": {"do_remote_prefill": False, "remote_block_ids": [[]]}}
            prepared = await make_actuator("nixl", {}, Random(1)).prepare(handover(p.url, p.url), post)
            assert "has no blocks to hand over" in prepared.failed and not prepared.patch

    asyncio.run(go())


@pytest.mark.parametrize(
    ("answer", "reason"), [(500, "answered 500"), (b"x", "JSON is malformed"), ("refuse", "onnect")]
)
@pytest.mark.parametrize("name", CONCURRENT)
def test_a_prefill_worker_that_refuses_at_once_is_found_out(name, answer, reason):
    async def go():
        async with wires(1) as (post, p):
            p.answers |= {CHAT: answer, "/query": {"0": {"engine_id": "e"}}}
            url = await refusing_url() if answer == "refuse" else p.url
            way = make_actuator(name, {"head_start_s": 2.0}, Random(1))
            prepared = await way.prepare(handover(url, p.url), post)
            assert reason in prepared.failed and not prepared.patch and prepared.beside is None
            assert not others()

    asyncio.run(go())


@pytest.mark.parametrize("name", CONCURRENT)
def test_a_prefill_worker_that_hangs_ends_with_its_time_out(name):
    async def go():
        async with wires(1) as (post, p):
            p.answers |= {CHAT: "hang", "/query": {"0": {"engine_id": "e"}}}
            way = make_actuator(name, {"timeout_s": 0.1, "head_start_s": 0}, Random(1))
            prepared = await way.prepare(handover(p.url, p.url), post)
            assert prepared.patch and prepared.failed == ""
            with pytest.raises(EngineError, match=r"no whole answer within 0\.1 s"):
                await prepared.beside
            assert not others()

    asyncio.run(go())


@pytest.mark.parametrize("name", CONCURRENT)
def test_closing_leaves_nothing_running(name):
    async def go():
        async with wires(1) as (post, p):
            p.answers |= {CHAT: "hang", "/query": {"0": {"engine_id": "e"}}}
            way = make_actuator(name, {}, Random(1))
            prepared = [await way.prepare(handover(p.url, p.url), post) for _ in range(3)]
            assert p.hanging == 3 and len(others()) == 3
            prepared[0].beside.cancel()
            await way.close()
            assert all(one.beside.cancelled() for one in prepared) and not others()
            await asyncio.sleep(0.05)
            assert p.hanging == 0, "the prefill worker saw its caller go"

    asyncio.run(go())


@pytest.mark.parametrize("name", CONCURRENT)
def test_a_cancelled_preparation_cancels_its_call(name):
    async def go():
        async with wires(1) as (post, p):
            p.answers |= {CHAT: "hang", "/query": {"0": {"engine_id": "e"}}}
            way = make_actuator(name, {"head_start_s": 30}, Random(1))
            preparing = asyncio.create_task(way.prepare(handover(p.url, p.url), post))
            while not p.hanging:
                await asyncio.sleep(0.005)
            preparing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await preparing
            await way.close()
            assert not others()

    asyncio.run(go())


@pytest.mark.parametrize("answer", [500, "hang", {}, {"0": 3}, b"x"])
def test_a_bootstrap_server_that_fails(answer):
    async def go():
        async with wires(2) as (post, p, bootstrap):
            bootstrap.answers["/query"] = answer
            way = make_actuator("mooncake", {"query_timeout_s": 0.1}, Random(1))
            prepared = await way.prepare(handover(p.url, bootstrap.url), post)
            assert prepared.failed and not prepared.patch and not p.calls

    asyncio.run(go())


@pytest.mark.parametrize("name", [*SEQUENTIAL, *CONCURRENT])
def test_an_address_that_is_missing_is_named(name):
    async def go():
        async with wires(1) as (post, p):
            p.answers |= {CHAT: 500}
            prepared = await make_actuator(name, {}, Random(1)).prepare(
                order(remote(), peer("p", p.url), peer("d")), post
            )
            assert prepared.failed and not prepared.patch
            if name not in {"nixl", "trtllm"}:
                assert "is not configured" in prepared.failed and not p.calls

    asyncio.run(go())


@pytest.mark.parametrize("name", [*SEQUENTIAL, *CONCURRENT])
def test_a_worker_that_is_gone_is_named(name):
    async def go():
        async with wires(1) as (post, p):
            asked = order(remote(move("fetch", "s", "p", 0, 1)), peer("p", p.url, **KV), peer("d", **KV))
            prepared = await make_actuator(name, {}, Random(1)).prepare(asked, post)
            assert prepared.failed == "s: takes part in the plan and is gone" and not prepared.patch and not p.calls

    asyncio.run(go())


@pytest.mark.parametrize("name", ACTUATORS)
def test_a_local_plan_needs_nothing(name):
    async def go():
        async with wires(0) as (post,):
            way = make_actuator(name, {}, Random(1))
            assert PlanKind.LOCAL in way.plans and PlanKind.SPLIT not in way.plans
            prepared = await way.prepare(order(local(), peer("d")), post)
            assert not prepared.failed and not prepared.patch and prepared.beside is None
            way.ended("r-1")
            way.ended("never seen")
            await way.close()

    asyncio.run(go())

"""What workers and operators get wrong: a hello that cannot be, events that contradict themselves, ports in use; and
the services beside the API that tell how a process is.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from math import inf, nan
from typing import Any

import aiohttp
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from homing.protos import common_pb2, fleet_pb2, fleet_pb2_grpc, worker_pb2
from homing.router.core.blocks import pack_tokens
from homing.router.core.errors import ConfigError
from homing.router.service.config import parse_config
from homing.router.service.process import RouterProcess
from homing.workers.process import WorkerProcess, WorkerSettings

from .cluster import KEY_SEED, Cluster, alone, cluster, eventually, free_port, generate, prompt_of, run, tiny, worker

Code = grpc.StatusCode
PROMPT = prompt_of(3, 100)


async def refused(call: Awaitable[Any], code: "grpc.StatusCode", *told: str) -> None:
    """The call ends with this code and a message that contains each of `told`."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is code, caught.value
    for part in told:
        assert part in (caught.value.details() or ""), caught.value


async def assert_answers(system: Cluster) -> None:
    """A good request is answered as ever, and nothing was left of the bad ones."""
    reply = await generate(system, PROMPT)
    assert reply.tokens == await alone(PROMPT)
    await system.assert_idle()


# -- workers' requests -------------------------------------------------------------------------------------------------


def decode(**changes: Any) -> worker_pb2.DecodeRequest:
    good = {"request_id": "r", "tokens_le32": pack_tokens(PROMPT), "key_seed": KEY_SEED, "max_output_tokens": 4}
    return worker_pb2.DecodeRequest(**(good | changes))


def test_a_worker_refuses_what_it_cannot_do() -> None:
    async def check() -> None:
        async with worker("a", kv_blocks_max=20) as node:
            good_format = node.process.runtime.kv.format
            fetch = {"worker_id": "t", "request_id": "r", "kv_format": good_format, "keys": [1]}
            for call, code, told in (
                (node.stub.Decode(decode(request_id="")), Code.INVALID_ARGUMENT, ("request_id",)),
                (node.stub.Decode(decode(tokens_le32=b"12345")), Code.INVALID_ARGUMENT, ("tokens_le32", "5 bytes")),
                (node.stub.Decode(decode(tokens_le32=pack_tokens([1] * 400))), Code.FAILED_PRECONDITION, ("20",)),
                (
                    node.stub.Decode(decode(sampling=common_pb2.Sampling(temperature=nan))),
                    Code.INVALID_ARGUMENT,
                    ("sampling", "temperature"),
                ),
                (
                    node.stub.FetchBlocks(worker_pb2.FetchBlocksRequest(**(fetch | {"kv_format": "other"}))),
                    Code.FAILED_PRECONDITION,
                    ("kv_format", "'other'", good_format),
                ),
                (
                    node.stub.FetchBlocks(worker_pb2.FetchBlocksRequest(**(fetch | {"order": 7}))),
                    Code.INVALID_ARGUMENT,
                    ("order", "7"),
                ),
                (
                    node.stub.FetchBlocks(worker_pb2.FetchBlocksRequest(**fetch)),
                    Code.NOT_FOUND,
                    ("none of these blocks is cached",),
                ),
            ):
                await refused(_all_of(call), code, *told)
            bad_lease = node.prefill("p", PROMPT, range(4), lease_s=nan)
            await refused(bad_lease, Code.INVALID_ARGUMENT, "handover_lease_s")
            await refused(node.prefill("p", PROMPT, range(3, 9)), Code.INVALID_ARGUMENT, "handover_end_block", "6 full")
            assert (await node.decode("good", PROMPT, output=8)).tokens == await alone(PROMPT)
            await node.assert_idle()

    run(check())


def test_a_worker_runs_a_request_once() -> None:
    async def check() -> None:
        async with worker("a") as node:
            node.model.hold_at(1)
            first = asyncio.create_task(node.decode("r", PROMPT, output=8))
            await asyncio.to_thread(node.model.held.wait, 10)
            await refused(_all_of(node.stub.Decode(decode())), Code.FAILED_PRECONDITION, "request_id", "'r'")
            node.model.go()
            assert (await first).tokens == await alone(PROMPT)
            await node.assert_idle()

    run(check())


@pytest.mark.parametrize("kind", [common_pb2.MOVE_KIND_FETCH, common_pb2.MOVE_KIND_MEET, common_pb2.MOVE_KIND_SHIP])
@pytest.mark.parametrize("address", ["not an address", "[::", "127.0.0.1:1", "unix:/nowhere", ":", "é:1", "\x00:1"])
def test_a_source_that_cannot_be_reached_costs_a_computation(kind: "common_pb2.MoveKind", address: str) -> None:
    async def check() -> None:
        async with worker("a") as node:
            move = common_pb2.Move(kind=kind, source="s", target="a", block_first=0, block_end=6)
            answer = await node.decode("r", PROMPT, [worker_pb2.BlockSource(move=move, address=address)], output=8)
            assert answer.tokens == await alone(PROMPT)
            assert answer.start.computed_tokens == len(PROMPT)
            await node.assert_idle()

    run(check(), timeout_s=20)


def test_blocks_beyond_the_prompt_are_not_waited_for() -> None:
    async def check() -> None:
        async with worker("a") as source, worker("b") as node:
            await source.decode("hold", PROMPT)
            for name, first, end in (("beyond", 90, 99), ("across", 3, (1 << 32) - 1)):
                source_of = source.gives(common_pb2.MOVE_KIND_FETCH, first, end)
                assert (await node.decode(name, PROMPT, [source_of], output=8)).tokens == await alone(PROMPT)
                node.cache.clear()
            await node.assert_idle()
            await source.assert_idle()

    run(check())


async def _all_of(stream: AsyncIterator[Any]) -> list[Any]:
    return [reply async for reply in stream]


# -- workers that join -------------------------------------------------------------------------------------------------


def hello_like(system: Cluster, **changes: Any) -> fleet_pb2.Hello:
    """The hello of a worker like "a", under another name, but for the changes."""
    node = system.nodes["a"]
    hello = node.process._hello(tiny())
    hello.worker_id = "ghost"
    fields = {field.name: value for field, value in hello.ListFields()}
    return fleet_pb2.Hello(**(fields | changes))


@asynccontextmanager
async def joined(system: Cluster, messages: Sequence[fleet_pb2.WorkerMessage]) -> AsyncIterator[Any]:
    """A Join stream that says `messages` and stays."""
    left = asyncio.Event()

    async def said() -> AsyncIterator[fleet_pb2.WorkerMessage]:
        for message in messages:
            yield message
        await left.wait()

    call = fleet_pb2_grpc.FleetStub(system.channel).Join(said())
    try:
        yield call
    finally:
        left.set()
        call.cancel()


BAD_HELLOS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"worker_id": ""}, ("hello.worker_id", "missing")),
    ({"model": ""}, ("hello.model", "missing")),
    ({"site": ""}, ("hello.site", "missing")),
    ({"address": ""}, ("hello.address", "missing")),
    ({"kv_format": ""}, ("hello.kv_format", "missing")),
    ({"kv_format": "other"}, ("hello.kv_format", "'other'", "same weights")),
    ({"role": "king"}, ("hello.role", "prefill, decode or both", "'king'")),
    ({"role": ""}, ("hello.role",)),
    ({"block_tokens": 32}, ("hello.block_tokens", "32", "blocks of 16")),
    ({"block_tokens": 0}, ("hello.block_tokens", "at least 1")),
    ({"kv_blocks_max": 0}, ("hello.kv_blocks_max", "at least 1")),
    ({"requests_max": 0}, ("hello.requests_max", "at least 1")),
    ({"layers": 0}, ("hello.layers", "at least 1")),
    ({"prefill_a_s": nan, "prefill_b_s": 1.0}, ("hello.prefill_b_s", "nan")),
    ({"prefill_b_s": inf}, ("hello.prefill_b_s", "inf")),
    ({"prefill_b_s": -1.0}, ("hello.prefill_b_s", "-1")),
    ({"prefill_a_s": 1.0}, ("hello.prefill_b_s", "positive slope")),
]


def test_a_worker_that_cannot_be_is_refused() -> None:
    async def check() -> None:
        async with cluster("a") as system:
            for changes, told in BAD_HELLOS:
                message = fleet_pb2.WorkerMessage(hello=hello_like(system, **changes))
                async with joined(system, [message]) as call:
                    await refused(call.read(), Code.INVALID_ARGUMENT, *told)
            async with joined(system, [fleet_pb2.WorkerMessage(load=fleet_pb2.LoadReport())]) as call:
                await refused(call.read(), Code.INVALID_ARGUMENT, "hello", "first message")
            assert len(system.scheduler.fleet) == 1
            await assert_answers(system)

    run(check())


def test_measurements_that_cannot_be_teach_nothing() -> None:
    async def check() -> None:
        async with cluster("a") as system:
            measured = [
                common_pb2.PrefillOutcome(computed_from_tokens=first, computed_to_tokens=end, compute_s=seconds)
                for first, end, seconds in ((0, 100, nan), (0, 100, inf), (0, 100, -1.0), (100, 0, 1.0), (0, 0, 1.0))
            ]
            message = fleet_pb2.WorkerMessage(hello=hello_like(system, measured=measured))
            async with joined(system, [message, message, fleet_pb2.WorkerMessage()]) as call:
                assert (await call.read()).HasField("welcome")
                assert system.scheduler.fleet.get("ghost").rate.samples == 0
                system.scheduler.check()
            await system.joined(1)
            await assert_answers(system)

    run(check())


def test_a_worker_under_an_address_that_is_none_costs_another_try() -> None:
    """It holds the whole prompt, so that the router prefers it."""

    async def check() -> None:
        async with cluster("a") as system:
            await generate(system, PROMPT)
            held = [key for stored in system.nodes["a"].cache.entries() for key in [stored.key]]
            message = fleet_pb2.WorkerMessage(hello=hello_like(system, address="not an address", prefill_b_s=1e-9))
            async with joined(system, [message]) as call:
                assert (await call.read()).HasField("welcome")
                async with publisher(system) as events:
                    stored = fleet_pb2.KvEvent(stored=fleet_pb2.Stored(keys=held))
                    await events.send(0, CLEARED, stored)
                reply = await generate(system, PROMPT)
                assert reply.tokens == await alone(PROMPT)
                assert {decision.plan.decode for decision in reply.decisions} >= {"a"}
            await system.joined(1)
            await assert_answers(system)

    run(check())


# -- workers that tell their caches ------------------------------------------------------------------------------------

CLEARED = fleet_pb2.KvEvent(cleared=fleet_pb2.Cleared())


class Publisher:
    """A Publish stream, batch by batch."""

    def __init__(self, system: Cluster, name: str) -> None:
        self._name = name
        self.call = fleet_pb2_grpc.KvEventsStub(system.channel).Publish()

    async def send(self, sequence: int, *events: fleet_pb2.KvEvent) -> fleet_pb2.KvEventAck:
        """Send one batch, and read what is answered."""
        await self.call.write(fleet_pb2.KvEventBatch(worker_id=self._name, sequence=sequence, events=events))
        ack = await self.call.read()
        if ack is grpc.aio.EOF:
            raise grpc.aio.AioRpcError(
                await self.call.code(), grpc.aio.Metadata(), grpc.aio.Metadata(), details=await self.call.details()
            )
        return ack


@asynccontextmanager
async def publisher(system: Cluster, name: str = "ghost") -> AsyncIterator[Publisher]:
    opened = Publisher(system, name)
    try:
        yield opened
    finally:
        opened.call.cancel()


def stored(*keys: int, parent: int | None = None) -> fleet_pb2.KvEvent:
    return fleet_pb2.KvEvent(stored=fleet_pb2.Stored(keys=keys, parent=parent))


def test_events_that_cannot_be_are_refused_or_asked_for_anew() -> None:
    async def check() -> None:
        async with cluster("a") as system:
            async with publisher(system, "nobody") as events:
                call = events.send(0, CLEARED)
                await refused(call, Code.FAILED_PRECONDITION, "worker_id", "'nobody'", "join before")
            hello = fleet_pb2.WorkerMessage(hello=hello_like(system, role="prefill"))
            async with joined(system, [hello]) as call:
                assert (await call.read()).HasField("welcome")
                async with publisher(system) as events:
                    await refused(events.send(0, CLEARED, fleet_pb2.KvEvent()), Code.INVALID_ARGUMENT, "events[1]")
                async with publisher(system) as events:
                    tape = fleet_pb2.KvEvent(stored=fleet_pb2.Stored(keys=[1]), tier="tape")
                    await refused(events.send(0, CLEARED, tape), Code.INVALID_ARGUMENT, "events[1].tier", "'tape'")
                async with publisher(system) as events:
                    assert (await events.send(0, stored(1))).resync, "the beginning is missing"
                    assert not (await events.send(1, CLEARED, stored(1, 2, 3))).resync
                    assert system.index_of("ghost") == {1, 2, 3}
                    ack = await events.send(2, stored(3, parent=77))
                    assert ack.resync and ack.reason, "key 3 stands for another prefix than it did"
                    assert system.index_of("ghost") == set(), "what contradicts itself is not believed"
                    assert (await events.send(3, stored(9))).resync, "nor is what comes before a clean slate"
                    assert not (await events.send(4, CLEARED, stored(5, 6))).resync
                    assert system.index_of("ghost") == {5, 6}
                    assert not (await events.send(5)).resync, "an empty batch says nothing and breaks nothing"
                system.scheduler.check()
            await system.joined(1)
            await assert_answers(system)

    run(check())


# -- ports -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["listen", "http"])
def test_a_router_whose_port_is_taken_says_which(key: str) -> None:
    async def check() -> None:
        async with cluster() as system:
            taken = system.router.port if key == "listen" else system.router.http_port
            free = free_port()
            ports = {"listen": f"127.0.0.1:{free}", "http": "127.0.0.1:0"} | {key: f"127.0.0.1:{taken}"}
            second = RouterProcess(parse_config(f"router: {ports}"), lambda name: None)
            with pytest.raises(ConfigError, match=rf"router\.{key}: cannot listen on 127\.0\.0\.1:{taken}"):
                await second.start()
            await second.close()
            third = RouterProcess(parse_config(f"router: {{listen: '127.0.0.1:{free}', http: '127.0.0.1:0'}}"), str)
            await third.start()
            await third.close()

    run(check())


@pytest.mark.parametrize("key", ["port", "data_port"])
def test_a_worker_whose_port_is_taken_says_so_and_can_be_closed(key: str) -> None:
    async def check() -> None:
        async with worker("first") as node:
            taken = getattr(node.process, key)
            settings = WorkerSettings(
                id="second", site="home", model="tiny", source="tiny", kv_blocks_max=20, calibrate=False, **{key: taken}
            )
            second = WorkerProcess(settings, tiny())
            with pytest.raises(OSError, match=str(taken)):
                await second.start()
            await second.close()
            assert (await node.decode("r", PROMPT, output=8)).tokens == await alone(PROMPT)

    run(check())


# -- how a process is --------------------------------------------------------------------------------------------------


async def http(system: Cluster, path: str) -> tuple[int, str]:
    timeout = aiohttp.ClientTimeout(total=5)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.get(f"http://127.0.0.1:{system.router.http_port}{path}") as response,
    ):
        return response.status, await response.text()


def test_http_tells_health_readiness_and_metrics() -> None:
    async def check() -> None:
        async with cluster() as system:
            assert await http(system, "/health") == (200, "ok\n")
            assert await http(system, "/ready") == (503, "no worker has joined\n")
            async with worker("a", routers=(system.address,)):
                await system.joined(1)
                assert await http(system, "/ready") == (200, "ready\n")
                await generate(system, PROMPT)
                status, text = await http(system, "/metrics")
                assert status == 200
                named = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
                assert named and all(name.startswith("homing_") for name in named)
                assert 'homing_requests_total{outcome="finished"} 1.0' in text
                assert "homing_requests_in_flight 0.0" in text
                assert "nan" not in text.lower()
                await system.router.drain(1.0)
                assert await http(system, "/ready") == (503, "draining\n")
            assert (await http(system, "/no/such/page"))[0] == 404

    run(check())


@pytest.mark.parametrize("who", ["router", "worker"])
def test_grpc_health_and_reflection_answer(who: str) -> None:
    async def check() -> None:
        async with cluster("a") as system:
            channel = system.channel if who == "router" else system.nodes["a"].channel
            service = "homing.v1.Router" if who == "router" else "homing.v1.Worker"
            health = health_pb2_grpc.HealthStub(channel)
            for name in ("", service):
                answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            unknown = health.Check(health_pb2.HealthCheckRequest(service="homing.v1.Nothing"))
            await refused(unknown, Code.NOT_FOUND)
            asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            (answer,) = [reply async for reply in stub.ServerReflectionInfo(iter(asked))]
            assert service in {found.name for found in answer.list_services_response.service}
            if who == "router":
                await system.router.drain(1.0)
                answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
                assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING

    run(check())


def test_events_of_a_worker_that_is_lost_meanwhile_do_no_harm() -> None:
    """Its stream may end between two batches."""

    async def check() -> None:
        async with cluster("a") as system, publisher(system) as events:
            async with joined(system, [fleet_pb2.WorkerMessage(hello=hello_like(system))]) as call:
                assert (await call.read()).HasField("welcome")
                assert not (await events.send(0, CLEARED, stored(1, 2))).resync
            await eventually(lambda: len(system.scheduler.fleet) == 1, "the ghost is gone")
            await refused(events.send(1, stored(3, parent=2)), Code.FAILED_PRECONDITION, "worker_id", "'ghost'")
            await assert_answers(system)

    run(check())

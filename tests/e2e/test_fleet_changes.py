"""Workers join, fall silent, drain and die; routers restart; what the router believes of caches stays true."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from homing.protos import fleet_pb2
from homing.protos.fleet_pb2_grpc import FleetStub, KvEventsStub
from homing.router.core.commands import Forget
from homing.router.core.events import WorkerLost
from homing.router.core.types import WorkerId

from .cluster import Cluster, Reply, alone, cluster, eventually, free_port, generate, prompt_of, run, worker
from .network import BadNetwork

PROMPT = prompt_of(21, 500)


def hello(name: str = "hand", **changes: Any) -> fleet_pb2.WorkerMessage:
    """A worker that exists on the wire alone."""
    fields: dict[str, Any] = {
        "worker_id": name,
        "model": "tiny",
        "role": "both",
        "site": "home",
        "address": "127.0.0.1:1",
        "block_tokens": 16,
        "kv_blocks_max": 100,
        "requests_max": 4,
        "kv_format": "by hand",
        "kv_bytes_per_token": 1024,
        "layers": 4,
        "context_tokens": 2048,
        "vocabulary_tokens": 512,
    }
    return fleet_pb2.WorkerMessage(hello=fleet_pb2.Hello(**fields | changes))


@asynccontextmanager
async def joined_by_hand(system: Cluster, name: str = "hand") -> AsyncIterator[Any]:
    call = FleetStub(system.channel).Join()
    await call.write(hello(name))
    welcome = await call.read()
    assert welcome.welcome.report_every_s > 0
    try:
        yield call
    finally:
        call.cancel()


def cleared() -> fleet_pb2.KvEvent:
    return fleet_pb2.KvEvent(cleared=fleet_pb2.Cleared())


def stored(keys: Iterable[int], parent: int | None = None) -> fleet_pb2.KvEvent:
    return fleet_pb2.KvEvent(stored=fleet_pb2.Stored(keys=keys, parent=parent))


def removed(keys: Iterable[int]) -> fleet_pb2.KvEvent:
    return fleet_pb2.KvEvent(removed=fleet_pb2.Removed(keys=keys))


async def tell(
    call: Any, sequence: int, events: Sequence[fleet_pb2.KvEvent], name: str = "hand"
) -> fleet_pb2.KvEventAck:
    await call.write(fleet_pb2.KvEventBatch(worker_id=name, sequence=sequence, events=events))
    return await asyncio.wait_for(call.read(), 2)


def caches_are_known(system: Cluster) -> bool:
    return all(
        system.scheduler.fleet.get(name) is not None
        and system.index_of(name) == {entry.key for entry in node.cache.entries()}
        for name, node in system.nodes.items()
    )


def test_the_index_follows_the_caches_through_load_eviction_and_clearing() -> None:
    """I10 over the wire: small caches, so that every answer evicts something."""

    async def check() -> None:
        async with cluster("a", "b", kv_blocks_max=48) as system:
            for number in range(12):
                await generate(system, prompt_of(number % 5, 100 + 37 * number), output=4)
            await eventually(lambda: caches_are_known(system), "the index equals the caches")
            assert any(system.index_of(name) for name in system.nodes)
            system.nodes["a"].cache.clear()
            system.nodes["a"].process.runtime._tell_events()
            await eventually(lambda: caches_are_known(system), "the index equals the caches")
            assert not system.index_of("a")
            await system.assert_idle()

    run(check())


def test_after_a_restart_of_the_router_workers_rejoin_and_tell_their_caches_anew() -> None:
    async def check() -> None:
        port = free_port()
        section = f"listen: '127.0.0.1:{port}'"
        text = f"router: {{{section}, http: '127.0.0.1:0'}}"
        first, second = Cluster(text), Cluster(text)
        await first.open()
        async with worker("a", routers=(first.address,)) as a, worker("b", routers=(first.address,)) as b:
            first.nodes = second.nodes = {"a": a, "b": b}
            await first.joined(2)
            await generate(first, PROMPT, output=4)
            await first.channel.close()
            await first.router.close()
            # What changes while no router listens must not be missed.
            await a.decode("meanwhile", prompt_of(22, 200), output=1)
            await second.open()
            await second.joined(2)
            await eventually(lambda: caches_are_known(second), "the new router knows both caches")
            assert second.index_of("a")
            reply = await generate(second, PROMPT, output=4)
            assert reply.tokens == await alone(PROMPT, 4)
            assert reply.summary.hit_tokens > 400
            await second.assert_idle()
        await second.channel.close()
        await second.router.close()

    run(check())


def test_two_routers_share_their_workers() -> None:
    async def check() -> None:
        async with cluster() as one, cluster() as other, worker("a", routers=(one.address, other.address)) as a:
            one.nodes = other.nodes = {"a": a}
            await one.joined(1)
            await other.joined(1)
            wanted = await alone(PROMPT)
            replies = await asyncio.gather(*(generate(system, PROMPT) for system in (one, other, one, other)))
            assert all(reply.tokens == wanted for reply in replies)
            await eventually(lambda: caches_are_known(one) and caches_are_known(other), "both know the cache")
            await one.assert_idle()
            await other.assert_idle()

    run(check())


def test_a_gap_in_what_is_told_clears_what_is_believed_until_all_is_told_anew() -> None:
    async def check() -> None:
        async with cluster() as system, joined_by_hand(system):
            call = KvEventsStub(system.channel).Publish()
            ack = await tell(call, 0, [cleared(), stored([1, 2, 3]), stored([7], parent=2)])
            assert (ack.sequence, ack.resync) == (0, False)
            assert system.index_of("hand") == {1, 2, 3, 7}
            assert not (await tell(call, 1, [removed([3])])).resync
            assert system.index_of("hand") == {1, 2, 7}
            ack = await tell(call, 3, [stored([9], parent=2)])
            assert ack.resync and "batch 2 was expected, 3 came" in ack.reason
            assert system.index_of("hand") == set()
            ack = await tell(call, 4, [stored([10], parent=2)])
            assert ack.resync, "only a clean slate can be believed"
            assert system.index_of("hand") == set()
            assert not (await tell(call, 5, [cleared(), stored([1, 2, 9])])).resync
            assert system.index_of("hand") == {1, 2, 9}
            assert not (await tell(call, 6, [stored([11], parent=9)])).resync
            assert system.index_of("hand") == {1, 2, 9, 11}
            system.scheduler.check()
            call.cancel()

    run(check())


def test_a_contradiction_is_answered_with_a_resync_and_a_repeat_is_harmless() -> None:
    async def check() -> None:
        async with cluster() as system, joined_by_hand(system):
            call = KvEventsStub(system.channel).Publish()
            assert not (await tell(call, 0, [cleared(), stored([1, 2]), stored([5], parent=1)])).resync
            ack = await tell(call, 1, [stored([2], parent=5)])
            assert ack.resync and ack.reason
            assert system.index_of("hand") == set()
            assert not (await tell(call, 2, [cleared(), stored([1, 2]), stored([1, 2])])).resync
            assert system.index_of("hand") == {1, 2}
            assert not (await tell(call, 3, [removed([2, 99])])).resync
            assert system.index_of("hand") == {1}
            system.scheduler.check()
            call.cancel()

    run(check())


def test_a_real_worker_answers_a_resync_with_everything() -> None:
    async def check() -> None:
        async with cluster("a") as system:
            await generate(system, PROMPT, output=2)
            await eventually(lambda: caches_are_known(system), "the cache is known")
            # The router forgets on its own, as after a contradiction, and asks for all of it with the next batch.
            bit = system.scheduler.fleet.get("a").bit
            for index in system.scheduler.index.values():
                index.cleared(bit)
            system.router._kv_events._resync["a"] = "a test says so"
            await generate(system, prompt_of(23, 40), output=2)
            await eventually(lambda: caches_are_known(system), "everything was told anew")
            assert len(system.index_of("a")) > 30

    run(check())


def test_a_worker_that_falls_silent_is_given_up_and_may_come_back() -> None:
    async def check() -> None:
        async with cluster(router="lost_after_s: 0.4") as system, joined_by_hand(system) as call:
            await system.joined(1)
            assert await asyncio.wait_for(call.read(), 3) is grpc.aio.EOF
            await system.joined(0)
            async with joined_by_hand(system):
                await system.joined(1)
            await system.joined(0)
            system.scheduler.check()

    run(check())


def test_a_worker_that_is_given_up_again_and_again_comes_back_each_time_at_once() -> None:
    """Pauses grow only between tries that fail; each of these breaks is a new one."""

    async def check() -> None:
        async with cluster("a") as system:
            for _ in range(5):
                system.router.driver.feed(WorkerLost(worker_id=WorkerId("a"), reason="a test says so"))
                system.router.driver.on_worker(Forget(worker_id=WorkerId("a"), reason="a test says so"))
                assert not len(system.scheduler.fleet)
                await eventually(lambda: len(system.scheduler.fleet) == 1, "it is back", 1.0)
            assert (await generate(system, PROMPT)).tokens == await alone(PROMPT)
            await system.assert_idle()

    run(check())


def test_a_worker_that_joins_twice_replaces_itself() -> None:
    async def check() -> None:
        async with cluster() as system, joined_by_hand(system) as first:
            async with joined_by_hand(system):
                assert await asyncio.wait_for(first.read(), 3) is grpc.aio.EOF
                await asyncio.sleep(0.05)
                assert len(system.scheduler.fleet) == 1, "the end of the first stream took the second with it"
                system.scheduler.check()
            await system.joined(0)

    run(check())


def test_a_draining_worker_finishes_what_it_has_and_gets_nothing_new() -> None:
    async def check() -> None:
        async with cluster("a", "b") as system:
            for node in system.nodes.values():
                node.model.hold_at(4)
            reply = Reply()
            asked = asyncio.create_task(generate(system, PROMPT, reply, output=12))
            await eventually(lambda: bool(reply.decisions), "the request was dispatched")
            leaving = system.nodes[reply.decisions[0].plan.decode]
            [other] = [node for node in system.nodes.values() if node is not leaving]
            await eventually(leaving.model.held.is_set, "the request runs")
            other.model.go()
            draining = asyncio.create_task(leaving.process.drain(10))
            await eventually(lambda: system.scheduler.fleet.get(leaving.id).draining, "the router knows")
            later = [await generate(system, prompt_of(50 + i, 60), output=2) for i in range(4)]
            assert {r.decisions[0].plan.decode for r in later} == {other.id}
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await leaving.decode("new", PROMPT)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "draining" in (refused.value.details() or "")
            assert not draining.done()
            leaving.model.go()
            await asked
            assert reply.tokens == await alone(PROMPT, 12) and reply.summary.retries == 0
            await asyncio.wait_for(draining, 10)
            await system.assert_idle()

    run(check())


def test_a_worker_that_leaves_has_told_its_last_token_before() -> None:
    """Even where its tokens take longer to the router than the news that it left; nobody else could go on."""

    async def check() -> None:
        wanted = await alone(PROMPT, 6)
        async with BadNetwork() as network, cluster() as system:
            way = {"home": f"127.0.0.1:{network.port}"}
            async with worker("only", routers=(system.address,), address_from=way) as node:
                network.target_port = node.process.port
                network.delay_s = 0.1
                await system.joined(1)
                asked = [asyncio.create_task(generate(system, PROMPT, output=6)) for _ in range(4)]
                await eventually(lambda: len(node.process.runtime._jobs) == 4, "all are there")
                await node.process.drain(10)
                await node.process.close()
                replies = await asyncio.gather(*asked)
                assert [reply.tokens for reply in replies] == [wanted] * 4
                await system.joined(0)
            await system.assert_idle()

    run(check())


def test_a_draining_router_lets_requests_end_and_takes_none() -> None:
    async def check() -> None:
        async with cluster("a") as system:
            node = system.nodes["a"]
            node.model.hold_at(4)
            asked = asyncio.create_task(generate(system, PROMPT, output=12))
            await eventually(node.model.held.is_set, "the request runs")
            draining = asyncio.create_task(system.router.drain(10))
            await asyncio.sleep(0)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await generate(system, PROMPT)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "draining" in (refused.value.details() or "")
            assert not draining.done()
            node.model.go()
            assert (await asked).tokens == await alone(PROMPT, 12)
            await asyncio.wait_for(draining, 10)
            await system.assert_idle()

    run(check())


@asynccontextmanager
async def worker_process(name: str, system: Cluster) -> AsyncIterator[asyncio.subprocess.Process]:
    """`homing worker` in a process of its own, as an operator starts it."""
    command = ["worker", "--id", name, "--model", "tiny", "--source", "tiny", "--router", system.address]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from homing.router.cli.main import main; main()", *command),
        *("--listen", "127.0.0.1:0", "--threads", "1"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        await eventually(lambda: system.scheduler.fleet.get(name) is not None, "the process joined", 30)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.parametrize(("tokens", "prompt_tokens"), [(20, 500), (0, 7500)], ids=["mid-decode", "mid-prefill"])
def test_sigkill_of_a_worker_process_costs_no_token(tokens: int, prompt_tokens: int) -> None:
    async def check() -> None:
        prompt, output = prompt_of(31, prompt_tokens), 300
        async with cluster() as system, worker_process("doomed", system) as process:
            reply = Reply()
            asked = asyncio.create_task(generate(system, prompt, reply, output=output))
            await eventually(lambda: bool(reply.decisions) and len(reply.tokens) >= tokens, "it is under way")
            async with worker("heir", routers=(system.address,), kv_blocks_max=600) as heir:
                system.nodes["heir"] = heir
                await system.joined(2)
                assert (len(reply.tokens) > 0) == (tokens > 0) and len(reply.tokens) < output
                process.send_signal(signal.SIGKILL)
                await asked
                heir.process.runtime.cache.clear()
                wanted = (await heir.decode("wanted", prompt, output=output)).tokens
                assert reply.tokens == wanted
                assert [d.plan.decode for d in reply.decisions] == ["doomed", "heir"]
                await system.assert_idle()

    run(check())


def test_sigterm_of_a_worker_process_lets_its_request_end() -> None:
    async def check() -> None:
        async with cluster() as system, worker_process("leaving", system) as process:
            reply = Reply()
            asked = asyncio.create_task(generate(system, PROMPT, reply, output=200))
            await eventually(lambda: len(reply.tokens) > 20, "the answer is under way")
            process.send_signal(signal.SIGTERM)
            await asked
            assert reply.tokens == await alone(PROMPT, 200) and reply.summary.retries == 0
            assert await asyncio.wait_for(process.wait(), 10) == 0
            await system.joined(0)
            await system.assert_idle()

    run(check())

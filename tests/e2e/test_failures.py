"""Workers die, stall and leave, clients go away: a request ends elsewhere with the right tokens or with a clear no."""

import asyncio
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import grpc
import pytest

from homing.protos import common_pb2

from .cluster import Cluster, Node, Reply, alone, cluster, eventually, generate, prompt_of, run
from .network import BadNetwork

PROMPT = prompt_of(11, 900)
PREFILL_PASSES = 4
"""A prompt of 900 tokens in steps of 256."""
OUTPUT = 12


@pytest.fixture(autouse=True)
def _short_offers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of an offer whose taker died before it connected are free this much later."""
    monkeypatch.setattr("homing.workers.runtime.OFFER_TTL_S", 1.0)


async def ask(system: Cluster, reply: Reply, **wishes: Any) -> "asyncio.Task[Reply]":
    """A request whose first dispatch has been decided."""
    task = asyncio.create_task(generate(system, PROMPT, reply, output=OUTPUT, **wishes))
    await eventually(lambda: bool(reply.decisions) or task.done(), "the request was dispatched")
    return task


def hold(nodes: Iterable[Node], step: int) -> None:
    for node in nodes:
        node.model.hold_at(step)


async def lose(node: Node, how: str) -> None:
    """A worker goes: with everything, or only its gRPC server, or only its membership."""
    match how:
        case "everything":
            await node.kill()
        case "server":
            node.alive = False
            assert node.process._server is not None
            await node.process._server.stop(None)
        case "membership":
            await asyncio.gather(*(member.close() for member in node.process._members))


@pytest.mark.parametrize("how", ["everything", "server", "membership"])
@pytest.mark.parametrize("step", [2, PREFILL_PASSES + 4], ids=["mid-prefill", "mid-decode"])
def test_a_request_outlives_its_worker(how: str, step: int) -> None:
    async def check() -> None:
        async with cluster("a", "b", "c") as system:
            hold(system.nodes.values(), step)
            reply = Reply()
            asked = await ask(system, reply)
            doomed = system.nodes[reply.decisions[0].plan.decode]
            await eventually(doomed.model.held.is_set, "the doomed worker is in the middle")
            if step > PREFILL_PASSES:
                await eventually(lambda: bool(reply.tokens), "some tokens have come")
            await lose(doomed, how)
            for node in system.nodes.values():
                node.model.go()
            await asked
            assert reply.tokens == await alone(PROMPT, OUTPUT)
            assert len(reply.decisions) == 2 and reply.summary.retries == 1
            assert reply.decisions[1].plan.decode != doomed.id
            assert reply.summary.output_tokens == OUTPUT and reply.summary.finish_reason == "length"
            await system.assert_idle()

    run(check())


def test_a_request_outlives_two_workers_in_turn() -> None:
    async def check() -> None:
        async with cluster("a", "b", "c") as system:
            hold(system.nodes.values(), PREFILL_PASSES + 3)
            reply = Reply()
            asked = await ask(system, reply)
            for dispatch in range(2):
                await eventually(lambda wanted=dispatch: len(reply.decisions) > wanted, "it was dispatched again")
                doomed = system.nodes[reply.decisions[dispatch].plan.decode]
                await eventually(doomed.model.held.is_set, "the doomed worker is decoding")
                await doomed.kill()
            for node in system.nodes.values():
                node.model.go()
            await asked
            assert reply.tokens == await alone(PROMPT, OUTPUT)
            assert reply.summary.retries == 2
            await system.assert_idle()

    run(check())


@pytest.mark.parametrize("doomed", ["p1", "d1"])
def test_a_remote_plan_outlives_either_of_its_workers_in_the_middle_of_the_handover(doomed: str) -> None:
    async def check() -> None:
        async with cluster("p1:prefill", "d1:decode", "p2:prefill", "d2:decode") as system:
            pairs = {"p1": ("p1", "p2"), "d1": ("d1", "d2")}[doomed]
            hold([system.nodes["p1"], system.nodes["p2"]], 3)
            reply = Reply()
            asked = await ask(system, reply)
            plan = reply.decisions[0].plan
            assert plan.kind == common_pb2.PLAN_KIND_REMOTE
            prefiller, decoder = system.nodes[plan.prefill], system.nodes[plan.decode]
            await eventually(prefiller.model.held.is_set, "two chunks are computed")
            await eventually(lambda: decoder.cache.cached + committed(decoder) > 0, "blocks have been handed over")
            await (prefiller if doomed == "p1" else decoder).kill()
            for node in system.nodes.values():
                node.model.go()
            await asked
            assert reply.tokens == await alone(PROMPT, OUTPUT)
            assert reply.decisions[1].plan.prefill in pairs or reply.decisions[1].plan.decode in pairs
            await system.assert_idle()

    run(check())


def committed(node: Node) -> int:
    return sum(job.sequence.committed for job in node.process.runtime._jobs.values())


def test_a_source_that_dies_during_a_direct_plan_costs_no_new_dispatch() -> None:
    """The decode worker has the whole prompt, so it computes what does not come."""

    async def check() -> None:
        async with BadNetwork() as network, cluster("p:prefill", "d:decode") as system:
            prefiller, decoder = system.nodes["p"], system.nodes["d"]
            await generate(system, PROMPT, output=1)
            decoder.cache.clear()
            decoder.process.runtime._tell_events()
            await eventually(lambda: not system.index_of("d"), "the router knows that d forgot")
            network.stand_before(prefiller, "home")
            network.bytes_per_s = 500e3
            reply = Reply()
            asked = await ask(system, reply)
            assert reply.decisions[0].plan.kind == common_pb2.PLAN_KIND_DIRECT
            await eventually(lambda: network.carried_bytes > 100_000, "the transfer has begun")
            await prefiller.kill()
            network.tamper = lambda offset, chunk: None
            await asked
            assert reply.tokens == await alone(PROMPT, OUTPUT)
            assert reply.summary.retries == 0 and not reply.summary.transfers[0].complete
            await system.assert_idle()

    run(check())


@pytest.mark.parametrize("step", [2, PREFILL_PASSES + 4], ids=["mid-prefill", "mid-decode"])
def test_without_another_worker_the_request_ends_with_a_clear_status(step: int) -> None:
    async def check() -> None:
        async with cluster("only") as system:
            node = system.nodes["only"]
            hold([node], step)
            reply = Reply()
            asked = await ask(system, reply)
            await eventually(node.model.held.is_set, "the worker is in the middle")
            await node.kill()
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await asked
            assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "no worker serves 'tiny'" in (failed.value.details() or "")
            assert reply.tokens == (await alone(PROMPT, OUTPUT))[: len(reply.tokens)]
            await system.assert_idle()

    run(check())


@pytest.mark.parametrize("step", [1, 2, PREFILL_PASSES + 4], ids=["before a pass", "mid-prefill", "mid-decode"])
@pytest.mark.parametrize("workers", [("a", "b"), ("p:prefill", "d:decode")], ids=["both", "remote"])
def test_a_client_that_goes_away_frees_everything(step: int, workers: tuple[str, ...]) -> None:
    async def check() -> None:
        async with cluster(*workers) as system:
            late = step > PREFILL_PASSES
            for node in system.nodes.values():
                # A decode worker's own passes are one for the prompt's end and one for each further token.
                node.model.hold_at(4 if node.id == "d" else 99 if late and node.id == "p" else step)
            reply = Reply()
            asked = await ask(system, reply)
            plan = reply.decisions[0].plan
            busy = system.nodes[plan.decode if late else plan.prefill]
            await eventually(busy.model.held.is_set, "the worker is in the middle")
            asked.cancel()
            with suppress(asyncio.CancelledError):
                await asked
            await eventually(lambda: not system.scheduler.in_flight, "the router has let go of it")
            for node in system.nodes.values():
                node.model.go()
            await system.assert_idle()
            assert (await generate(system, PROMPT, output=4)).tokens == await alone(PROMPT, 4)

    run(check())


@pytest.mark.parametrize("step", [1, PREFILL_PASSES + 4], ids=["no first token", "no next token"])
def test_a_worker_that_stalls_is_left(step: int) -> None:
    async def check() -> None:
        async with cluster("a", "b", router="first_token_timeout_s: 0.4") as system:
            reply = Reply()
            hold(system.nodes.values(), step)
            asked = await ask(system, reply)
            stalled = system.nodes[reply.decisions[0].plan.decode]
            [other] = [node for node in system.nodes.values() if node is not stalled]
            await eventually(stalled.model.held.is_set, "the worker stalls")
            other.model.go()
            await asked
            assert reply.tokens == await alone(PROMPT, OUTPUT)
            assert [d.plan.decode for d in reply.decisions] == [stalled.id, other.id]
            stalled.model.go()
            await system.assert_idle()

    run(check())


def test_when_every_worker_stalls_the_request_ends_in_bounded_time() -> None:
    async def check() -> None:
        async with cluster("a", "b", router="first_token_timeout_s: 0.2, retries_max: 1") as system:
            hold(system.nodes.values(), 1)
            began_s = time.monotonic()
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await generate(system, PROMPT)
            assert time.monotonic() - began_s < 2
            assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "gave no token within 0.2 s" in (failed.value.details() or "")
            for node in system.nodes.values():
                node.model.go()
            await system.assert_idle()

    run(check())


def test_many_requests_through_a_worker_that_is_killed() -> None:
    """Twelve at once, one of three workers dies under them: twelve right answers."""

    async def check() -> None:
        prompts = [prompt_of(30 + i, 100 + 40 * i) for i in range(12)]
        wanted = [await alone(prompt, 24) for prompt in prompts]
        async with cluster("a", "b", "c", requests_max=8) as system:
            for node in system.nodes.values():
                node.model.pass_s = 0.01
            asked = [asyncio.create_task(generate(system, prompt, output=24)) for prompt in prompts]
            await asyncio.sleep(0.2)
            victim = max(system.nodes.values(), key=lambda node: len(node.process.runtime._jobs))
            assert victim.process.runtime._jobs
            await victim.kill()
            replies = await asyncio.gather(*asked)
            assert [reply.tokens for reply in replies] == wanted
            assert sum(reply.summary.retries for reply in replies) > 0
            await system.assert_idle()

    run(check())

"""Whatever a client, a worker or an operator gets wrong: a status that says whose fault it is, a message that names the
field and the rule, and a system that answers the next one.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterable
from math import inf, nan
from typing import Any

import grpc
import pytest

from homing.protos import common_pb2, router_pb2, worker_pb2
from homing.router.core.blocks import pack_tokens

from .cluster import (
    Cluster,
    alone,
    cluster,
    eventually,
    generate,
    prompt_of,
    run,
)

Code = grpc.StatusCode
PROMPT = prompt_of(3, 100)
MAX_U32 = (1 << 32) - 1


def tokens_of(ids: Iterable[int]) -> common_pb2.Prompt:
    return common_pb2.Prompt(tokens_le32=pack_tokens(list(ids)))


def keys_of(count: int, tokens: int) -> common_pb2.Prompt:
    return common_pb2.Prompt(block_keys=common_pb2.BlockKeys(keys=range(count), prompt_tokens=tokens))


def route(**changes: Any) -> router_pb2.RouteRequest:
    """A good request, but for the changes."""
    return router_pb2.RouteRequest(**({"model": "tiny", "prompt": tokens_of(PROMPT), "max_output_tokens": 4} | changes))


async def refused(call: Awaitable[Any], code: "grpc.StatusCode", *told: str) -> grpc.aio.AioRpcError:
    """The call ends with this code and a message that contains each of `told`."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is code, caught.value
    for part in told:
        assert part in (caught.value.details() or ""), caught.value
    return caught.value


async def all_of(stream: AsyncIterator[Any]) -> list[Any]:
    return [reply async for reply in stream]


async def assert_answers(system: Cluster) -> None:
    """A good request is answered as ever, and nothing was left of the bad ones."""
    reply = await generate(system, PROMPT)
    assert reply.tokens == await alone(PROMPT)
    await system.assert_idle()


BAD_REQUESTS: list[tuple[dict[str, Any], "grpc.StatusCode", tuple[str, ...]]] = [
    ({"prompt": None}, Code.INVALID_ARGUMENT, ("prompt: missing", "give tokens_le32, token_list")),
    ({"prompt": common_pb2.Prompt()}, Code.INVALID_ARGUMENT, ("prompt: missing",)),
    ({"prompt": common_pb2.Prompt(tokens_le32=b"")}, Code.INVALID_ARGUMENT, ("prompt is empty", "at least one token")),
    ({"prompt": common_pb2.Prompt(token_list={})}, Code.INVALID_ARGUMENT, ("prompt is empty",)),
    ({"prompt": common_pb2.Prompt(tokens_le32=b"12345")}, Code.INVALID_ARGUMENT, ("tokens_le32", "four", "5 bytes")),
    ({"prompt": tokens_of([1, MAX_U32])}, Code.INVALID_ARGUMENT, (f"token id {MAX_U32}", "vocabulary of")),
    ({"prompt": common_pb2.Prompt(token_list={"tokens": [1 << 20]})}, Code.INVALID_ARGUMENT, ("vocabulary of",)),
    ({"prompt": tokens_of([1] * 100_000)}, Code.INVALID_ARGUMENT, ("100000 tokens", "context of", "shorten")),
    ({"prompt": common_pb2.Prompt(text="hello")}, Code.INVALID_ARGUMENT, ("prompt.text", "no tokenizer", "token ids")),
    ({"prompt": common_pb2.Prompt(chat={})}, Code.INVALID_ARGUMENT, ("prompt.chat", "no tokenizer")),
    ({"prompt": keys_of(5, 100)}, Code.INVALID_ARGUMENT, ("block_keys.keys", "6 full blocks of 16", "got 5 keys")),
    ({"prompt": keys_of(7, 100)}, Code.INVALID_ARGUMENT, ("block_keys.keys", "got 7 keys")),
    ({"prompt": keys_of(0, 0)}, Code.INVALID_ARGUMENT, ("block_keys.prompt_tokens", "empty")),
    ({"prompt": keys_of(0, MAX_U32)}, Code.INVALID_ARGUMENT, ("block_keys.keys", "got 0 keys")),
    ({"max_output_tokens": MAX_U32}, Code.INVALID_ARGUMENT, (f"{MAX_U32} to generate", "context of", "ask for less")),
    ({"ttft_deadline_s": nan}, Code.INVALID_ARGUMENT, ("ttft_deadline_s", "at least 0", "nan")),
    ({"ttft_deadline_s": inf}, Code.INVALID_ARGUMENT, ("ttft_deadline_s", "inf")),
    ({"ttft_deadline_s": -1}, Code.INVALID_ARGUMENT, ("ttft_deadline_s", "-1")),
    ({"priority": 1_000_001}, Code.INVALID_ARGUMENT, ("priority", "1000000", "1000001")),
    ({"priority": -(1 << 31)}, Code.INVALID_ARGUMENT, ("priority",)),
    ({"request_id": "x" * 129}, Code.INVALID_ARGUMENT, ("request_id", "128 bytes")),
    ({"request_id": "é" * 65}, Code.INVALID_ARGUMENT, ("request_id", "128 bytes")),
    ({"model": "unheard-of"}, Code.NOT_FOUND, ("model", "'unheard-of'", "known are tiny")),
    ({"model": ""}, Code.NOT_FOUND, ("model", "known are tiny")),
]


def test_a_bad_request_is_told_what_is_wrong_with_it() -> None:
    """By Route, by Generate and, as a message, by RouteStream: the same code and the same words."""

    async def check() -> None:
        async with cluster("a") as system:
            for changes, code, told in BAD_REQUESTS:
                bad = route(**changes)
                await refused(system.stub.Route(bad), code, *told)
                await refused(all_of(system.stub.Generate(router_pb2.GenerateRequest(request=bad))), code, *told)
                (reply,) = await all_of(system.stub.RouteStream(iter([bad])))
                assert reply.refusal.code == code.value[0], (changes, reply)
                assert all(part in reply.refusal.message for part in told), (changes, reply)
            await assert_answers(system)

    run(check())


def test_bare_keys_are_enough_to_route_but_not_to_generate() -> None:
    async def check() -> None:
        async with cluster("a") as system:
            bare = route(request_id="bare", prompt=keys_of(6, 100))
            call = all_of(system.stub.Generate(router_pb2.GenerateRequest(request=bare)))
            await refused(call, Code.INVALID_ARGUMENT, "prompt.block_keys", "send tokens or text")
            assert (await system.stub.Route(bare)).decision.plan.decode == "a"
            await system.stub.Report(router_pb2.ReportRequest(request_id="bare", ended=router_pb2.Ended()))
            await assert_answers(system)

    run(check())


def test_a_prompt_that_no_worker_can_hold_is_refused_at_once() -> None:
    async def check() -> None:
        async with cluster("a", kv_blocks_max=20) as system:
            call = system.stub.Route(route(prompt=tokens_of(prompt_of(1, 400))))
            await refused(call, Code.INVALID_ARGUMENT, "26 KV blocks", "largest worker has 20")
            await assert_answers(system)

    run(check())


def test_an_id_in_use_is_refused_and_the_first_goes_on() -> None:
    async def check() -> None:
        async with cluster("a") as system:
            node = system.nodes["a"]
            node.model.hold_at(node.model.passes + 1)
            first = asyncio.create_task(generate(system, PROMPT, request_id="twice"))
            await asyncio.to_thread(node.model.held.wait, 10)
            await refused(system.stub.Route(route(request_id="twice")), Code.ALREADY_EXISTS, "request_id", "'twice'")
            again = router_pb2.GenerateRequest(request=route(request_id="twice"))
            await refused(all_of(system.stub.Generate(again)), Code.ALREADY_EXISTS, "give each request its own")
            node.model.go()
            assert (await first).tokens == await alone(PROMPT)
            await assert_answers(system)

    run(check())


def test_a_message_beyond_the_limit_is_refused_by_every_server() -> None:
    async def check() -> None:
        async with cluster("a") as system:
            huge = bytes(64 << 20)
            for call in (
                system.stub.Route(route(prompt=common_pb2.Prompt(tokens_le32=huge))),
                all_of(system.nodes["a"].stub.Decode(worker_pb2.DecodeRequest(request_id="x", tokens_le32=huge))),
            ):
                await refused(call, Code.RESOURCE_EXHAUSTED, "larger than max")
            await assert_answers(system)

    run(check())


def test_fields_of_a_newer_protocol_are_ignored() -> None:
    """Field 1000 as a string, behind a good request: what a client of the next version would send."""

    async def check() -> None:
        async with cluster("a") as system:
            newer = router_pb2.RouteRequest.FromString(route(request_id="new").SerializeToString() + b"\xc2\x3e\x02hi")
            assert (await system.stub.Route(newer)).request_id == "new"
            await system.stub.Report(router_pb2.ReportRequest(request_id="new", ended=router_pb2.Ended()))
            await assert_answers(system)

    run(check())


# -- room and time -----------------------------------------------------------------------------------------------------


def test_a_full_queue_says_when_to_come_back_and_a_deadline_ends_the_wait() -> None:
    async def check() -> None:
        async with cluster("a", router="queue_max: 1", requests_max=1) as system:
            await system.stub.Route(route(request_id="out"))
            waits = asyncio.ensure_future(system.stub.Route(route(request_id="waits", ttft_deadline_s=0.4)))
            await eventually(lambda: len(system.scheduler.admission) == 1, "one waits")
            for call in (
                system.stub.Route(route()),
                all_of(system.stub.Generate(router_pb2.GenerateRequest(request=route()))),
            ):
                error = await refused(call, Code.RESOURCE_EXHAUSTED, "1 requests wait already")
                metadata = {str(key): value for key, value in error.trailing_metadata() or ()}
                assert int(metadata["grpc-retry-pushback-ms"]) > 0
            (reply,) = await all_of(system.stub.RouteStream(iter([route()])))
            assert reply.refusal.code == Code.RESOURCE_EXHAUSTED.value[0]
            assert reply.refusal.retry_after_s > 0
            await refused(waits, Code.DEADLINE_EXCEEDED, "deadline")
            await system.stub.Report(router_pb2.ReportRequest(request_id="out", ended=router_pb2.Ended()))
            await assert_answers(system)

    run(check())


def test_a_client_that_stops_waiting_leaves_the_queue() -> None:
    async def check() -> None:
        async with cluster("a", requests_max=1) as system:
            await system.stub.Route(route(request_id="out"))
            call = system.stub.Route(route(request_id="impatient"), timeout=0.2)
            await refused(call, Code.DEADLINE_EXCEEDED)
            await eventually(lambda: not len(system.scheduler.admission), "nobody waits")
            await system.stub.Report(router_pb2.ReportRequest(request_id="out", ended=router_pb2.Ended()))
            await assert_answers(system)

    run(check())


def test_a_model_that_nobody_serves_is_unavailable_and_one_that_nobody_knows_not_found() -> None:
    async def check() -> None:
        async with cluster(config="models: [{name: idle, bytes_per_token: 1024, layers: 2}]") as system:
            await refused(system.stub.Route(route(model="idle")), Code.UNAVAILABLE, "no worker serves 'idle'")
            await refused(system.stub.Route(route()), Code.NOT_FOUND, "'tiny'", "known are idle")

    run(check())


def test_a_draining_router_sends_clients_elsewhere() -> None:
    async def check() -> None:
        async with cluster("a") as system:
            await system.router.drain(1.0)
            await refused(system.stub.Route(route()), Code.UNAVAILABLE, "draining")
            call = all_of(system.stub.Generate(router_pb2.GenerateRequest(request=route())))
            await refused(call, Code.UNAVAILABLE, "draining")
            await system.assert_idle()

    run(check())


# -- RouteStream -------------------------------------------------------------------------------------------------------


def test_one_bad_request_of_a_stream_does_not_end_the_others() -> None:
    async def check() -> None:
        async with cluster("a", requests_max=100, kv_blocks_max=400) as system:
            asked = [route(request_id=f"r{i}", priority=1_000_001 if i % 5 == 0 else 0) for i in range(50)]
            replies = await all_of(system.stub.RouteStream(iter([*asked, route(request_id="r1")])))
            refusals = [reply for reply in replies if reply.HasField("refusal")]
            decided = {reply.request_id for reply in replies if reply.HasField("decision")}
            assert decided == {f"r{i}" for i in range(50) if i % 5}
            assert sorted(reply.request_id for reply in refusals) == sorted([*(f"r{i}" for i in range(0, 50, 5)), "r1"])
            codes = {reply.request_id: reply.refusal.code for reply in refusals}
            assert codes.pop("r1") == Code.ALREADY_EXISTS.value[0]
            assert set(codes.values()) == {Code.INVALID_ARGUMENT.value[0]}
            for name in decided:
                await system.stub.Report(router_pb2.ReportRequest(request_id=name, ended=router_pb2.Ended()))
            await assert_answers(system)

    run(check())


def test_what_must_wait_does_not_hold_up_the_rest_of_a_stream() -> None:
    async def check() -> None:
        async with cluster("a", requests_max=1) as system:
            asking: asyncio.Queue[router_pb2.RouteRequest | None] = asyncio.Queue()

            async def requests() -> AsyncIterator[router_pb2.RouteRequest]:
                while (request := await asking.get()) is not None:
                    yield request

            stream = system.stub.RouteStream(requests())
            for request in (route(request_id="first"), route(request_id="waits"), route(request_id="bad", model="")):
                asking.put_nowait(request)
            assert {(await stream.read()).request_id for _ in range(2)} == {"first", "bad"}
            ended = router_pb2.ReportRequest(request_id="first", ended=router_pb2.Ended())
            await system.stub.Report(ended)
            reply = await stream.read()
            assert reply.request_id == "waits" and reply.HasField("decision")
            asking.put_nowait(None)
            assert await stream.read() is grpc.aio.EOF
            await system.stub.Report(router_pb2.ReportRequest(request_id="waits", ended=router_pb2.Ended()))
            await assert_answers(system)

    run(check())


def test_a_client_that_does_not_read_is_not_read_on() -> None:
    """Answers that nobody takes must not pile up in the router."""

    async def check() -> None:
        async with cluster("a") as system:
            bad = route(request_id="x" * 100, model="m" * 10_000)
            sent = 0

            async def requests() -> AsyncIterator[router_pb2.RouteRequest]:
                nonlocal sent
                while sent < 20_000:
                    sent += 1
                    yield bad

            stream = system.stub.RouteStream(requests())
            await stream.read()
            before = -1
            while sent != before:
                before = sent
                await asyncio.sleep(0.5)
            stream.cancel()
            assert sent < 20_000, "the router took in everything"
            await assert_answers(system)

    run(check())


# -- Report ------------------------------------------------------------------------------------------------------------


def report(request_id: str = "r", **what: Any) -> router_pb2.ReportRequest:
    return router_pb2.ReportRequest(request_id=request_id, **what)


def test_a_routed_request_from_decision_to_end() -> None:
    async def check() -> None:
        async with cluster("a", "b", router="retries_max: 1") as system:
            decision = (await system.stub.Route(route(request_id="r"))).decision
            assert decision.attempt == 1 and decision.request_id == "r"
            chosen = decision.plan.decode
            assert decision.addresses[chosen] == system.nodes[chosen].process.address
            assert (await system.stub.GetFleet(router_pb2.GetFleetRequest())).requests_in_flight == 1
            await system.stub.Report(report(first_token=router_pb2.FirstTokenSeen(ttft_s=0.1)))
            broke = router_pb2.DispatchBroke(worker=chosen, reason="it is on fire")
            again = (await system.stub.Report(report(broke=broke))).decision
            assert again.attempt == 2
            assert again.plan.decode == ({"a", "b"} - {chosen}).pop()
            broke = router_pb2.DispatchBroke(worker=again.plan.decode, reason="this too")
            refusal = (await system.stub.Report(report(broke=broke))).refusal
            assert refusal.code == Code.UNAVAILABLE.value[0] and "this too" in refusal.message
            await refused(system.stub.Report(report(ended={})), Code.NOT_FOUND, "request_id", "'r'")
            explained = await system.stub.Explain(router_pb2.ExplainRequest(request_id="r"))
            assert [decision.attempt for decision in explained.decisions] == [1, 2]
            await assert_answers(system)

    run(check())


def test_a_bad_report_changes_nothing() -> None:
    async def check() -> None:
        async with cluster("a") as system:
            await system.stub.Route(route(request_id="r"))
            believed_s = system.scheduler.world.overhead_s.value
            for ttft_s in (nan, inf, -1.0):
                first_token = router_pb2.FirstTokenSeen(ttft_s=ttft_s)
                call = system.stub.Report(report(first_token=first_token))
                await refused(call, Code.INVALID_ARGUMENT, "first_token.ttft_s", "at least 0")
            await refused(system.stub.Report(report()), Code.INVALID_ARGUMENT, "give first_token, ended or broke")
            await refused(system.stub.Report(report("other", ended={})), Code.NOT_FOUND, "'other'")
            assert system.scheduler.world.overhead_s.value == believed_s
            await system.stub.Report(report(ended=router_pb2.Ended(cancelled=True)))
            await assert_answers(system)

    run(check())


def test_what_the_router_carries_out_is_not_to_be_reported() -> None:
    """Otherwise a stranger's report would take the request's bookings, and its next decision, away from its stream."""

    async def check() -> None:
        async with cluster("a", "b") as system:
            for node in system.nodes.values():
                node.model.hold_at(node.model.passes + 1)
            answer = asyncio.create_task(generate(system, PROMPT, request_id="r"))
            await eventually(lambda: "r" in system.scheduler.in_flight, "the request is out")
            for what in ({"broke": router_pb2.DispatchBroke(worker="a")}, {"ended": router_pb2.Ended()}):
                await refused(system.stub.Report(report(**what)), Code.FAILED_PRECONDITION, "request_id", "'r'")
            for node in system.nodes.values():
                node.model.go()
            reply = await answer
            assert reply.tokens == await alone(PROMPT)
            assert reply.summary.retries == 0
            await assert_answers(system)

    run(check())


def test_who_leaves_while_a_new_decision_is_made_leaves_nothing_booked() -> None:
    async def check() -> None:
        async with cluster("a") as system:
            await system.stub.Route(route(request_id="r"))
            system.nodes["a"].process._members[0].drain()
            await eventually(lambda: system.scheduler.fleet.get("a").draining, "the only worker takes nothing new")
            call = system.stub.Report(report(broke=router_pb2.DispatchBroke(worker="a")))
            await eventually(lambda: len(system.scheduler.admission) == 1, "the request waits")
            call.cancel()
            await eventually(lambda: not len(system.scheduler.admission), "it waits no more")
            await system.assert_idle()

    run(check())


# -- asking ------------------------------------------------------------------------------------------------------------


def test_explain_tells_why_and_forgets_an_earlier_request_of_the_same_id() -> None:
    async def check() -> None:
        async with cluster("a", "b") as system:
            call = system.stub.Explain(router_pb2.ExplainRequest(request_id="r"))
            await refused(call, Code.NOT_FOUND, "request_id", "'r'")
            for seed in (1, 2):
                await generate(system, prompt_of(seed, 50), request_id="r")
            explained = await system.stub.Explain(router_pb2.ExplainRequest(request_id="r"))
            assert len(explained.decisions) == 1
            decision = explained.decisions[0]
            assert decision.plan.decode in explained.text
            assert decision.plan.estimate.ttft_s > 0 and decision.plans_priced >= 1

    run(check())


def test_the_fleet_is_told_as_it_is() -> None:
    async def check() -> None:
        async with cluster("a", "b:prefill:far") as system:
            await generate(system, PROMPT)
            held = system.nodes["a"].cache.cached
            await eventually(lambda: len(system.index_of("a")) == held, "the router knows the cache")
            fleet = await system.stub.GetFleet(router_pb2.GetFleetRequest())
            assert [(view.id, view.role, view.site) for view in fleet.workers] == [
                ("a", "both", "home"),
                ("b", "prefill", "far"),
            ]
            view = fleet.workers[0]
            assert view.address == system.nodes["a"].process.address
            assert view.cached_blocks == held > 0 and view.kv_blocks_max == 200
            assert fleet.requests_in_flight == fleet.requests_waiting == 0

    run(check())

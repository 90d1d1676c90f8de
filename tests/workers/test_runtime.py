"""The running worker where its parts meet: who is let in when, and what an id stands for when it comes again."""

import asyncio

import grpc
import pytest

from homing.protos import common_pb2

from ..e2e.cluster import alone, eventually, prompt_of, run, worker
from ..e2e.network import BadNetwork

PROMPT = prompt_of(61, 300)


def test_a_cached_prefill_needs_no_pass_and_no_seat_in_one() -> None:
    """The one seat is taken by a request that computes; what is cached already is handed over beside it."""

    async def check() -> None:
        async with worker("a", requests_max=1) as node:
            await node.decode("warm", PROMPT)
            node.model.hold_at(node.model.passes + 1)
            first = asyncio.create_task(node.decode("first", prompt_of(62, 20), output=2))
            await eventually(node.model.held.is_set, "the first request computes")
            async with asyncio.timeout(5):
                assert (await node.prefill("cached", PROMPT, range(4))).hit_tokens == len(PROMPT) // 16 * 16
            last = asyncio.create_task(node.decode("last", PROMPT))
            await eventually(lambda: len(node.process.runtime._jobs) == 2, "one more request waits for a seat")
            node.model.go()
            async with asyncio.timeout(5):
                await first
                assert (await last).tokens == await alone(PROMPT, 4)
            node.process.runtime.handovers.drop("cached", "the test is over")
            await node.assert_idle()

    run(check())


@pytest.mark.parametrize("rounds", [1, 6])
def test_an_id_may_come_again_while_the_pass_of_its_cancelled_namesake_runs(rounds: int) -> None:
    async def check() -> None:
        async with worker("a") as node:
            node.model.hold_at(1)
            cancelled = [asyncio.create_task(node.decode("same", PROMPT))]
            await eventually(node.model.held.is_set, "the first one computes")
            for _ in range(rounds):
                cancelled[-1].cancel()
                await eventually(lambda: not node.process.runtime._jobs, "it is given up")
                cancelled.append(asyncio.create_task(node.decode("same", PROMPT)))
                await eventually(lambda: bool(node.process.runtime._jobs), "the next one is here")
            node.model.go()
            assert (await cancelled[-1]).tokens == await alone(PROMPT, 4)
            await node.assert_idle()

    run(check())


def test_an_id_may_come_again_as_soon_as_its_last_token_is_known() -> None:
    """Whoever winds up the first call must not end the second."""

    async def check() -> None:
        async with worker("a") as node:
            wanted = await alone(PROMPT, 4)
            for _ in range(20):
                assert (await node.decode("same", PROMPT)).tokens == wanted
            await node.assert_idle()

    run(check())


def test_a_request_that_is_cancelled_while_blocks_arrive_frees_both_ends() -> None:
    async def check() -> None:
        async with BadNetwork() as network, worker("s", "near") as source, worker("t", "far") as target:
            network.stand_before(source, "far")
            network.bytes_per_s = 200e3
            await source.decode("hold", PROMPT, output=1)
            for kind in (common_pb2.MOVE_KIND_FETCH, common_pb2.MOVE_KIND_MEET):
                target.model.pass_s = 0.5
                began = network.carried_bytes
                asked = asyncio.create_task(target.decode("r", PROMPT, [source.gives(kind, 0, 18)]))
                await eventually(lambda began=began: network.carried_bytes > began + 20_000, "blocks arrive")
                asked.cancel()
                await target.assert_idle()
                await source.assert_idle()

    run(check())


def test_more_requests_than_a_worker_holds_are_served_in_their_turn() -> None:
    async def check() -> None:
        async with worker("a", requests_max=3, kv_blocks_max=60) as node:
            prompts = [prompt_of(70 + i, 50 + 60 * i) for i in range(10)]
            wanted = [await alone(prompt, 5) for prompt in prompts]
            asked = [node.decode(f"r{i}", prompt, output=5) for i, prompt in enumerate(prompts)]
            assert [answer.tokens for answer in await asyncio.gather(*asked)] == wanted
            assert node.model.passes < sum(5 for _ in prompts) + 20, "they were not batched"
            await node.assert_idle()

    run(check())


def test_closing_a_worker_breaks_what_runs_and_what_waits() -> None:
    async def check() -> None:
        async with worker("a", requests_max=1) as node:
            node.model.hold_at(2)
            asked = [asyncio.create_task(node.decode(f"r{i}", prompt_of(80 + i, 400))) for i in range(3)]
            await eventually(node.model.held.is_set, "the first one computes")
            closing = asyncio.create_task(node.process.close())
            await asyncio.wait(asked)
            node.model.go()
            await asyncio.wait_for(closing, 5)
            for error in await asyncio.gather(*asked, return_exceptions=True):
                assert isinstance(error, grpc.aio.AioRpcError)
                assert error.code() in {grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE}

    run(check())


def test_connections_to_workers_that_are_gone_do_not_pile_up() -> None:
    async def check() -> None:
        async with worker("s") as source, worker("t") as target:
            await source.decode("hold", PROMPT, output=1)
            for kind in (common_pb2.MOVE_KIND_FETCH, common_pb2.MOVE_KIND_FETCH):
                move = source.gives(kind, 0, 18)
                await target.decode("r", PROMPT, [move])
                target.cache.clear()
            assert len(target.process._puller._channels) == 1
            await source.kill()
            answer = await target.decode("r", PROMPT, [move])
            assert answer.tokens == await alone(PROMPT, 4) and not answer.transfer.complete
            assert not target.process._puller._channels

    run(check())


def test_blocks_are_kept_for_nobody_for_an_hour_at_most() -> None:
    async def check() -> None:
        async with worker("a") as node:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await node.prefill("r", PROMPT, range(4), lease_s=1e300)
            assert "handover_lease_s: expected seconds" in (refused.value.details() or "")
            await node.prefill("r", PROMPT, range(4), lease_s=0.2)
            assert node.cache.used == 4
            await node.assert_idle()

    run(check())

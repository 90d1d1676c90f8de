"""Whatever breaks on the way of a block, the answer is to compute it: it is found out, and the tokens are right."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from homing.protos import common_pb2

from .cluster import BLOCK, Node, alone, eventually, prompt_of, run, worker
from .network import BadNetwork

FETCH, MEET, SHIP = common_pb2.MOVE_KIND_FETCH, common_pb2.MOVE_KIND_MEET, common_pb2.MOVE_KIND_SHIP
PROMPT = prompt_of(5, 645)
BLOCKS = 40
Tamper = Callable[[int, bytes], bytes | None]


@asynccontextmanager
async def pair(**target: Any) -> AsyncIterator[tuple[Node, Node, BadNetwork]]:
    """A source that holds the prompt, a target, and the network between them."""
    async with BadNetwork() as network, worker("source", "near") as source, worker("target", "far", **target) as node:
        network.stand_before(source, "far")
        await source.decode("hold", PROMPT, output=1)
        yield source, node, network


def flip_at(offset: int) -> Tamper:
    """One bit, once, wherever in the stream it falls."""

    def tamper(at: int, chunk: bytes) -> bytes:
        if at <= offset < at + len(chunk):
            chunk = chunk[: offset - at] + bytes([chunk[offset - at] ^ 1]) + chunk[offset - at + 1 :]
        return chunk

    return tamper


def always_flip(at: int, chunk: bytes) -> bytes:
    """The last byte of whatever comes in one read is wrong."""
    return chunk[:-1] + bytes([chunk[-1] ^ 1]) if len(chunk) > 1000 else chunk


def end_at(offset: int, ending: bytes | None) -> Tamper:
    """The stream ends there, every time from then on: b"" is a truncation, None a reset."""
    return lambda at, chunk: chunk if at + len(chunk) < offset else ending


@pytest.mark.parametrize("move", [FETCH, MEET], ids=["fetch", "meet"])
@pytest.mark.parametrize(
    ("tamper", "reason"),
    [
        (always_flip, "checksum"),
        (end_at(200_000, b""), "connection"),
        (end_at(200_000, None), "connection"),
        (end_at(1, b""), "connection"),
    ],
    ids=["flipped", "truncated", "reset", "nothing comes"],
)
def test_a_network_that_stays_broken_costs_a_computation(
    move: "common_pb2.MoveKind", tamper: Tamper, reason: str
) -> None:
    async def check() -> None:
        async with pair() as (source, target, network):
            network.tamper = tamper
            target.model.pass_s = 0.03
            answer = await target.decode("broken", PROMPT, [source.gives(move, 0, BLOCKS)], output=8)
            assert answer.tokens == await alone(PROMPT)
            if answer.start.transfers:
                assert not answer.transfer.complete
                assert reason in answer.transfer.reason.lower()
                left = len(PROMPT) - answer.transfer.blocks_arrived * BLOCK
                assert answer.start.computed_tokens == left
            else:
                assert move == MEET, "who waits for blocks knows how their transfer ended"
            await source.assert_idle()
            await target.assert_idle()

    run(check())


def test_garbage_that_was_received_does_not_reach_the_computation() -> None:
    """All ones are not-a-number in every float format; a pass that ends within a block attends to that block."""

    async def check() -> None:
        async with pair(step_tokens_max=250) as (source, target, network):
            network.tamper = lambda at, chunk: chunk if at < 50_000 else b"\xff" * len(chunk)
            answer = await target.decode("garbage", PROMPT, [source.gives(FETCH, 0, BLOCKS)], output=8)
            assert answer.tokens == await alone(PROMPT)
            assert not answer.logits[0].isnan().any()
            await target.assert_idle()

    run(check())


def test_garbage_of_a_cancelled_arrival_does_not_reach_the_next_users_of_its_blocks() -> None:
    """A batch of answers of different lengths reads slots that nobody has filled yet."""

    async def check() -> None:
        prompts = [prompt_of(90 + i, length) for i, length in enumerate((3, 40, 170, 250))]
        wanted = [await alone(prompt, 20) for prompt in prompts]
        async with pair(kv_blocks_max=46) as (source, target, network):
            network.tamper = lambda at, chunk: chunk if at < 1000 else b"\xff" * len(chunk)
            network.bytes_per_s = 4e6
            asked = asyncio.create_task(target.decode("garbage", PROMPT, [source.gives(FETCH, 0, BLOCKS)]))
            await eventually(lambda: network.carried_bytes > 400_000, "garbage has arrived")
            asked.cancel()
            await target.assert_idle()
            answers = await asyncio.gather(
                *(target.decode(f"next {i}", prompt, output=20) for i, prompt in enumerate(prompts))
            )
            assert [answer.tokens for answer in answers] == wanted

    run(check())


@pytest.mark.parametrize("tamper", [flip_at(300_000), lambda at, chunk: None if at == 0 else chunk], ids=["bit", "cut"])
def test_a_network_that_breaks_once_costs_a_retry(tamper: Tamper) -> None:
    async def check() -> None:
        async with pair() as (source, target, network):
            network.tamper = tamper
            answer = await target.decode("resumed", PROMPT, [source.gives(FETCH, 0, BLOCKS)], output=8)
            assert answer.tokens == await alone(PROMPT)
            assert answer.transfer.complete and answer.transfer.blocks_arrived == BLOCKS
            assert answer.start.computed_tokens == len(PROMPT) - BLOCKS * BLOCK
            await source.assert_idle()

    run(check())


@pytest.mark.parametrize("inline", [False, True], ids=["socket", "inline"])
@pytest.mark.parametrize("move", [FETCH, MEET], ids=["fetch", "meet"])
def test_blocks_evicted_between_decision_and_fetch_are_computed(move: "common_pb2.MoveKind", inline: bool) -> None:
    async def check() -> None:
        async with pair(inline=inline) as (source, target, _):
            source.cache.clear()
            target.model.pass_s = 0.02
            answer = await target.decode("late", PROMPT, [source.gives(move, 0, BLOCKS)], output=8)
            assert answer.tokens == await alone(PROMPT)
            assert not answer.transfer.complete and "cached" in answer.transfer.reason
            assert answer.start.computed_tokens == len(PROMPT)

    run(check())


@pytest.mark.parametrize("move", [FETCH, MEET], ids=["fetch", "meet"])
def test_a_source_that_lost_the_back_of_a_prefix_still_gives_its_front(move: "common_pb2.MoveKind") -> None:
    """Eviction takes a prefix's last blocks first, so this is what a decision that is a little old meets."""

    async def check() -> None:
        async with pair() as (source, target, _):
            source.cache.clear()
            await source.decode("hold less", PROMPT[: 30 * BLOCK], output=1)
            target.model.pass_s = 0.02
            answer = await target.decode("less", PROMPT, [source.gives(move, 0, BLOCKS)], output=8)
            assert answer.tokens == await alone(PROMPT)
            assert 0 < answer.transfer.blocks_arrived <= 30
            await source.assert_idle()

    run(check())


@pytest.mark.parametrize("move", [FETCH, MEET], ids=["fetch", "meet"])
def test_a_source_killed_while_it_sends_is_replaced_by_computing(move: "common_pb2.MoveKind") -> None:
    async def check() -> None:
        async with pair() as (source, target, network):
            network.bytes_per_s = 1e6
            target.model.pass_s = 0.1
            asked = asyncio.create_task(target.decode("killed", PROMPT, [source.gives(move, 0, BLOCKS)], output=8))
            await eventually(lambda: network.carried_bytes > 150_000, "the transfer is half way")
            await source.kill()
            network.tamper = end_at(0, None)
            async with asyncio.timeout(8):
                answer = await asked
            assert answer.tokens == await alone(PROMPT)
            assert answer.start.computed_tokens >= BLOCK
            await target.assert_idle()

    run(check())


def test_an_inline_source_killed_while_it_sends() -> None:
    """The frames travel inside gRPC here; what breaks is that connection."""

    async def check() -> None:
        async with pair(inline=True) as (source, target, network):
            network.target_port = source.process.port
            network.bytes_per_s = 1e6
            move = source.gives(FETCH, 0, BLOCKS)
            move.address = f"127.0.0.1:{network.port}"
            asked = asyncio.create_task(target.decode("killed", PROMPT, [move], output=8))
            await eventually(lambda: network.carried_bytes > 150_000, "the transfer is half way")
            network.tamper = end_at(0, None)
            await source.kill()
            async with asyncio.timeout(8):
                answer = await asked
            assert answer.tokens == await alone(PROMPT)
            assert not answer.transfer.complete
            await target.assert_idle()

    run(check())


@pytest.mark.parametrize("how", ["killed", "pass fails", "cancelled"])
def test_a_prefill_that_breaks_while_its_blocks_are_shipped(how: str) -> None:
    async def check() -> None:
        async with worker("p") as prefiller, worker("d") as decoder:
            prefiller.model.hold_at(2)
            if how == "pass fails":
                prefiller.model.fail_at = 2
            prefill = prefiller.prefill("r", PROMPT, range(BLOCKS))
            asked = asyncio.create_task(decoder.decode("r", PROMPT, [prefiller.gives(SHIP, 0, BLOCKS)], output=8))
            await eventually(prefiller.model.held.is_set, "the prefill has done its first chunk")
            if how == "cancelled":
                prefill.cancel()
            if how == "killed":
                await prefiller.kill()
            prefiller.model.go()
            answer = await asked
            assert answer.tokens == await alone(PROMPT)
            assert not answer.transfer.complete
            assert answer.start.computed_tokens == len(PROMPT) - answer.transfer.blocks_arrived * BLOCK
            with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
                await prefill
            await decoder.assert_idle()
            if how != "killed":
                await prefiller.assert_idle()

    run(check())


def test_who_asks_for_the_blocks_of_a_prefill_that_broke_before_does_not_wait() -> None:
    async def check() -> None:
        async with worker("p") as prefiller, worker("d") as decoder:
            prefiller.model.fail_at = 1
            with pytest.raises(grpc.aio.AioRpcError):
                await prefiller.prefill("r", PROMPT, range(BLOCKS))
            async with asyncio.timeout(20):
                answer = await decoder.decode("r", PROMPT, [prefiller.gives(SHIP, 0, BLOCKS)], output=8)
            assert answer.tokens == await alone(PROMPT)
            assert "on fire" in answer.transfer.reason
            assert answer.start.computed_tokens == len(PROMPT)
            await decoder.assert_idle()
            await prefiller.assert_idle()

    run(check())


@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_one_seed_gives_the_same_tokens_under_every_plan(temperature: float) -> None:
    async def check() -> None:
        sampling = common_pb2.Sampling(temperature=temperature, seed=99, top_p=0.95)
        wanted = await alone(PROMPT, 12, sampling)
        assert len(set(wanted)) > 4, "a sampled answer that repeats itself proves little"
        async with pair() as (source, target, _), worker("p", "far") as prefiller:
            plans = {
                "local": [],
                "fetch": [source.gives(FETCH, 0, 20)],
                "meet": [source.gives(MEET, 0, BLOCKS)],
                "direct": [source.gives(FETCH, 0, BLOCKS)],
                "remote": [prefiller.gives(SHIP, 0, BLOCKS)],
            }
            for name, sources in plans.items():
                target.cache.clear()
                prefill = prefiller.prefill(name, PROMPT, range(BLOCKS)) if name == "remote" else None
                answer = await target.decode(name, PROMPT, sources, output=12, sampling=sampling)
                assert answer.tokens == wanted, name
                if prefill is not None:
                    await prefill
            other = common_pb2.Sampling(temperature=temperature, seed=100, top_p=0.95)
            assert (await target.decode("other", PROMPT, output=12, sampling=other)).tokens != wanted

    run(check())


def test_a_failed_pass_breaks_its_own_requests_alone() -> None:
    """And no block is given to others while the failed request's arrivals may still write or wipe it."""

    async def check() -> None:
        async with pair() as (source, target, network):
            network.bytes_per_s = 1e6
            target.model.pass_s = 0.05
            target.model.fail_at = 2
            cache, given_back_early = target.cache, []
            unpin = cache.unpin

            def watched(blocks: list[int]) -> None:
                given_back_early.extend(t for t in asyncio.all_tasks() if t.get_name() == "pull broken")
                unpin(blocks)

            cache.unpin = watched
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await target.decode("broken", PROMPT, [source.gives(MEET, 0, BLOCKS)])
            assert failed.value.code() is grpc.StatusCode.INTERNAL
            assert "on fire" in (failed.value.details() or "")
            assert not given_back_early
            other = prompt_of(6, 300)
            answers = await asyncio.gather(*(target.decode(f"next {i}", other, output=8) for i in range(3)))
            assert all(answer.tokens == answers[0].tokens for answer in answers)
            assert answers[0].tokens == await alone(other)
            await target.assert_idle()
            await source.assert_idle()

    run(check())

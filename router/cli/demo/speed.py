"""How fast the demo's workers are: a few prompts sent to one of them after the demo, which it has just played in.

What is timed is what a simulator needs: single passes that prefill, passes that decode, what it costs to send a request
from the router to a worker beside it, and how fast two workers of one site exchange blocks. A fresh key seed for each
text makes it unknown to every cache.
"""

import asyncio
import time
from dataclasses import dataclass
from secrets import randbits
from statistics import median

import grpc

from homing.protos import common_pb2, router_pb2, worker_pb2
from homing.protos.router_pb2_grpc import RouterStub
from homing.protos.worker_pb2_grpc import WorkerStub
from homing.router.core.blocks import pack_tokens
from homing.router.service.config import Config

PREFILL_ENDS = ((32,), (64,), (256,), (512,), (256, 288, 512, 544, 1024, 1056))
"""Prompt lengths; those of one group begin with each other, so that each finds the one before it cached. No prompt
computes more than the 512 tokens that a pass of the demo's workers takes."""
REPEATS = 2
DECODE_BATCHES = (1, 2, 4)
DECODE_CONTEXTS = (64, 1024)
DECODE_TOKENS = 16
DISPATCHES = 8
DISPATCHED_TOKENS = 32
MOVED_BLOCKS = 32
MOVES = 3
TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What was timed; all times in seconds."""

    prefill: list[tuple[int, int, float]]
    """The tokens [first, second) of a prompt, alone in their pass."""
    decode: list[tuple[int, int, float]]
    """A pass of so many sequences, with so many tokens of context among them."""
    dispatch_s: float
    """From the router's dispatch to the first token, beside the pass that computes it, within one site."""
    move_bytes_per_s: float
    """Blocks out of a worker's cache into another of its site."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    start: worker_pb2.DecodeStart
    tokens_s: list[float]
    """When each token came."""


async def measure_speed(config: Config, router: RouterStub, *, timed: str, beside: str, text: list[int]) -> Speed:
    """Time prompts made of the beginning of `text` on the idle worker `timed`, and moves from there to `beside`.

    Lengths beyond the end of the text are left out.
    """
    address = config.worker(timed).listen
    async with (
        grpc.aio.insecure_channel(address) as channel,
        grpc.aio.insecure_channel(config.worker(beside).listen) as other,
    ):
        worker = WorkerStub(channel)
        await _ask(worker, text[:64], randbits(63), 2)  # connects, and warms up
        prefill = [part for _ in range(REPEATS) for ends in PREFILL_ENDS for part in await _prefill(worker, text, ends)]
        decode = [
            await _decode(worker, text[:context], batch)
            for context in DECODE_CONTEXTS
            for batch in DECODE_BATCHES
            if context <= len(text)
        ]
        prompt = text[: MOVED_BLOCKS * config.worker(timed).block_tokens + 1]
        moves = [await _move(worker, WorkerStub(other), address, prompt) for _ in range(MOVES)]
    return Speed(
        prefill=prefill,
        decode=decode,
        dispatch_s=await _dispatch_s(router, config.models[0].name, text),
        move_bytes_per_s=median(moves),
    )


async def _prefill(worker: WorkerStub, text: list[int], ends: tuple[int, ...]) -> list[tuple[int, int, float]]:
    seed, timed = randbits(63), []
    for end in ends:
        if end <= len(text):
            part = (await _ask(worker, text[:end], seed, 1)).start.prefills[0]
            timed.append((part.computed_from_tokens, part.computed_to_tokens, part.compute_s))
    return timed


async def _decode(worker: WorkerStub, prompt: list[int], batch: int) -> tuple[int, int, float]:
    """The mean pass while all of `batch` equal prompts are being answered."""
    seed = randbits(63)
    await _ask(worker, prompt, seed, 1)
    answers = await asyncio.gather(*(_ask(worker, prompt, seed, DECODE_TOKENS) for _ in range(batch)))
    all_from_s = max(answer.tokens_s[0] for answer in answers)
    all_until_s = min(answer.tokens_s[-1] for answer in answers)
    seen_s = [at_s for at_s in answers[0].tokens_s if all_from_s <= at_s <= all_until_s]
    context_tokens = batch * (len(prompt) + DECODE_TOKENS // 2)
    return batch, context_tokens, (seen_s[-1] - seen_s[0]) / (len(seen_s) - 1)


async def _move(source: WorkerStub, target: WorkerStub, source_address: str, prompt: list[int]) -> float:
    seed = randbits(63)
    await _ask(source, prompt, seed, 1)
    move = common_pb2.Move(kind=common_pb2.MOVE_KIND_FETCH, block_end=MOVED_BLOCKS)
    answer = await _ask(target, prompt, seed, 1, worker_pb2.BlockSource(move=move, address=source_address))
    done = answer.start.transfers[0]
    return done.bytes / (done.flowing_s or done.lasted_s)


async def _dispatch_s(router: RouterStub, model: str, text: list[int]) -> float:
    """Of short prompts that the router sent to a worker of its own site; 0 when it sent all elsewhere."""
    fleet = await router.GetFleet(router_pb2.GetFleetRequest())
    near = {worker.id for worker in fleet.workers if worker.site == fleet.site}
    answered = [await _through(router, model, text[:DISPATCHED_TOKENS]) for _ in range(DISPATCHES)]
    beside_s = [
        one.ttft_s - sum(part.compute_s for part in one.prefills)
        for one in answered
        if {part.worker for part in one.prefills} <= near
    ]
    return median(beside_s) if beside_s else 0.0


async def _through(router: RouterStub, model: str, prompt: list[int]) -> router_pb2.Summary:
    """Ask for one token; the salt keeps the prompt out of all caches."""
    request = router_pb2.RouteRequest(
        model=model,
        prompt=common_pb2.Prompt(tokens_le32=pack_tokens(prompt)),
        max_output_tokens=1,
        tenant_salt=str(randbits(63)),
    )
    summary = router_pb2.Summary()
    async for reply in router.Generate(router_pb2.GenerateRequest(request=request), timeout=TIMEOUT_S):
        if reply.WhichOneof("part") == "summary":
            summary = reply.summary
    return summary


async def _ask(
    worker: WorkerStub, prompt: list[int], seed: int, tokens: int, *sources: worker_pb2.BlockSource
) -> _Answer:
    request = worker_pb2.DecodeRequest(
        request_id=f"speed-{randbits(63)}",
        tokens_le32=pack_tokens(prompt),
        key_seed=seed,
        sources=sources,
        max_output_tokens=tokens,
        ignore_eos=True,
    )
    tokens_s: list[float] = []
    start = worker_pb2.DecodeStart()
    async for reply in worker.Decode(request, timeout=TIMEOUT_S):
        if reply.WhichOneof("part") == "tokens":
            if not tokens_s:
                start = reply.tokens.start
            tokens_s.append(time.perf_counter())
    return _Answer(start=start, tokens_s=tokens_s)

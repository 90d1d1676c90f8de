"""Plays the script against a running router, and checks every answer against one worker that recomputes everything."""

import asyncio
import time
from dataclasses import dataclass, field
from secrets import randbits

import grpc

from homing.protos import common_pb2, router_pb2, worker_pb2
from homing.protos.router_pb2_grpc import RouterStub
from homing.protos.worker_pb2_grpc import WorkerStub
from homing.router.core.blocks import pack_tokens
from homing.workers.model.tokenizer import Tokenizer

from .script import Step, When

REQUEST_TIMEOUT_S = 180.0


@dataclass(slots=True, eq=False)
class Played:
    """One request of the demo, as it went."""

    step: Step
    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    sent_s: float = 0.0
    first_token_s: float = 0.0
    ended_s: float = 0.0
    """By the clock of the event loop, as the sender saw it."""
    decision: common_pb2.Decision | None = None
    summary: router_pb2.Summary | None = None
    first_token: asyncio.Event = field(default_factory=asyncio.Event)
    same_tokens: bool | None = None
    recomputed_ttft_s: float = 0.0

    def text(self, tokenizer: Tokenizer) -> str:
        """The answer."""
        return tokenizer.decode(self.tokens, skip_special=True)


class Player:
    """Sends the script's steps in their order."""

    def __init__(self, router: RouterStub, tokenizer: Tokenizer, model: str) -> None:
        self._router = router
        self._tokenizer = tokenizer
        self._model = model
        self._running: list[asyncio.Task[None]] = []
        self._answers: dict[str, str] = {}

    async def play(self, step: Step) -> Played:
        """Send one step when its time has come; returns when it has its first token."""
        if step.when is When.QUIET:
            await self.finish()
        played = Played(step=step, prompt=self._tokenizer.chat(step.messages(self._answers)))
        self._running.append(asyncio.create_task(self._send(played)))
        first = asyncio.create_task(played.first_token.wait())
        await asyncio.wait([first, self._running[-1]], return_when=asyncio.FIRST_COMPLETED)
        first.cancel()
        if self._running[-1].done():
            self._running[-1].result()
        return played

    async def finish(self) -> None:
        """Wait until every answer is complete."""
        running, self._running = self._running, []
        await asyncio.gather(*running)

    async def _send(self, played: Played) -> None:
        step, clock_s = played.step, asyncio.get_running_loop().time
        request = router_pb2.GenerateRequest(
            request=router_pb2.RouteRequest(
                request_id=step.name,
                model=self._model,
                prompt=common_pb2.Prompt(tokens_le32=pack_tokens(played.prompt)),
                max_output_tokens=step.max_output_tokens,
            ),
            ignore_eos=step.to_the_end,
        )
        played.sent_s = clock_s()
        async for reply in self._router.Generate(request, timeout=REQUEST_TIMEOUT_S):
            match reply.WhichOneof("part"):
                case "decision":
                    played.decision = reply.decision
                case "tokens":
                    if not played.tokens:
                        played.first_token_s = clock_s()
                    played.tokens += reply.tokens.ids
                    played.first_token.set()
                case "summary":
                    played.summary = reply.summary
        played.ended_s = clock_s()
        self._answers[step.name] = played.text(self._tokenizer)


async def recompute(worker_address: str, played: Played) -> None:
    """Let one worker compute the request from nothing, and compare its tokens.

    A fresh key seed makes every block unknown to it, so that no cache can help.
    """
    request = worker_pb2.DecodeRequest(
        request_id=f"check-{played.step.name}",
        tokens_le32=pack_tokens(played.prompt),
        key_seed=randbits(63),
        max_output_tokens=played.step.max_output_tokens,
        ignore_eos=played.step.to_the_end,
    )
    tokens: list[int] = []
    began_s = time.perf_counter()
    async with grpc.aio.insecure_channel(worker_address) as channel:
        async for reply in WorkerStub(channel).Decode(request, timeout=REQUEST_TIMEOUT_S):
            if reply.WhichOneof("part") == "tokens":
                if not tokens:
                    played.recomputed_ttft_s = time.perf_counter() - began_s
                tokens += reply.tokens.ids
    played.same_tokens = tokens == played.tokens

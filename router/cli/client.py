"""`homing send`, `explain` and `fleet`: a client of the router's gRPC surface."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import grpc
from rich.console import Console
from rich.table import Table

from homing.router.core.errors import ConfigError
from homing.router.service.wire import PLAN_KIND_NAMES, RouterStub, common_pb2, router_pb2

out = Console(highlight=False)
notes = Console(stderr=True, highlight=False)
T = TypeVar("T")

CONNECT_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SendOptions:
    """How `send` asks."""

    model: str
    chat: bool
    max_output_tokens: int
    temperature: float
    seed: int
    session: str
    why: bool


def run_send(router: str, prompt: str, options: SendOptions) -> None:
    """Stream the answer to stdout, and the story to stderr."""
    text = sys.stdin.read() if prompt == "-" else prompt
    _call(router, lambda stub: _send(stub, text, options))


def run_explain(router: str, request_id: str) -> None:
    """Print why a request went where it went."""

    async def ask(stub: RouterStub) -> None:
        reply = await stub.Explain(router_pb2.ExplainRequest(request_id=request_id), timeout=CONNECT_TIMEOUT_S)
        out.print(reply.text, end="", markup=False)

    _call(router, ask)


def run_fleet(router: str) -> None:
    """Print workers and links."""

    async def ask(stub: RouterStub) -> None:
        reply = await stub.GetFleet(router_pb2.GetFleetRequest(), timeout=CONNECT_TIMEOUT_S)
        out.print(worker_table(reply), link_table(reply), sep="\n")
        out.print(f"policy {reply.policy}, {reply.requests_in_flight} in flight, {reply.requests_waiting} waiting")

    _call(router, ask)


def worker_table(reply: router_pb2.GetFleetReply) -> Table:
    """The workers as a table."""
    table = Table(
        "worker", "site", "role", "model", "requests", "queue", "cached blocks", "prefill at 1k", title="workers"
    )
    for worker in reply.workers:
        prefill_s = worker.prefill_a_s + 1024 * (worker.prefill_b_s + worker.prefill_q_s * 1024)
        table.add_row(
            worker.id,
            worker.site,
            worker.role + (" (draining)" if worker.draining else ""),
            worker.model,
            str(worker.running_requests),
            f"{worker.queue_s:.2f} s",
            f"{worker.cached_blocks} of {worker.kv_blocks_max}",
            f"{prefill_s:.2f} s ({worker.prefill_samples} seen)",
        )
    return table


def link_table(reply: router_pb2.GetFleetReply) -> Table:
    """The links as a table."""
    table = Table("link", "round trip", "speed", "seen", "in flight", title="links, as believed")
    for link in reply.links:
        name = f"{link.source} -> {link.target}"
        speed = f"{link.bytes_per_s / 1e6:.1f} MB/s"
        table.add_row(name, f"{link.rtt_s * 1e3:.1f} ms", speed, str(link.samples), str(link.flows))
    return table


def _call(router: str, work: Callable[[RouterStub], Awaitable[None]]) -> None:
    async def run() -> None:
        async with grpc.aio.insecure_channel(router) as channel:
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    await channel.channel_ready()
            except TimeoutError:
                raise ConfigError(
                    f"no router answers at {router}; start one with `homing serve`, or give --router"
                ) from None
            try:
                await work(RouterStub(channel))
            except grpc.aio.AioRpcError as error:
                raise ConfigError(f"{error.code().name}: {error.details()}") from error

    asyncio.run(run())


async def _send(stub: RouterStub, text: str, options: SendOptions) -> None:
    message = common_pb2.ChatMessage(role="user", content=text)
    prompt = (
        common_pb2.Prompt(chat=common_pb2.Chat(messages=[message])) if options.chat else common_pb2.Prompt(text=text)
    )
    request = router_pb2.GenerateRequest(
        request=router_pb2.RouteRequest(
            model=options.model,
            prompt=prompt,
            max_output_tokens=options.max_output_tokens,
            session=options.session,
        ),
        sampling=common_pb2.Sampling(temperature=options.temperature, seed=options.seed),
    )
    async for reply in stub.Generate(request):
        match reply.WhichOneof("part"):
            case "decision" if options.why:
                notes.print(f"[dim]{told(reply.decision)}[/dim]")
            case "tokens":
                out.print(reply.tokens.text, end="", markup=False, soft_wrap=True)
            case "summary":
                out.print()
                if options.why:
                    notes.print(f"[dim]{ended(reply.summary)}[/dim]")


def told(decision: common_pb2.Decision) -> str:
    """A decision in one line."""
    plan = decision.plan
    where = plan.decode if plan.prefill == plan.decode else f"{plan.prefill} -> {plan.decode}"
    kind = PLAN_KIND_NAMES[plan.kind]
    return f"{decision.request_id}: {kind} on {where}, TTFT predicted {plan.estimate.ttft_s:.3f} s"


def ended(summary: router_pb2.Summary) -> str:
    """A finished request in one line."""
    return (
        f"TTFT {summary.ttft_s:.3f} s, {summary.output_tokens} tokens in {summary.e2e_s:.2f} s, "
        f"{summary.hit_tokens} of {summary.prompt_tokens} prompt tokens from caches"
    )

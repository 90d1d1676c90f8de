"""A live system in one process: real router, real workers on a tiny model, real gRPC and sockets on loopback.

What a test needs beside the product: a model that shows its logits or waits at a gate, and the question whether
anything was left behind.
"""

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import grpc
import torch

from homing.protos import common_pb2, router_pb2, worker_pb2
from homing.protos.router_pb2_grpc import RouterStub
from homing.protos.worker_pb2_grpc import WorkerStub
from homing.router.cli.demo.ports import free_ports
from homing.router.core.blocks import pack_tokens
from homing.router.service.config import parse_config
from homing.router.service.process import RouterProcess
from homing.workers.engine.step import StepPlan
from homing.workers.model.kv import KvTensor
from homing.workers.model.weights import LoadedModel, load_model
from homing.workers.process import WorkerProcess, WorkerSettings

KEY_SEED = 1337
BLOCK = 16


def run(work: Coroutine[Any, Any, Any], timeout_s: float = 60.0) -> Any:
    """A test that hangs is a test that fails, and so is one that leaves tasks behind."""

    async def checked() -> Any:
        result = await asyncio.wait_for(work, timeout_s)
        await eventually(lambda: not _others(), "every task has ended", detail=_others)
        return result

    return asyncio.run(checked())


def _others() -> list[str]:
    return [str(task) for task in asyncio.all_tasks() if task is not asyncio.current_task()]


async def eventually(
    holds: Callable[[], bool], what: str, timeout_s: float = 5.0, detail: Callable[[], object] = str
) -> None:
    """Wait until something is true, and say what never was."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + timeout_s
    while not holds():
        assert loop.time() < until_s, f"within {timeout_s} s it never came true that {what} {detail()}"
        await asyncio.sleep(0.005)


def free_port() -> int:
    """A port that nobody listens on, and that no outgoing connection is given."""
    return free_ports(1)[0]


def prompt_of(seed: int, length: int) -> list[int]:
    """A random prompt of the tiny model's vocabulary; one of a seed is a prefix of a longer one."""
    rng = random.Random(seed)
    return [rng.randrange(500) for _ in range(length)]


# -- the model ---------------------------------------------------------------------------------------------------------


@lru_cache
def tiny() -> LoadedModel:
    """The weights are shared by all workers of a test run; their caches are not."""
    torch.set_num_threads(1)
    return load_model("tiny")


class WatchedModel:
    """The real model, watched: it keeps the logits that tokens were sampled from, and can wait before a pass.

    Passes are counted per worker. `hold_at(n)` stops the compute thread before pass `n` until `go`; `held` says when
    it stands there. A pass can also be made to fail or to take longer.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self.passes = 0
        self.logits: dict[str, list[torch.Tensor]] = {}
        self.pass_s = 0.0
        self.fail_at: int | None = None
        self._hold_at: int | None = None
        self.held = threading.Event()
        self._go = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def hold_at(self, step: int) -> None:
        self._hold_at = step

    def go(self) -> None:
        self._hold_at = None
        self._go.set()

    def forward(self, plan: StepPlan, kv: KvTensor, on_layer: Callable[[int], None] | None = None) -> torch.Tensor:
        self.passes += 1
        if self.passes == self._hold_at:
            self.held.set()
            assert self._go.wait(30), "nobody let the model go on"
        if self.pass_s:
            threading.Event().wait(self.pass_s)
        if self.passes == self.fail_at:
            raise RuntimeError("the accelerator is on fire")
        logits: torch.Tensor = self._model.forward(plan, kv, on_layer)
        for row, step in zip(logits, (step for step in plan.steps if step.sample), strict=True):
            self.logits.setdefault(step.request_id, []).append(row.clone())
        return logits


# -- workers -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What a Decode call came to."""

    tokens: list[int]
    start: worker_pb2.DecodeStart
    logits: list[torch.Tensor]

    @property
    def transfer(self) -> common_pb2.TransferOutcome:
        return self.start.transfers[0]


class Node:
    """A worker and how tests talk to it."""

    def __init__(self, process: WorkerProcess, model: WatchedModel) -> None:
        self.process = process
        self.model = model
        self.channel = grpc.aio.insecure_channel(process.address)
        self.stub = WorkerStub(self.channel)
        self.alive = True

    @property
    def id(self) -> str:
        return self.process.settings.id

    @property
    def cache(self) -> Any:
        return self.process.runtime.cache

    async def decode(
        self,
        request_id: str,
        tokens: Sequence[int],
        sources: Iterable[worker_pb2.BlockSource] = (),
        *,
        output: int = 4,
        sampling: common_pb2.Sampling | None = None,
    ) -> Answer:
        call = self.stub.Decode(
            worker_pb2.DecodeRequest(
                request_id=request_id,
                tokens_le32=pack_tokens(tokens),
                key_seed=KEY_SEED,
                max_output_tokens=output,
                sources=sources,
                sampling=sampling,
                ignore_eos=True,
            )
        )
        ids: list[int] = []
        start = worker_pb2.DecodeStart()
        try:
            async for reply in call:
                if reply.WhichOneof("part") == "tokens":
                    ids += reply.tokens.ids
                    if reply.tokens.HasField("start"):
                        start = reply.tokens.start
        finally:
            # gRPC does not always: see router/service/attempt.py.
            call.cancel()
        return Answer(ids, start, self.model.logits.pop(request_id))

    def prefill(
        self,
        request_id: str,
        tokens: Sequence[int],
        blocks: range,
        sources: Iterable[worker_pb2.BlockSource] = (),
        lease_s: float = 30.0,
    ) -> Any:
        return self.stub.Prefill(
            worker_pb2.PrefillRequest(
                request_id=request_id,
                tokens_le32=pack_tokens(tokens),
                key_seed=KEY_SEED,
                sources=sources,
                handover_first_block=blocks.start,
                handover_end_block=blocks.stop,
                handover_lease_s=lease_s,
            )
        )

    def gives(self, kind: "common_pb2.MoveKind", first: int, end: int, target: str = "?") -> worker_pb2.BlockSource:
        """A move of blocks away from this worker."""
        move = common_pb2.Move(kind=kind, source=self.id, target=target, block_first=first, block_end=end)
        return worker_pb2.BlockSource(move=move, address=self.process.address)

    async def kill(self) -> None:
        """As abruptly as a process can die without the test dying too: every connection breaks, nothing is said."""
        self.alive = False
        data = self.process._data
        for connection in list(data._connections):
            connection.cancel()
        assert self.process._server is not None
        await asyncio.gather(
            self.process._server.stop(None), data.close(), *(member.close() for member in self.process._members)
        )

    async def close(self) -> None:
        self.model.go()
        await self.process.close()
        await self.channel.close()

    async def assert_idle(self) -> None:
        """Nothing runs, nothing is pinned, nothing waits."""
        runtime = self.process.runtime
        await eventually(lambda: not runtime._jobs, f"{self.id} has no job")
        await eventually(lambda: runtime.cache.used == 0, f"{self.id} uses no block")
        assert runtime.idle.is_set()
        assert not runtime.handovers._kept and not runtime.handovers._coming
        runtime.batcher.check()


@asynccontextmanager
async def worker(name: str, site: str = "home", **settings: Any) -> AsyncIterator[Node]:
    """A worker of the tiny model."""
    model = WatchedModel(tiny().model)
    settings = {"model": "tiny", "source": "tiny", "kv_blocks_max": 200, "calibrate": False, **settings}
    process = WorkerProcess(WorkerSettings(id=name, site=site, **settings), replace(tiny(), model=model))  # type: ignore[arg-type]
    await process.start()
    node = Node(process, model)
    try:
        yield node
    finally:
        await node.close()


# -- the router --------------------------------------------------------------------------------------------------------


@dataclass
class Reply:
    """What a Generate call came to."""

    decisions: list[common_pb2.Decision] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    summary: router_pb2.Summary = field(default_factory=router_pb2.Summary)


class Cluster:
    """A router and its workers."""

    def __init__(self, config: str) -> None:
        self.router = RouterProcess(parse_config(config), lambda name: None)
        self.nodes: dict[str, Node] = {}

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.router.port}"

    @property
    def scheduler(self) -> Any:
        return self.router.scheduler

    async def open(self) -> None:
        await self.router.start()
        self.channel = grpc.aio.insecure_channel(self.address)
        self.stub = RouterStub(self.channel)

    async def joined(self, count: int) -> None:
        await eventually(lambda: len(self.scheduler.fleet) == count, f"the fleet has {count} workers")

    def index_of(self, name: str) -> set[int]:
        """The keys that the router believes cached by a worker."""
        index = next(iter(self.scheduler.index.values()))
        return set(index._blocks.get(self.scheduler.fleet.get(name).bit, ()))

    async def assert_idle(self) -> None:
        """Nothing is booked, nothing waits, and every worker that lives is idle."""
        scheduler = self.scheduler
        await eventually(lambda: not scheduler.in_flight, "no request is in flight")
        assert len(scheduler.fleet.ledger) == 0
        assert len(scheduler.admission) == 0
        assert not self.router.driver._mailboxes
        assert not scheduler._attempts
        scheduler.check()
        for node in self.nodes.values():
            if node.alive:
                await node.assert_idle()


@asynccontextmanager
async def cluster(*workers: str, router: str = "", config: str = "", **settings: Any) -> AsyncIterator[Cluster]:
    """A router and workers, each written "name", "name:role" or "name:role:site". `router` adds to its section."""
    text = f"router: {{listen: '127.0.0.1:0', http: '127.0.0.1:0'{', ' + router if router else ''}}}\n{config}"
    system = Cluster(text)
    await system.open()
    closing = []
    try:
        for written in workers:
            name, role, site = (written.split(":") + ["both", "home"][written.count(":") :])[:3]
            opened = worker(name, site, role=role, routers=(system.address,), **settings)
            system.nodes[name] = await opened.__aenter__()
            closing.append(opened)
        await system.joined(len(workers))
        yield system
    finally:
        for opened in closing:
            await opened.__aexit__(None, None, None)
        await system.channel.close()
        await system.router.close()


def generate_request(tokens: Sequence[int], *, output: int = 8, **request: Any) -> router_pb2.GenerateRequest:
    """A Generate of token ids."""
    route = router_pb2.RouteRequest(
        model="tiny",
        prompt=common_pb2.Prompt(tokens_le32=pack_tokens(tokens)),
        max_output_tokens=output,
        **request,
    )
    return router_pb2.GenerateRequest(request=route, ignore_eos=True)


async def generate(system: Cluster, tokens: Sequence[int], reply: Reply | None = None, **wishes: Any) -> Reply:
    """Have the router answer; `reply` fills while the answer comes."""
    reply = reply or Reply()
    call = system.stub.Generate(generate_request(tokens, **wishes))
    try:
        async for message in call:
            match message.WhichOneof("part"):
                case "decision":
                    reply.decisions.append(message.decision)
                case "tokens":
                    reply.tokens += message.tokens.ids
                case "summary":
                    reply.summary = message.summary
    finally:
        call.cancel()
    return reply


async def alone(tokens: Sequence[int], output: int = 8, sampling: common_pb2.Sampling | None = None) -> list[int]:
    """The answer of a worker that nobody helps and nothing disturbs."""
    async with worker("alone") as node:
        return (await node.decode("alone", tokens, output=output, sampling=sampling)).tokens

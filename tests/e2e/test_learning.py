"""The router learns what links really carry from real transfers over an emulated WAN, from a prior that is wrong."""

import asyncio
from random import Random

import grpc
import pytest

from homing.protos import common_pb2, worker_pb2
from homing.protos.worker_pb2_grpc import WorkerStub
from homing.router.core.blocks import SEED, pack_tokens
from homing.router.core.events import WorkerJoined
from homing.router.core.policies import make_policy
from homing.router.core.scheduler import Scheduler
from homing.router.core.topology import Topology
from homing.router.core.types import Link, ModelName, ModelProfile, RequestId, Role, Site, Worker, WorkerId
from homing.router.service.wire import outcome_events
from homing.workers.emulation import EmulatedLink, Wan
from homing.workers.process import WorkerProcess, WorkerSettings

BLOCKS = 62
TOKENS = BLOCKS * 16 + 3


def a_worker(name: str, site: str) -> WorkerProcess:
    return WorkerProcess(WorkerSettings(id=name, site=site, model="tiny", source="tiny", calibrate=False))


def a_scheduler(bytes_per_s: float, rtt_s: float) -> Scheduler:
    model = ModelProfile(name=ModelName("tiny"), block_tokens=16, bytes_per_token=1024, layers=4)
    links = [
        Link(source=Site(one), target=Site(other), bytes_per_s=bytes_per_s, rtt_s=rtt_s)
        for one, other in (("x", "y"), ("y", "x"))
    ]
    scheduler = Scheduler(
        models=[model], topology=Topology(links), policy=make_policy("homing"), random=Random(0), site=Site("x")
    )
    for name, site in (("a", "x"), ("b", "y")):
        worker = Worker(
            id=WorkerId(name),
            model=model.name,
            role=Role.BOTH,
            site=Site(site),
            block_tokens=16,
            kv_blocks_max=1024,
        )
        scheduler.handle(WorkerJoined(worker=worker), 0.0)
    return scheduler


async def generate(stub: WorkerStub, name: str, tokens: list[int], source: str = "") -> worker_pb2.DecodeStart:
    move = common_pb2.Move(kind=common_pb2.MOVE_KIND_FETCH, source="a", target="b", block_first=0, block_end=BLOCKS)
    request = worker_pb2.DecodeRequest(
        request_id=name,
        tokens_le32=pack_tokens(tokens),
        key_seed=SEED,
        max_output_tokens=1,
        sources=[worker_pb2.BlockSource(move=move, address=source)] if source else [],
    )
    start = None
    async for reply in stub.Decode(request, timeout=30):
        if reply.WhichOneof("part") == "tokens":
            start = reply.tokens.start
    assert start is not None
    return start


async def learn(true_bytes_per_s: float, delay_s: float, believed_bytes_per_s: float, transfers: int) -> Scheduler:
    """Fetch some prompts from `a` to `b` for real, and tell a scheduler what `b` measured."""
    scheduler = a_scheduler(believed_bytes_per_s, 0.001)
    links = [
        EmulatedLink(source=one, target=other, bytes_per_s=true_bytes_per_s, delay_s=delay_s)
        for one, other in (("x", "y"), ("y", "x"))
    ]
    a, b = a_worker("a", "x"), a_worker("b", "y")
    async with Wan(links) as wan:
        await a.start()
        await b.start()
        try:
            control = await wan.open_gateway("y", "x", "127.0.0.1", a.port)
            a.service.data_address_from["y"] = await wan.open_gateway("y", "x", "127.0.0.1", a.data_port)
            async with grpc.aio.insecure_channel(a.address) as to_a, grpc.aio.insecure_channel(b.address) as to_b:
                random = Random(7)
                for number in range(transfers):
                    tokens = [random.randrange(500) for _ in range(TOKENS)]
                    await generate(WorkerStub(to_a), f"warm-{number}", tokens)
                    start = await generate(WorkerStub(to_b), f"fetch-{number}", tokens, f"{control[0]}:{control[1]}")
                    assert start.transfers[0].complete, start.transfers[0].reason
                    assert start.transfers[0].bytes == BLOCKS * 16 * 1024
                    for event in outcome_events(RequestId("r"), start.transfers, start.prefills):
                        scheduler.handle(event, float(number))
        finally:
            await a.close()
            await b.close()
    return scheduler


@pytest.mark.parametrize(("true_mb_per_s", "believed_mb_per_s"), [(20, 200), (20, 2), (4, 40)])
def test_link_speed_is_within_a_fifth_of_the_truth_after_two_transfers(
    true_mb_per_s: float, believed_mb_per_s: float
) -> None:
    """The prior is ten times off, either way; the router is told nothing but what the target measured."""
    scheduler = asyncio.run(learn(true_mb_per_s * 1e6, 0.005, believed_mb_per_s * 1e6, transfers=2))
    rate = scheduler.topology.rate(Site("x"), Site("y"))
    assert rate.samples == 2
    assert rate.bytes_per_s == pytest.approx(true_mb_per_s * 1e6, rel=0.2)


def test_round_trip_is_learned_from_the_control_channel() -> None:
    """A prior of 1 ms against a truth of 60 ms; a busy machine only ever adds."""
    scheduler = asyncio.run(learn(20e6, 0.030, 20e6, transfers=3))
    rtt_s = scheduler.topology.rate(Site("x"), Site("y")).rtt_s
    assert 0.045 < rtt_s < 0.12

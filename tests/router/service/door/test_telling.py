"""What the core learns of a call whose client has left: OpenAI's client goes when it has read the last event."""

import asyncio
from random import Random
from typing import Any

from homing.router.actuators.homing import HomingKv
from homing.router.core.events import RequestArrived, WorkerJoined
from homing.router.core.policies import make_policy
from homing.router.core.scheduler import Scheduler
from homing.router.core.topology import Topology
from homing.router.core.types import (
    Decision,
    Estimate,
    ModelName,
    ModelProfile,
    Move,
    MoveKind,
    Plan,
    PlanKind,
    Request,
    RequestId,
    Role,
    Site,
    Worker,
    WorkerId,
)
from homing.router.service.backends.endpoint import Endpoint, Endpoints
from homing.router.service.door.calls import Call
from homing.router.service.door.hits import Hits
from homing.router.service.door.telling import Carrier, Telling
from homing.router.service.driver import Driver
from homing.workers.vllm.asking import MAGIC, Answer, decode_ask, decode_length, encode_answer

MODEL = ModelProfile(name=ModelName("m"), block_tokens=16, bytes_per_token=1000)
HERE, THERE = Site("here"), Site("there")
MOVED_BYTES, SECONDS = 5_000_000, 0.5


async def block_server(reader: Any, writer: Any) -> None:
    """Tells of one transfer, slowly, as the connector's own server does."""
    await reader.readexactly(len(MAGIC))
    decode_ask(await reader.readexactly(decode_length(await reader.readexactly(4))))
    await asyncio.sleep(0.05)
    told = {"address": "s:1", "bytes": MOVED_BYTES, "seconds": 1.0, "flowing_s": SECONDS, "complete": True}
    writer.write(encode_answer(Answer(report={"loaded_blocks": 4, "transfers": [told]})))
    await writer.drain()
    writer.close()


def worker(name: str, site: Site) -> Worker:
    kinds = frozenset({PlanKind.LOCAL, PlanKind.FETCH})
    facts = {"model": MODEL.name, "role": Role.BOTH, "block_tokens": 16, "kv_blocks_max": 100, "transport": "homing"}
    return Worker(id=WorkerId(name), site=site, plans=kinds, **facts)


def test_a_stream_teaches_its_link_although_its_client_left_at_its_last_event():
    async def main() -> None:
        server = await asyncio.start_server(block_server, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        scheduler = Scheduler(
            models=[MODEL], topology=Topology(), policy=make_policy("homing"), random=Random(0), site=HERE
        )
        driver, endpoints = Driver(scheduler), Endpoints()
        made: dict[str, Any] = {}
        for name, site, address in (("s", THERE, "s:1"), ("d", HERE, f"127.0.0.1:{port}")):
            driver.feed(WorkerJoined(worker=worker(name, site)))
            made[name] = Endpoint(
                worker=WorkerId(name),
                backend=name,
                url="http://127.0.0.1:1",
                site=site,
                model=MODEL.name,
                adapter=None,
                upstream=None,
                actuator=HomingKv(),
                kv={"address": address},
            )
            endpoints.add(made[name])
        request = Request(
            id=RequestId("r"), model=MODEL.name, block_keys=(), prompt_tokens=80, max_output_tokens=4, arrived_s=0.0
        )
        driver.feed(RequestArrived(request=request))
        move = Move(
            kind=MoveKind.FETCH,
            source=WorkerId("s"),
            target=WorkerId("d"),
            block_first=0,
            block_end=4,
            bytes=MOVED_BYTES,
        )
        plan = Plan(
            kind=PlanKind.FETCH,
            prefill=WorkerId("d"),
            decode=WorkerId("d"),
            moves=(move,),
            estimate=Estimate(),
            prefill_compute_s=0.0,
        )
        decision = Decision(
            request=request, plan=plan, runners_up=(), policy="homing", decided_s=0.0, attempt=1, plans_priced=1
        )
        carrier = Carrier(driver=driver, endpoints=endpoints, post=None, hits=Hits())
        call = Call("/v1/completions", b"{}", {}, {}, "r", "m", True, "r")
        telling = Telling(carrier, call, request)
        before = scheduler.topology.rate(THERE, HERE).samples
        telling.settle_alone(decision, made["d"], None, 3)
        assert telling.is_over and len(carrier.asking) == 1, "the request is over, whoever is still asked"
        await asyncio.gather(*carrier.asking)
        assert scheduler.topology.rate(THERE, HERE).samples == before + 1
        assert not carrier.asking
        telling.close()
        driver.stop()
        server.close()

    asyncio.run(main())

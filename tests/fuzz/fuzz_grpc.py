"""Random bytes and mutated messages on every method of the router and the worker.

A live router and two workers on the tiny model; concurrent callers that send garbage, cancel, and leave. Whatever they
do: no method may fail in a way that it did not choose (an uncaught exception), and afterwards the system answers as
before, with nothing booked, pinned or waiting. The seed names the messages; what happens when is up to the machine.

    python tests/fuzz/fuzz_grpc.py --seconds 60 --seed 1
"""

import argparse
import asyncio
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import structlog
import torch
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from homing.protos import common_pb2, fleet_pb2, router_pb2, worker_pb2
from homing.protos.router_pb2_grpc import RouterStub
from homing.router.core.blocks import block_keys, pack_tokens
from homing.router.service.config import parse_config
from homing.router.service.process import RouterProcess
from homing.workers.model.weights import load_model
from homing.workers.process import WorkerProcess, WorkerSettings

CONFIG = """
router: {listen: '127.0.0.1:0', http: '127.0.0.1:0', lease_s: 1.0, lost_after_s: 2.0, first_token_timeout_s: 5.0,
         request_timeout_s: 5.0}
"""
CALLERS = 8
CALL_S_MAX = 0.5
SETTLE_S = 20.0
KEY_SEED = 1337
PROMPT = [7 * i % 500 for i in range(200)]
NUMBERS = (0, 1, 2, 15, 16, 17, 255, 1 << 15, (1 << 31) - 1)
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-300, 1e300, float("inf"), float("-inf"), float("nan"))
TEXTS = ("", "tiny", "a", "b", "both", "home", "\x00", "é" * 100, "x" * 5000, "127.0.0.1:1", "not an address")
NOT_OURS = (
    "google.protobuf.message.DecodeError",
    "Internal error from Core",
    "ExecuteBatchError raised in core by servicer method",
)
"""What gRPC answers to bytes that are no message, what its client says when a stream ends under its hands, and what its
server says when a call is over before its status is sent.
"""


@dataclass
class Findings:
    """What a run did and what it found."""

    calls: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


# -- messages ----------------------------------------------------------------------------------------------------------


class Corpus:
    """Good messages of every type, which mutation begins with."""

    def __init__(self, rng: random.Random, workers: Sequence[WorkerProcess]) -> None:
        self._rng = rng
        self._workers = workers
        self._hello = workers[0]._hello(load_model("tiny"))

    def good(self, name: str) -> Message:
        """A message of a type that would be taken, mostly."""
        makers: dict[str, Callable[[], Message]] = {
            "RouteRequest": self._route,
            "GenerateRequest": lambda: router_pb2.GenerateRequest(request=self._route(), ignore_eos=True),
            "ReportRequest": self._report,
            "ExplainRequest": lambda: router_pb2.ExplainRequest(request_id=self._id()),
            "GetFleetRequest": router_pb2.GetFleetRequest,
            "WorkerMessage": self._worker_message,
            "KvEventBatch": self._events,
            "PrefillRequest": self._prefill,
            "DecodeRequest": self._decode,
            "FetchBlocksRequest": self._fetch,
        }
        return makers[name]()

    def _id(self) -> str:
        """Few enough that calls meet."""
        return f"fuzz{self._rng.randrange(12)}"

    def _tokens(self) -> bytes:
        return pack_tokens(PROMPT[: self._rng.choice((1, 16, 33, 100, 200))])

    def _route(self) -> router_pb2.RouteRequest:
        return router_pb2.RouteRequest(
            request_id=self._id(),
            model="tiny",
            prompt=common_pb2.Prompt(tokens_le32=self._tokens()),
            max_output_tokens=3,
            ttft_deadline_s=self._rng.choice((0, 0.1)),
        )

    def _report(self) -> router_pb2.ReportRequest:
        what = self._rng.choice(({"first_token": {"ttft_s": 0.1}}, {"ended": {}}, {"broke": {"worker": "a"}}))
        return router_pb2.ReportRequest(request_id=self._id(), **what)

    def _prefill(self) -> worker_pb2.PrefillRequest:
        return worker_pb2.PrefillRequest(
            request_id=self._id(),
            tokens_le32=self._tokens(),
            key_seed=KEY_SEED,
            sources=self._sources(),
            handover_end_block=1,
            handover_lease_s=0.2,
        )

    def _decode(self) -> worker_pb2.DecodeRequest:
        return worker_pb2.DecodeRequest(
            request_id=self._id(),
            tokens_le32=self._tokens(),
            key_seed=KEY_SEED,
            sources=self._sources(),
            max_output_tokens=3,
        )

    def _worker_message(self) -> fleet_pb2.WorkerMessage:
        if self._rng.random() < 0.7:
            hello = fleet_pb2.Hello.FromString(self._hello.SerializeToString())
            hello.worker_id = f"ghost{self._rng.randrange(4)}"
            hello.address = "127.0.0.1:1"
            return fleet_pb2.WorkerMessage(hello=hello)
        sequence = self._rng.randrange(5)
        return fleet_pb2.WorkerMessage(load=fleet_pb2.LoadReport(sequence=sequence, running_requests=1))

    def _events(self) -> fleet_pb2.KvEventBatch:
        keys = block_keys(pack_tokens(PROMPT), 16)
        events = [
            fleet_pb2.KvEvent(cleared={}),
            fleet_pb2.KvEvent(stored={"keys": keys}),
            fleet_pb2.KvEvent(removed={"keys": keys[-1:]}),
        ]
        name = self._rng.choice(("a", "b", "ghost0"))
        count = self._rng.randrange(4)
        return fleet_pb2.KvEventBatch(worker_id=name, sequence=self._rng.randrange(3), events=events[:count])

    def _sources(self) -> list[worker_pb2.BlockSource]:
        if self._rng.random() < 0.5:
            return []
        kind = self._rng.choice((1, 2, 3))
        move = common_pb2.Move(kind=kind, source="a", target="b", block_first=0, block_end=self._rng.randrange(1, 13))
        return [worker_pb2.BlockSource(move=move, address=self._rng.choice(self._workers).address)]

    def _fetch(self) -> worker_pb2.FetchBlocksRequest:
        return worker_pb2.FetchBlocksRequest(
            worker_id="b",
            request_id=self._id(),
            kv_format=self._workers[0].runtime.kv.format,
            keys=block_keys(pack_tokens(PROMPT), 16),
            handover=self._rng.random() < 0.3,
            inline_frames=self._rng.random() < 0.5,
        )


def scramble(message: Message, rng: random.Random) -> None:
    """Set one field, at any depth, to something odd."""
    fields = [field for field in message.DESCRIPTOR.fields if not _is_map(field)]
    if not fields:
        return
    chosen = rng.choice(fields)
    nested = chosen.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE
    if chosen.is_repeated:
        values = getattr(message, chosen.name)
        if nested:
            scramble(values.add() if not values or rng.random() < 0.3 else rng.choice(values), rng)
        else:
            values.append(_odd(chosen, rng))
    elif nested:
        child = getattr(message, chosen.name)
        child.SetInParent()
        scramble(child, rng)
    else:
        setattr(message, chosen.name, _odd(chosen, rng))


def _is_map(chosen: FieldDescriptor) -> bool:
    return chosen.message_type is not None and chosen.message_type.GetOptions().map_entry


def _odd(chosen: FieldDescriptor, rng: random.Random) -> Any:
    match chosen.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING if chosen.type == FieldDescriptor.TYPE_BYTES:
            return rng.randbytes(rng.choice((0, 1, 4, 5, 64)))
        case FieldDescriptor.CPPTYPE_STRING:
            return rng.choice(TEXTS)
        case FieldDescriptor.CPPTYPE_BOOL:
            return rng.random() < 0.5
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return rng.choice(FLOATS)
        case FieldDescriptor.CPPTYPE_UINT64:
            return rng.choice((*NUMBERS, (1 << 64) - 1))
        case FieldDescriptor.CPPTYPE_UINT32:
            return rng.choice((*NUMBERS, (1 << 32) - 1))
        case _:
            return rng.choice((*NUMBERS, -(1 << 31)))


def mangle(data: bytes, rng: random.Random) -> bytes:
    """Flip, drop, double or cut some bytes."""
    mangled = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(mangled) + 1)
        match rng.randrange(4):
            case 0 if at < len(mangled):
                mangled[at] ^= 1 << rng.randrange(8)
            case 1:
                del mangled[at : at + rng.randrange(8)]
            case 2:
                mangled[at:at] = mangled[at : at + rng.randrange(32)]
            case _:
                mangled[at:at] = rng.randbytes(rng.randrange(4))
    return bytes(mangled)


def message_for(name: str, corpus: Corpus, rng: random.Random) -> bytes:
    """Bytes to send where a message of this type is wanted."""
    if rng.random() < 0.08:
        return rng.randbytes(rng.choice((0, 1, 3, 20, 300)))
    message = corpus.good(name)
    for _ in range(rng.choice((0, 1, 1, 2, 5))):
        scramble(message, rng)
    data = message.SerializeToString()
    return mangle(data, rng) if rng.random() < 0.15 else data


# -- calls -------------------------------------------------------------------------------------------------------------


def methods() -> Iterator[MethodDescriptor]:
    """Every method there is."""
    for file in (router_pb2, fleet_pb2, worker_pb2):
        for service in file.DESCRIPTOR.services_by_name.values():
            yield from service.methods


async def call(channel: grpc.aio.Channel, method: MethodDescriptor, corpus: Corpus, rng: random.Random) -> str:
    """One call with odd messages; returns how it ended, as code and details."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    sent = [message_for(method.input_type.name, corpus, rng) for _ in range(rng.randrange(1, 5))]
    timeout_s = rng.uniform(0.01, CALL_S_MAX)
    lingers = rng.random() < 0.5

    async def messages() -> Any:
        for data in sent:
            yield data
        if lingers:
            await asyncio.sleep(timeout_s / 2)

    kind = ("stream" if method.client_streaming else "unary", "stream" if method.server_streaming else "unary")
    opened = getattr(channel, "_".join(kind))(path)(
        messages() if method.client_streaming else sent[0], timeout=timeout_s
    )
    try:
        if method.server_streaming:
            async for reply in opened:
                GetMessageClass(method.output_type).FromString(reply)
        else:
            GetMessageClass(method.output_type).FromString(await opened)
    except grpc.aio.AioRpcError as error:
        return f"{error.code().name}: {error.details()}"
    return "OK"


async def keep_calling(
    channels: dict[str, list[grpc.aio.Channel]], corpus: Corpus, rng: random.Random, until_s: float, found: Findings
) -> None:
    """One of the callers."""
    known = list(methods())
    while time.monotonic() < until_s:
        method = rng.choice(known)
        channel = rng.choice(channels["worker" if method.containing_service.name == "Worker" else "router"])
        ended = await call(channel, method, corpus, rng)
        code = ended.partition(":")[0]
        found.calls[method.full_name] += 1
        found.codes[code] += 1
        if code in {"UNKNOWN", "INTERNAL"} and not is_grpcs_own(ended):
            found.failures.append(f"{method.full_name}: {ended}")


def is_grpcs_own(message: str) -> bool:
    """Whether a failure comes from gRPC before or behind the code that is fuzzed."""
    return any(part in message for part in NOT_OURS)


class ErrorLog(logging.Handler):
    """An exception that reaches a log was not expected by the code that it passed through."""

    def __init__(self, found: Findings) -> None:
        super().__init__(logging.ERROR)
        self._found = found

    def emit(self, record: logging.LogRecord) -> None:
        message = self.format(record)
        if (record.exc_info or record.name == "asyncio") and not is_grpcs_own(message):
            self._found.failures.append(f"{record.name}: {message}")


# -- the system --------------------------------------------------------------------------------------------------------


async def answer(stub: RouterStub) -> list[int]:
    """What the system says to one fixed prompt."""
    prompt = common_pb2.Prompt(tokens_le32=pack_tokens(PROMPT))
    request = router_pb2.RouteRequest(model="tiny", prompt=prompt, max_output_tokens=8)
    ids: list[int] = []
    async for reply in stub.Generate(router_pb2.GenerateRequest(request=request, ignore_eos=True), timeout=20):
        ids += reply.tokens.ids
    return ids


async def settled(router: RouterProcess, workers: Sequence[WorkerProcess]) -> str:
    """Wait until nothing runs, and say what still does."""
    until_s = time.monotonic() + SETTLE_S
    problem = "?"
    while problem and time.monotonic() < until_s:
        await asyncio.sleep(0.05)
        problem = _unsettled(router, workers)
    return problem


def _unsettled(router: RouterProcess, workers: Sequence[WorkerProcess]) -> str:
    scheduler = router.scheduler
    fleet = sorted(state.worker.id for state in scheduler.fleet)
    if fleet != ["a", "b"]:
        return f"the fleet is {fleet}"
    if scheduler.in_flight or len(scheduler.fleet.ledger) or len(scheduler.admission) or router.driver._mailboxes:
        return f"requests are left: {list(scheduler.in_flight)}, {len(scheduler.admission)} waiting"
    for worker in workers:
        runtime = worker.runtime
        for request_id in list(runtime.handovers._kept):
            runtime.handovers.drop(request_id, "the fuzzing is over")  # a mutated lease may be as long as it likes
        if runtime._jobs or runtime.cache.used or runtime.handovers._coming:
            return f"{worker.settings.id} runs {list(runtime._jobs)} and uses {runtime.cache.used} blocks"
    return ""


async def fuzz(seconds: float, seed: int) -> Findings:
    """Fuzz a fresh system for a while; what is found is in the answer's `failures`."""
    torch.set_num_threads(1)
    rng = random.Random(seed)
    found = Findings()
    handler = ErrorLog(found)
    logging.getLogger().addHandler(handler)
    router = RouterProcess(parse_config(CONFIG), lambda name: None)
    await router.start()
    address = f"127.0.0.1:{router.port}"
    settings = {"site": "home", "model": "tiny", "source": "tiny", "kv_blocks_max": 200, "calibrate": False}
    workers = [WorkerProcess(WorkerSettings(id=name, routers=(address,), **settings)) for name in "ab"]  # type: ignore[arg-type]
    for worker in workers:
        await worker.start()
    channels = {
        "router": [grpc.aio.insecure_channel(address)],
        "worker": [grpc.aio.insecure_channel(worker.address) for worker in workers],
    }
    try:
        await _fuzz(router, workers, channels, rng, seconds, found)
    finally:
        logging.getLogger().removeHandler(handler)
        for channel in (*channels["router"], *channels["worker"]):
            await channel.close()
        for worker in workers:
            await worker.close()
        await router.close()
    return found


async def _fuzz(
    router: RouterProcess,
    workers: Sequence[WorkerProcess],
    channels: dict[str, list[grpc.aio.Channel]],
    rng: random.Random,
    seconds: float,
    found: Findings,
) -> None:
    stub = RouterStub(channels["router"][0])
    problem = await settled(router, workers)
    assert not problem, problem
    before = await answer(stub)
    corpus = Corpus(rng, workers)
    until_s = time.monotonic() + seconds
    callers = [random.Random(rng.getrandbits(64)) for _ in range(CALLERS)]
    await asyncio.gather(*(keep_calling(channels, corpus, caller, until_s, found) for caller in callers))
    problem = await settled(router, workers)
    if problem:
        found.failures.append(f"{SETTLE_S} s later {problem}")
    router.scheduler.check()
    for worker in workers:
        worker.runtime.batcher.check()
    after = await answer(stub)
    if after != before:
        found.failures.append(f"the answer was {before} and is {after}")


def main() -> int:
    """Fuzz, and tell what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    given = parser.parse_args()
    logging.basicConfig(level=logging.CRITICAL)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    print(f"seed {given.seed}, {given.seconds} s", flush=True)
    found = asyncio.run(fuzz(given.seconds, given.seed))
    for name, count in sorted(found.calls.items()):
        print(f"{count:8} {name}")
    print(", ".join(f"{code} {count}" for code, count in found.codes.most_common()))
    for failure, count in Counter(found.failures).most_common(20):
        print(f"FAILED {count} times: {failure}")
    return 1 if found.failures else 0


if __name__ == "__main__":
    sys.exit(main())

"""Odd HTTP, odd JSON and clients that leave, on the open door of a live router with an echo engine behind it.

Whatever comes: no answer is a server's error (5xx), each has its shape, and afterwards the door answers as before with
nothing booked, held or waiting. The seed names what is sent; what happens when is up to the machine.

    python tests/fuzz/fuzz_http.py --seconds 60 --seed 1
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from homing.router.service.config import parse_config
from homing.router.service.process import RouterProcess
from homing.workers.echo.openai import EchoServer
from homing.workers.echo.settings import EchoSettings, StepTimes

CALLERS = 8
ANSWER_S_MAX = 10.0
SETTLE_S = 10.0
PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/route",
    "/tokenize",
    "/v1/embeddings",
    "/v1/messages",
    "/rerank",
)
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 0.5, -0.0, 1e308, 2**31, 2**63, 2**64, -(2**63), 10**30),
    *("", "x", "\x00", "é" * 50, "\ud83d\ude00", "a" * 5000, "system", "user", "echo", "nobody"),
    *([], {}, [[]], [{}], {"a": {"b": []}}, [1, "a", None], ["x"] * 300, list(range(300))),
)
KEYS = (
    *("model", "messages", "prompt", "input", "stream", "stream_options", "max_tokens", "max_completion_tokens", "n"),
    *("stop", "user", "session_id", "prompt_cache_key", "cache_salt", "priority", "tools", "seed", "temperature", "zz"),
)
HEADERS = (
    *("x-request-id", "x-session-id", "x-tenant-id", "x-homing-origin", "content-type", "accept-encoding", "te"),
    *("connection", "expect", "authorization", "traceparent", "content-encoding", "upgrade", "x-odd"),
)
VALUES = (
    "",
    "a",
    "home",
    "close",
    "keep-alive",
    "100-continue",
    "gzip",
    "h2c",
    "upgrade",
    "\xff\xfe",
    "x" * 2000,
    "a, b",
)
CONFIG = """
router: {door: '127.0.0.1:0', listen: '127.0.0.1:0', http: '127.0.0.1:0', poll_s: 0.5, request_timeout_s: 8.0,
         body_bytes_max: 1048576}
backends: [{url: '%s', id: e0, api_key_env: null}]
"""


@dataclass
class Findings:
    """What a run did and what it found."""

    sent: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    engine_failures: int = 0
    failures: list[str] = field(default_factory=list)


@asynccontextmanager
async def live() -> Any:
    """A router with its door open before an echo engine that takes no time."""
    times = StepTimes(prefill_a_s=0, prefill_b_s=0, decode_s=0)
    engine = EchoServer(EchoSettings(times=times, loras=("tuned",)))
    await engine.start()
    process = RouterProcess(parse_config(CONFIG % engine.url), lambda name: None)
    await process.start()
    try:
        while not len(process.scheduler.fleet):
            await asyncio.sleep(0.01)
        yield process
    finally:
        await process.close()
        await engine.close()


# -- what is sent ------------------------------------------------------------------------------------------------------


def odd_body(dice: random.Random) -> bytes:
    """A request's JSON, with some of it replaced, and sometimes broken as text."""
    body: dict[str, Any] = {"model": "echo", "max_tokens": dice.randrange(1, 30), "stream": dice.random() < 0.4}
    body[dice.choice(["prompt", "messages", "input"])] = dice.choice(["some words", [1, 2, 3], [97] * 50])
    if dice.random() < 0.6:
        body["messages"] = [
            {"role": dice.choice(["user", "system", "assistant", "tool", "x"]), "content": dice.choice([*ODD, "hello"])}
            for _ in range(dice.randrange(4))
        ]
    for _ in range(dice.randrange(3)):
        body[dice.choice(KEYS)] = dice.choice(ODD)
    data = json.dumps(body, ensure_ascii=dice.random() < 0.5).encode("utf-8", "surrogatepass")
    return mutated(data, dice) if dice.random() < 0.3 else data


def mutated(data: bytes, dice: random.Random) -> bytes:
    """Some bytes changed, left out or doubled."""
    made = bytearray(data)
    for _ in range(dice.randrange(1, 6)):
        at = dice.randrange(len(made) + 1)
        made[at : at + dice.choice([0, 1, 1, 9])] = dice.choice(
            [b"", dice.randbytes(1), dice.randbytes(3), b"\r\n", b'"', b"{", b"\\", bytes(made[at : at + 20])]
        )
    return bytes(made)


def odd_request(dice: random.Random, *, last: bool = False) -> bytes:
    """The bytes of one request, the last of its connection or not."""
    body = odd_body(dice)
    method = dice.choice(["POST"] * 12 + ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
    path = dice.choice([*PATHS, *PATHS, "/v1/models", "/v1/models/echo", "/v1/models/%2f%ff", "/health", "/", "/x?y=%"])
    headers = {"host": "door", "content-type": "application/json"}
    for _ in range(dice.randrange(3)):
        headers[dice.choice(HEADERS)] = dice.choice(VALUES)
    if dice.random() < 0.25:
        headers["transfer-encoding"] = "chunked"
        cut = dice.randrange(1, 40)
        pieces = [body[at : at + cut] for at in range(0, len(body), cut)]
        body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    else:
        headers["content-length"] = str(len(body))
    if last:
        headers["connection"] = "close"
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    data = "\r\n".join(lines).encode("latin-1") + body
    return mutated(data, dice) if dice.random() < 0.15 else data


# -- what comes --------------------------------------------------------------------------------------------------------


async def call(port: int, dice: random.Random, found: Findings) -> None:
    """One connection: a few requests at an odd pace, sometimes left early; what comes is looked at."""
    ahead = [odd_request(dice) for _ in range(dice.choice([0, 0, 0, 1, 4]))]
    sent = b"".join([*ahead, odd_request(dice, last=dice.random() < 0.8)])
    if dice.random() < 0.03:
        sent = dice.randbytes(dice.randrange(1, 3000))
    leaves = dice.random() < 0.2
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    found.sent += 1
    came = b""
    try:
        with suppress(ConnectionError):
            piece = dice.choice([len(sent), len(sent), 1 + len(sent) // 3, 1 + len(sent) // 10])
            for at in range(0, len(sent), piece):
                writer.write(sent[at : at + piece])
                await asyncio.sleep(0)
            if leaves:
                await asyncio.sleep(dice.random() * 0.01)
                return
            # What was mutated may ask for more to come; then nothing does, and nothing has to be said.
            with suppress(TimeoutError):
                while len(came) < 10_000_000:
                    part = await asyncio.wait_for(reader.read(1 << 16), 0.15)
                    if not part:
                        break
                    came += part
    finally:
        writer.transport.abort()
    look_at(sent, came, found)


def look_at(sent: bytes, came: bytes, found: Findings) -> None:
    """Count the statuses, and note what no answer may be. An engine may fail, and is then quoted."""
    for at in _starts(came):
        status = int(came[at + 9 : at + 12])
        head = came[at:].partition(b"\r\n\r\n")[0]
        if b"x-homing-worker: " in head and status >= 500:
            found.engine_failures += 1
            continue
        found.statuses[status] += 1
        if status >= 500:
            found.failures.append(f"{sent[:600]!r}\n    was answered {came[at : at + 500]!r}")
    if came and not came.startswith(b"HTTP/1.1 "):
        found.failures.append(f"{sent[:600]!r}\n    was answered {came[:100]!r}")


def _starts(came: bytes) -> list[int]:
    starts, at = [], came.find(b"HTTP/1.1 ")
    while at >= 0:
        if at == 0 or came[at - 1 : at] in b"\n}]":
            starts.append(at)
        at = came.find(b"HTTP/1.1 ", at + 9)
    return starts


async def fuzz(seconds: float, seed: int) -> Findings:
    """Run callers for so long, and see that everything is as before."""
    found = Findings()
    until_s = time.monotonic() + seconds

    async def caller(number: int, port: int) -> None:
        dice = random.Random(seed * 1000 + number)
        while time.monotonic() < until_s and len(found.failures) < 20:
            await asyncio.wait_for(call(port, dice, found), ANSWER_S_MAX)

    async with live() as process:
        port = process.front.door_port
        await asyncio.gather(*(caller(number, port) for number in range(CALLERS)))
        found.failures += await _left(process)
        found.failures += await _answers(port)
    return found


async def _left(process: Any) -> list[str]:
    """What was not given back in time."""
    until_s = time.monotonic() + SETTLE_S
    scheduler, server = process.scheduler, process.front._server
    while time.monotonic() < until_s:
        left = {
            "in flight": len(scheduler.in_flight),
            "waiting": len(scheduler.admission),
            "booked": len(scheduler.fleet.ledger),
            "connections": len(server.connections) + len(server.turned_away),
            "bytes of bodies": server.bodies_bytes,
        }
        if not any(left.values()):
            scheduler.check()
            return []
        await asyncio.sleep(0.02)
    return [f"still {count} {what}" for what, count in left.items() if count]


async def _answers(port: int) -> list[str]:
    body = b'{"model":"echo","messages":[{"role":"user","content":"well?"}]}'
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nconnection: close\r\ncontent-type: application/json\r\n"
    writer.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)
    came = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    is_well = came.startswith(b"HTTP/1.1 200") and b'"content":"well?"' in came.replace(b" ", b"")
    return [] if is_well else [f"afterwards it answers {came[:300]!r}"]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    asked = parser.parse_args()
    found = asyncio.run(fuzz(asked.seconds, asked.seed))
    print(f"seed {asked.seed}: {found.sent} connections, answers {dict(sorted(found.statuses.items()))}")
    print(f"the engine failed {found.engine_failures} times by itself")
    for failure in found.failures:
        print(failure)
    sys.exit(bool(found.failures))


if __name__ == "__main__":
    main()

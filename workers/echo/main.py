"""The command that runs one echo worker: `python -m homing.workers.echo --model echo --kv-events`.

It prints its addresses as one line of JSON once it listens, and ends at SIGINT or SIGTERM. With `--router` it is one of
Homing's own workers that joins there (`native.py`, which needs torch), else a server that speaks as vLLM does.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence

from .openai import EchoServer
from .settings import EchoSettings, KvEventSettings, StepTimes

DRAIN_S = 5.0
_TIMES = StepTimes()
_SETTINGS = EchoSettings()
_EVENTS = KvEventSettings()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run until told to stop."""
    options = _parser().parse_args(arguments)
    try:
        settings = settings_of(options)
    except ValueError as error:
        raise SystemExit(f"echo: {error}") from error
    asyncio.run(join(settings, options) if options.router else serve(settings))


def settings_of(options: argparse.Namespace) -> EchoSettings:
    """Options as settings; ValueError names the one that is wrong."""
    events = None
    if options.kv_events:
        events = KvEventSettings(
            endpoint=options.kv_endpoint, replay_endpoint=options.kv_replay_endpoint, topic=options.kv_topic
        )
    return EchoSettings(
        model=options.model,
        loras=tuple(options.lora),
        host=options.host,
        port=options.port,
        block_tokens=options.block_tokens,
        kv_blocks=options.kv_blocks,
        requests_max=options.requests_max,
        step_tokens_max=options.step_tokens_max,
        context_tokens=options.context_tokens,
        times=StepTimes(**{name: getattr(options, name) for name in StepTimes.__slots__}),
        kv_events=events,
        pause_after_tokens=options.pause_after_tokens,
        pause_s=options.pause_s,
    )


async def serve(settings: EchoSettings) -> None:
    """Run one worker until SIGINT or SIGTERM."""
    server = EchoServer(settings)
    await server.start()
    try:
        hello: dict[str, str | None] = {"url": server.url, "model": settings.model}
        if server.publisher is not None:
            hello |= {"kv_endpoint": server.publisher.endpoint, "kv_replay_endpoint": server.publisher.replay_endpoint}
        await _until_stopped(hello)
    finally:
        await server.close()


async def join(settings: EchoSettings, options: argparse.Namespace) -> None:
    """Run one of Homing's own workers until SIGINT or SIGTERM, then drain it."""
    import torch  # noqa: PLC0415 - only here

    from homing.workers.process import WorkerProcess, WorkerSettings  # noqa: PLC0415

    from .native import echo_loaded  # noqa: PLC0415

    torch.set_num_threads(1)
    times = settings.times
    told = WorkerSettings(
        id=options.id or f"echo-{os.getpid()}",
        site=options.site,
        model=settings.model,
        source="echo",
        role=options.role,
        block_tokens=settings.block_tokens,
        kv_blocks_max=settings.kv_blocks,
        requests_max=settings.requests_max,
        step_tokens_max=settings.step_tokens_max,
        host=settings.host,
        port=settings.port,
        routers=tuple(options.router),
        calibrate=False,
        prior=(times.prefill_a_s, times.prefill_b_s, times.prefill_q_s),
    )
    loaded = echo_loaded(times, kv_bytes_per_token=options.kv_bytes_per_token, context_tokens=settings.context_tokens)
    worker = WorkerProcess(told, loaded)
    await worker.start()
    try:
        await _until_stopped({"address": worker.address, "id": told.id, "model": told.model})
        await worker.drain(DRAIN_S)
    finally:
        await worker.close()


async def _until_stopped(hello: dict[str, str | None]) -> None:
    sys.stdout.write(json.dumps(hello) + "\n")
    sys.stdout.flush()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="echo", description="An engine that speaks as vLLM does, answers with its prompt and needs no GPU."
    )
    add = parser.add_argument
    add("--model", default=_SETTINGS.model)
    add("--lora", action="append", default=[], help="a name to serve as an adapter on the model; may be repeated")
    add("--host", default=_SETTINGS.host)
    add("--port", type=int, default=_SETTINGS.port, help="0: any that is free")
    for name in ("block_tokens", "kv_blocks", "requests_max", "step_tokens_max", "context_tokens"):
        add(f"--{name.replace('_', '-')}", type=int, default=getattr(_SETTINGS, name))
    for name in StepTimes.__slots__:
        add(f"--{name.replace('_', '-')}", type=float, default=getattr(_TIMES, name))
    add("--kv-events", action="store_true", help="publish what the cache holds")
    add("--kv-endpoint", default=_EVENTS.endpoint)
    add("--kv-replay-endpoint", default=_EVENTS.replay_endpoint)
    add("--kv-topic", default=_EVENTS.topic)
    add("--pause-after-tokens", type=int, default=0, help="each stream stands still after so many; 0: never")
    add("--pause-s", type=float, default=600.0)
    native = parser.add_argument_group("as one of Homing's own workers (needs torch)")
    add = native.add_argument
    add("--router", action="append", default=[], help="a router to join, host:port; may be repeated")
    add("--id", default="")
    add("--site", default="home")
    add("--role", default="both", choices=["both", "prefill", "decode"])
    add("--kv-bytes-per-token", type=int, default=128)
    return parser

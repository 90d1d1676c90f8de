"""`homing demo` from start to end."""

import asyncio
import signal
import tempfile
import time
from collections.abc import Coroutine
from pathlib import Path

import grpc
import msgspec
import yaml

from homing.protos import router_pb2
from homing.protos.router_pb2_grpc import RouterStub
from homing.router.core.errors import ConfigError
from homing.router.service.config import Config
from homing.workers.emulation import Wan
from homing.workers.model.sources import load_tokenizer

from ..client import told
from .fleet import PLACES, REFERENCE, Memory, emulated_links, lay_out, scale_links
from .play import Played, Player, recompute
from .processes import Processes
from .record import fleet_facts, write_json
from .report import learned_links, show, wide_console
from .script import STEPS, longest_prompts
from .speed import Speed, measure_speed

console = wide_console()

DEFAULT_MODEL = "smollm2"
JOIN_TIMEOUT_S = 120.0
BLOCK_TOKENS = 16
SCALE_TOKENS = 512
"""The prompt length at which moving and computing are balanced."""
CHECKER = "fra-p"
"""The worker that recomputes every answer at the end."""
NEIGHBOUR = "fra-1"
"""Another one in the same site."""


def run_demo(model: str, out: Path | None, *, verbose: bool) -> None:
    """Run the demo; raises ConfigError for whatever keeps it from running."""
    model = _available(model)
    with tempfile.TemporaryDirectory(prefix="homing-demo-") as directory:
        asyncio.run(_until_told(_demo(model, Path(directory), out, verbose=verbose)))


async def _until_told(demo: Coroutine[None, None, None]) -> None:
    """Run the demo; when the process is told to end, stop its children first."""
    task = asyncio.ensure_future(demo)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        raise ConfigError("the demo was interrupted; its processes are stopped") from None


def _available(model: str) -> str:
    """The model asked for, or the tiny one, with a word about it, when the demo's model is not installed."""
    try:
        load_tokenizer(model)
    except (OSError, ImportError) as error:
        if model != DEFAULT_MODEL:
            raise ConfigError(f"--model: {error}") from error
        console.print(f"[yellow]{error}[/yellow]")
        console.print("[yellow]Going on with the tiny random model: its answers are noise, all else is real.[/yellow]")
        return "tiny"
    return model


async def _demo(model: str, directory: Path, out: Path | None, *, verbose: bool) -> None:
    began_s = time.monotonic()
    async with Wan(emulated_links()) as wan, Processes(directory, verbose=verbose) as processes:
        config = await lay_out(wan, model, _memory(model))
        _introduce(model)
        async with grpc.aio.insecure_channel(config.router.listen) as channel:
            router = RouterStub(channel)
            await _start(config, directory, processes, router)
            console.print(f"All have joined after {time.monotonic() - began_s:.0f} s.")
            joined = await router.GetFleet(router_pb2.GetFleetRequest())
            true_bytes_per_s = _scale(wan, joined)
            played = await _play(router, config, model)
            fleet = await router.GetFleet(router_pb2.GetFleetRequest())
            await _check(config, played)
            speed = None if out is None else await _speed(config, router, played)
    console.print()
    links = learned_links(fleet, true_bytes_per_s)
    show(console, played, links)
    console.print(f"The whole demo took {time.monotonic() - began_s:.0f} s.")
    if out is not None and speed is not None:
        facts = fleet_facts(config, model, joined, true_bytes_per_s)
        write_json(out, played=played, links=links, fleet=facts, speed=speed)


def _memory(model: str) -> Memory:
    """Room for one chapter at a time in the small sites, and for several books in the others."""
    chapter_tokens, book_tokens = longest_prompts(load_tokenizer(model).chat)
    return Memory(small_blocks=chapter_tokens // BLOCK_TOKENS + 8, large_blocks=4 * book_tokens // BLOCK_TOKENS)


def _introduce(model: str) -> None:
    console.print(f"[bold]Three sites on one machine, model {model}[/bold]")
    for place in PLACES:
        console.print(f"  {place.site:<10} {place.id:<7} {place.role}")
    console.print("The router is told wrong figures for the links between them. Starting it and five workers ...")


async def _start(config: Config, directory: Path, processes: Processes, router: RouterStub) -> None:
    """Start the router, then the workers one after the other, so that each can measure its own speed undisturbed."""
    file = directory / "config.yaml"
    file.write_text(yaml.safe_dump(msgspec.to_builtins(config)))
    await processes.start("router", "serve", "--config", str(file))
    for number, worker in enumerate(config.workers, start=1):
        with console.status(f"starting {worker.id} ({number} of {len(config.workers)}): it measures its own speed"):
            await processes.start(worker.id, "worker", "--config", str(file), "--id", worker.id)
            await _joined(router, processes, number)


async def _joined(router: RouterStub, processes: Processes, wanted: int) -> None:
    loop = asyncio.get_running_loop()
    until_s = loop.time() + JOIN_TIMEOUT_S
    here = 0
    while here < wanted:
        processes.check()
        if loop.time() > until_s:
            raise ConfigError(f"only {here} of {wanted} workers joined within {JOIN_TIMEOUT_S:.0f} s; try --verbose")
        await asyncio.sleep(0.1)
        try:
            here = len((await router.GetFleet(router_pb2.GetFleetRequest(), timeout=2.0)).workers)
        except grpc.aio.AioRpcError:
            here = 0


def _scale(wan: Wan, fleet: router_pb2.GetFleetReply) -> dict[tuple[str, str], float]:
    """Set the true speed of the links by what the workers measured of themselves; the router is not told."""
    reference = next(worker for worker in fleet.workers if worker.id == REFERENCE)
    per_token_s = reference.prefill_b_s + reference.prefill_q_s * SCALE_TOKENS
    true = scale_links(wan, reference.kv_bytes_per_token, per_token_s)
    for (one, other), rate in true.items():
        if one < other:
            console.print(f"  {one} <-> {other}: {rate / 1e6:.0f} MB/s")
    console.print()
    return true


async def _play(router: RouterStub, config: Config, model: str) -> list[Played]:
    player = Player(router, load_tokenizer(model), config.models[0].name)
    played = []
    for step in STEPS:
        with console.status(f"{step.name}: {step.says}"):
            one = await player.play(step)
        assert one.decision is not None
        console.print(f"[bold]{step.name}[/bold]: {step.says}\n  [dim]{told(one.decision)}[/dim]")
        played.append(one)
    with console.status("waiting for the last answers"):
        await player.finish()
    return played


async def _check(config: Config, played: list[Played]) -> None:
    address = config.worker(CHECKER).listen
    for number, one in enumerate(played, start=1):
        with console.status(f"recomputing every answer on {CHECKER} alone: {number} of {len(played)}"):
            await recompute(address, one)


async def _speed(config: Config, router: RouterStub, played: list[Played]) -> Speed:
    text = max((one.prompt for one in played), key=len)
    with console.status(f"timing prefill and decode on {CHECKER}, for the simulator"):
        return await measure_speed(config, router, timed=CHECKER, beside=NEIGHBOUR, text=text)

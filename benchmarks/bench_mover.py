"""How quickly KV blocks move between two processes on loopback: our sockets against a gRPC stream.

    PYTHONPATH=.dev python benchmarks/bench_mover.py [--mib 512] [--repeats 5] [--output benchmarks/results/mover.json]

A source process serves blocks out of its memory, this process receives them into its own. Each row is the median of
the repeats after one warm-up; CPU seconds are this process's, the receiving side. Every run's bytes are compared.
Both sides share the machine's cores, so a machine with two can be no quicker than its slower side on one core.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from multiprocessing.connection import Connection
from pathlib import Path

import grpc
from machine import machine
from rich.console import Console
from rich.progress import track
from rich.table import Table

from homing.workers.transfer import (
    BufferMemory,
    CachedExport,
    DataServer,
    MemorySink,
    Offer,
    Order,
    SocketSettings,
    Status,
    pull,
)

MIB = 1024 * 1024
LAYERS = 32
LAYER_BLOCK_BYTES = 32 * 1024
GRPC_METHOD = "/homing.bench.Mover/Pull"
CHUNK_BYTES = MIB
FORMAT = "bench"

Case = Callable[[], Awaitable[None]]


def new_memory(mib: int) -> tuple[bytearray, BufferMemory]:
    """Memory of `mib` blocks of 1 MiB each (32 layers), as of an 8B-class model with 8-token blocks."""
    data = bytearray(mib * MIB)
    return data, BufferMemory(data, format=FORMAT, layers=LAYERS, layer_block_bytes=LAYER_BLOCK_BYTES)


def fill(data: bytearray) -> None:
    """A pattern that differs from block to block, so that a misplaced block is a wrong byte."""
    tile = os.urandom(MIB)
    for start in range(0, len(data), MIB):
        data[start : start + MIB] = tile
        data[start : start + 8] = start.to_bytes(8, "little")


async def serve(control: Connection, mib: int) -> None:
    """The source process: hand out offers and gRPC streams until told to stop."""
    data, memory = new_memory(mib)
    fill(data)
    server = DataServer(memory)
    await server.start()
    grpc_server, grpc_port = await start_grpc(data)
    control.send((grpc_port, bytes(data[:MIB])))
    loop = asyncio.get_running_loop()
    while await loop.run_in_executor(None, control.recv) == "offer":
        export = CachedExport(range(mib), Order.FRONT_TO_BACK, LAYERS, LAYER_BLOCK_BYTES)
        control.send(server.open(export, ttl_s=30.0, on_done=lambda _: None))
    await grpc_server.stop(None)
    await server.close()


async def start_grpc(data: bytearray) -> tuple["grpc.aio.Server", int]:
    """A gRPC server with one streaming method that sends `data` in 1 MiB messages of raw bytes."""

    async def send(_request: bytes, _context: object) -> AsyncIterator[bytes]:
        view = memoryview(data)
        for start in range(0, len(data), CHUNK_BYTES):
            yield bytes(view[start : start + CHUNK_BYTES])

    service, method = GRPC_METHOD[1:].split("/")
    handlers = {method: grpc.unary_stream_rpc_method_handler(send)}
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, port


async def pull_sockets(control: Connection, memory: BufferMemory, settings: SocketSettings) -> None:
    """One transfer over our data plane."""
    control.send("offer")
    offer: Offer = control.recv()
    report = await pull(offer, MemorySink(memory, range(memory.blocks)), settings=settings)
    assert report.status is Status.COMPLETE, report.reason


async def pull_grpc(port: int, data: bytearray) -> None:
    """One transfer over a gRPC stream into the same memory."""
    limits = [("grpc.max_receive_message_length", 2 * CHUNK_BYTES)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=limits) as channel:
        start = 0
        async for chunk in channel.unary_stream(GRPC_METHOD)(b""):
            data[start : start + len(chunk)] = chunk
            start += len(chunk)
    assert start == len(data), f"{start} bytes of {len(data)}"


async def measure(case: Case, data: bytearray, tile: bytes) -> tuple[float, float]:
    """Wall seconds and CPU seconds of one transfer, with the bytes checked after it."""
    data[:] = bytes(len(data))
    cpu_s, wall_s = cpu_seconds(), time.perf_counter()
    await case()
    wall_s, cpu_s = time.perf_counter() - wall_s, cpu_seconds() - cpu_s
    for start in range(0, len(data), MIB):
        assert data[start : start + 8] == start.to_bytes(8, "little"), f"block {start // MIB} is misplaced"
        assert data[start + 8 : start + MIB] == tile[8:], f"block {start // MIB} is wrong"
    return wall_s, cpu_s


def cpu_seconds() -> float:
    """User and system time of this process, all threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def run(control: Connection, mib: int, repeats: int) -> list[dict[str, object]]:
    """All cases; interleaved round by round, so that a busy moment of the machine hits all of them."""
    grpc_port, tile = control.recv()
    data, memory = new_memory(mib)
    cases: dict[str, Case] = {}
    for connections in (1, 2, 4):
        for checksum in (True, False):
            settings = SocketSettings(connections=connections, checksum=checksum)
            name = f"sockets x{connections}, {'with' if checksum else 'no'} checksum"
            cases[name] = lambda settings=settings: pull_sockets(control, memory, settings)  # type: ignore[misc]
    cases["grpc.aio stream, 1 MiB messages"] = lambda: pull_grpc(grpc_port, data)
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for _ in track(range(repeats + 1), description="rounds"):
        for name, case in cases.items():
            seen[name].append(await measure(case, data, tile))
    control.send("stop")
    return [row(name, runs[1:], mib) for name, runs in seen.items()]


def row(name: str, runs: list[tuple[float, float]], mib: int) -> dict[str, object]:
    """The medians of one case."""
    wall_s = statistics.median(wall for wall, _ in runs)
    speeds = [round(mib * MIB / wall / 1e9, 3) for wall, _ in runs]
    return {
        "case": name,
        "gb_per_s": round(mib * MIB / wall_s / 1e9, 3),
        "receiver_cpu_s": round(statistics.median(cpu for _, cpu in runs), 3),
        "all_gb_per_s": speeds,
    }


def source_main(control: Connection, mib: int) -> None:
    """Entry of the source process."""
    asyncio.run(serve(control, mib))


def main() -> None:
    """Run, print the table, write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mib", type=int, default=512, help="MiB per transfer")
    parser.add_argument("--repeats", type=int, default=5, help="measured transfers per case")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "mover.json")
    options = parser.parse_args()
    before = machine(grpcio=grpc.__version__)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    source = context.Process(target=source_main, args=(there, options.mib), daemon=True)
    source.start()
    rows = asyncio.run(run(here, options.mib, options.repeats))
    source.join(10)
    table = Table("path", "GB/s", "receiver CPU s", title=f"{options.mib} MiB, median of {options.repeats}")
    for one in rows:
        table.add_row(str(one["case"]), str(one["gb_per_s"]), str(one["receiver_cpu_s"]))
    Console().print(table)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    result = {"mib": options.mib, "repeats": options.repeats, "machine": before, "rows": rows}
    options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

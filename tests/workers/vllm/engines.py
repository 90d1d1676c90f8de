"""What the tests need beside the product: little paged caches, prompts, requests as vLLM shows them, two shelves."""

import asyncio
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch

from homing.router.core.blocks import block_keys, pack_tokens
from homing.workers.vllm.geometry import geometry_of
from homing.workers.vllm.host import HostCache, Loaded
from homing.workers.vllm.orders import LoadOrder
from homing.workers.vllm.params import Source
from homing.workers.vllm.settings import ConnectorSettings
from homing.workers.vllm.shelf import Claim

BLOCK_TOKENS = 4
LAYERS, HEADS, WIDTH = 3, 2, 8


def caches(
    blocks: int = 16, *, seed: int = 0, layers: int = LAYERS, heads: int = HEADS, dtype=torch.float32, width=WIDTH
):
    """Random paged caches in vLLM's view, one for each layer."""
    generator = torch.Generator().manual_seed(seed)
    shape = (blocks, heads, BLOCK_TOKENS, width)
    return {f"layer.{i}": torch.rand(shape, generator=generator).to(dtype) for i in range(layers)}


def prompt(seed: int, tokens: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(1000) for _ in range(tokens)]


def keys_of(tokens: list[int]):
    return block_keys(pack_tokens(tokens), BLOCK_TOKENS)


@contextmanager
def host(
    *,
    blocks: int = 16,
    weights: str = "w",
    dtype=torch.float32,
    layers: int = LAYERS,
    width: int = WIDTH,
    **options: Any,
) -> Iterator[HostCache]:
    """A store with its door open."""
    geometry = geometry_of(caches(1, dtype=dtype, layers=layers, width=width), BLOCK_TOKENS)
    settings = ConnectorSettings(store_bytes=blocks * geometry.block_bytes, **options)
    cache = HostCache(geometry, settings, weights=weights)
    cache.start()
    try:
        yield cache
    finally:
        cache.close()
        cache.shelf.check()


def keep(cache: HostCache, keys, kv, block_ids) -> None:
    """Save blocks of a paged cache as the worker's half does."""
    assert all(cache.shelf.claim(key) is Claim.MINE for key in keys)
    cache.memory.gather(cache.shelf.slots(keys), kv, block_ids)
    cache.shelf.commit(keys)


def source(address: str, first: int, end: int, *, ships: bool = False, **more: Any) -> Source:
    return Source(address=address, first=first, end=end, ships=ships, **more)


def load(cache: HostCache, keys, *sources: Source, request_id: str = "r", first: int = 0, timeout_s: float = 10.0):
    """Run a load to its end. The caller unpins."""
    cache.begin(
        LoadOrder(
            request_id=request_id,
            ticket=request_id,
            first=first,
            keys=tuple(keys),
            block_ids=tuple(range(len(keys))),
            sources=sources,
        )
    )
    return awaited(cache, timeout_s)


def awaited(cache: HostCache, timeout_s: float = 10.0) -> Loaded:
    until_s = time.monotonic() + timeout_s
    while time.monotonic() < until_s:
        loaded = cache.take_loaded()
        if loaded:
            assert len(loaded) == 1
            return loaded[0]
        time.sleep(0.002)
    raise AssertionError(f"no load ended within {timeout_s} s")


def same_blocks(cache: HostCache, pinned, kv, block_ids) -> bool:
    """Whether pinned blocks hold the bytes of these blocks of a paged cache."""
    if not pinned:
        return True
    empty = {name: torch.zeros_like(layer) for name, layer in kv.items()}
    ids = list(range(len(pinned)))
    cache.memory.scatter(cache.shelf.slots(pinned), empty, ids)
    return all(torch.equal(empty[name][ids], layer[list(block_ids)]) for name, layer in kv.items())


class BadWire:
    """A TCP proxy in its own thread's loop before a door: what comes back passes `tamper(offset, chunk)`; None resets
    the connection.
    """

    def __init__(self, address: str, tamper) -> None:
        self.target, self.tamper = address, tamper
        self.carried = 0

    async def serve(self, near, near_writer) -> None:
        host_, port = self.target.split(":")
        far, far_writer = await asyncio.open_connection(host_, int(port))

        async def back() -> None:
            while chunk := await far.read(4096):
                passed = self.tamper(self.carried, chunk)
                self.carried += len(chunk)
                if passed is None:
                    near_writer.transport.abort()
                    return
                near_writer.write(passed)
                await near_writer.drain()
            near_writer.close()

        async def forth() -> None:
            while chunk := await near.read(4096):
                far_writer.write(chunk)
            far_writer.write_eof()

        tasks = [asyncio.create_task(back()), asyncio.create_task(forth())]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        far_writer.close()


@contextmanager
def bad_wire(cache: HostCache, tamper) -> Iterator[str]:
    """An address that leads to a store over a wire that does what networks do."""
    loop = cache._loop
    wire = BadWire(cache.address, tamper)
    server = asyncio.run_coroutine_threadsafe(asyncio.start_server(wire.serve, "127.0.0.1", 0), loop).result(5)
    try:
        yield "{}:{}".format(*server.sockets[0].getsockname())
    finally:
        loop.call_soon_threadsafe(server.close)


@dataclass
class Request:
    """The part of vLLM's request that the connector reads."""

    request_id: str
    prompt_token_ids: list[int]
    kv_transfer_params: Any = None
    cache_salt: str | None = None
    lora_request: Any = None
    prompt_embeds: Any = None
    mm_features: list[Any] = field(default_factory=list)
    output: list[int] = field(default_factory=list)

    @property
    def all_token_ids(self) -> list[int]:
        return self.prompt_token_ids + self.output

    @property
    def block_hashes(self) -> list[bytes]:
        return [key.to_bytes(8, "big") for key in keys_of(self.all_token_ids)]


def step(*new: tuple[Request, list[int], int, int], cached: Any = ()) -> Any:
    """A scheduler's output: new requests as (request, block ids, computed before, scheduled now), and further steps of
    known ones as (request id, new block ids or None, computed before, scheduled now).
    """
    return SimpleNamespace(
        scheduled_new_reqs=[
            SimpleNamespace(req_id=request.request_id, block_ids=(ids,), num_computed_tokens=before)
            for request, ids, before, _ in new
        ],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=[entry[0] for entry in cached],
            new_block_ids=[None if entry[1] is None else (entry[1],) for entry in cached],
            num_computed_tokens=[entry[2] for entry in cached],
            resumed_req_ids={entry[0] for entry in cached if len(entry) > 4},
        ),
        num_scheduled_tokens={request.request_id: count for request, _, _, count in new}
        | {entry[0]: entry[3] for entry in cached},
    )

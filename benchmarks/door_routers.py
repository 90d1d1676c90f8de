"""The routers of the door's benchmark: how each is started, which version it is, and whether Homing does what its row
says.

Homing runs twice. *Precise*: prompts are made into tokens here, by the model's tokenizer, and the engines' KV events
tell which blocks each of them holds. *Text*: no tokenizer and no events, so that bytes stand for tokens and what was
sent is taken to be cached.
"""

import argparse
import http.client
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from door_client import OneConnection
from door_engine import KV_BLOCKS, MODEL, RUNNING
from door_events import BLOCK_TOKENS, Held, Source, batches
from door_prompts import Ask
from rich.console import Console

from homing.loadtest.processes import Process, router_command
from homing.router.cli.demo.ports import free_ports

NOTES: Final = Console(stderr=True)
CONTEXT_TOKENS: Final = 1_000_000
CHECKED: Final = 32
"""Prompts that are asked to see whether the index knows them."""
KNOWN_S: Final = 30.0
"""How long an index may take to be filled."""
PEERS: Final = (
    ("sglang-router", "cache_aware", ["launch"]),
    ("vllm-router", "round_robin", []),
    ("vllm-router", "cache_aware", []),
    ("smg", "cache_aware", ["launch"]),
)
_WHOSE: Final = """
import importlib.metadata as m, sys
for d in m.distributions():
    if any(e.group == "console_scripts" and e.name == sys.argv[1] for e in d.entry_points):
        print(d.name, d.version)
"""


class NotMeasurableError(Exception):
    """A router is not what its row would say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a router is started in: the engines' URLs, where their events are heard, and a folder for its files."""

    urls: Sequence[str]
    sources: Sequence[Source]
    folder: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Router:
    """One that is measured. Peers have a version and may be missing; `is_precise` ones are checked before and after."""

    name: str
    command: Callable[[Surroundings], list[str]]
    version: str = ""
    is_precise: bool = False


def routers_of(options: argparse.Namespace) -> Iterator[Router]:
    """Homing in its two modes, and the peers that are there."""
    if options.homing:
        further = options.homing_option
        precise = partial(_homing_precise, tokenizer=options.tokenizer, further=further)
        yield Router(name="homing precise", command=precise, is_precise=True)
        yield Router(name="homing text", command=partial(_homing_text, further=further))
    for name, policy, further in PEERS:
        given = getattr(options, name.replace("-", "_"))
        path = given or shutil.which(name)
        if path is None:
            NOTES.print(f"{name} is not installed: left out")
            continue
        start = [str(path), *further, "--policy", policy, "--host", "127.0.0.1", "--log-level", "error"]
        yield Router(name=f"{name} {policy}", command=partial(_on_ports, start), version=version_of(Path(path), name))


def version_of(command: Path, name: str) -> str:
    """The version of the package that brought a command. Raises NotMeasurableError when that is not the package of this
    name: sglang-router installs a command `smg` too, which is itself.
    """
    done = subprocess.run(
        [command.parent / "python", "-c", _WHOSE, command.name], capture_output=True, text=True, check=False
    )
    owners = dict(line.split() for line in done.stdout.splitlines())
    if name not in owners:
        raise NotMeasurableError(f"{command} is not {name}: it comes with {', '.join(owners) or 'no package'}")
    return owners[name]


def _homing_precise(around: Surroundings, *, tokenizer: str, further: Sequence[str]) -> list[str]:
    backends = [
        {
            "id": worker_of(number),
            "url": url,
            "engine": "vllm",
            "kv_events": {"endpoint": source.endpoint, "replay_endpoint": source.replay_endpoint},
        }
        for number, (url, source) in enumerate(zip(around.urls, around.sources, strict=True))
    ]
    model = {
        "name": MODEL,
        "tokenizer": tokenizer,
        "block_tokens": BLOCK_TOKENS,
        "context_tokens": CONTEXT_TOKENS,
    }
    return _homing(around.folder / "precise.yaml", {"models": [model], "backends": backends}, further)


def _homing_text(around: Surroundings, *, further: Sequence[str]) -> list[str]:
    backends = [
        {"id": worker_of(number), "url": url, "engine": "openai", "kv_blocks_max": KV_BLOCKS}
        for number, url in enumerate(around.urls)
    ]
    return _homing(around.folder / "text.yaml", {"backends": backends}, further)


def _homing(file: Path, config: dict[str, Any], further: Sequence[str]) -> list[str]:
    file.write_text(json.dumps(config))
    return [*router_command([]), "--config", str(file), *further]


def _on_ports(start: Sequence[str], around: Surroundings) -> list[str]:
    """Peers refuse port 0, so they get ports that are free."""
    door, metrics = free_ports(2)
    return [*start, "--port", str(door), "--prometheus-port", str(metrics), "--worker-urls", *around.urls]


def worker_of(engine: int) -> str:
    """What Homing calls an engine."""
    return f"engine-{engine}"


# -- whether Homing is precise ----------------------------------------------------------------------------------------


def check_index(process: Process, held: Sequence[Held]) -> None:
    """Homing's index holds what the engines told, all of it and nothing else, tokens are made here, and what engines
    say of their load was heard. Raises NotMeasurableError that says what was found.
    """
    engines = sorted({each.engine for each in held})
    told = {
        worker_of(engine): {
            "trust": "exact",
            "blocks": sum(len(some.blocks) for some in batches(held, engine)),
            "running": RUNNING,
        }
        for engine in engines
    }
    admin = process.http_url("/fleet", '"workers"')
    until_s = time.monotonic() + KNOWN_S
    while (found := _known(admin)) != (told, ["local"]):
        if time.monotonic() > until_s:
            raise NotMeasurableError(f"the fleet: expected {told}, tokens from local, found {found}")
        time.sleep(0.1)


def check_picks(url: str, asks: Sequence[Ask], held: Sequence[Held]) -> None:
    """Prompts go to the engine that holds them, for as many tokens as it holds. Raises NotMeasurableError."""
    connection = OneConnection(url)
    try:
        for position in range(0, len(asks), max(1, len(asks) // CHECKED)):
            headers = connection.ask(asks[position].body(0)).headers
            if not is_at_holder(headers, held[position]):
                expected = (worker_of(held[position].engine), len(held[position].tokens))
                answered = (headers.get("x-homing-worker"), headers.get("x-homing-prefix-tokens"))
                raise NotMeasurableError(f"prompt {position}: expected worker and prefix {expected}, got {answered}")
    finally:
        connection.close()


def is_at_holder(headers: Mapping[str, str], held: Held) -> bool:
    """Whether an answer comes from the engine that holds its prompt, and was known to."""
    is_there = headers.get("x-homing-worker") == worker_of(held.engine)
    return is_there and headers.get("x-homing-prefix-tokens") == str(len(held.tokens))


def _known(admin: str) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """What the index holds of each worker, and where tokens come from."""
    connection = http.client.HTTPConnection(urlsplit(admin).netloc, timeout=KNOWN_S)
    try:
        connection.request("GET", "/fleet")
        fleet = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    workers = {
        worker["id"]: {
            "trust": worker["trust"],
            "blocks": worker["cached_blocks"]["device"],
            "running": worker["running_requests"],
        }
        for worker in fleet["workers"]
    }
    return workers, [model["tokens_from"] for model in fleet["models"]]

"""A real `homing serve` before real vLLM engines, and what tests need to ask both.

An engine's KV events go one of two ways: the engine binds its socket, or it connects to the router's. On the second way
all engines share the router's address and are told apart by topic.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai

from homing.router.cli.demo.ports import free_ports

from .environment import model_directory
from .vllm_engine import MODEL, EngineOptions, VllmEngine

CONTEXT_TOKENS = 2048
LOST_AFTER_S = 5.0
QUIET_S = 0.15


@dataclass(frozen=True, kw_only=True)
class Publishing:
    """Where an engine publishes: `endpoint` as it is told to the engine."""

    topic: str
    endpoint: str
    replay_port: int
    binds: bool

    @property
    def arguments(self) -> tuple[str, ...]:
        """Of `vllm serve`."""
        told = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "topic": self.topic,
            "endpoint": self.endpoint,
            "replay_endpoint": f"tcp://*:{self.replay_port}",
        }
        return ("--kv-events-config", json.dumps(told), "--enable-prompt-tokens-details")

    def section(self, port: int, *, replays: bool = True) -> dict[str, Any]:
        """The file's `kv_events` for a router that hears it at a port: a relay's, or the one it listens on itself."""
        told: dict[str, Any] = {"endpoint": f"tcp://127.0.0.1:{port}", "topic": self.topic, "bind": not self.binds}
        return told | ({"replay_endpoint": f"tcp://127.0.0.1:{self.replay_port}"} if replays else {})


def binding(topic: str) -> tuple[Publishing, int]:
    """An engine that binds, and the port at which it is heard."""
    port, replay = free_ports(2)
    return Publishing(topic=topic, endpoint=f"tcp://*:{port}", replay_port=replay, binds=True), port


def connecting(topic: str, port: int) -> Publishing:
    """An engine that connects to a port of this machine."""
    (replay,) = free_ports(1)
    return Publishing(topic=topic, endpoint=f"tcp://127.0.0.1:{port}", replay_port=replay, binds=False)


class PublishingEngine(VllmEngine):
    """A vLLM that tells what it caches, and comes back where it was."""

    def __init__(self, folder: Path, name: str, publishing: Publishing, *, device_blocks: int) -> None:
        more = (*publishing.arguments, "--num-gpu-blocks-override", str(device_blocks))
        self._port = 0
        super().__init__(folder, name, EngineOptions(more=more, context_tokens=CONTEXT_TOKENS))
        self.publishing = publishing

    @property
    def port(self) -> int:
        return self._port

    @port.setter
    def port(self, port: int) -> None:
        self._port = self._port or port

    @property
    def backend(self) -> dict[str, Any]:
        """Its entry in the router's file."""
        return {"url": self.url, "id": self.name}

    def signal(self, number: signal.Signals) -> None:
        """To all of its processes."""
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def cached_tokens(self, prompt: str) -> int:
        """How many of a prompt's tokens it finds cached, by its own word; afterwards it has all."""
        return int(self.complete(prompt, tokens=1)["usage"]["prompt_tokens_details"]["cached_tokens"])


@contextmanager
def together(*engines: PublishingEngine) -> Iterator[tuple[PublishingEngine, ...]]:
    """Start all at once; end them all."""
    try:
        for engine in engines:
            engine.start(wait=False)
        for engine in engines:
            engine.wait()
        yield engines
    finally:
        for engine in engines:
            engine.kill()


class Router:
    """A `homing serve` process with a file of its own. Use it as a context manager."""

    def __init__(self, folder: Path, backends: Sequence[Mapping[str, Any]], **router: Any) -> None:
        door, http, listen = (f"127.0.0.1:{port}" for port in free_ports(3))
        addresses = {"door": door, "http": http, "listen": listen, "lost_after_s": LOST_AFTER_S}
        self.url, self.operator = f"http://{door}", f"http://{http}"
        self._count = len(backends)
        name = f"router-{door.rpartition(':')[2]}"
        self.log, self._file = folder / f"{name}.log", folder / f"{name}.yaml"
        model = {"name": MODEL, "tokenizer": str(model_directory())}
        told = {"router": addresses | router, "models": [model], "backends": list(backends)}
        self._file.write_text(json.dumps(told, indent=1))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Router":
        command = [str(Path(sys.executable).parent / "homing"), "serve", "-c", str(self._file)]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            until(self._is_complete, f"{self._count} engines have joined", 60, self.tail)
        except BaseException:
            self._end()
            raise
        return self

    def _is_complete(self) -> bool:
        assert self._process is not None and self._process.poll() is None, f"the router has ended: {self.tail()}"
        return len(self._workers()) == self._count

    def __exit__(self, kind: object, *_: object) -> None:
        code = self._end()
        assert kind is not None or code == 0, f"the router ended with {code}; its log ends:\n{self.tail()}"

    def _end(self) -> int:
        process, self._process = self._process, None
        assert process is not None
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait(10)

    @property
    def client(self) -> openai.OpenAI:
        """The official client of its door, which tries nothing twice."""
        return client_of(self.url)

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    def fleet(self) -> dict[str, Any]:
        return get(f"{self.operator}/fleet")

    def worker(self, name: str) -> dict[str, Any] | None:
        """What the router knows of a worker; None if it has forgotten it."""
        return self._workers().get(name)

    def _workers(self) -> dict[str, dict[str, Any]]:
        with contextlib.suppress(OSError):
            return {worker["id"]: worker for worker in self.fleet()["workers"]}
        return {}

    def trust(self, name: str) -> tuple[str, str | None]:
        """How far a worker's cache is known, and why no further."""
        told = get(f"{self.operator}/workers/{name}")["workers"]
        return (told[0]["trust"], told[0]["why"]) if told else ("gone", None)

    def becomes(self, name: str, trust: str, timeout_s: float = 30.0) -> float:
        """Wait until a worker's cache is known that far; the seconds that it took."""
        return until(lambda: self.trust(name)[0] == trust, f"{name} is {trust}", timeout_s, lambda: self.trust(name))

    def metric(self, name: str, worker: str) -> float:
        with urllib.request.urlopen(f"{self.operator}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(f'{name}{{worker="{worker}"'))

    def foretold_tokens(self, prompt: str, worker: str) -> int:
        """How many tokens of a prompt it takes to be cached at a worker."""
        told = post(f"{self.url}/v1/route", {"model": MODEL, "prompt": prompt, "max_tokens": 1})
        plans = [told["plan"], *told["runners_up"]]
        return next(plan["estimate"]["hit_tokens"] for plan in plans if plan["decode"] == worker)

    def settle(self, *workers: str) -> None:
        """Return when no KV event has come for a moment."""
        seen: list[float] = []
        while seen != (now := [self.metric("homing_kv_event_batches_total", worker) for worker in workers]):
            seen = now
            time.sleep(QUIET_S)

    def compare(self, engine: PublishingEngine, prompts: Sequence[str]) -> list[tuple[int, int]]:
        """Tokens foretold and tokens found of each prompt, asked one after the other."""
        pairs = []
        for prompt in prompts:
            self.settle(engine.name)
            foretold = self.foretold_tokens(prompt, engine.name)
            pairs.append((foretold, engine.cached_tokens(prompt)))
        return pairs


def client_of(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300)


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.loads(answer.read())


def post(url: str, body: Mapping[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def until(
    holds: Callable[[], bool], what: str, timeout_s: float = 30.0, detail: Callable[[], object] = lambda: ""
) -> float:
    """Wait until something is true, and say what never was; the seconds that it took."""
    began_s = time.monotonic()
    while not holds():
        assert time.monotonic() - began_s < timeout_s, f"not within {timeout_s} s: {what}: {detail()}"
        time.sleep(0.05)
    return time.monotonic() - began_s

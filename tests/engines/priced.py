"""Engines at two sites with a network between them, and a Homing that is told of both: what moves is its own choice.

Site `a` holds or computes, site `b` answers; between them is an emulated link, which the router's file describes as it
is. Clients and the router are at a third site next to both, so that only KV crosses the link.

A test wants a plan to be the cheapest, and makes it so by what really makes it so: a worker that is busy with a long
prompt, a cache that holds the prefix, a role. It says so to nobody: `until_priced` asks what the router would do now.
"""

import dataclasses
import itertools
import json
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from homing.router.core.blocks import reusable_blocks

from .environment import BLOCK_TOKENS
from .front import PublishingEngine, Router, binding, post, until
from .prompts import english
from .tunnel import Tunnel
from .vllm_engine import MODEL, VllmEngine

CONTEXT_TOKENS = 4096
DEVICE_BLOCKS = 640
BYTES_PER_TOKEN, LAYERS = 46_080, 30
"""SmolLM2-135M in float32: 2 * 30 layers * 3 KV heads * 64 * 4 bytes."""
LINKS = {
    "100 Mbit/s 5 ms": (100e6, 0.005),
    "1 Gbit/s 10 ms": (1e9, 0.010),
    "2.5 Gbit/s 20 ms": (2.5e9, 0.020),
    "10 Gbit/s 40 ms": (10e9, 0.040),
}
"""Bits per second and one-way delay."""
NEAR: dict[str, Any] = {"bytes_per_s": 1.25e9, "rtt_s": 0.0002}
CALIBRATED = 2
"""Measured prompts of an engine that has just joined."""
BUSY_WORDS = 1_500
BUSY_S = 1.0
BUSY_WAIT_S = 1.5
BUSY_ATTEMPTS = 4
_serial = itertools.count(1)


class MovingEngine(PublishingEngine):
    """A vLLM that publishes and moves KV."""

    def __init__(self, folder: Path, name: str, kv: Mapping[str, Any], **environment: str) -> None:
        super().__init__(folder, name, binding(f"kv-{name}")[0], device_blocks=DEVICE_BLOCKS)
        self.options = dataclasses.replace(self.options, kv=kv, context_tokens=CONTEXT_TOKENS, environment=environment)

    def data_address(self) -> str:
        """Where its connector of Homing's listens."""
        params: dict[str, Any] = {"homing": {"sources": []}}
        answer = self.complete("hello", tokens=1, kv_transfer_params=params)
        return str(answer["kv_transfer_params"]["homing"]["address"])

    def locally(self, prompt: str, tokens: int) -> str:
        """What it says without anybody's KV, its own of earlier included."""
        return text_of(self.complete(prompt, tokens=tokens, cache_salt=f"alone-{next(_serial)}"))


class FarEngine(MovingEngine):
    """The same at the far end of a tunnel; its HTTP passes the line too."""

    def __init__(self, folder: Path, name: str, kv: Mapping[str, Any], tunnel: Tunnel, **environment: str) -> None:
        super().__init__(folder, name, kv, **environment)
        self._tunnel = tunnel

    @property
    def url(self) -> str:
        return f"http://{self._tunnel.there}:{self.port}"

    def _command(self) -> list[str]:
        command = ["0.0.0.0" if word == "127.0.0.1" else word for word in super()._command()]
        return ["ip", "netns", "exec", self._tunnel.namespace, *command]


@dataclass(frozen=True, kw_only=True)
class Place:
    """An engine in the router's file."""

    engine: VllmEngine
    site: str
    role: str
    connector: Mapping[str, Any]

    @property
    def backend(self) -> dict[str, Any]:
        """Its entry."""
        return {
            "url": self.engine.url,
            "id": self.engine.name,
            "site": self.site,
            "role": self.role,
            "connector": dict(self.connector),
        }


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a client got, and which way it went."""

    text: str
    plan: str
    worker: str
    ttft_s: float
    own: Mapping[str, Any] = field(default_factory=dict)
    """What the connector told in an answer that came whole."""


class PricedRouter(Router):
    """A `homing serve` that knows two sites and the link between them."""

    def __init__(
        self, folder: Path, places: Sequence[Place], link: tuple[float, float], *, site: str = "door", **router: Any
    ) -> None:
        super().__init__(folder, [place.backend for place in places], site=site, **router)
        bits_per_s, delay_s = link
        between = {"source": "a", "target": "b", "bytes_per_s": bits_per_s / 8, "rtt_s": 2 * delay_s}
        told = json.loads(self._file.read_text())
        told["sites"] = [{"name": name} for name in ("door", "a", "b")]
        told["links"] = [between, *({"source": "door", "target": site, **NEAR} for site in ("a", "b"))]
        told["models"][0] |= {"bytes_per_token": BYTES_PER_TOKEN, "layers": LAYERS}
        self._file.write_text(json.dumps(told, indent=1))
        self._names = [place.engine.name for place in places]

    def __enter__(self) -> "PricedRouter":
        super().__enter__()
        for name in self._names:
            self.calibrated(name)
        return self

    def calibrated(self, name: str) -> None:
        """Wait until an engine's speed was measured and its cache is known."""

        def is_known() -> bool:
            worker = self.worker(name)
            return worker is not None and worker["prefill_s"]["samples"] >= CALIBRATED and worker["trust"] == "exact"

        until(is_known, f"{name} is calibrated and its cache known", 120, lambda: (self.worker(name), self.tail()))

    def priced(self, prompt: str | list[int], tokens: int = 1) -> list[dict[str, Any]]:
        """The plan that would be chosen now, and the best of the other kinds, each with what it would cost."""
        told = post(f"{self.url}/v1/route", {"model": MODEL, "prompt": prompt, "max_tokens": tokens})
        return [told["plan"], *told["runners_up"]]

    def until_priced(
        self, kind: str, prompt: str | list[int], tokens: int, timeout_s: float = 5.0
    ) -> list[dict[str, Any]]:
        """Wait until a kind of plan is the cheapest, and return what all would cost."""
        plans: list[dict[str, Any]] = []

        def is_cheapest() -> bool:
            plans[:] = self.priced(prompt, tokens)
            return bool(plans[0]["kind"] == kind)

        until(is_cheapest, f"{kind} is the cheapest plan", timeout_s, lambda: json.dumps(plans, indent=1))
        return plans

    def ask(self, prompt: str | list[int], tokens: int, **more: Any) -> Reply:
        """A greedy completion through the door, whole."""
        body = greedy(prompt, tokens) | more
        began_s = time.perf_counter()
        with _posted(f"{self.url}/v1/completions", body) as answer:
            told = json.loads(answer.read())
            headers = answer.headers
        return Reply(
            text=text_of(told),
            plan=headers["x-homing-plan"],
            worker=headers["x-homing-worker"],
            ttft_s=time.perf_counter() - began_s,
            own=(told.get("kv_transfer_params") or {}).get("homing") or {},
        )

    def stream(self, prompt: str | list[int], tokens: int, **more: Any) -> Reply:
        """The same as a stream."""
        body = greedy(prompt, tokens) | {"stream": True} | more
        began_s = time.perf_counter()
        text, first_s = "", 0.0
        with _posted(f"{self.url}/v1/completions", body) as answer:
            headers = answer.headers
            for line in answer:
                data = line.decode().strip().removeprefix("data: ")
                if not data or data == "[DONE]":
                    continue
                first_s = first_s or time.perf_counter() - began_s
                event = json.loads(data)
                assert "error" not in event, event
                text += "".join(choice["text"] for choice in event["choices"])
        return Reply(text=text, plan=headers["x-homing-plan"], worker=headers["x-homing-worker"], ttft_s=first_s)

    def link(self) -> dict[str, Any]:
        """What is believed of the way from `a` to `b`."""
        return next(link for link in self.fleet()["links"] if (link["source"], link["target"]) == ("a", "b"))

    @contextmanager
    def busy(self, worker: str, prefix: str) -> Iterator[None]:
        """While a worker computes a long prompt, which begins with a prefix that it holds.

        One that the router sends elsewhere, because it takes another worker to be so much quicker, is followed by one
        more, for which that worker is busy.
        """
        with ThreadPoolExecutor(BUSY_ATTEMPTS) as pool:
            asking = []
            for _ in range(BUSY_ATTEMPTS):
                prompt = f"{prefix} {english(10**6 + next(_serial), BUSY_WORDS)}"
                asking.append(pool.submit(self.stream, prompt, 1))
                if self._gets_busy(worker):
                    break
            else:
                raise AssertionError(f"{worker} gets no long prompt: {self.fleet()}")
            yield
        for answer in asking:
            answer.result()

    def _gets_busy(self, worker: str) -> bool:
        until_s = time.monotonic() + BUSY_WAIT_S
        while time.monotonic() < until_s:
            if (self.worker(worker) or {}).get("queue_s", 0) > BUSY_S:
                return True
            time.sleep(0.05)
        return False


def greedy(prompt: str | list[int], tokens: int) -> dict[str, Any]:
    return {"model": MODEL, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}


def text_of(answer: Mapping[str, Any]) -> str:
    return str(answer["choices"][0]["text"])


@contextmanager
def _posted(url: str, body: Mapping[str, Any]) -> Iterator[Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        yield answer


def blocks_in(engine: VllmEngine, prompt: str) -> int:
    """How many blocks of a prompt can be reused."""
    tokens = engine.post("/tokenize", {"model": MODEL, "prompt": prompt})["count"]
    return reusable_blocks(tokens, BLOCK_TOKENS)

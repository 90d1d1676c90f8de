"""A real vLLM on this machine: started, waited for, asked, killed.

One thread for each engine, spinning off, float32, eager: what makes several of them on two cores answer at all, and
equally. An engine cannot be given port 0: a port below the range that the kernel gives out is chosen and tried.
"""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .environment import BLOCK_TOKENS, ROOT, model_directory, venv

MODEL = "smollm2"
PORTS = range(20_000, 32_000)
START_S = 300.0
CONNECTOR = {
    "kv_connector": "HomingConnector",
    "kv_connector_module_path": "homing.workers.vllm.connector",
    "kv_role": "kv_both",
}


class EngineFailedError(AssertionError):
    """The engine did not start or did not answer; the message ends with the tail of its log."""


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How an engine is started. `kv` is the whole `--kv-transfer-config`; `more` are further arguments."""

    kv: Mapping[str, Any] | None = None
    more: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    kv_cache_gib: int = 1
    context_tokens: int = 4096
    dtype: str = "float32"
    threads: int = 1


def homing_kv(**extra: Any) -> dict[str, Any]:
    """The `--kv-transfer-config` of Homing's connector with these options."""
    return {**CONNECTOR, "kv_connector_extra_config": extra}


class VllmEngine:
    """A `vllm serve` process of its own group. Use it as a context manager."""

    def __init__(self, folder: Path, name: str, options: EngineOptions | None = None) -> None:
        self.options = options or EngineOptions()
        self.name = name
        self.log = folder / f"{name}.log"
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "VllmEngine":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, *, wait: bool = True) -> None:
        """Begin to serve; with `wait`, return when it is healthy. Raises EngineFailedError."""
        self.port = free_port()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command(), stdout=log, stderr=log, env=self._environment(), start_new_session=True
            )
        if wait:
            self.wait()

    def wait(self, timeout_s: float = START_S) -> None:
        """Return when the engine is healthy; kills it and raises otherwise."""
        assert self._process is not None, "start() it first"
        until_s = time.monotonic() + timeout_s
        while time.monotonic() < until_s and self._process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/health", timeout=5):
                return
            time.sleep(0.5)
        ended = self._process.poll()
        self.kill()
        why = f"did not get healthy within {timeout_s} s" if ended is None else f"ended with {ended}"
        raise EngineFailedError(f"engine {self.name} {why}; its log ends:\n{self.tail()}")

    def kill(self) -> None:
        """End the engine and all of its processes at once. Idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)

    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def post(self, path: str, body: Mapping[str, Any], timeout_s: float = 300.0) -> dict[str, Any]:
        """Send JSON and return the JSON that comes. Raises EngineFailedError."""
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            raise EngineFailedError(f"{self.name}: {path} answered {error.code}: {error.read()!r}") from error
        except OSError as error:
            raise EngineFailedError(f"{self.name}: {path}: {error}; its log ends:\n{self.tail()}") from error

    def complete(self, prompt: str | list[int], *, tokens: int = 8, **more: Any) -> dict[str, Any]:
        """A greedy completion: the whole answer. `prompt` is a text or token ids."""
        return self.post("/v1/completions", _greedy(prompt, tokens, more))

    def stream(self, prompt: str | list[int], *, tokens: int = 8, **more: Any) -> Iterator[dict[str, Any]]:
        """The chunks of a streamed completion."""
        body = {**_greedy(prompt, tokens, more), "stream": True}
        request = urllib.request.Request(
            f"{self.url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            for line in answer:
                text = line.decode().strip()
                if text.startswith("data: ") and text != "data: [DONE]":
                    yield json.loads(text.removeprefix("data: "))

    def forget(self) -> None:
        """Empty the engine's own prefix cache (not the connector's store)."""
        self.post("/reset_prefix_cache", {})

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))

    def tail(self, lines: int = 40) -> str:
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def _command(self) -> list[str]:
        folder = venv()
        assert folder is not None, "HOMING_ENGINES_VENV names no environment: run make test-engines"
        options = self.options
        command = [str(folder / "bin" / "vllm"), "serve", str(model_directory())]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--served-model-name", MODEL]
        command += ["--enforce-eager", "--dtype", options.dtype, "--block-size", str(BLOCK_TOKENS)]
        command += ["--max-model-len", str(options.context_tokens), "--disable-uvicorn-access-log"]
        if options.kv is not None:
            command += ["--kv-transfer-config", json.dumps(options.kv)]
        return [*command, *options.more]

    def _environment(self) -> dict[str, str]:
        folder, options = venv(), self.options
        assert folder is not None
        own = {
            "PYTHONPATH": str(ROOT / ".dev"),
            "HF_HUB_OFFLINE": "1",
            "VLLM_CPU_KVCACHE_SPACE": str(options.kv_cache_gib),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(options.threads),
            "KMP_BLOCKTIME": "1",
            "LD_PRELOAD": str(folder / "lib" / "libiomp5.so"),
            "VLLM_HOST_IP": "127.0.0.1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_SERVER_DEV_MODE": "1",
        }
        return {**os.environ, **own, **options.environment}


def _greedy(prompt: str | list[int], tokens: int, more: Mapping[str, Any]) -> dict[str, Any]:
    return {"model": MODEL, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, **more}


def free_port() -> int:
    """A port below the kernel's own range that nobody listens on now."""
    for port in random.SystemRandom().sample(PORTS, 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise EngineFailedError(f"no free port among 100 of {PORTS}")

"""Processes that a load needs on this machine: started, found by the port that they were given, measured, stopped.

Rule 1: whatever can take a free port from the system is told port 0, and asked of the system where it listens, so that
no two runs get into each other's way.
Rule 2: what was started is stopped, with its children, whatever happens.
"""

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

START_S = 60.0
STOP_S = 10.0
PROBE_S = 2.0
LOG_TAIL_CHARS = 2000
READY_PATH = "/v1/models"
READY_WORD = '"data"'
"""What stands in the answer: a server of metrics answers every path with 200."""


class StartError(Exception):
    """A process ended, or did not come up in time: its last words."""


class Process:
    """One process and its children; its output goes into a file."""

    def __init__(self, command: Sequence[str], *, environment: Mapping[str, str] | None = None) -> None:
        self.command = tuple(command)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(  # noqa: S603 - our own command
            command,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )

    def http_url(self, path: str = READY_PATH, word: str = READY_WORD, *, timeout_s: float = START_S) -> str:
        """Where it answers `path` with 200 and `word`. Raises StartError when it does not within `timeout_s`."""
        for _ in self._tries(timeout_s, f"does not answer {path}"):
            for port in self.ports():
                if answers(port, path, word):
                    return f"http://127.0.0.1:{port}"
        raise AssertionError

    def other_port(self, http_path: str, *, timeout_s: float = START_S) -> int:
        """The one port on which it listens beside that of its HTTP server, which answers `http_path`."""
        for _ in self._tries(timeout_s, "does not listen on a second port"):
            ports = self.ports()
            others = [port for port in ports if not answers(port, http_path)]
            if len(ports) == 2 and len(others) == 1:
                return others[0]
        raise AssertionError

    def ports(self) -> list[int]:
        """TCP ports on which it or a child listens."""
        found = set()
        for process in self.family():
            with contextlib.suppress(psutil.Error):
                connections = process.net_connections(kind="tcp")
                found |= {c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN}
        return sorted(found)

    def cpu_s(self) -> float:
        """CPU seconds that it and its children have taken."""
        total_s = 0.0
        for process in self.family():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                total_s += times.user + times.system
        return total_s

    def rss_bytes(self) -> int:
        """Memory that it and its children occupy."""
        total_bytes = 0
        for process in self.family():
            with contextlib.suppress(psutil.Error):
                total_bytes += process.memory_info().rss
        return total_bytes

    def family(self) -> list[psutil.Process]:
        """It and its children; nothing when it has ended."""
        try:
            process = psutil.Process(self._process.pid)
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def output(self) -> str:
        """The end of what it said."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")[-LOG_TAIL_CHARS:]

    def stop(self) -> None:
        """End it and its children, by force when asking does not help. Idempotent."""
        self._signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()
        self._log.close()

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def _tries(self, timeout_s: float, problem: str) -> Iterator[None]:
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s:
            if self._process.poll() is not None:
                raise StartError(f"{self.command[:4]} ended with {self._process.returncode}: {self.output()}")
            yield
            time.sleep(0.1)
        raise StartError(f"{self.command[:4]} {problem} within {timeout_s} s: {self.output()}")


@contextlib.contextmanager
def started(command: Sequence[str], *, environment: Mapping[str, str] | None = None) -> Iterator[Process]:
    """A process that is stopped at the end."""
    process = Process(command, environment=environment)
    try:
        yield process
    finally:
        process.stop()


def echo_command(*options: str) -> list[str]:
    """An echo worker on a free port."""
    return [sys.executable, "-m", "homing.workers.echo", *options]


def router_command(backends: Sequence[str]) -> list[str]:
    """A router with an OpenAI door before these engines, all on free ports."""
    homing = str(Path(sys.executable).parent / "homing")
    doors = ["--door", "127.0.0.1:0", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    return [homing, "serve", *doors, *(option for url in backends for option in ("--backend", url))]


def answers(port: int, path: str, word: str = "") -> bool:
    """Whether an HTTP server on loopback answers a GET with 200, and with this word in it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PROBE_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status == 200 and word.encode() in response.read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()

"""The demo's process tree: one router, several workers, each a real process; none outlives the demo."""

import asyncio
import contextlib
import signal
import sys
from pathlib import Path

from homing.router.core.errors import ConfigError

STOP_TIMEOUT_S = 10.0


class Processes:
    """Child processes by name. Use it as an async context manager: leaving it stops them all."""

    def __init__(self, directory: Path, *, verbose: bool) -> None:
        self._directory = directory
        self._verbose = verbose
        self._running: dict[str, asyncio.subprocess.Process] = {}

    async def __aenter__(self) -> "Processes":
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in self._running.values():
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM)
        await asyncio.gather(*(self._gone(process) for process in self._running.values()))

    async def start(self, name: str, *arguments: str) -> None:
        """Run `homing ARGUMENTS` as a child."""
        log = None if self._verbose else (self._directory / f"{name}.log").open("wb")
        try:
            self._running[name] = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "homing.router.cli.main", *arguments, stdout=log, stderr=log
            )
        finally:
            if log is not None:
                log.close()

    def check(self) -> None:
        """Raise ConfigError, with the end of its log, when a child has died."""
        for name, process in self._running.items():
            if process.returncode is not None:
                raise ConfigError(f"{name} ended with code {process.returncode}:\n{self._tail(name)}")

    def _tail(self, name: str) -> str:
        log = self._directory / f"{name}.log"
        return log.read_text(errors="replace")[-2000:] if log.exists() else "(its log is above)"

    async def _gone(self, process: asyncio.subprocess.Process) -> None:
        try:
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

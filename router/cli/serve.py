"""`homing serve`: a router until it is told to stop."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec

from homing.router.core.errors import ConfigError
from homing.router.garbage import rarely_collected
from homing.router.service.config import Config, load_config, parse_config
from homing.router.service.process import RouterProcess

from .codecs import Codecs
from .logs import configure_logs

log = logging.getLogger(__name__)


DOOR = "127.0.0.1:8080"
"""Where the door opens when engines were named and no address for it."""
LOOK_AT_FILE_S = 2.0


def run_router(path: Path | None, given: dict[str, str | None], backends: list[str]) -> None:
    """Run until SIGTERM or SIGINT, then drain. `given` are flags that win over the file, `backends` URLs of engines
    beside those of the file.
    """

    def read() -> Config:
        return _with_flags(Config() if path is None else load_config(path), given, backends)

    config = read()
    configure_logs(config.router.log)
    with rarely_collected(), _runner() as runner:
        runner.run(_serve(config, path, read))


def _runner() -> asyncio.Runner:
    """On uvloop's event loop where it is installed, which is quicker."""
    try:
        import uvloop
    except ImportError:
        return asyncio.Runner()
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)


def _with_flags(config: Config, given: dict[str, str | None], backends: list[str]) -> Config:
    changes = {key: value for key, value in given.items() if value is not None}
    if backends:
        told = msgspec.to_builtins(config)["backends"]
        config = with_section(config, "backends", [*told, *({"url": url} for url in backends)])
    if config.backends and config.router.door is None:
        changes = {"door": DOOR, **changes}
    if changes:
        section = msgspec.to_builtins(config.router) | changes
        config = with_section(config, "router", section)
    return config


def with_section(config: Config, name: str, section: object) -> Config:
    """The config with one section replaced, checked as a file is."""
    data = msgspec.to_builtins(config) | {name: section}
    return parse_config(msgspec.json.encode(data).decode(), where="command line")


def listen_for_stop() -> asyncio.Event:
    """An event that is set when the process is told to stop; a second signal ends it at once."""
    loop = asyncio.get_running_loop()
    told = asyncio.Event()

    def stop() -> None:
        told.set()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    return told


async def _serve(config: Config, path: Path | None, read: Callable[[], Config]) -> None:
    told = listen_for_stop()
    codecs = Codecs(config)
    process = RouterProcess(config, codecs, codecs.reader)
    await process.start()
    watching = None if path is None else asyncio.create_task(_follow(path, read, process))
    try:
        await told.wait()
        log.info("draining for at most %s s", config.router.drain_s)
        await process.drain(config.router.drain_s)
    finally:
        if watching is not None:
            watching.cancel()
        await process.close()


async def _follow(path: Path, read: Callable[[], Config], process: RouterProcess) -> None:
    """Take the file's engines and links anew when it changes, or at SIGHUP; a file with an error changes nothing."""
    again = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, again.set)
    seen = _stamp(path)
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_AT_FILE_S):
                await again.wait()
        if not again.is_set() and _stamp(path) == seen:
            continue
        again.clear()
        seen = _stamp(path)
        try:
            process.apply(read())
        except ConfigError as error:
            log.warning("the file was read again and not taken: %s", error)


def _stamp(path: Path) -> tuple[int, int]:
    """Differs when the file was written since."""
    try:
        told = path.stat()
    except OSError:
        return 0, 0
    return told.st_mtime_ns, told.st_size

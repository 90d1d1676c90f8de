"""`homing serve`: a router until it is told to stop."""

import asyncio
import logging
import signal
from pathlib import Path

import msgspec

from homing.router.service.config import Config, load_config, parse_config
from homing.router.service.process import RouterProcess

from .codecs import Codecs
from .logs import configure_logs

log = logging.getLogger(__name__)


def run_router(path: Path | None, given: dict[str, str | None]) -> None:
    """Run until SIGTERM or SIGINT, then drain. `given` are flags that win over the file."""
    config = Config() if path is None else load_config(path)
    changes = {key: value for key, value in given.items() if value is not None}
    if changes:
        section = msgspec.to_builtins(config.router) | changes
        config = with_section(config, "router", section)
    configure_logs(config.router.log)
    asyncio.run(_serve(config))


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


async def _serve(config: Config) -> None:
    told = listen_for_stop()
    process = RouterProcess(config, Codecs(config))
    await process.start()
    try:
        await told.wait()
        log.info("draining for at most %s s", config.router.drain_s)
        await process.drain(config.router.drain_s)
    finally:
        await process.close()

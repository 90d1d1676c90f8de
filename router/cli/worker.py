"""`homing worker`: a worker until it is told to stop."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import msgspec

from homing.router.core.errors import ConfigError
from homing.router.service.config import Config, load_config
from homing.router.service.sections import WorkerSection

from .logs import configure_logs
from .serve import listen_for_stop, with_section

log = logging.getLogger(__name__)

DRAIN_S = 30.0


def run_worker(path: Path | None, worker_id: str, given: dict[str, Any], log_style: str) -> None:
    """Run until SIGTERM or SIGINT, then drain. `given` are flags that win over the file's entry."""
    config = Config() if path is None else load_config(path)
    section = worker_section(config, worker_id, given, from_file=path is not None)
    configure_logs(log_style)
    try:
        asyncio.run(_work(section))
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"worker {worker_id}: {error}") from error


def worker_section(config: Config, worker_id: str, given: dict[str, Any], *, from_file: bool) -> WorkerSection:
    """The worker's entry with the flags on top; without a file, the flags and defaults alone."""
    changes = {key: value for key, value in given.items() if value is not None}
    if from_file:
        entry = msgspec.to_builtins(config.worker(worker_id))
    else:
        source = changes.get("source", "smollm2")
        entry = {"id": worker_id, "site": "home", "source": source, "model": source, "routers": ["127.0.0.1:7070"]}
    return with_section(config, "workers", [entry | changes]).workers[0]


async def _work(section: WorkerSection) -> None:
    try:
        from homing.workers.process import WorkerProcess, WorkerSettings
    except ImportError as error:
        raise ConfigError(f"a worker needs the extra `worker` ({error}): pip install 'homing[worker]'") from error

    host, _, port = section.listen.rpartition(":")
    prior = section.prior
    settings = WorkerSettings(
        id=section.id,
        site=section.site,
        model=section.model,
        source=section.source,
        role=section.role,
        dtype=section.dtype,
        device=section.device,
        threads=section.threads,
        block_tokens=section.block_tokens,
        kv_blocks_max=section.kv_blocks_max,
        requests_max=section.requests_max,
        step_tokens_max=section.step_tokens_max,
        host=host.strip("[]"),
        port=int(port),
        advertise_host=section.advertise_host,
        data_port=section.data_port,
        routers=section.routers,
        address_from=dict(section.address_from),
        data_address_from=dict(section.data_address_from),
        connections=section.connections,
        congestion=section.congestion,
        inline=section.inline,
        calibrate=section.calibrate,
        prior=None if prior is None else (prior.a_s, prior.b_s, prior.q_s),
    )
    told = listen_for_stop()
    process = WorkerProcess(settings)
    await process.start()
    try:
        await told.wait()
        log.info("draining for at most %s s", DRAIN_S)
        await process.drain(DRAIN_S)
    finally:
        await process.close()

"""Where many runs are carried out: the cores of this machine, or a Ray or Dask cluster that somebody names.

All that is asked of an executor is `submit`, which gives a future of the standard library. On a cluster the files that
a scenario names must lie at the same paths on every machine.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Protocol, TypeVar

from homing.router.core.errors import ConfigError

R = TypeVar("R")


class Executor(Protocol):
    """Carries calls out somewhere; arguments and results are pickled."""

    def submit(self, function: Callable[..., R], /, *args: Any) -> "Future[R]":
        """Begin a call; the future has its result."""


@contextmanager
def executor(on: str = "", processes: int | None = None) -> Iterator[Executor]:
    """An executor by its address: `ray://host:port`, `dask://host:port`, or this machine's processes when it is empty.

    ConfigError for an address that is none, and for one that needs a package that is not installed. Whatever still runs
    when the block is left by an error, an interrupt among them, is ended on this machine and called off on a cluster.
    """
    if not on:
        with _local(processes) as here:
            yield here
    elif on.startswith("ray://"):
        with _ray(on) as far:
            yield far
    elif on.startswith("dask://"):
        with _dask(on) as far:
            yield far
    else:
        raise ConfigError(f"--on {on}: expected ray://host:port or dask://host:port, or nothing for this machine")


@contextmanager
def _local(processes: int | None) -> Iterator[Executor]:
    before = set(multiprocessing.active_children())
    # Spawned, not forked: the parent may have threads, one that draws a progress bar among them.
    pool = ProcessPoolExecutor(
        processes or len(os.sched_getaffinity(0)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_leave_interrupts_to_the_parent,
    )
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        raise
    finally:
        pool.shutdown()


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Ray:
    """Ray tasks as futures."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray

    def submit(self, function: Callable[..., R], /, *args: Any) -> "Future[R]":
        future: Future[R] = self._ray.remote(function).remote(*args).future()
        return future


@contextmanager
def _ray(address: str) -> Iterator[Executor]:
    ray = _package("ray", address)
    try:
        ray.init(address=address)
    except (ConnectionError, OSError) as error:
        raise ConfigError(f"--on {address}: no Ray cluster answers there: {error}") from error
    try:
        yield _Ray(ray)
    finally:
        ray.shutdown()


@contextmanager
def _dask(address: str) -> Iterator[Executor]:
    distributed = _package("distributed", address)
    try:
        client = distributed.Client(f"tcp://{address.removeprefix('dask://')}")
    except (TimeoutError, OSError) as error:
        raise ConfigError(f"--on {address}: no Dask scheduler answers there: {error}") from error
    try:
        yield client.get_executor(pure=False)
    finally:
        client.close()


def _package(name: str, address: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"--on {address}: needs the package {name}, which is not installed; pip install {name}"
        ) from error

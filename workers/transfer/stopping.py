"""Awaiting something that an event, or a failing sibling, may cut short."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


class StoppedError(Exception):
    """The receiver has enough; no failure."""


async def until_stopped(work: Coroutine[Any, Any, T], stop: asyncio.Event | None) -> T:
    """The result of `work`, or `StoppedError` as soon as `stop` is set; `work` is then cancelled and awaited."""
    if stop is None:
        return await work
    task = asyncio.create_task(work)
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise StoppedError("the receiver asked to stop")
        return task.result()
    finally:
        await _cancel_all([task, stopping])


async def all_or_first_error(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results in order; at the first error, cancel the rest, wait for them, and raise that error."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                raise error
        return [task.result() for task in tasks]
    finally:
        await _cancel_all(tasks)


async def _cancel_all(tasks: "list[asyncio.Task[Any]]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

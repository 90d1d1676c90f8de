"""Echo workers on loopback for tests, and tests that are coroutines."""

import asyncio
import contextlib
import functools

import aiohttp

from homing.workers.echo.openai import EchoServer
from homing.workers.echo.settings import EchoSettings, StepTimes

INSTANT = StepTimes(prefill_a_s=0, prefill_b_s=0, decode_s=0)


def on_a_loop(test):
    """A test that hangs is a test that fails."""

    @functools.wraps(test)
    def run(*args, **kwargs):
        return asyncio.run(asyncio.wait_for(test(*args, **kwargs), 30))

    return run


@contextlib.asynccontextmanager
async def serving(**settings):
    """A server and a client of it; its books are checked at the end."""
    server = EchoServer(EchoSettings(**{"times": INSTANT, **settings}))
    await server.start()
    try:
        async with aiohttp.ClientSession(server.url, timeout=aiohttp.ClientTimeout(total=20)) as client:
            yield server, client
        server.engine.batcher.check()
    finally:
        await server.close()


def chat(text, **more):
    """The body of a chat of one message."""
    return {"model": "echo", "messages": [{"role": "user", "content": text}], **more}

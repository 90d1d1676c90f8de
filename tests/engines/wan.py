"""The emulated network in a thread of its own, for tests that do not await."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from homing.workers.emulation import EmulatedLink, Wan
from homing.workers.vllm.settings import host_and_port, joined


class WanThread:
    """Addresses behind links of a given speed and one-way delay."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._wans: list[Wan] = []

    def behind(self, address: str, *, bits_per_s: float, delay_s: float) -> str:
        """An address that leads to `address` over a link of its own."""

        async def opened() -> str:
            links = [
                EmulatedLink(source=a, target=b, bytes_per_s=bits_per_s / 8, delay_s=delay_s)
                for a, b in (("here", "there"), ("there", "here"))
            ]
            wan = Wan(links)
            self._wans.append(wan)
            host, port = await wan.open_gateway("here", "there", *host_and_port(address))
            return joined(host, port)

        return asyncio.run_coroutine_threadsafe(opened(), self._loop).result(10)

    def bytes_carried(self) -> int:
        """What came back over all links so far."""

        async def carried() -> int:
            return sum(wan.bytes_carried("there", "here") for wan in self._wans)

        return asyncio.run_coroutine_threadsafe(carried(), self._loop).result(10)

    def close(self) -> None:
        async def closed() -> None:
            await asyncio.gather(*(wan.close() for wan in self._wans))

        asyncio.run_coroutine_threadsafe(closed(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@contextmanager
def wan_thread() -> Iterator[WanThread]:
    wan = WanThread()
    try:
        yield wan
    finally:
        wan.close()

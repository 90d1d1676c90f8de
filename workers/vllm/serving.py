"""Giving blocks: the mover's data server, which also answers the question that comes before a transfer.

Rule 1: blocks are pinned from the offer until nobody reads them any more.
Rule 2: whoever follows a prompt that is being computed gets each block when it is whole, and an end when none came for
too long.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence

from homing.router.core.types import BlockKey

from ..transfer import (
    CachedExport,
    DataServer,
    HandoverExport,
    Offer,
    Order,
    Outcome,
    RefusedError,
    ServerLimits,
    TransferError,
)
from ..transfer.sockets import Wire
from .asking import LENGTH_BYTES, MAGIC, Answer, Ask, AskReport, decode_ask, decode_length, encode_answer
from .memory import HostMemory
from .shelf import Shelf

log = logging.getLogger(__name__)

OFFER_TTL_S = 10.0
ASKS_PER_CONNECTION_MAX = 64
PEEKS_MAX = 100
"""Looks at a first packet of a few bytes, a hundredth of a second apart."""
Report = Callable[[str], dict[str, object] | None]


class StoreServer(DataServer):
    """Serves a shelf's blocks on one port. One event loop; no threads."""

    def __init__(
        self, shelf: Shelf, memory: HostMemory, host: str, port: int, *, limits: ServerLimits, report: Report
    ) -> None:
        super().__init__(memory, host, port, limits=limits)
        self._shelf = shelf
        self._format = memory.format
        self._layers = memory.layers
        self._layer_block_bytes = memory.layer_block_bytes
        self._asking_timeout_s = limits.handshake_timeout_s
        self._report = report

    async def _serve(self, sock: socket.socket) -> None:
        """Answer questions until the mover's handshake comes, and leave the rest to the mover."""
        handed_over = False
        try:
            handed_over = await self._answer_all(sock)
        except (OSError, ValueError, TimeoutError, TransferError) as error:
            log.warning("a question for blocks could not be answered: %s", error)
        except Exception:
            log.exception("answering a question for blocks failed")
        finally:
            if not handed_over:
                sock.close()
        if handed_over:
            await super()._serve(sock)

    async def _answer_all(self, sock: socket.socket) -> bool:
        """True when something other than a question comes, which is left unread."""
        timeout_s = self._asking_timeout_s
        wire = Wire(sock, read_timeout_s=timeout_s, write_timeout_s=timeout_s)
        for _ in range(ASKS_PER_CONNECTION_MAX):
            async with asyncio.timeout(timeout_s):
                if await _peeked(sock, len(MAGIC)) != MAGIC:
                    return True
                await wire.receive(len(MAGIC))
                body = await wire.receive(decode_length(await wire.receive(LENGTH_BYTES)))
            await wire.send([encode_answer(self._answer(decode_ask(body)))])
        return False

    def _answer(self, ask: Ask | AskReport) -> Answer:
        if isinstance(ask, AskReport):
            return Answer(report=self._report(ask.ticket))
        try:
            offer = self._offer(ask)
        except RefusedError as error:
            return Answer(refusal=str(error))
        return Answer(
            token=offer.token,
            format=offer.format,
            blocks=offer.blocks,
            layers=offer.layers,
            layer_block_bytes=offer.layer_block_bytes,
        )

    def _offer(self, ask: Ask) -> Offer:
        if ask.format != self._format:
            raise RefusedError(
                f"the blocks here are {self._format!r}, not {ask.format!r}: KV moves only between engines of equal "
                "weights, number format, block size and layers"
            )
        keys = [BlockKey(key) for key in ask.keys]
        if ask.follow:
            return self._offer_following(keys)
        keys = self._shelf.pin_leading(keys)
        if not keys:
            raise RefusedError("none of these blocks is here (any more)")
        order = Order.BACK_TO_FRONT if ask.back_to_front else Order.FRONT_TO_BACK
        export = CachedExport(keys, order, self._layers, self._layer_block_bytes)
        return self._opened(export, lambda: self._shelf.unpin(keys))

    def _offer_following(self, keys: Sequence[BlockKey]) -> Offer:
        export = HandoverExport(keys, self._layers, self._layer_block_bytes)
        stop = self._shelf.follow(keys, lambda position: export.ready(0, self._layers, position, 1))
        return self._opened(export, stop)

    def _opened(self, export: CachedExport | HandoverExport, release: Callable[[], None]) -> Offer:
        def done(outcome: Outcome) -> None:
            log.info("blocks given: %s, %d bytes in %.3f s", outcome.status, outcome.payload_bytes, outcome.seconds)
            release()

        try:
            return self.open(export, ttl_s=OFFER_TTL_S, on_done=done)
        except BaseException:
            release()
            raise


async def _peeked(sock: socket.socket, size: int) -> bytes:
    """The next `size` bytes without taking them, or what there is before the stream ends."""
    loop = asyncio.get_running_loop()
    for _ in range(PEEKS_MAX):
        try:
            data = sock.recv(size, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            data = None
        if data is not None and (len(data) == size or not data or MAGIC[: len(data)] != data):
            return data
        if data is None:
            await _readable(loop, sock)
        else:
            # Part of the magic is there: readiness would be told again at once.
            await asyncio.sleep(0.01)
    return b""


async def _readable(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    ready: asyncio.Future[None] = loop.create_future()

    def resolve() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(sock, resolve)
    try:
        await ready
    finally:
        loop.remove_reader(sock)

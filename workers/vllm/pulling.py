"""Taking blocks: asking a holder on its data port, and receiving into reserved slots of the own store."""

import asyncio
import logging
import socket
from collections.abc import Sequence

from homing.router.core.types import BlockKey

from ..transfer import (
    Arrivals,
    Offer,
    Order,
    Piece,
    PullRequest,
    RefusedError,
    RetryPolicy,
    SocketMover,
    SocketSettings,
    Status,
    TransferReport,
)
from ..transfer.sockets import Wire, connect_tcp
from .asking import LENGTH_BYTES, Answer, Ask, AskReport, decode_answer, decode_length, encode_ask
from .memory import HostMemory
from .params import Source, Transfer
from .settings import ConnectorSettings, host_and_port
from .shelf import Claim, Shelf

log = logging.getLogger(__name__)

ASK_TIMEOUT_S = 3.0
ATTEMPTS = 2
"""A request waits: a holder that fails twice is not asked again."""
_FOLLOWED = "followed"
"""A handover has a name for the mover; between connectors its keys are its name."""


class StoreSink:
    """Where pulled blocks land: position `i` in the slot of `keys[i]`.

    A block that is held already, or that another pull is bringing, goes to scratch memory. A whole block is committed
    and stays pinned; `close` gives back what did not arrive whole.
    """

    def __init__(self, shelf: Shelf, memory: HostMemory, keys: Sequence[BlockKey]) -> None:
        self._shelf = shelf
        self._memory = memory
        self._keys = keys
        self._arrivals = Arrivals(blocks=len(keys), layers=memory.layers)
        self._filling: set[int] = set()
        self._passed: set[int] = set()
        self.pinned: list[BlockKey] = []

    def wanted(self, piece: Piece) -> bool:
        """Reserve the piece's blocks, as many as there is room for; no when there is room for none."""
        is_full = False
        for position in piece.positions:
            if position in self._filling or position in self._passed:
                continue
            claim = Claim.FULL if is_full else self._shelf.claim(self._keys[position])
            is_full = claim is Claim.FULL
            (self._filling if claim is Claim.MINE else self._passed).add(position)
        return not is_full or not self._filling.isdisjoint(piece.positions)

    def buffers(self, piece: Piece) -> list[memoryview]:
        """The reserved slots' bytes."""
        return [self._buffer(position, piece) for position in piece.positions]

    def arrived(self, piece: Piece) -> None:
        """Commit the blocks of which this was the last layer."""
        self._arrivals.add(piece)
        for position in piece.positions:
            if position in self._filling and self._is_whole(position):
                self._filling.remove(position)
                self._passed.add(position)
                self._shelf.commit((self._keys[position],), pinned=True)
                self.pinned.append(self._keys[position])

    def close(self) -> None:
        """Give back what is not whole, and unpin the rest."""
        self._shelf.abort([self._keys[position] for position in sorted(self._filling)])
        self._filling.clear()
        pinned, self.pinned = self.pinned, []
        self._shelf.unpin(pinned)

    def _is_whole(self, position: int) -> bool:
        whole = Piece(layer_first=0, layer_count=self._memory.layers, block_first=position, block_count=1)
        return all(done for _, done in self._arrivals.layer_runs(whole, position))

    def _buffer(self, position: int, piece: Piece) -> memoryview:
        if position in self._filling:
            return self._memory.view(self._keys[position], piece.layer_first, piece.layer_count)
        # One for each block: the checksum is taken when several have been received.
        return memoryview(bytearray(piece.layer_count * self._memory.layer_block_bytes))


class _Holder:
    """The other end of one pull. The connection that carried the question becomes the transfer's first."""

    def __init__(self, address: str, kv_format: str) -> None:
        self._host, self._port = host_and_port(address)
        self._format = kv_format
        self._warm: socket.socket | None = None
        self.rtt_s = 0.0

    async def open_offer(self, request: PullRequest) -> Offer:
        """Ask for the request's blocks. Raises RefusedError for a no, and what sockets raise."""
        self.close()
        sock = await connect_tcp(self._host, self._port)
        try:
            answer = await self._asked(sock, request)
        except BaseException:
            sock.close()
            raise
        self._warm = sock
        return Offer(
            host=self._host,
            port=self._port,
            token=answer.token,
            format=answer.format,
            blocks=answer.blocks,
            layers=answer.layers,
            layer_block_bytes=answer.layer_block_bytes,
        )

    async def connect(self, host: str, port: int) -> socket.socket:
        """The connection that is open already, and new ones for further stripes."""
        warm, self._warm = self._warm, None
        return warm if warm is not None else await connect_tcp(host, port)

    def close(self) -> None:
        """Close the connection that no transfer took."""
        if self._warm is not None:
            self._warm.close()
            self._warm = None

    async def _asked(self, sock: socket.socket, request: PullRequest) -> Answer:
        ask = Ask(
            format=self._format,
            keys=list(request.keys),
            follow=request.handover is not None,
            back_to_front=request.order is Order.BACK_TO_FRONT,
        )
        asked_s = asyncio.get_running_loop().time()
        answer = await question(sock, ask)
        self.rtt_s = asyncio.get_running_loop().time() - asked_s
        if answer.refusal:
            raise RefusedError(answer.refusal)
        return answer


async def question(sock: socket.socket, ask: Ask | AskReport) -> Answer:
    """Ask on an open connection; raises what sockets raise, and ValueError for an answer that is none."""
    wire = Wire(sock, read_timeout_s=ASK_TIMEOUT_S, write_timeout_s=ASK_TIMEOUT_S)
    await wire.send([encode_ask(ask)])
    return decode_answer(await wire.receive(decode_length(await wire.receive(LENGTH_BYTES))))


def limit_s(source: Source, settings: ConnectorSettings) -> float:
    """How long a pull from `source` may take."""
    return min(source.timeout_s, settings.ship_timeout_s if source.ships else settings.pull_timeout_s)


async def pull_blocks(
    source: Source,
    keys: Sequence[BlockKey],
    sink: StoreSink,
    memory: HostMemory,
    settings: ConnectorSettings,
    stop: asyncio.Event,
) -> Transfer:
    """Bring `keys` from `source` into `sink`; never raises for a failure.

    Is over within the source's and the operator's time, and then sets `stop`: what did not come by now is computed.
    """
    timeout_s = limit_s(source, settings)
    holder = _Holder(source.address, memory.format)
    mover = SocketMover(
        holder.open_offer,
        memory,
        settings=SocketSettings(
            connections=settings.connections,
            congestion=settings.congestion,
            idle_timeout_s=settings.idle_timeout_s,
            timeout_s=timeout_s,
        ),
        retry=RetryPolicy(offer_timeout_s=min(ASK_TIMEOUT_S, timeout_s)),
        connect=holder.connect,
    )
    request = PullRequest(
        source=source.address, keys=tuple(keys), handover=_FOLLOWED if source.ships else None, attempts=ATTEMPTS
    )
    loop = asyncio.get_running_loop()
    # Attempts have their own limit; this one is for all of them together.
    timer = loop.call_later(timeout_s, stop.set)
    try:
        report = await mover.pull(request, sink, stop)
    finally:
        timer.cancel()
        holder.close()
    why = "" if report.status is Status.COMPLETE else _why(report, timeout_s)
    if why:
        log.warning("blocks from %s: %s", source.address, why)
    return _transfer(source, report, holder.rtt_s, why)


def _why(report: TransferReport, timeout_s: float) -> str:
    if report.status is Status.STOPPED and report.seconds >= timeout_s:
        return f"not complete within {timeout_s} s"
    return report.reason or str(report.status)


def _transfer(source: Source, report: TransferReport, rtt_s: float, why: str) -> Transfer:
    speed = report.link_bytes_per_s
    return Transfer(
        address=source.address,
        bytes=report.payload_bytes,
        blocks=report.blocks,
        seconds=report.seconds,
        flowing_s=report.payload_bytes / speed if speed else 0.0,
        rtt_s=rtt_s,
        complete=not why,
        reason=why,
    )

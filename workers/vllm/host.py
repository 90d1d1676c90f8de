"""The connector's own thread: an event loop on which blocks are served, pulled and waited for."""

import asyncio
import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from homing.router.core.types import BlockKey

from ..transfer import ServerLimits
from .geometry import KvGeometry
from .memory import HostMemory
from .orders import LoadOrder
from .params import Source, Transfer, described
from .pulling import StoreSink, limit_s, pull_blocks
from .serving import StoreServer
from .settings import ConnectorSettings, host_and_port, joined
from .shelf import Shelf
from .store import BlockStore

log = logging.getLogger(__name__)

START_TIMEOUT_S = 10.0
REPORTS_MAX = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A load that is over: the leading `pinned` keys lie in host memory and stay there until they are unpinned."""

    order: LoadOrder
    pinned: tuple[BlockKey, ...]
    transfers: tuple[Transfer, ...]


@dataclass(slots=True, kw_only=True)
class _Coming:
    """A pull that others may wait for. One that failed is not tried by each of them in turn."""

    address: str
    over: asyncio.Event = field(default_factory=asyncio.Event)
    failed: bool = True


class HostCache:
    """Host memory with a door: what the engine keeps, others take, and what others have comes here."""

    def __init__(self, geometry: KvGeometry, settings: ConnectorSettings, *, weights: str) -> None:
        blocks = settings.store_bytes // geometry.block_bytes
        if blocks < 1:
            raise ValueError(
                f"store_bytes={settings.store_bytes}: one block takes {geometry.block_bytes} bytes; "
                "give the store at least that"
            )
        self._settings = settings
        self._loop = asyncio.new_event_loop()
        store = BlockStore(blocks)
        self.shelf = Shelf(store, self._loop)
        self.memory = HostMemory(geometry, store, weights=weights)
        self._loads: dict[str, tuple[asyncio.Task[None], asyncio.Event]] = {}
        self._coming: dict[BlockKey, _Coming] = {}
        self._done: deque[Loaded] = deque()
        self._reports: OrderedDict[str, dict[str, object]] = OrderedDict()
        self._thread = threading.Thread(target=self._loop.run_forever, name="homing-kv", daemon=True)
        self.blocks = blocks
        self.address = ""

    def start(self) -> None:
        """Listen. Raises OSError when the address is taken."""
        self._thread.start()
        host, port = host_and_port(self._settings.listen)
        limits = ServerLimits(idle_timeout_s=self._settings.ship_idle_s)
        self._server = StoreServer(self.shelf, self.memory, host, port, limits=limits, report=self._reports.get)
        try:
            self._on_loop(self._server.start()).result(START_TIMEOUT_S)
        except OSError as error:
            self.close()
            detail = f"listen={self._settings.listen}: cannot listen there for blocks ({error.strerror})"
            raise OSError(f"{detail}; is the port in use? choose another") from error
        self.address = self._settings.advertise or joined(host, self._server.port)
        log.info("Homing serves KV blocks on %s, room for %d blocks", self.address, self.blocks)

    def close(self) -> None:
        """Stop everything. Idempotent."""
        if self._loop.is_closed():
            return
        if self._thread.is_alive():
            try:
                self._on_loop(self._close()).result(START_TIMEOUT_S)
            except TimeoutError:
                log.warning("transfers did not end within %s s", START_TIMEOUT_S)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(START_TIMEOUT_S)
        if not self._loop.is_running():
            self._loop.close()

    def begin(self, order: LoadOrder) -> None:
        """Start to bring a request's blocks into host memory; it shows up in `take_loaded` once, on every path."""
        self._loop.call_soon_threadsafe(self._begin, order)

    def cancel(self, request_id: str) -> None:
        """End a load early; one that is over is no error."""
        self._loop.call_soon_threadsafe(self._cancel, request_id)

    def take_loaded(self) -> list[Loaded]:
        """Loads that are over."""
        taken: list[Loaded] = []
        while self._done:
            taken.append(self._done.popleft())
        return taken

    def _on_loop(self, work: Any) -> "Future[None]":
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _close(self) -> None:
        for _, stop in self._loads.values():
            stop.set()
        await asyncio.gather(*(task for task, _ in self._loads.values()), return_exceptions=True)
        await self._server.close()

    def _begin(self, order: LoadOrder) -> None:
        stop = asyncio.Event()
        self._loads[order.request_id] = self._loop.create_task(self._load(order, stop)), stop

    def _cancel(self, request_id: str) -> None:
        if request_id in self._loads:
            self._loads[request_id][1].set()

    async def _load(self, order: LoadOrder, stop: asyncio.Event) -> None:
        pinned: list[BlockKey] = []
        transfers: list[Transfer] = []
        try:
            await self._bring(order, stop, pinned, transfers)
        except Exception:
            log.exception("request %s: loading blocks failed; they will be computed", order.request_id)
        finally:
            del self._loads[order.request_id]
            self._note(order, len(pinned), transfers)
            self._done.append(Loaded(order=order, pinned=tuple(pinned), transfers=tuple(transfers)))

    async def _bring(
        self, order: LoadOrder, stop: asyncio.Event, pinned: list[BlockKey], transfers: list[Transfer]
    ) -> None:
        """Pin the leading blocks, pulling those that are not here, until there is nobody left to ask."""
        untried = list(order.sources)
        while not stop.is_set():
            pinned.extend(self.shelf.pin_leading(order.keys[len(pinned) :]))
            missing = len(pinned)
            if missing == len(order.keys):
                return
            source = _giving(untried, order.first + missing)
            if source is None:
                return
            coming = self._coming.get(order.keys[missing])
            if coming is not None:
                # Another request wants the same prefix and is bringing it.
                await self._await_other(coming, source, stop)
                if coming.failed:
                    untried = [giver for giver in untried if giver.address != coming.address]
                continue
            untried.remove(source)
            keys = order.keys[missing : source.end - order.first]
            sink = StoreSink(self.shelf, self.memory, keys)
            try:
                with self._announced(keys, source) as announced:
                    transfer = await pull_blocks(source, keys, sink, self.memory, self._settings, stop)
                    transfers.append(transfer)
                    announced.failed = not transfer.complete
            finally:
                pinned.extend(self.shelf.pin_leading(order.keys[missing:]))
                sink.close()

    async def _await_other(self, coming: _Coming, source: Source, stop: asyncio.Event) -> None:
        """Until another's pull is over, or the load is stopped; at most as long as pulling from `source` could take."""
        waits = [asyncio.ensure_future(event.wait()) for event in (coming.over, stop)]
        try:
            timeout_s = limit_s(source, self._settings)
            done, _ = await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                stop.set()
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    @contextmanager
    def _announced(self, keys: Sequence[BlockKey], source: Source) -> "Iterator[_Coming]":
        """Let others know that these blocks are on their way."""
        coming = _Coming(address=source.address)
        own = [key for key in keys if key not in self._coming]
        self._coming.update(dict.fromkeys(own, coming))
        try:
            yield coming
        finally:
            for key in own:
                del self._coming[key]
            coming.over.set()

    def _note(self, order: LoadOrder, blocks: int, transfers: list[Transfer]) -> None:
        """Keep the report for who asks by its ticket: a streamed answer cannot carry it."""
        if not order.ticket:
            return
        self._reports[order.ticket] = {"loaded_blocks": blocks, "transfers": [described(t) for t in transfers]}
        while len(self._reports) > REPORTS_MAX:
            self._reports.popitem(last=False)


def _giving(sources: list[Source], position: int) -> Source | None:
    """Who reaches furthest of those that have the block at `position`."""
    able = [source for source in sources if source.first <= position < source.end]
    return max(able, key=lambda source: source.end, default=None)

"""The half in the process that computes: keeps what a step has made whole, loads what was asked for.

Rule 1: blocks are copied out at the end of the step that completes them and in between two steps, by the engine's own
thread: no other step can be writing or reading them.
Rule 2: no method raises once `register` has returned; what fails is logged, and the blocks are computed.
"""

import logging
import time
from collections.abc import Mapping

import torch

from homing.router.core.types import BlockKey

from .geometry import UnsupportedCacheError, geometry_of
from .host import HostCache, Loaded
from .orders import LoadOrder, LoadResult, SaveOrder, StepOrders, StepReport
from .pulling import limit_s
from .settings import ConnectorSettings
from .shelf import Claim

log = logging.getLogger(__name__)

GRACE_S = 30.0
"""How much longer than its sources' time-outs together a load may take."""


class WorkerSide:
    """Talks to `HostCache` in the engine's thread."""

    def __init__(self, settings: ConnectorSettings, *, block_tokens: int, weights: str) -> None:
        self._settings = settings
        self._block_tokens = block_tokens
        self._weights = weights
        self._kv_caches: Mapping[str, torch.Tensor] = {}
        self._results: list[LoadResult] = []
        self._failed_blocks: set[int] = set()
        self._refused: list[LoadOrder] = []
        self._waiting: dict[str, tuple[LoadOrder, float]] = {}
        self._dropped: list[BlockKey] = []
        self.host: HostCache | None = None

    @property
    def address(self) -> str:
        """Where blocks can be asked for; empty when this engine moves none."""
        return self.host.address if self.host is not None else ""

    def register(self, kv_caches: Mapping[str, torch.Tensor]) -> None:
        """Take the engine's paged cache and open the door.

        A cache that cannot be moved is told in the log and moves nothing. Raises what is wrong with the options.
        """
        try:
            geometry = geometry_of(kv_caches, self._block_tokens)
        except UnsupportedCacheError as error:
            log.error("HomingConnector moves no KV of this engine: %s", error)  # noqa: TRY400 - no fault of the code
            return
        host = HostCache(geometry, self._settings, weights=self._weights)
        host.start()
        self._kv_caches = kv_caches
        self.host = host

    def close(self) -> None:
        """Stop moving. Idempotent."""
        if self.host is not None:
            self.host.close()

    def begin_loads(self, orders: StepOrders) -> None:
        """Start this step's loads, and end those that nobody waits for."""
        for order in orders.loads:
            try:
                self._open_host().begin(order)
                limits_s = (limit_s(source, self._settings) for source in order.sources)
                self._waiting[order.request_id] = order, time.monotonic() + sum(limits_s, GRACE_S)
            except RuntimeError:
                # The engine waits for every load that it ordered.
                self._refused.append(order)
        if self.host is not None:
            for request_id in orders.cancelled:
                self.host.cancel(request_id)

    def save(self, orders: StepOrders) -> None:
        """Keep what the step that just ran has made whole."""
        if self.host is None:
            return
        if orders.clear:
            self.host.shelf.clear()
        for order in orders.saves:
            try:
                self._save(self.host, order)
            except Exception:
                log.exception("keeping blocks failed")

    def finish_loads(self) -> set[str]:
        """Copy what has come into the paged cache; the ids of requests whose loads are over."""
        over: set[str] = set()
        for done in [] if self.host is None else self.host.take_loaded():
            order, _ = self._waiting.get(done.order.request_id, (None, 0.0))
            if order is done.order:
                del self._waiting[order.request_id]
                self._finish(done)
                over.add(order.request_id)
            elif self.host is not None:
                self.host.shelf.unpin(done.pinned)
        for order in self._take_given_up():
            self._finish(Loaded(order=order, pinned=(), transfers=()))
            over.add(order.request_id)
        return over

    def take_failed_blocks(self) -> set[int]:
        """Blocks of the paged cache that were to be loaded and must be computed."""
        failed, self._failed_blocks = self._failed_blocks, set()
        return failed

    def take_report(self) -> StepReport | None:
        """What changed since the last call; None for nothing."""
        stored, removed = ((), ()) if self.host is None else self.host.shelf.take_changes()
        results, self._results = tuple(self._results), []
        dropped, self._dropped = tuple(self._dropped), []
        if not (stored or removed or dropped or results):
            return None
        return StepReport(stored=stored, removed=removed, dropped=dropped, results=results)

    def _take_given_up(self) -> list[LoadOrder]:
        """Loads that could not begin, and such as should have ended long ago: no fault of ours may hold a request."""
        given_up, self._refused = self._refused, []
        now_s = time.monotonic()
        for request_id in [name for name, (_, until_s) in self._waiting.items() if until_s < now_s]:
            order, _ = self._waiting.pop(request_id)
            log.error("request %s: its load did not end; its blocks will be computed", request_id)
            given_up.append(order)
        return given_up

    def _open_host(self) -> HostCache:
        if self.host is None:
            raise RuntimeError("this engine moves no KV")
        return self.host

    def _save(self, host: HostCache, order: SaveOrder) -> None:
        shelf, new = host.shelf, []
        for key, block_id in zip(order.keys[order.first :], order.block_ids, strict=True):
            claim = shelf.claim(key)
            if claim is Claim.MINE:
                new.append((key, block_id))
            elif claim is Claim.FULL:
                self._dropped.append(key)
        keys = [key for key, _ in new]
        try:
            if new:
                host.memory.gather(shelf.slots(keys), self._kv_caches, [block_id for _, block_id in new])
        except BaseException:
            shelf.abort(keys)
            raise
        shelf.commit(keys)
        shelf.touch(order.keys)
        if order.lease_s > 0:
            self._lease(host, order)

    def _lease(self, host: HostCache, order: SaveOrder) -> None:
        wanted = order.keys[order.first :]
        kept = host.shelf.lease(wanted, min(order.lease_s, self._settings.lease_max_s))
        if kept < len(wanted):
            log.warning(
                "%d of %d blocks are not kept for certain: half of the store is in use", len(wanted) - kept, len(wanted)
            )

    def _finish(self, done: Loaded) -> None:
        order, blocks = done.order, len(done.pinned)
        try:
            if self.host is not None and blocks:
                slots = self.host.shelf.slots(done.pinned)
                self.host.memory.scatter(slots, self._kv_caches, order.block_ids[:blocks])
        except Exception:
            log.exception("request %s: loaded blocks could not be copied in", order.request_id)
            blocks = 0
        finally:
            if self.host is not None:
                self.host.shelf.unpin(done.pinned)
        self._failed_blocks.update(order.block_ids[blocks:])
        self._results.append(LoadResult(request_id=order.request_id, blocks=blocks, transfers=done.transfers))

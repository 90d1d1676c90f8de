"""What all ways of moving KV share: a local plan needs nothing, and every failure of an engine becomes a reason.

Rule 1: a call that fails, hangs or answers nonsense ends in `Prepared.failed`, with the patch empty.
Rule 2: a call that runs beside the decode worker is a task held here: it has a time-out and ends with `close`.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from homing.router.core.policies.options import NotNegative, Positive
from homing.router.core.types import Move, PlanKind, Role
from homing.router.engines.types import EngineError, Patch

from .types import Order, Peer, Post, Prepared, TransferReport

PASSED_HEADERS = frozenset({"authorization", "baggage", "traceparent", "tracestate"})
"""What of the client's headers goes on to the prefill worker too."""


class Way(ABC):
    """One way of moving KV. `timeout_s` is how long a call to the prefill worker may take."""

    name: str
    plans: frozenset[PlanKind]
    kv_keys: frozenset[str] = frozenset()
    kv_role: Role = Role.BOTH
    kv_optional: frozenset[str] = frozenset()
    ships_whole: bool = False
    prepares_local: bool = False

    def __init__(self, *, timeout_s: Positive = 120.0) -> None:
        self._timeout_s = timeout_s

    async def prepare(self, order: Order, post: Post) -> Prepared:
        """Everything that has to happen before the decode worker is asked."""
        assert order.plan.kind in self.plans, order.plan
        try:
            _check_peers(order)
            return await self._local(order) if order.plan.kind is PlanKind.LOCAL else await self._move(order, post)
        except EngineError as error:
            return Prepared(failed=str(error))

    async def transfers(self, decode: Peer, request_id: str, seen_from: str) -> list[TransferReport]:
        """How a request's transfers went; most ways do not tell."""
        return []

    def ended(self, request_id: str) -> None:  # noqa: B027 - most ways hold nothing for a request
        """The request is over: what is held for it can be given back."""

    async def close(self) -> None:  # noqa: B027 - most ways leave no call running
        """Cancel the calls that still run, and wait for them."""

    async def _local(self, order: Order) -> Prepared:
        return Prepared()

    @abstractmethod
    async def _move(self, order: Order, post: Post) -> Prepared:
        """Carry out a plan that is not local; raises EngineError."""

    async def _ask_prefill(
        self, order: Order, post: Post, body: Mapping[str, Any], headers: Mapping[str, str]
    ) -> tuple[Mapping[str, Any], float]:
        """What the prefill worker answered, and after how many seconds."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        answer = await post(order.prefill, order.path, body, headers, self._timeout_s)
        return answer, loop.time() - began_s


class ConcurrentWay(Way):
    """A way in which the prefill worker runs beside the decode worker.

    The prefill worker has `head_start_s` to refuse before the decode worker is asked: one that is down or rejects the
    request is found out before another waits for it in vain.
    """

    head_start_default_s: ClassVar[float] = 0.01

    def __init__(self, *, timeout_s: Positive = 120.0, head_start_s: NotNegative = head_start_default_s) -> None:
        super().__init__(timeout_s=timeout_s)
        self._head_start_s = head_start_s
        self._running: set[asyncio.Task[float]] = set()

    async def close(self) -> None:
        """Cancel the calls that still run, and wait for them."""
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _beside(
        self, order: Order, post: Post, body: Mapping[str, Any], headers: Mapping[str, str], patch: Patch
    ) -> Prepared:
        """Start the prefill worker; raises EngineError if it refuses at once."""
        task = asyncio.create_task(self._seconds(self._ask_prefill(order, post, body, headers)))
        self._running.add(task)
        task.add_done_callback(self._forget)
        try:
            await asyncio.wait({task}, timeout=self._head_start_s)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if task.done():
            await task
        return Prepared(patch=patch, beside=task)

    async def _seconds(self, asked: Awaitable[tuple[Mapping[str, Any], float]]) -> float:
        _, seconds = await asked
        return seconds

    def _forget(self, task: "asyncio.Task[float]") -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # an error that nobody waits for is not worth a warning: the answer tells of it


def _check_peers(order: Order) -> None:
    named = {*order.plan.workers, *(move.source for move in order.plan.moves)}
    gone = sorted(named - order.peers.keys())
    if gone:
        raise EngineError(f"{gone[0]}: takes part in the plan and is gone")


def elsewhere(peer: Peer, url: str) -> Peer:
    """Another server of a peer's, which its engine's headers do not concern."""
    return replace(peer, url=url, headers={})


def passed_headers(order: Order) -> dict[str, str]:
    """The headers of a call to the prefill worker: the client's credentials and trace, and the request's id."""
    passed = {name: value for name, value in order.headers.items() if name.lower() in PASSED_HEADERS}
    return passed | {"x-request-id": order.request_id}


def address(peer: Peer, key: str, site: str = "") -> str:
    """An address of a worker's connector, as seen from a site; raises EngineError if it was not given."""
    value = peer.kv.get(f"{key}_from:{site}") or peer.kv.get(key)
    if not value:
        raise EngineError(f"{peer.worker}: kv.{key} is not configured, so nothing can be moved")
    return value


def number(peer: Peer, key: str, site: str = "", default: str = "") -> int:
    """The same for a number, such as a port."""
    text = peer.kv.get(f"{key}_from:{site}") or peer.kv.get(key) or default or address(peer, key, site)
    try:
        return int(text)
    except ValueError:
        raise EngineError(f"{peer.worker}: kv.{key} must be a whole number, got {text!r}") from None


def longest_move(order: Order, target: Peer) -> Move:
    """The move to a worker that brings most blocks, for engines that take from one source; raises EngineError."""
    moves = [move for move in order.plan.moves if move.target == target.worker]
    if not moves:
        raise EngineError(f"the {order.plan.kind} plan moves nothing to {target.worker}")
    return max(moves, key=lambda move: move.block_end - move.block_first)

"""One interface for every way of making engines move KV.

Rule 1: a plan kind that is not among an actuator's `plans` is never asked of it.
Rule 2: whatever fails, the request goes on without the move and the engine recomputes: `prepare` does not raise for an
engine's failure, it tells of it in `Prepared.failed`.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from homing.router.core.types import Plan, PlanKind, Role, WorkerId
from homing.router.engines.types import Patch


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A worker that takes part in a move. `kv` are the addresses of its connector as the operator gave them, by the
    names that the actuator documents; `headers` go with every call to its engine, such as its key.
    """

    worker: WorkerId
    url: str
    rank: int = 0
    site: str = ""
    kv: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A request that is about to be sent, and the plan that moves KV for it.

    `body` is the client's JSON, which is not to be changed; `tokens` are the prompt's ids where they are known.
    `peers` has every worker of the plan, and the source of every move; one that is missing is gone.
    """

    request_id: str
    path: str
    body: Mapping[str, Any]
    headers: Mapping[str, str]
    plan: Plan
    peers: Mapping[WorkerId, Peer]
    block_tokens: int
    tokens: tuple[int, ...] = ()

    @property
    def decode(self) -> Peer:
        """Who answers."""
        return self.peers[self.plan.decode]

    @property
    def prefill(self) -> Peer:
        """Who computes the prompt."""
        return self.peers[self.plan.prefill]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What became of an order: what to lay over the request to the decode worker, and what runs beside it.

    `beside` is the call to the prefill worker where both run at once; its result is how long it took in seconds. It
    raises EngineError when the prefill worker failed: then what the decode worker waits for will not come, and the
    surest is to drop that request and to send it again as it is. Whoever drops the request cancels the task.
    `failed` says why the KV will not come, in which case the request is sent as it is and computed where it lands.
    """

    patch: Patch = field(default_factory=Patch)
    beside: "asyncio.Task[float] | None" = None
    prefill_s: float | None = None
    failed: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferReport:
    """How one transfer went, as the worker that received it measured.

    `seconds` is from asking to the end; `flowing_s` is how long bytes were really flowing, which alone says how fast
    the link is: a source that computes what it sends makes its receiver wait.
    """

    address: str
    bytes: int
    seconds: float
    complete: bool
    flowing_s: float | None = None


class Post(Protocol):
    """Exchanges JSON with a peer; whatever fails, or takes too long, raises EngineError.

    `path` is laid on `peer.url`, and the peer's own headers over those of the call. A peer's other servers are reached
    through a copy of it with their URL and without its headers.
    """

    async def __call__(
        self, peer: Peer, path: str, body: Mapping[str, Any], headers: Mapping[str, str], timeout_s: float
    ) -> Mapping[str, Any]:
        """Send JSON to a path."""
        ...

    async def get(self, peer: Peer, path: str, timeout_s: float) -> Mapping[str, Any]:
        """Read what is at a path."""
        ...


class Actuator(Protocol):
    """Makes the engines of one kind of KV connector carry out plans."""

    name: str
    plans: frozenset[PlanKind]
    ships_whole: bool
    """Whether a prefill's blocks leave when it is over, not while it computes."""

    kv_keys: frozenset[str]
    """The addresses that it must be told of every worker that has `kv_role` (`Peer.kv`)."""
    kv_role: Role
    """Whose addresses it needs: of those that compute prompts for others, of those that decode, or of both."""
    kv_optional: frozenset[str]
    """What else it may be told. Any key may have a twin `KEY_from:SITE`: the address as seen from that site."""

    prepares_local: bool
    """Whether it is to be asked for local plans too, because it has a say in where in the engine they run."""

    async def prepare(self, order: Order, post: Post) -> Prepared:
        """Everything that has to happen before the decode worker is asked."""
        ...

    async def transfers(self, decode: Peer, request_id: str, seen_from: str) -> "list[TransferReport]":
        """How the transfers of a request went that the decode worker received; none where it does not tell.

        Asked when the answer did not tell, as streams do not. `seen_from` is the router's site. Raises EngineError.
        """
        ...

    def ended(self, request_id: str) -> None:
        """The request is over, however it ended: what is held for it can be given back. Unknown ids are nothing."""
        ...

    async def close(self) -> None:
        """Cancel the calls that still run, and wait for them."""
        ...

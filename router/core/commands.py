"""Everything the scheduler can ask for: orders, in the imperative."""

from dataclasses import dataclass

from .types import Decision, RejectReason, RequestId, Role, WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatch:
    """Carry this decision out."""

    decision: Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """Stop working on a request: nobody waits for it any more. Its end is booked already."""

    request_id: RequestId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Abandon:
    """A worker that has a part in this request is gone: stop waiting for it and answer with `DispatchFailed`."""

    request_id: RequestId
    worker_id: WorkerId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """Tell the sender no, and when to ask again (None: never, the request itself is wrong)."""

    request_id: RequestId
    reason: RejectReason
    detail: str
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Forget:
    """The scheduler gave a worker up because its reports stopped: close what is open to it."""

    worker_id: WorkerId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Resync:
    """What a worker told of its cache contradicts itself: nothing of it is believed until it tells everything anew."""

    worker_id: WorkerId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeRole:
    """A worker would do more good in another role: drain it, and let it join anew. Who cannot, may ignore it."""

    worker_id: WorkerId
    role: Role
    reason: str


Command = Dispatch | Cancel | Abandon | Reject | Forget | Resync | ChangeRole

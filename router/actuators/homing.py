"""Homing's own connector in vLLM (`workers/vllm`): blocks come from several sources, or while they are computed.

The decode worker is told where the blocks are (`kv_transfer_params.homing.sources`), and computes what does not come.
A prefill worker runs beside it and publishes each block as it is computed; it keeps them for `lease_s`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from homing.router.core.policies.options import NotNegative, Positive
from homing.router.core.types import MoveKind, PlanKind

from .types import Order, Peer, Post, Prepared
from .vllm import PARAMS, decode_patch, prefill_request
from .way import ConcurrentWay, address


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


class HomingKv(ConcurrentWay):
    """`address` is the host and port of a worker's block server; `address_from:SITE` the same as seen from a site."""

    name = "homing"
    plans = frozenset({PlanKind.LOCAL, PlanKind.FETCH, PlanKind.REMOTE, PlanKind.DIRECT})
    kv_keys = frozenset({"address"})

    def __init__(
        self,
        *,
        timeout_s: Positive = 120.0,
        head_start_s: NotNegative = ConcurrentWay.head_start_default_s,
        lease_s: Positive = 60.0,
    ) -> None:
        super().__init__(timeout_s=timeout_s, head_start_s=head_start_s)
        self._lease_s = lease_s

    async def _move(self, order: Order, post: Post) -> Prepared:
        patch = decode_patch(order, {"homing": {"sources": _sources(order, order.decode)}})
        if order.plan.kind is not PlanKind.REMOTE:
            return Prepared(patch=patch)
        given = {"sources": _sources(order, order.prefill), "publish": {"lease_s": self._lease_s}}
        body, headers = prefill_request(order, {"homing": given})
        return await self._beside(order, post, body, headers, patch)


def _sources(order: Order, target: Peer) -> list[dict[str, Any]]:
    """Where a worker finds blocks, from the front of the prompt on."""
    moves = sorted((move for move in order.plan.moves if move.target == target.worker), key=lambda m: m.block_first)
    return [
        {
            "address": address(order.peers[move.source], "address", target.site),
            "block_first": move.block_first,
            "block_end": move.block_end,
            "kind": "ship" if move.kind is MoveKind.SHIP else "fetch",
        }
        for move in moves
    ]


def report_of(answer: Mapping[str, Any]) -> list[TransferReport]:
    """The transfers of which an answer tells, `{"kv_transfer_params": {"homing": {"transfers": [...]}}}`.

    What is missing or has another shape is left out: a report teaches, nothing depends on it.
    """
    found: Any = answer
    for key in (PARAMS, "homing", "transfers"):
        found = found.get(key) if isinstance(found, Mapping) else None
    reports = [_report(entry) for entry in found] if isinstance(found, list) else []
    return [report for report in reports if report is not None]


def _report(entry: Any) -> TransferReport | None:
    match entry:
        case {"address": str(place), "bytes": int(size), "complete": bool(complete)} if size >= 0:
            seconds, flowing_s = _seconds(entry.get("seconds")), _seconds(entry.get("flowing_s"))
        case _:
            return None
    if seconds is None or isinstance(size, bool):
        return None
    return TransferReport(address=place, bytes=size, seconds=seconds, complete=complete, flowing_s=flowing_s)


def _seconds(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value < float("inf") else None

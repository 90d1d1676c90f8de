"""Homing's own connector in vLLM (`workers/vllm`): blocks come from several sources, or while they are computed.

The decode worker is told where the blocks are (`kv_transfer_params.homing.sources`), and computes what does not come.
A prefill worker runs beside it and publishes each block as it is computed; it keeps them for `lease_s`.
"""

import asyncio
import struct
from collections.abc import Mapping
from typing import Any

import msgspec

from homing.router.core.policies.options import NotNegative, Positive
from homing.router.core.types import MoveKind, PlanKind
from homing.router.engines.types import EngineError

from .types import Order, Peer, Post, Prepared, TransferReport
from .vllm import PARAMS, decode_patch, prefill_request
from .way import ConcurrentWay, address

ASK_MAGIC = b"HOMINGAS"
REPORT_S = 2.0
REPORT_BYTES_MAX = 1 << 20
_LENGTH = struct.Struct("<I")


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
        own = {"sources": _sources(order, order.decode), "ticket": order.request_id}
        patch = decode_patch(order, {"homing": own})
        if order.plan.kind is not PlanKind.REMOTE:
            return Prepared(patch=patch)
        given = {"sources": _sources(order, order.prefill), "publish": {"lease_s": self._lease_s}}
        body, headers = prefill_request(order, {"homing": given})
        return await self._beside(order, post, body, headers, patch)

    async def transfers(self, decode: Peer, request_id: str, seen_from: str) -> list[TransferReport]:
        """Ask the decode worker's block server, since vLLM leaves connectors' words out of streams."""
        place = address(decode, "address", seen_from)
        try:
            async with asyncio.timeout(REPORT_S):
                told = await _report_on(place, request_id)
        except (OSError, TimeoutError, ValueError, msgspec.DecodeError) as error:
            raise EngineError(f"{decode.worker}: {place} did not tell of its transfers: {error!r}") from error
        return report_of({PARAMS: {"homing": told}})


async def _report_on(place: str, request_id: str) -> Mapping[str, Any]:
    """One question and one answer of `workers/vllm/asking.py`."""
    host, _, port = place.rpartition(":")
    reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    try:
        question = msgspec.msgpack.encode({"type": "AskReport", "ticket": request_id})
        writer.write(ASK_MAGIC + _LENGTH.pack(len(question)) + question)
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if length > REPORT_BYTES_MAX:
            raise ValueError(f"an answer of {length} bytes; at most {REPORT_BYTES_MAX} are read")
        answer = msgspec.msgpack.decode(await reader.readexactly(length))
    except asyncio.IncompleteReadError as error:
        raise ValueError("it closed the connection before its answer was whole") from error
    finally:
        writer.close()
    told = answer.get("report") if isinstance(answer, Mapping) else None
    return told if isinstance(told, Mapping) else {}


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

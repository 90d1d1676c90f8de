"""What a request says in `kv_transfer_params["homing"]`, and what its answer says there.

A request:  {"sources": [{"address": "host:port", "block_first": 0, "block_end": 40, "kind": "fetch" | "ship",
                          "timeout_s": 5}],
             "publish": {"lease_s": 60}, "ticket": "..."}       (every key may be left out)
An answer:  see `handle`.

Rule 1: what cannot be read moves nothing, and the request is computed: the sender is told in the answer's `ignored`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .settings import host_and_port

KEY = "homing"
SOURCES_MAX = 16
TICKET_CHARS_MAX = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Who gives a prompt's blocks `first` to `end` (exclusive), and whether it is computing them now ("ship").

    timeout_s: when waiting for them is no longer worth it; the operator's limit holds beside it.
    """

    address: str
    first: int
    end: int
    ships: bool = False
    timeout_s: float = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveParams:
    """A request's wishes. `ignored` says what could not be read."""

    sources: tuple[Source, ...] = ()
    lease_s: float = 0.0
    ticket: str = ""
    ignored: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """One pull of a request, as its answer tells it."""

    address: str
    bytes: int
    blocks: int
    seconds: float
    flowing_s: float
    rtt_s: float
    complete: bool
    reason: str = ""


def read_params(raw: object) -> MoveParams:
    """A request's `kv_transfer_params`; never raises."""
    try:
        own = raw.get(KEY) if isinstance(raw, Mapping) else None
        return MoveParams() if own is None else _read(own)
    except (ValueError, TypeError, OverflowError) as error:
        return MoveParams(ignored=f"kv_transfer_params.{KEY}: {error}"[:500])


def handle(
    *,
    address: str,
    block_tokens: int,
    held_blocks: int,
    loaded_blocks: int,
    computed_from_tokens: int,
    transfers: Sequence[Transfer],
    ignored: str,
) -> dict[str, Any]:
    """What an answer's `kv_transfer_params` tell the router.

    address: where others can ask for these blocks.
    held_blocks: leading blocks of the request that lie in the host store.
    loaded_blocks: blocks that came out of the store or from elsewhere instead of being computed.
    computed_from_tokens: where the computation of the prompt began.
    """
    own: dict[str, Any] = {
        "address": address,
        "block_tokens": block_tokens,
        "held_blocks": held_blocks,
        "loaded_blocks": loaded_blocks,
        "computed_from_tokens": computed_from_tokens,
        "transfers": [described(transfer) for transfer in transfers],
    }
    if ignored:
        own["ignored"] = ignored
    return {KEY: own}


def described(transfer: Transfer) -> dict[str, Any]:
    """A transfer as JSON."""
    return {name: getattr(transfer, name) for name in Transfer.__slots__}


def _read(own: Any) -> MoveParams:
    if not isinstance(own, Mapping):
        raise TypeError(f"must be an object, not {type(own).__name__}")
    raw_sources = own.get("sources") or []
    if not isinstance(raw_sources, list) or len(raw_sources) > SOURCES_MAX:
        raise ValueError(f"sources must be a list of at most {SOURCES_MAX}")
    publish = own.get("publish") or {}
    if not isinstance(publish, Mapping):
        raise TypeError(f"publish must be an object, not {type(publish).__name__}")
    ticket = own.get("ticket") or ""
    if not isinstance(ticket, str) or len(ticket) > TICKET_CHARS_MAX:
        raise ValueError(f"ticket must be a string of at most {TICKET_CHARS_MAX} characters")
    return MoveParams(
        sources=tuple(_source(source) for source in raw_sources),
        lease_s=max(0.0, float(publish.get("lease_s", 0.0))),
        ticket=ticket,
    )


def _source(raw: Any) -> Source:
    if not isinstance(raw, Mapping):
        raise TypeError(f"a source must be an object, not {type(raw).__name__}")
    address, first, end = raw.get("address"), raw.get("block_first"), raw.get("block_end")
    kind = raw.get("kind", "fetch")
    if not isinstance(address, str):
        raise TypeError(f"a source's address must be a string, not {address!r}")
    host_and_port(address)
    if not (isinstance(first, int) and isinstance(end, int)) or not 0 <= first < end:
        raise ValueError(f"source {address}: blocks {first!r} to {end!r} must be whole numbers, 0 <= first < end")
    if kind not in {"fetch", "ship"}:
        raise ValueError(f"source {address}: kind {kind!r} must be 'fetch' or 'ship'")
    timeout_s = float(raw.get("timeout_s", math.inf))
    if not timeout_s > 0:
        raise ValueError(f"source {address}: timeout_s={timeout_s} must be > 0")
    return Source(address=address, first=first, end=end, ships=kind == "ship", timeout_s=timeout_s)

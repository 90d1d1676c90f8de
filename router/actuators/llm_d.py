"""llm-d's routing sidecar before a vLLM server: it moves KV itself when a request's headers say between whom.

Nothing is called from here, and what fails is the sidecar's to make good: it lets its own engine compute.
"""

from urllib.parse import urlsplit

from homing.router.core.types import MoveKind, PlanKind
from homing.router.engines.types import EngineError, Patch

from .types import Order, Peer, Post, Prepared
from .way import Way

PREFILLER = "x-prefiller-host-port"
SOURCE = "x-kv-cache-source-host-port"
DATA_PARALLEL = "x-data-parallel-host-port"


class LlmD(Way):
    """`endpoint` is a worker's host and port as the sidecars know it, where that is not its URL's; `data_parallel` is
    the address of a rank behind its sidecar, for sidecars that tell ranks apart by it.
    """

    name = "llm_d"
    plans = frozenset({PlanKind.LOCAL, PlanKind.FETCH, PlanKind.REMOTE, PlanKind.DIRECT})
    ships_whole = True
    kv_optional = frozenset({"endpoint", "data_parallel"})
    prepares_local = True

    def __init__(self) -> None:
        super().__init__()

    async def _local(self, order: Order) -> Prepared:
        return Prepared(patch=Patch(headers=_rank(order.decode)))

    async def _move(self, order: Order, post: Post) -> Prepared:
        headers = _rank(order.decode)
        if order.plan.kind is PlanKind.REMOTE:
            headers[PREFILLER] = _endpoint(order.prefill, order.decode)
        fetched = [move for move in order.plan.moves if move.kind is not MoveKind.SHIP]
        if fetched:
            longest = max(fetched, key=lambda move: move.block_end - move.block_first)
            headers[SOURCE] = _endpoint(order.peers[longest.source], order.peers[longest.target])
        return Prepared(patch=Patch(headers=headers))


def _rank(peer: Peer) -> dict[str, str]:
    rank = peer.kv.get("data_parallel")
    return {DATA_PARALLEL: rank} if rank else {}


def _endpoint(peer: Peer, seen_from: Peer) -> str:
    """Host and port of a worker as another's sidecar is to call it."""
    named = peer.kv.get(f"endpoint_from:{seen_from.site}") or peer.kv.get("endpoint") or urlsplit(peer.url).netloc
    if not named:
        raise EngineError(f"{peer.worker}: neither kv.endpoint nor its URL {peer.url!r} names a host and port")
    return named

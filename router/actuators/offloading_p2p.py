"""vLLM's OffloadingConnector with a `p2p` tier: hand-over with both workers at once, and fetching between equals.

Its limits are those of a local network, and a plan that is foreseen to break them is not tried:

- A decode worker gives a load up after 30 s (`load_timeout_s`; the engine cannot be told otherwise) and computes the
  prompt itself. For a hand-over that includes the prefill, for a fetch only the transfer.
- A prefill worker keeps what nobody fetched for `unbound_store_timeout_s` (60 s unless configured).
- Control is ZeroMQ with heartbeats of 2 s and an end after 10 s. A cold peer costs 3 round trips, a warm one 2.
- Both engines need the same block size and hash seed, which their handshake checks.

A source is asked for what it has of the whole prompt: the range of the plan's move is what the router believes.
"""

from collections.abc import Mapping
from random import Random
from typing import Any

from homing.router.core.policies.options import NotNegative, Positive
from homing.router.core.types import PlanKind
from homing.router.engines.types import EngineError

from .types import Order, Peer, Post, Prepared
from .vllm import decode_patch, prefill_request, transfer_name
from .way import ConcurrentWay, address, longest_move, number


class OffloadingP2P(ConcurrentWay):
    """`p2p_host` and `p2p_port` are the tier's configured `host` and `port` (5710 unless configured); each
    data-parallel rank listens on the port plus its rank.
    """

    name = "offloading_p2p"
    plans = frozenset({PlanKind.LOCAL, PlanKind.FETCH, PlanKind.REMOTE, PlanKind.DIRECT})
    kv_keys = frozenset({"p2p_host"})
    kv_optional = frozenset({"p2p_port"})

    def __init__(
        self,
        random: Random,
        *,
        timeout_s: Positive = 120.0,
        head_start_s: NotNegative = ConcurrentWay.head_start_default_s,
        load_timeout_s: Positive = 30.0,
    ) -> None:
        super().__init__(timeout_s=timeout_s, head_start_s=head_start_s)
        self._random = random
        self._load_timeout_s = load_timeout_s

    async def _move(self, order: Order, post: Post) -> Prepared:
        self._check_time(order)
        name = transfer_name(order, self._random)
        if order.plan.kind is not PlanKind.REMOTE:
            source = order.peers[longest_move(order, order.decode).source]
            return Prepared(patch=decode_patch(order, {"remote_kv_source": _place(name, source, order.decode)}))
        body, headers = prefill_request(order, {"remote_decoder": {"kv_request_id": name}})
        patch = decode_patch(order, {"remote_prefiller": _place(name, order.prefill, order.decode)})
        return await self._beside(order, post, body, headers, patch)

    def _check_time(self, order: Order) -> None:
        estimate = order.plan.estimate
        waits_s = estimate.fetch_s
        if order.plan.kind is PlanKind.REMOTE:
            waits_s = max(estimate.queue_s, waits_s) + estimate.prefill_s + estimate.ship_s
        if waits_s > self._load_timeout_s:
            raise EngineError(
                f"the KV is foreseen after {waits_s:.1f} s; the decode worker gives up at {self._load_timeout_s:g} s"
            )


def _place(name: str, source: Peer, target: Peer) -> Mapping[str, Any]:
    port = number(source, "p2p_port", target.site, default="5710")
    return {
        "kv_request_id": name,
        "remote_host": address(source, "p2p_host", target.site),
        "remote_port": port + source.rank,
    }

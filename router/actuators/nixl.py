"""vLLM's NixlConnector: the prefill worker computes first, then the decode worker pulls its blocks.

The prefill worker keeps the blocks for `kv_lease_duration` (30 s) unless the decode worker renews the lease, and names
them in its answer, which is relayed untouched. vLLM's `kv_load_failure_policy` is `fail` unless configured: with
`recompute` a decode worker that cannot pull computes the prompt itself.
"""

from homing.router.core.types import PlanKind
from homing.router.engines.types import EngineError

from .types import Order, Post, Prepared
from .vllm import decode_patch, params_of, prefill_request
from .way import Way

ASKED = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}


class Nixl(Way):
    """Sequential hand-over through NIXL; no address is needed, the prefill worker tells its own."""

    name = "nixl"
    plans = frozenset({PlanKind.LOCAL, PlanKind.REMOTE})
    ships_whole = True

    async def _move(self, order: Order, post: Post) -> Prepared:
        answer, seconds = await self._ask_prefill(order, post, *prefill_request(order, ASKED))
        params = params_of(order, answer, "remote_block_ids")
        if not params.get("do_remote_prefill"):
            raise EngineError(f"{order.prefill.worker}: has no blocks to hand over")
        return Prepared(patch=decode_patch(order, params), prefill_s=seconds)

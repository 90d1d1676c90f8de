"""vLLM's MooncakeConnector: both workers start at once, and the prefill worker sends when the decode worker asks.

The engine id of each data-parallel rank is read from the prefill worker's bootstrap server (`GET /query`) and
remembered for `query_ttl_s`, or until the prefill worker fails: one that started anew has new ids. A prefill worker
keeps what nobody asked for `VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT` (480 s); for a decode worker whose load fails see
`nixl`.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from random import Random
from typing import Any

from homing.router.core.policies.options import NotNegative, Positive
from homing.router.core.types import PlanKind, Role
from homing.router.engines.types import EngineError

from .types import Order, Peer, Post, Prepared
from .vllm import decode_patch, prefill_request, transfer_name
from .way import ConcurrentWay, address, elsewhere

REMEMBERED_MAX = 1024


class Mooncake(ConcurrentWay):
    """Concurrent hand-over through Mooncake's transfer engine.

    `bootstrap` is the URL of a prefill worker's bootstrap server, such as `http://10.0.0.1:8998`.
    """

    name = "mooncake"
    plans = frozenset({PlanKind.LOCAL, PlanKind.REMOTE})
    ships_whole = True
    kv_keys = frozenset({"bootstrap"})
    kv_role = Role.PREFILL

    def __init__(
        self,
        random: Random,
        *,
        timeout_s: Positive = 120.0,
        head_start_s: NotNegative = ConcurrentWay.head_start_default_s,
        query_timeout_s: Positive = 2.0,
        query_ttl_s: Positive = 30.0,
    ) -> None:
        super().__init__(timeout_s=timeout_s, head_start_s=head_start_s)
        self._random = random
        self._query_timeout_s = query_timeout_s
        self._query_ttl_s = query_ttl_s
        self._engines: OrderedDict[str, tuple[float, dict[str, str]]] = OrderedDict()

    async def _move(self, order: Order, post: Post) -> Prepared:
        transfer = {"transfer_id": transfer_name(order, self._random)}
        given = {"do_remote_decode": True, "do_remote_prefill": False} | transfer
        body, headers = prefill_request(order, given)
        taken = {"do_remote_prefill": True, "do_remote_decode": False} | transfer
        taken["remote_bootstrap_addr"] = address(order.prefill, "bootstrap", order.decode.site)
        taken["remote_engine_id"] = await self._engine_id(order.prefill, post)
        return await self._beside(order, post, body, headers, decode_patch(order, taken))

    async def _ask_prefill(
        self, order: Order, post: Post, body: Mapping[str, Any], headers: Mapping[str, str]
    ) -> tuple[Mapping[str, Any], float]:
        try:
            return await super()._ask_prefill(order, post, body, headers)
        except EngineError:
            self._engines.pop(address(order.prefill, "bootstrap"), None)
            raise

    async def _engine_id(self, peer: Peer, post: Post) -> str:
        bootstrap, now_s = address(peer, "bootstrap"), asyncio.get_running_loop().time()
        asked_s, engines = self._engines.get(bootstrap, (0.0, {}))
        if not engines or now_s - asked_s > self._query_ttl_s:
            answer = await post.get(elsewhere(peer, bootstrap), "/query", self._query_timeout_s)
            engines = _engines_in(answer)
            self._remember(bootstrap, now_s, engines)
        engine_id = engines.get(str(peer.rank))
        if engine_id is None:
            self._engines.pop(bootstrap, None)
            known = ", ".join(sorted(engines)) or "none"
            raise EngineError(f"{peer.worker}: {bootstrap}/query does not know rank {peer.rank}; it knows {known}")
        return engine_id

    def _remember(self, bootstrap: str, asked_s: float, engines: dict[str, str]) -> None:
        self._engines[bootstrap] = (asked_s, engines)
        self._engines.move_to_end(bootstrap)
        if len(self._engines) > REMEMBERED_MAX:
            self._engines.popitem(last=False)


def _engines_in(answer: Mapping[str, Any]) -> dict[str, str]:
    """Engine ids by rank out of `{rank: {engine_id, worker_addr}}`; what has another shape is left out."""
    entries = ((rank, entry.get("engine_id")) for rank, entry in answer.items() if isinstance(entry, Mapping))
    return {rank: engine_id for rank, engine_id in entries if isinstance(engine_id, str)}

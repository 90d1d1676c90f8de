"""SGLang's disaggregation: both workers get the same request and meet in a room of a bootstrap server.

That server is the prefill worker's. The two bodies differ in the rank that each is sent to, and in `stream`, since
nobody reads what the prefill worker says. A decode worker does not compute a prompt: when the prefill worker fails it
answers with an error, and the request has to be sent to a worker that is not in decode mode.
"""

from random import Random
from typing import Any

from homing.router.core.policies.options import NotNegative, Positive
from homing.router.core.types import PlanKind, Role
from homing.router.engines.types import Patch

from .prefill import check_handover, prompts_of
from .types import Order, Peer, Post, Prepared
from .way import ConcurrentWay, address, number, passed_headers

ROOMS = 2**63


class SGLang(ConcurrentWay):
    """`bootstrap_host` and `bootstrap_port` (8998 unless configured) are the prefill worker's; `dp_size` is how many
    data-parallel ranks it has, where it has several.
    """

    name = "sglang"
    plans = frozenset({PlanKind.LOCAL, PlanKind.REMOTE})
    kv_keys = frozenset({"bootstrap_host"})
    kv_role = Role.PREFILL
    kv_optional = frozenset({"bootstrap_port", "dp_size"})

    def __init__(
        self,
        random: Random,
        *,
        timeout_s: Positive = 120.0,
        head_start_s: NotNegative = ConcurrentWay.head_start_default_s,
    ) -> None:
        super().__init__(timeout_s=timeout_s, head_start_s=head_start_s)
        self._random = random

    async def _move(self, order: Order, post: Post) -> Prepared:
        check_handover(order, batches=True)
        meeting = self._meeting(order)
        shared = {key: value for key, value in order.body.items() if key != "stream_options"}
        body = shared | {"stream": False} | meeting | _rank(order.prefill)
        patch = meeting | _rank(order.decode)
        if _ranks(order.prefill) > 1:
            patch["disagg_prefill_dp_rank"] = order.prefill.rank
        headers = passed_headers(order)
        return await self._beside(
            order, post, body, headers, Patch(body=patch, headers={"x-request-id": order.request_id})
        )

    def _meeting(self, order: Order) -> dict[str, Any]:
        """Where the two meet; a batch has a room for each prompt."""
        host = address(order.prefill, "bootstrap_host", order.decode.site)
        port = number(order.prefill, "bootstrap_port", order.decode.site, default="8998")
        if not isinstance(order.body.get("prompt"), list) or _is_ids(order.body["prompt"]):
            return {"bootstrap_host": host, "bootstrap_port": port, "bootstrap_room": self._room(order.prefill)}
        count = prompts_of(order.body)
        rooms = [self._room(order.prefill) for _ in range(count)]
        return {"bootstrap_host": [host] * count, "bootstrap_port": [port] * count, "bootstrap_room": rooms}

    def _room(self, prefill: Peer) -> int:
        """A room of 63 random bits. Engines that choose the rank by `room % dp_size` are led to the right one."""
        ranks = _ranks(prefill)
        return self._random.randrange(ROOMS // ranks) * ranks + prefill.rank % ranks


def _is_ids(prompt: list[Any]) -> bool:
    return bool(prompt) and isinstance(prompt[0], int)


def _ranks(peer: Peer) -> int:
    return max(1, number(peer, "dp_size", default="1"))


def _rank(peer: Peer) -> dict[str, Any]:
    return {"routed_dp_rank": peer.rank} if _ranks(peer) > 1 else {}

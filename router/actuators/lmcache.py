"""LMCache, in two ways: a coordinator has a server prefetch into its first level, or a worker hands its KV to another.

Prefetching needs the prompt's token ids. It loads whole chunks (256 tokens unless configured) from wherever the
server's second level has them, its peers among it, which need not be the source that the plan names.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from random import Random
from typing import Any
from urllib.parse import quote

from homing.router.core.policies.options import Positive
from homing.router.core.types import PlanKind, Role
from homing.router.engines.types import EngineError

from .types import Order, Peer, Post, Prepared
from .vllm import decode_patch, params_of, prefill_request, transfer_name
from .way import Way, address, elsewhere, longest_move, number


class LmCache(Way):
    """Prefetching through the coordinator.

    `coordinator` is its URL, `instance` the name of the server before which the worker stands; `model` is the model's
    name there where the request calls it otherwise, `world_size` how many workers share a prompt (1).
    """

    name = "lmcache"
    plans = frozenset({PlanKind.LOCAL, PlanKind.FETCH, PlanKind.DIRECT})
    kv_keys = frozenset({"coordinator", "instance"})
    kv_role = Role.DECODE
    kv_optional = frozenset({"model", "world_size"})

    def __init__(self, *, timeout_s: Positive = 10.0, call_timeout_s: Positive = 2.0, poll_s: Positive = 0.02) -> None:
        super().__init__(timeout_s=timeout_s)
        self._call_timeout_s = call_timeout_s
        self._poll_s = poll_s

    async def _move(self, order: Order, post: Post) -> Prepared:
        body = _prefetch(order)
        coordinator = elsewhere(order.decode, address(order.decode, "coordinator"))
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await post(coordinator, "/cache/prefetches", body, {}, self._call_timeout_s)
                await self._wait(coordinator, str(body["instance_id"]), answer, post)
        except TimeoutError:
            raise EngineError(f"{order.decode.worker}: the prefetch took more than {self._timeout_s:g} s") from None
        return Prepared()

    async def _wait(self, coordinator: Peer, instance: str, answer: Mapping[str, Any], post: Post) -> None:
        job = answer.get("request_id")
        if not isinstance(job, str) or not job:
            raise EngineError(f"{coordinator.worker}: nothing to prefetch ({answer.get('status', 'no request_id')})")
        path = f"/cache/prefetches/{quote(instance, safe='')}/{quote(job, safe='')}"
        while True:
            status = await post.get(coordinator, path, self._call_timeout_s)
            if status.get("status") == "completed":
                break
            if status.get("status") != "pending":
                raise EngineError(
                    f"{coordinator.worker}: the prefetch is {status.get('status', 'in no known state')!r}"
                )
            await asyncio.sleep(self._poll_s)
        if status.get("found_keys") == 0:
            raise EngineError(f"{coordinator.worker}: the prefetch found none of {status.get('total_keys')} keys")


def _prefetch(order: Order) -> dict[str, Any]:
    tokens = order.tokens[: longest_move(order, order.decode).block_end * order.block_tokens]
    if not tokens:
        raise EngineError("the prompt's token ids are not known, and a prefetch is asked for by them")
    model = order.decode.kv.get("model") or order.body.get("model")
    if not isinstance(model, str):
        raise EngineError(f"{order.decode.worker}: neither kv.model nor the request names the model")
    return {
        "instance_id": address(order.decode, "instance"),
        "model_name": model,
        "world_size": number(order.decode, "world_size", default="1"),
        "token_ids": list(tokens),
        "cache_salt": order.body.get("cache_salt") or "",
    }


class LmCacheHandover(Way):
    """The prefill worker pushes its KV into the decode worker's buffer, and answers when it is there.

    `receiver_host` and the ports, one for each tensor-parallel rank with commas between, are the decode worker's
    `pd_peer_*` settings. The first token is computed again from the KV. With the asynchronous backend, which answers
    before the KV has landed, the decode worker may come too early and compute the prompt.
    """

    name = "lmcache_pd"
    plans = frozenset({PlanKind.LOCAL, PlanKind.REMOTE})
    kv_keys = frozenset({"receiver_host", "receiver_init_port", "receiver_alloc_port"})
    kv_role = Role.DECODE
    kv_optional = frozenset({"receiver_query_port"})

    def __init__(self, random: Random, *, timeout_s: Positive = 120.0) -> None:
        super().__init__(timeout_s=timeout_s)
        self._random = random

    async def _move(self, order: Order, post: Post) -> Prepared:
        site, decode = order.prefill.site, order.decode
        spec: dict[str, Any] = {
            "req_id": transfer_name(order, self._random),
            "receiver_host": address(decode, "receiver_host", site),
            "receiver_init_port": _ports(decode, "receiver_init_port", site),
            "receiver_alloc_port": _ports(decode, "receiver_alloc_port", site),
        }
        if "receiver_query_port" in decode.kv:
            spec["receiver_query_port"] = _ports(decode, "receiver_query_port", site)
        request = prefill_request(order, {"ret_first_tok": True, "disagg_spec": spec})
        answer, seconds = await self._ask_prefill(order, post, *request)
        params_of(order, answer, "first_tok")
        return Prepared(patch=replace(decode_patch(order, {}), body={}), prefill_s=seconds)


def _ports(peer: Peer, key: str, site: str) -> list[int]:
    text = address(peer, key, site)
    try:
        return [int(port) for port in text.split(",")]
    except ValueError:
        raise EngineError(f"{peer.worker}: kv.{key} must be ports with commas between, got {text!r}") from None

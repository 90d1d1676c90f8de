"""TensorRT-LLM's disaggregated serving: the context server computes first, the generation server takes over.

What the context server says (`disaggregated_params` with its opaque state, which newer versions sign) goes on
untouched but for the request type. Servers refuse keys that they do not know, and `max_completion_tokens` beside
`max_tokens`.
"""

from collections.abc import Mapping
from random import Random
from typing import Any

from homing.router.core.policies.options import Positive
from homing.router.core.types import PlanKind
from homing.router.engines.types import EngineError, Patch

from .prefill import check_handover, is_chat, prefill_body
from .types import Order, Post, Prepared
from .way import Way, passed_headers

PARAMS = "disaggregated_params"
FIRST_GLOBAL_ID = 1 << 42
"""Smaller request ids are the context server's own."""
UNFINISHED = frozenset({"length", "not_finished"})


class TensorRtLlm(Way):
    """Sequential hand-over; no address is needed, the context server tells its own."""

    name = "trtllm"
    plans = frozenset({PlanKind.LOCAL, PlanKind.REMOTE})
    ships_whole = True

    def __init__(self, random: Random, *, timeout_s: Positive = 120.0) -> None:
        super().__init__(timeout_s=timeout_s)
        self._random = random

    async def _move(self, order: Order, post: Post) -> Prepared:
        check_handover(order)
        request_id = self._random.randrange(FIRST_GLOBAL_ID, 1 << 63)
        body = prefill_body(order.body, order.path)
        body.pop("max_completion_tokens", None)
        body[PARAMS] = {"request_type": "context_only", "disagg_request_id": request_id}
        answer, seconds = await self._ask_prefill(order, post, body, passed_headers(order))
        params = _handed_over(order, answer) | {"request_type": "generation_only"}
        if params.get("disagg_request_id") is None:
            params["disagg_request_id"] = request_id
        patch = {PARAMS: params} | _prompt(order, answer)
        return Prepared(patch=Patch(body=patch, headers={"x-request-id": order.request_id}), prefill_s=seconds)


def _handed_over(order: Order, answer: Mapping[str, Any]) -> dict[str, Any]:
    choices = answer.get("choices")
    choice = choices[0] if isinstance(choices, list) and len(choices) == 1 else None
    params = choice.get(PARAMS) if isinstance(choice, Mapping) else None
    if not isinstance(choice, Mapping) or not isinstance(params, Mapping):
        raise EngineError(f"{order.prefill.worker}: answered without {PARAMS}; is it a context server?")
    if choice.get("finish_reason") not in UNFINISHED:
        raise EngineError(f"{order.prefill.worker}: the answer ended with its first token, so nothing is handed over")
    return dict(params)


def _prompt(order: Order, answer: Mapping[str, Any]) -> dict[str, Any]:
    """The prompt's ids as the context server read them: the generation server must not read otherwise."""
    if is_chat(order.path):
        names = ("prompt_token_ids", "prompt_token_ids_b64")
        return {name: answer[name] for name in names if answer.get(name) is not None}
    ids = answer.get("prompt_token_ids")
    return {"prompt": ids} if isinstance(ids, list) else {}

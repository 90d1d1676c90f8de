"""What the ways of vLLM's connectors share: where their parameters are in a request and in an answer."""

from collections.abc import Mapping
from random import Random
from typing import Any

from homing.router.engines.types import EngineError, Patch

from .prefill import check_handover, prefill_body
from .types import Order
from .way import passed_headers

PARAMS = "kv_transfer_params"


def prefill_request(order: Order, params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Body and headers of the call to the prefill worker; raises EngineError for what cannot be handed over.

    The rank is always named: an engine of one rank takes 0.
    """
    check_handover(order)
    headers = passed_headers(order) | {"x-data-parallel-rank": str(order.prefill.rank)}
    return prefill_body(order.body, order.path) | {PARAMS: dict(params)}, headers


def decode_patch(order: Order, params: Mapping[str, Any]) -> Patch:
    """What makes the decode worker take the KV: the connector's parameters, under the same request id."""
    return Patch(body={PARAMS: dict(params)}, headers={"x-request-id": order.request_id})


def params_of(order: Order, answer: Mapping[str, Any], needed: str) -> dict[str, Any]:
    """The parameters that the prefill worker answered; raises EngineError if `needed` is not among them."""
    params = answer.get(PARAMS)
    if not isinstance(params, Mapping) or params.get(needed) is None:
        raise EngineError(
            f"{order.prefill.worker}: answered without {PARAMS}.{needed}; is its KV connector configured?"
        )
    return dict(params)


def transfer_name(order: Order, random: Random) -> str:
    """A name that no other attempt of the same request has."""
    return f"{order.request_id}-{random.getrandbits(64):016x}"

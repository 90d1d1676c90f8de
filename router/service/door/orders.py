"""A plan's moves, ordered of whoever moves KV; without them the request goes on and is computed where it lands."""

import logging

from homing.router.actuators.types import Actuator, Order, Post, Prepared
from homing.router.core.blocks import unpack_tokens
from homing.router.core.types import Decision, ModelProfile
from homing.router.tokens.types import PromptTokens

from ..backends.endpoint import Endpoints
from .calls import Call

log = logging.getLogger(__name__)


async def prepare(
    actuator: Actuator,
    post: Post,
    call: Call,
    decision: Decision,
    profile: ModelProfile,
    endpoints: Endpoints,
    prompt: PromptTokens | None,
) -> Prepared:
    """Have a decision's KV moved, as far as that comes before the decode worker is asked."""
    plan = decision.plan
    order = Order(
        request_id=call.id,
        path=call.path,
        body=call.body,
        headers=call.passed_headers(),
        plan=plan,
        peers=endpoints.peers(),
        block_tokens=profile.block_tokens,
        tokens=unpack_tokens(prompt.packed) if prompt is not None else (),
    )
    prepared = await actuator.prepare(order, post)
    if prepared.failed:
        log.warning("request %s: KV is not moved: %s; %s computes", call.id, prepared.failed, plan.decode)
    return prepared

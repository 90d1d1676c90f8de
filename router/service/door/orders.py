"""A plan's moves, ordered of whoever moves KV; without them the request goes on and is computed where it lands."""

import logging
from collections.abc import Mapping

from homing.router.actuators.homing import report_of
from homing.router.actuators.types import Actuator, Order, Peer, Post, Prepared, TransferReport
from homing.router.actuators.way import address
from homing.router.core.blocks import unpack_tokens
from homing.router.core.events import TransferFinished
from homing.router.core.types import Decision, ModelProfile, WorkerId
from homing.router.engines.types import EngineError
from homing.router.engines.usage import Usage
from homing.router.tokens.types import PromptTokens

from ..backends.endpoint import Endpoints
from .calls import Call

log = logging.getLogger(__name__)


async def transfers_told(
    actuator: Actuator, call: Call, decision: Decision, peers: Mapping[WorkerId, Peer], usage: Usage | None, home: str
) -> list[TransferFinished]:
    """How a plan's transfers went, as the worker that received them tells, in its answer or when it is asked."""
    plan = decision.plan
    target = peers.get(plan.decode)
    if target is None:
        return []
    if usage is not None and usage.handle is not None:
        reports = report_of({"kv_transfer_params": usage.handle})
    else:
        try:
            reports = await actuator.transfers(target, call.engine_id, home)
        except EngineError as error:
            log.info("request %s: %s", call.id, error)
            return []
    return _finished(decision, peers, target, reports)


def _finished(
    decision: Decision, peers: Mapping[WorkerId, Peer], target: Peer, reports: list[TransferReport]
) -> list[TransferFinished]:
    plan = decision.plan
    sources = {}
    for move in plan.moves:
        if move.target == plan.decode and move.source in peers:
            try:
                sources[address(peers[move.source], "address", target.site)] = move.source
            except EngineError:
                continue
    return [
        TransferFinished(
            request_id=decision.request.id,
            source=sources[report.address],
            target=plan.decode,
            bytes=report.bytes,
            seconds=report.flowing_s or None,
            complete=report.complete,
        )
        for report in reports
        if report.address in sources
    ]


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
        request_id=call.engine_id,
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

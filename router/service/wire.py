"""Between protobuf and the core's types: the only file of the router that imports generated code."""

from collections.abc import Iterable, Mapping
from math import isfinite

import grpc

from homing.protos import common_pb2, fleet_pb2, router_pb2, worker_pb2
from homing.protos.fleet_pb2_grpc import (
    FleetServicer,
    KvEventsServicer,
    add_FleetServicer_to_server,
    add_KvEventsServicer_to_server,
)
from homing.protos.router_pb2_grpc import RouterServicer, RouterStub, add_RouterServicer_to_server
from homing.protos.worker_pb2_grpc import WorkerStub
from homing.router.core.blocks import TOKEN_BYTES, pack_tokens
from homing.router.core.errors import RequestError
from homing.router.core.events import (
    BlocksRemoved,
    BlocksStored,
    CacheCleared,
    Event,
    PrefillMeasured,
    TransferFinished,
)
from homing.router.core.types import (
    BlockKey,
    Decision,
    Estimate,
    LoadReport,
    ModelName,
    ModelProfile,
    Move,
    MoveKind,
    Plan,
    PlanKind,
    PrefillPrior,
    RejectReason,
    RequestId,
    Role,
    Site,
    Tier,
    Worker,
    WorkerId,
)

__all__ = [
    "FleetServicer",
    "KvEventsServicer",
    "RouterServicer",
    "RouterStub",
    "WorkerStub",
    "add_FleetServicer_to_server",
    "add_KvEventsServicer_to_server",
    "add_RouterServicer_to_server",
    "common_pb2",
    "fleet_pb2",
    "router_pb2",
    "worker_pb2",
]

SERVICES = tuple(
    service.full_name
    for file in (router_pb2.DESCRIPTOR, fleet_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
)

STATUS: dict[RejectReason, grpc.StatusCode] = {
    RejectReason.UNKNOWN_MODEL: grpc.StatusCode.NOT_FOUND,
    RejectReason.DUPLICATE_REQUEST: grpc.StatusCode.ALREADY_EXISTS,
    RejectReason.PROMPT_TOO_LONG: grpc.StatusCode.INVALID_ARGUMENT,
    RejectReason.NO_WORKER: grpc.StatusCode.UNAVAILABLE,
    RejectReason.QUEUE_FULL: grpc.StatusCode.RESOURCE_EXHAUSTED,
    RejectReason.DEADLINE_PASSED: grpc.StatusCode.DEADLINE_EXCEEDED,
    RejectReason.TOO_LATE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    RejectReason.RETRIES_SPENT: grpc.StatusCode.UNAVAILABLE,
}

_PLAN_KINDS = {
    PlanKind.LOCAL: common_pb2.PLAN_KIND_LOCAL,
    PlanKind.FETCH: common_pb2.PLAN_KIND_FETCH,
    PlanKind.SPLIT: common_pb2.PLAN_KIND_SPLIT,
    PlanKind.REMOTE: common_pb2.PLAN_KIND_REMOTE,
    PlanKind.DIRECT: common_pb2.PLAN_KIND_DIRECT,
}
_MOVE_KINDS = {
    MoveKind.FETCH: common_pb2.MOVE_KIND_FETCH,
    MoveKind.MEET: common_pb2.MOVE_KIND_MEET,
    MoveKind.SHIP: common_pb2.MOVE_KIND_SHIP,
}
PLAN_KIND_NAMES = {number: kind.value for kind, number in _PLAN_KINDS.items()}
MOVE_KIND_NAMES = {number: kind.value for kind, number in _MOVE_KINDS.items()}


# -- requests --------------------------------------------------------------------------------------------------------


def packed_tokens(prompt: common_pb2.Prompt) -> bytes | None:
    """The prompt's token ids as they were sent; None for a prompt that came in another form."""
    match prompt.WhichOneof("form"):
        case "tokens_le32":
            if len(prompt.tokens_le32) % TOKEN_BYTES:
                size = len(prompt.tokens_le32)
                raise RequestError("prompt.tokens_le32", f"expected four bytes per token, got {size} bytes")
            return prompt.tokens_le32
        case "token_list":
            return pack_tokens(prompt.token_list.tokens)
        case _:
            return None


def ready_keys(prompt: common_pb2.Prompt) -> tuple[tuple[BlockKey, ...], int]:
    """The block keys of a prompt that came as keys, and its length in tokens."""
    keys = tuple(BlockKey(key) for key in prompt.block_keys.keys)
    return keys, prompt.block_keys.prompt_tokens


def chat_messages(chat: common_pb2.Chat) -> list[dict[str, str]]:
    """The messages of a conversation as a chat template wants them."""
    return [{"role": message.role, "content": message.content} for message in chat.messages]


# -- decisions -------------------------------------------------------------------------------------------------------


def decision_message(
    decision: Decision, addresses: Mapping[WorkerId, str], decided_in_s: float = 0.0
) -> common_pb2.Decision:
    """A decision as it is told to clients."""
    return common_pb2.Decision(
        request_id=decision.request.id,
        plan=plan_message(decision.plan),
        runners_up=[plan_message(plan) for plan in decision.runners_up],
        policy=decision.policy,
        attempt=decision.attempt,
        plans_priced=decision.plans_priced,
        decided_in_s=decided_in_s,
        addresses={str(worker): address for worker, address in addresses.items()},
    )


def plan_message(plan: Plan) -> common_pb2.Plan:
    """A plan as a message."""
    return common_pb2.Plan(
        kind=_PLAN_KINDS[plan.kind],
        prefill=plan.prefill,
        decode=plan.decode,
        moves=[move_message(move) for move in plan.moves],
        estimate=_estimate_message(plan.estimate),
    )


def move_message(move: Move) -> common_pb2.Move:
    """A move as a message."""
    return common_pb2.Move(
        kind=_MOVE_KINDS[move.kind],
        source=move.source,
        target=move.target,
        block_first=move.block_first,
        block_end=move.block_end,
        bytes=move.bytes,
    )


def _estimate_message(estimate: Estimate) -> common_pb2.Estimate:
    return common_pb2.Estimate(
        network_s=estimate.network_s,
        queue_s=estimate.queue_s,
        fetch_s=estimate.fetch_s,
        prefill_s=estimate.prefill_s,
        ship_s=estimate.ship_s,
        toll_s=estimate.toll_s,
        ttft_s=estimate.ttft_s,
        score_s=estimate.score_s,
        hit_tokens=estimate.hit_tokens,
        computed_tokens=estimate.computed_tokens,
        moved_bytes=estimate.moved_bytes,
    )


def refusal_message(code: grpc.StatusCode, message: str, retry_after_s: float | None = None) -> router_pb2.Refusal:
    """A refusal inside a stream or a reply."""
    return router_pb2.Refusal(code=code.value[0], message=message, retry_after_s=retry_after_s or 0.0)


# -- workers ---------------------------------------------------------------------------------------------------------


def worker_of(hello: fleet_pb2.Hello) -> Worker:
    """Who joined; raises RequestError for what cannot be."""
    for field in ("worker_id", "model", "site", "address", "kv_format"):
        if not getattr(hello, field):
            raise RequestError(f"hello.{field}", "missing")
    for field in ("block_tokens", "kv_blocks_max", "requests_max", "kv_bytes_per_token", "layers", "context_tokens"):
        if getattr(hello, field) < 1:
            raise RequestError(f"hello.{field}", f"expected at least 1, got {getattr(hello, field)}")
    try:
        role = Role(hello.role)
    except ValueError:
        raise RequestError("hello.role", f"expected prefill, decode or both, got {hello.role!r}") from None
    return Worker(
        id=WorkerId(hello.worker_id),
        model=ModelName(hello.model),
        role=role,
        site=Site(hello.site),
        block_tokens=hello.block_tokens,
        kv_blocks_max=hello.kv_blocks_max,
        requests_max=hello.requests_max,
        prior=_prior_of(hello),
    )


def _prior_of(hello: fleet_pb2.Hello) -> PrefillPrior:
    given = (hello.prefill_a_s, hello.prefill_b_s, hello.prefill_q_s)
    if not any(given):
        return PrefillPrior()
    if not all(map(isfinite, given)) or min(given) < 0 or hello.prefill_b_s == 0:
        raise RequestError(
            "hello.prefill_b_s", f"expected a positive slope and no negative or infinite coefficient, got {given}"
        )
    return PrefillPrior(a_s=given[0], b_s=given[1], q_s=given[2])


def profile_of(hello: fleet_pb2.Hello) -> ModelProfile:
    """The model as its first worker describes it."""
    return ModelProfile(
        name=ModelName(hello.model),
        block_tokens=hello.block_tokens,
        bytes_per_token=hello.kv_bytes_per_token,
        layers=hello.layers,
        context_tokens=hello.context_tokens,
        vocabulary_tokens=hello.vocabulary_tokens or None,
    )


def load_of(worker: WorkerId, load: fleet_pb2.LoadReport, now: float) -> LoadReport:
    """A load report, stamped with the router's clock."""
    return LoadReport(
        worker=worker,
        sequence=load.sequence,
        measured_s=now,
        queued_prefill_tokens=load.queued_prefill_tokens,
        running_requests=load.running_requests,
        kv_blocks_used=load.kv_blocks_used,
    )


def cache_events(worker: WorkerId, events: Iterable[fleet_pb2.KvEvent]) -> list[Event]:
    """Changes of a worker's cache; raises RequestError for an event that says nothing."""
    found: list[Event] = []
    for position, event in enumerate(events):
        try:
            tier = Tier(event.tier or Tier.DEVICE)
        except ValueError:
            raise RequestError(f"events[{position}].tier", f"unknown tier {event.tier!r}") from None
        match event.WhichOneof("what"):
            case "stored":
                keys = tuple(BlockKey(key) for key in event.stored.keys)
                parent = BlockKey(event.stored.parent) if event.stored.HasField("parent") else None
                found.append(BlocksStored(worker_id=worker, keys=keys, parent=parent, tier=tier))
            case "removed":
                keys = tuple(BlockKey(key) for key in event.removed.keys)
                found.append(BlocksRemoved(worker_id=worker, keys=keys, tier=tier))
            case "cleared":
                found.append(CacheCleared(worker_id=worker))
            case _:
                raise RequestError(f"events[{position}]", "neither stored, removed nor cleared")
    return found


def outcome_events(
    request: RequestId,
    transfers: Iterable[common_pb2.TransferOutcome],
    prefills: Iterable[common_pb2.PrefillOutcome],
) -> list[Event]:
    """What workers measured while they prepared an answer, for the core to learn from."""
    events: list[Event] = [
        TransferFinished(
            request_id=request,
            source=WorkerId(done.source),
            target=WorkerId(done.target),
            bytes=done.bytes,
            seconds=done.flowing_s or None,
            complete=done.complete,
            rtt_s=done.rtt_s or None,
        )
        for done in transfers
    ]
    events += [_prefill_measured(WorkerId(part.worker), part) for part in prefills]
    return events


def measured_of(hello: fleet_pb2.Hello) -> list[Event]:
    """What a worker measured of itself when it started."""
    return [_prefill_measured(WorkerId(hello.worker_id), part) for part in hello.measured]


def _prefill_measured(worker: WorkerId, part: common_pb2.PrefillOutcome) -> PrefillMeasured:
    return PrefillMeasured(
        worker_id=worker,
        cached_tokens=part.computed_from_tokens,
        end_tokens=part.computed_to_tokens,
        seconds=part.compute_s,
    )

"""Between protobuf and the worker's own types, and what a bad request is told."""

from collections.abc import Iterable

from homing.protos import common_pb2, fleet_pb2, worker_pb2
from homing.router.core.blocks import TOKEN_BYTES, unpack_tokens

from .engine.kvcache import KvEvent, Stored
from .engine.tokens import TokenSequence
from .job import Job, Source, Transferred
from .model.config import LlamaConfig
from .model.sampling import Sampling

_KINDS = {
    common_pb2.MOVE_KIND_FETCH: "fetch",
    common_pb2.MOVE_KIND_MEET: "meet",
    common_pb2.MOVE_KIND_SHIP: "ship",
}
_KINDS_BACK = {name: kind for kind, name in _KINDS.items()}


LEASE_MAX_S = 3600.0
"""Blocks that nobody fetches are kept no longer, whatever is asked: they are missing in the cache meanwhile."""


class BadRequestError(ValueError):
    """A request breaks a rule; the message names the field, the rule and what was given."""


def prompt_of(packed: bytes, config: LlamaConfig, output_tokens: int) -> tuple[int, ...]:
    """The prompt's token ids, checked against the model's vocabulary and context."""
    if not packed or len(packed) % TOKEN_BYTES:
        raise BadRequestError(f"tokens_le32: expected one or more 4-byte token ids, got {len(packed)} bytes")
    tokens = unpack_tokens(packed)
    largest = max(tokens)
    if largest >= config.vocab_tokens:
        raise BadRequestError(f"tokens_le32: token id {largest} is outside the vocabulary of {config.vocab_tokens}")
    if len(tokens) + output_tokens > config.context_tokens:
        raise BadRequestError(
            f"tokens_le32: {len(tokens)} prompt tokens and {output_tokens} to generate exceed the context of "
            f"{config.context_tokens}"
        )
    return tokens


def source_of(sources: Iterable[worker_pb2.BlockSource]) -> Source | None:
    """Where blocks come from; a worker gets them from at most one place per request."""
    found = list(sources)
    if not found:
        return None
    if len(found) > 1:
        raise BadRequestError(f"sources: expected at most one, got {len(found)}")
    move = found[0].move
    if move.kind not in _KINDS:
        raise BadRequestError(f"sources[0].move.kind: {move.kind} is no kind of move")
    if not found[0].address:
        raise BadRequestError("sources[0].address: missing")
    if move.block_first >= move.block_end:
        raise BadRequestError(f"sources[0].move: blocks [{move.block_first}, {move.block_end}) are none")
    return Source(
        worker_id=move.source,
        address=found[0].address,
        kind=_KINDS[move.kind],
        first=move.block_first,
        end=move.block_end,
    )


def decode_job(request: worker_pb2.DecodeRequest, config: LlamaConfig, block_tokens: int, now: float) -> Job:
    """A job that generates; raises BadRequestError."""
    if not request.request_id:
        raise BadRequestError("request_id: missing")
    if request.max_output_tokens < 1:
        raise BadRequestError("max_output_tokens: expected at least 1, got 0")
    sequence = TokenSequence(
        request.request_id,
        prompt_of(request.tokens_le32, config, request.max_output_tokens),
        block_tokens=block_tokens,
        key_seed=request.key_seed,
        max_output_tokens=request.max_output_tokens,
        eos_ids=frozenset() if request.ignore_eos else frozenset(config.eos_ids),
    )
    source = source_of(request.sources)
    return Job(sequence=sequence, sampling=sampling_of(request.sampling), source=source, submitted_s=now)


def prefill_job(request: worker_pb2.PrefillRequest, config: LlamaConfig, block_tokens: int, now: float) -> Job:
    """A job that computes full blocks and keeps some for a handover; raises BadRequestError."""
    if not request.request_id:
        raise BadRequestError("request_id: missing")
    sequence = TokenSequence(
        request.request_id,
        prompt_of(request.tokens_le32, config, 0),
        block_tokens=block_tokens,
        key_seed=request.key_seed,
        max_output_tokens=0,
    )
    first, end = request.handover_first_block, request.handover_end_block
    if not 0 <= first < end <= sequence.reusable_blocks:
        raise BadRequestError(
            f"handover_end_block: blocks [{first}, {end}) are not within the {sequence.reusable_blocks} full blocks "
            "of the prompt before its last token"
        )
    if not 0 <= request.handover_lease_s <= LEASE_MAX_S:
        raise BadRequestError(
            f"handover_lease_s: expected seconds, at least 0, got {request.handover_lease_s}; at most {LEASE_MAX_S:g}"
        )
    return Job(
        sequence=sequence,
        sampling=Sampling(),
        source=source_of(request.sources),
        submitted_s=now,
        handover_blocks=range(first, end),
        handover_lease_s=request.handover_lease_s or Job.HANDOVER_LEASE_S,
    )


def sampling_of(message: common_pb2.Sampling) -> Sampling:
    """How tokens are chosen; raises BadRequestError for what cannot be."""
    try:
        return Sampling(
            temperature=message.temperature,
            seed=message.seed,
            top_p=message.top_p or 1.0,
            top_k=message.top_k,
        )
    except ValueError as error:
        raise BadRequestError(f"sampling: {error}") from error


def prefill_outcomes(job: Job, worker_id: str) -> list[common_pb2.PrefillOutcome]:
    """What computing the prompt took."""
    return [
        common_pb2.PrefillOutcome(
            worker=worker_id,
            computed_from_tokens=part.start,
            computed_to_tokens=part.end,
            compute_s=part.seconds,
        )
        for part in job.computed
    ]


def transfer_outcomes(job: Job, worker_id: str) -> list[common_pb2.TransferOutcome]:
    """What the arrivals of a job were."""
    return [_transfer_outcome(done, worker_id) for done in job.transferred]


def _transfer_outcome(done: Transferred, worker_id: str) -> common_pb2.TransferOutcome:
    return common_pb2.TransferOutcome(
        source=done.source.worker_id,
        target=worker_id,
        kind=_KINDS_BACK[done.source.kind],
        bytes=done.bytes,
        lasted_s=done.lasted_s,
        flowing_s=done.flowing_s,
        rtt_s=done.rtt_s,
        blocks_arrived=done.blocks,
        complete=done.complete,
        reason=done.reason,
    )


def kv_events(events: Iterable[KvEvent]) -> list[fleet_pb2.KvEvent]:
    """Changes of a cache as messages; neighbours in one chain share a message."""
    messages: list[fleet_pb2.KvEvent] = []
    for event in events:
        last = messages[-1] if messages else None
        if not isinstance(event, Stored):
            if last is not None and last.HasField("removed"):
                last.removed.keys.append(event.key)
            else:
                messages.append(fleet_pb2.KvEvent(removed=fleet_pb2.Removed(keys=[event.key])))
        elif last is not None and last.HasField("stored") and last.stored.keys[-1] == event.parent:
            last.stored.keys.append(event.key)
        else:
            stored = fleet_pb2.Stored(keys=[event.key])
            if event.parent is not None:
                stored.parent = event.parent
            messages.append(fleet_pb2.KvEvent(stored=stored))
    return messages

"""Reader of traces in Mooncake's format (kvcache-ai/Mooncake, FAST25-release): one JSON object per line, also ".gz".

`timestamp` in ms, `input_length`, `output_length` in tokens, `hash_ids` of prefix-chained blocks of 512 tokens: equal
id, equal prefix. The last id may stand for a block that is not full. Fields beyond these are optional: `session_id`,
`block_size` in tokens, and what `write.py` adds so that nothing is lost: `id`, `origin`, `tenant`, `priority`,
`answer_hash_ids`. Others are ignored.

Rule 1: only full blocks get keys. Of a trace block that is cut into smaller ones, those that the prompt fills do; two
prompts that part within a trace block share none of its pieces, so reuse is a lower bound.
Rule 2: `hash_ids` names all full blocks, with or without the last incomplete one, or is absent.
Rule 3: lines are in the order of time.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from homing.router.core.types import BlockKey

from .arrival import Arrival
from .keys import KEPT_MAX, KeyTable
from .tracefile import ReadCounts, TraceFile, pieces_of

TRACE_BLOCK_TOKENS = 512
_Count = Annotated[int, Meta(ge=1, le=1 << 40)]


class Record(msgspec.Struct, frozen=True, gc=False):
    """One line of a trace, checked; `timestamp` is in milliseconds."""

    timestamp: Annotated[float, Meta(ge=0, le=1e15)]
    input_length: _Count
    output_length: _Count
    hash_ids: tuple[int, ...] = ()
    answer_hash_ids: tuple[int, ...] = ()
    block_size: _Count | None = None
    id: str | int | None = None
    session_id: str | int | None = None
    origin: str | None = None
    tenant: str = ""
    priority: int = 0

    @property
    def at_s(self) -> float:
        """When it arrived."""
        return self.timestamp / 1000.0


def read_records(
    path: Path, *, trace_block_tokens: int = TRACE_BLOCK_TOKENS, strict: bool = True, counts: ReadCounts | None = None
) -> Iterator[tuple[Record, int]]:
    """The lines of a trace and their block size in tokens, checked; ConfigError for a bad line unless not `strict`."""
    return _records(TraceFile(path, strict=strict, counts=counts), trace_block_tokens)


def read_mooncake(
    path: Path,
    *,
    block_tokens: int | None = None,
    trace_block_tokens: int = TRACE_BLOCK_TOKENS,
    namespace: str | None = None,
    label: str = "",
    strict: bool = True,
    counts: ReadCounts | None = None,
    kept_max: int = KEPT_MAX,
) -> Iterator[Arrival]:
    """The requests of a trace, their blocks cut into ones of `block_tokens` tokens (as they are by default).

    Without a namespace an id is a key as it stands. `label` begins each id and session, for traces that share a run.
    """
    file = TraceFile(path, strict=strict, counts=counts)
    table: KeyTable | None = None
    for number, (record, trace_block) in enumerate(_records(file, trace_block_tokens)):
        block = block_tokens or trace_block
        pieces = pieces_of(file, trace_block, block)
        if table is None or table.pieces != pieces:
            table = KeyTable(namespace, pieces=pieces, kept_max=kept_max)
        yield _arrival(record, table, block, f"{label}r{number}" if record.id is None else f"{label}{record.id}", label)


def _records(file: TraceFile, trace_block_tokens: int) -> Iterator[tuple[Record, int]]:
    decoder = msgspec.json.Decoder(Record)
    for line in file.lines():
        record = file.decode(line, decoder)
        if record is None:
            continue
        block = record.block_size or trace_block_tokens
        full, ids = record.input_length // block, len(record.hash_ids)
        if ids not in (0, full, -(-record.input_length // block)):
            file.refuse(
                f"hash_ids: expected {full} full blocks of {block} tokens for input_length {record.input_length},"
                f" and at most one more, got {ids}; name the trace's own block size"
            )
        elif file.in_order(record.at_s):
            yield record, block


def _arrival(record: Record, table: KeyTable, block: int, name: str, label: str) -> Arrival:
    full = record.input_length // block
    answer: tuple[BlockKey, ...] = ()
    if record.answer_hash_ids:
        known = record.hash_ids[: record.input_length // (block * table.pieces)] + record.answer_hash_ids
        keys = table.keys(known, (record.input_length + record.output_length) // block)
        keys, answer = keys[:full], keys[full:]
    else:
        keys = table.keys(record.hash_ids, full)
    return Arrival(
        id=name,
        at_s=record.at_s,
        prompt_tokens=record.input_length,
        output_tokens=record.output_length,
        block_tokens=block,
        keys=keys,
        answer_keys=answer,
        session=None if record.session_id is None else f"{label}{record.session_id}",
        origin=record.origin,
        tenant=record.tenant,
        priority=record.priority,
    )

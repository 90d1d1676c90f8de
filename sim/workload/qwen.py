"""Reader of the Qwen-Bailian traces (alibaba-edu/qwen-bailian-usagetraces-anon; "KVCache Cache in the Wild", ATC'25).

One JSON object per line, also ".gz": `chat_id`, `parent_chat_id` (-1 for the first of a conversation), `timestamp` in
seconds, `input_length`, `output_length`, `type`, `turn`, `hash_ids` of 16-token blocks. The publication says that each
block is hashed, and not that hashes are chained, so ids are chained here, which is right either way.
"""

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from .arrival import Arrival
from .keys import ChainTable
from .tracefile import ReadCounts, TraceFile, pieces_of

TRACE_BLOCK_TOKENS = 16
CHATS_MAX = 1_000_000
"""Conversations are recognised as long as no more requests than this lie between two turns."""
_Count = Annotated[int, Meta(ge=1, le=1 << 40)]


class _Record(msgspec.Struct, frozen=True, gc=False):
    chat_id: int
    timestamp: Annotated[float, Meta(ge=0, le=1e12)]
    input_length: _Count
    output_length: _Count
    parent_chat_id: int = -1
    hash_ids: tuple[int, ...] = ()


def read_qwen(
    path: Path,
    *,
    block_tokens: int = TRACE_BLOCK_TOKENS,
    namespace: str = "qwen",
    label: str = "",
    strict: bool = True,
    counts: ReadCounts | None = None,
) -> Iterator[Arrival]:
    """The requests of a trace; a session is the first chat of its conversation. ConfigError for a bad line."""
    file = TraceFile(path, strict=strict, counts=counts)
    table = ChainTable(namespace, pieces=pieces_of(file, TRACE_BLOCK_TOKENS, block_tokens))
    decoder = msgspec.json.Decoder(_Record)
    roots: OrderedDict[int, int] = OrderedDict()
    for line in file.lines():
        record = file.decode(line, decoder)
        if record is None or not file.in_order(record.timestamp):
            continue
        root = record.chat_id if record.parent_chat_id < 0 else roots.get(record.parent_chat_id, record.parent_chat_id)
        roots[record.chat_id] = root
        if len(roots) > CHATS_MAX:
            roots.popitem(last=False)
        yield Arrival(
            id=f"{label}{record.chat_id}",
            at_s=record.timestamp,
            prompt_tokens=record.input_length,
            output_tokens=record.output_length,
            block_tokens=block_tokens,
            keys=table.keys(record.hash_ids, record.input_length // block_tokens),
            session=f"{label}{root}",
        )

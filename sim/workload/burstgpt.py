"""Reader of the BurstGPT traces (HPMLL/BurstGPT, arXiv 2401.17644). CSV with Timestamp in seconds, Request tokens,
Response tokens, and in later releases Session ID; Model, Total tokens, Elapsed time and Log Type are not needed here.

Rule: an answer of 0 tokens is a request that failed, as its publication says; it is left out and counted.
"""

from collections.abc import Iterator
from pathlib import Path

from .arrival import Arrival
from .table import Columns, read_table
from .tracefile import ReadCounts, TraceFile

COLUMNS = Columns(
    time="Timestamp",
    prompt="Request tokens",
    output="Response tokens",
    session="Session ID",
    zero_is_failed=True,
    to_s=float,
)


def read_burstgpt(
    path: Path,
    *,
    block_tokens: int = 16,
    namespace: str = "burstgpt",
    label: str = "",
    strict: bool = True,
    counts: ReadCounts | None = None,
) -> Iterator[Arrival]:
    """The requests of a trace, from the first one's time on; ConfigError for a bad line unless not `strict`."""
    file = TraceFile(path, strict=strict, counts=counts)
    return read_table(file, COLUMNS, block_tokens=block_tokens, namespace=namespace, label=label)

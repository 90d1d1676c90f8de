"""Reader of the Azure LLM inference traces (Azure/AzurePublicDataset): 2023 (Splitwise, ISCA 2024) and 2024 (DynamoLLM,
HPCA 2025). CSV with TIMESTAMP (date and time, with or without an offset from UTC), ContextTokens, GeneratedTokens.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from .arrival import Arrival
from .table import Columns, read_table
from .tracefile import ReadCounts, TraceFile


def _epoch_s(text: str) -> float:
    moment = datetime.fromisoformat(text.strip())
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


COLUMNS = Columns(time="TIMESTAMP", prompt="ContextTokens", output="GeneratedTokens", to_s=_epoch_s)


def read_azure(
    path: Path,
    *,
    block_tokens: int = 16,
    namespace: str = "azure",
    label: str = "",
    strict: bool = True,
    counts: ReadCounts | None = None,
) -> Iterator[Arrival]:
    """The requests of a trace, from the first one's time on; ConfigError for a bad line unless not `strict`."""
    file = TraceFile(path, strict=strict, counts=counts)
    return read_table(file, COLUMNS, block_tokens=block_tokens, namespace=namespace, label=label)

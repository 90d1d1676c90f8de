"""Results as files that other programs read: JSON with a schema, and a table with a row per request.

Rule 1: equal results give equal bytes (I5): keys are sorted, floats are cut to 9 significant digits in JSON, where they
come out of sums, and written in full in tables, where they were recorded.
Rule 2: nothing of the machine or the day is in a file.
"""

import csv
from collections.abc import Iterable
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from homing.router.core.errors import ConfigError

from ..measure.compare import Comparison
from ..measure.log import NAMES, OPTIONAL, TEXTS, RequestLog, RequestRecord
from ..measure.schema import Summary

Document = Summary | Comparison
Kind = TypeVar("Kind", Summary, Comparison)

COLUMNS = tuple(field.name for field in fields(RequestRecord))
SUFFIXES = (".csv", ".parquet")


def to_json(document: Document) -> bytes:
    """A document as indented JSON with sorted keys and a line end."""
    plain = _rounded(msgspec.to_builtins(document))
    return msgspec.json.format(msgspec.json.encode(plain, order="sorted")) + b"\n"


def write_json(document: Document, path: Path) -> None:
    """Write a summary or a comparison."""
    path.write_bytes(to_json(document))


def read_json(path: Path, kind: type[Kind]) -> Kind:
    """Read what `write_json` wrote; ConfigError when it is something else."""
    known = kind.__struct_defaults__[0] if kind.__struct_defaults__ else None
    try:
        document = msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{path}: expected JSON with schema {known!r}; {error}") from error
    if document.schema != known:
        raise ConfigError(f"{path}: expected schema {known!r}, got {document.schema!r}; write it with this version")
    return document


def write_table(log: RequestLog, path: Path) -> None:
    """Write a row per request, as CSV or Parquet by the file's ending; ConfigError for another one."""
    if path.suffix == ".csv":
        _write_csv(log, path)
    elif path.suffix == ".parquet":
        _write_parquet(log, path)
    else:
        raise ConfigError(f"{path}: a table ends in {' or '.join(SUFFIXES)}, got {path.suffix!r}")


def _write_csv(records: Iterable[RequestRecord], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(astuple(record) for record in records)


def _write_parquet(log: RequestLog, path: Path) -> None:
    import pyarrow as pa  # noqa: PLC0415 - heavy, and only Parquet needs it
    from pyarrow import parquet  # noqa: PLC0415 - the same

    def column(name: str) -> Any:
        if name in TEXTS:
            return pa.array(log.texts(name), pa.string())
        if name in NAMES:
            codes, names = log.codes(name)
            return pa.DictionaryArray.from_arrays(pa.array(codes.astype("int32")), pa.array(names, pa.string()))
        return pa.array(log.column(name), from_pandas=name in OPTIONAL)

    table = pa.table({name: column(name) for name in COLUMNS})
    parquet.write_table(table, path, compression="zstd", store_schema=False)


def _rounded(value: Any) -> Any:
    """The same with floats of 9 significant digits: the last ones depend on the order of a sum, so on the machine."""
    if isinstance(value, float):
        return float(f"{value:.9g}")
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list) else value

"""Writer of any workload to a trace in Mooncake's format, which `mooncake.read_mooncake` reads back.

Rule 1: times are rounded to the microsecond, whole milliseconds are written as Mooncake does; nothing else is lost.
Rule 2: block ids are the keys themselves, so that writing remembers nothing; a prompt's last, incomplete block gets an
id of its own, because other readers of the format expect one. `hash_ids` is left out where a workload knows no keys.
Rule 3: what the format has no field for goes into optional ones that other readers ignore (`mooncake.py` lists them).
Rule 4: equal workloads make equal bytes, also compressed (I5).
"""

import gzip
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, cast

import msgspec
from xxhash import xxh3_64_intdigest

from homing.router.core.errors import ConfigError

from .arrival import Arrival
from .mooncake import TRACE_BLOCK_TOKENS


def write_mooncake(arrivals: Iterable[Arrival], path: Path) -> int:
    """Write a workload, compressed if the name ends in ".gz"; returns how many requests.

    ConfigError when the file cannot be written; ValueError for a prompt of which only some full blocks have keys.
    """
    encoder, written = msgspec.json.Encoder(), 0
    try:
        with ExitStack() as stack:
            file: IO[bytes] = stack.enter_context(path.open("wb"))
            if path.suffix == ".gz":
                packed = gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0)
                file = cast("IO[bytes]", stack.enter_context(packed))
            for arrival in arrivals:
                file.write(encoder.encode(_line(arrival)) + b"\n")
                written += 1
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
    return written


def _line(arrival: Arrival) -> dict[str, Any]:
    micros = round(arrival.at_s * 1e6)
    line: dict[str, Any] = {
        "timestamp": micros / 1000 if micros % 1000 else micros // 1000,
        "input_length": arrival.prompt_tokens,
        "output_length": arrival.output_tokens,
    }
    if arrival.keys:
        line["hash_ids"] = _ids(arrival)
    optional = (
        ("answer_hash_ids", arrival.answer_keys, ()),
        ("block_size", arrival.block_tokens, TRACE_BLOCK_TOKENS),
        ("session_id", arrival.session, None),
        ("origin", arrival.origin, None),
        ("tenant", arrival.tenant, ""),
        ("priority", arrival.priority, 0),
    )
    line.update((name, value) for name, value, default in optional if value != default)
    return {**line, "id": arrival.id}


def _ids(arrival: Arrival) -> tuple[int, ...]:
    full, rest = divmod(arrival.prompt_tokens, arrival.block_tokens)
    if len(arrival.keys) != full:
        raise ValueError(f"keys: expected one for each of {full} full blocks, got {len(arrival.keys)} in {arrival.id}")
    return (*arrival.keys, xxh3_64_intdigest(arrival.id.encode())) if rest else arrival.keys

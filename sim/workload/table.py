"""What the readers of tables of lengths share: traces in CSV, also ".gz", without a word on content.

Rule 1: columns are found by the names in the first line; others are ignored.
Rule 2: time is counted from the first request.
Rule 3: nothing is known of prefixes, so each prompt has keys of its own: caches fill, and nothing is reused.
"""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite

from .arrival import Arrival
from .keys import KeySpace
from .tracefile import TraceFile


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Which columns of a table say what. `to_s` reads a time and raises ValueError for what is none.

    With `zero_is_failed` an answer of 0 tokens is a request that failed: it is left out and counted as such.
    """

    time: str
    prompt: str
    output: str
    session: str | None = None
    zero_is_failed: bool = False
    to_s: Callable[[str], float]


def read_table(
    file: TraceFile, columns: Columns, *, block_tokens: int, namespace: str, label: str
) -> Iterator[Arrival]:
    """The requests of a table; ConfigError for a bad line unless the file is read leniently."""
    rows = csv.reader(line.decode("utf-8", errors="replace") for line in file.lines())
    header = [name.strip().lstrip("\ufeff") for name in next(rows, [])]
    time, prompt, output = _places(file, header, columns)
    session = header.index(columns.session) if columns.session in header else None
    keys, start_s, number = KeySpace(namespace), None, 0
    for row in rows:
        try:
            at_s = _time_s(row[time], columns)
            prompt_tokens = _tokens(row[prompt], columns.prompt, 1)
            output_tokens = _tokens(row[output], columns.output, 0 if columns.zero_is_failed else 1)
            conversation = row[session] if session is not None else ""
        except IndexError:
            file.refuse(f"expected {len(header)} columns, got {len(row)}")
            continue
        except ValueError as error:
            file.refuse(str(error))
            continue
        start_s = at_s if start_s is None else start_s
        if not file.in_order(at_s - start_s):
            continue
        if output_tokens == 0:
            file.counts.failed += 1
            continue
        yield Arrival(
            id=f"{label}r{number}",
            at_s=at_s - start_s,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            block_tokens=block_tokens,
            keys=keys.take(prompt_tokens // block_tokens),
            session=f"{label}{conversation}" if conversation else None,
        )
        number += 1


def _places(file: TraceFile, header: Sequence[str], columns: Columns) -> list[int]:
    wanted = [columns.time, columns.prompt, columns.output]
    if not set(wanted) <= set(header):
        found = ", ".join(header) or "nothing"
        file.fail(f"expected the columns {', '.join(wanted)} in the first line, got {found}")
    return [header.index(name) for name in wanted]


def _time_s(text: str, columns: Columns) -> float:
    try:
        at_s = columns.to_s(text)
    except ValueError:
        at_s = float("nan")
    if not isfinite(at_s):
        raise ValueError(f"{columns.time}: expected a time, got {text!r}")
    return at_s


def _tokens(text: str, name: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise ValueError(f"{name}: expected a whole number of at least {least}, got {text!r}")
    return int(text)

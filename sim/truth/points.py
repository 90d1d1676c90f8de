"""Measured points as CSV: what a user timed on his own workers.

    cached_tokens,end_tokens,seconds,batch,context_tokens
    0,1024,0.046,,
    31744,32768,0.061,,
    ,,0.0154,64,262144

Rule 1: the first line names the columns, in any order. `seconds` and the pair of prefill or of decode must be there.
Rule 2: each row fills the cells of one pair: a prefill of the tokens [cached, end) of a prompt, alone in its pass, or a
decode pass of `batch` sequences with `context_tokens` among them, which is their sum.
Rule 3: the first bad row ends it, with a ConfigError that names file, line and rule. Empty lines and lines that begin
with # are skipped.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from homing.router.core.errors import ConfigError

PREFILL = ("cached_tokens", "end_tokens")
DECODE = ("batch", "context_tokens")
LINES_MAX = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillPoint:
    """The tokens [cached, end) of a prompt took so long."""

    cached_tokens: int
    end_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodePoint:
    """A decode pass of so many sequences, with so many tokens of context among them, took so long."""

    batch: int
    context_tokens: int
    seconds: float


Measured = PrefillPoint | DecodePoint


def read_points(path: Path) -> list[Measured]:
    """The points of a file in its order; ConfigError for a bad row."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(_points(file, path))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read as CSV: {error}") from error


def _points(lines: Iterator[str], path: Path) -> Iterator[Measured]:
    columns: list[str] = []
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        if number > LINES_MAX:
            raise ConfigError(f"{where}: more than {LINES_MAX} lines; a few dozen points are enough")
        if not line.strip() or line.startswith("#"):
            continue
        cells = [cell.strip() for cell in next(csv.reader([line]))]
        if not columns:
            columns = _columns(cells, where)
            continue
        if len(cells) != len(columns):
            raise ConfigError(f"{where}: expected {len(columns)} cells ({', '.join(columns)}), got {len(cells)}")
        yield _point({name: cell for name, cell in zip(columns, cells, strict=True) if cell}, where)


def _columns(names: list[str], where: str) -> list[str]:
    known = {*PREFILL, *DECODE, "seconds"}
    pairs = [pair for pair in (PREFILL, DECODE) if set(pair) <= set(names)]
    if set(names) - known or len(names) != len(set(names)) or "seconds" not in names or not pairs:
        raise ConfigError(
            f"{where}: the first line names the columns: seconds, with {' and '.join(PREFILL)}, or with"
            f" {' and '.join(DECODE)}, or with all four; got {', '.join(names)}"
        )
    return names


def _point(cells: dict[str, str], where: str) -> Measured:
    pairs = [pair for pair in (PREFILL, DECODE) if set(cells) == {*pair, "seconds"}]
    if not pairs:
        raise ConfigError(
            f"{where}: expected seconds and either {' and '.join(PREFILL)} or {' and '.join(DECODE)},"
            f" got {', '.join(cells) or 'nothing'}"
        )
    first, second = (_whole(cells, name, where) for name in pairs[0])
    seconds = _seconds(cells["seconds"], where)
    if pairs[0] == PREFILL:
        if not 0 <= first < second:
            raise ConfigError(f"{where}: expected 0 <= cached_tokens < end_tokens, got {first} and {second}")
        return PrefillPoint(cached_tokens=first, end_tokens=second, seconds=seconds)
    if first < 1 or second < 0:
        raise ConfigError(f"{where}: expected batch of at least 1 and context_tokens of at least 0")
    return DecodePoint(batch=first, context_tokens=second, seconds=seconds)


def _whole(cells: dict[str, str], name: str, where: str) -> int:
    try:
        return int(cells[name])
    except ValueError as error:
        raise ConfigError(f"{where}: {name}: expected a whole number, got {cells[name]!r}") from error


def _seconds(cell: str, where: str) -> float:
    try:
        seconds = float(cell)
    except ValueError as error:
        raise ConfigError(f"{where}: seconds: expected a number, got {cell!r}") from error
    if not isfinite(seconds) or seconds <= 0:
        raise ConfigError(f"{where}: seconds: expected a finite number above 0, got {cell}")
    return seconds

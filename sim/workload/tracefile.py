"""One pass over the lines of a trace: opened, numbered, and each fault turned into one kind of error or counted.

Rule 1: lines are read as they are wanted; nothing of the file is kept.
Rule 2: a fault is a ConfigError that names file, line, rule and what was found. A lenient reader skips and counts.
Rule 3: time does not go back. A file is not sorted here, for that would need all of it in memory.
"""

import gzip
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn, TypeVar, cast
from zlib import error as ZlibError  # noqa: N812 - an exception by its name here

import msgspec

from homing.router.core.errors import ConfigError

_S = TypeVar("_S")
_PATH = re.compile(r" - at `\$\.?(?P<path>[^`]*)`$")
_SHOWN_CHARS = 80


@dataclass(slots=True)
class ReadCounts:
    """What a reader saw, for whoever wants to say so. `bad` were skipped; `failed` are requests without an answer."""

    lines: int = 0
    bad: int = 0
    failed: int = 0
    first_bad: str = ""


class TraceFile:
    """A trace that is being read. `strict` decides between an error and a count."""

    def __init__(self, path: Path, *, strict: bool = True, counts: ReadCounts | None = None) -> None:
        self.path = path
        self.counts = counts or ReadCounts()
        self._strict = strict
        self._last_s = float("-inf")

    def lines(self) -> Iterator[bytes]:
        """Non-empty lines, without their ends; ".gz" is unpacked. ConfigError when the file cannot be read."""
        counts = self.counts
        try:
            with _open(self.path) as file:
                for line in file:
                    counts.lines += 1
                    if stripped := line.strip():
                        yield stripped
        except (OSError, EOFError, ZlibError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(f"{self.path}: cannot be read: {reason}") from error

    def decode(self, line: bytes, decoder: "msgspec.json.Decoder[_S]") -> _S | None:
        """A line of JSON as a record; None when it was bad and is skipped."""
        try:
            return decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            self.refuse(_explain(line, error))
            return None

    def in_order(self, at_s: float) -> bool:
        """Whether a line's time is no earlier than the one before; False when it was bad and is skipped."""
        if at_s >= self._last_s:
            self._last_s = at_s
            return True
        self.refuse(f"timestamp: expected at least {self._last_s} s, that of the line before, got {at_s} s; sort it")
        return False

    def refuse(self, problem: str) -> None:
        """This line breaks a rule: an error, or one more that was skipped."""
        if self._strict:
            self.fail(problem)
        self.counts.bad += 1
        self.counts.first_bad = self.counts.first_bad or f"{self.path}:{self.counts.lines}: {problem}"

    def fail(self, problem: str) -> NoReturn:
        """This file cannot be meant, whatever its other lines say."""
        raise ConfigError(f"{self.path}:{self.counts.lines}: {problem}")


def pieces_of(file: TraceFile, trace_block_tokens: int, block_tokens: int) -> int:
    """How many blocks of the engine make one of the trace; ConfigError unless it is a whole number."""
    if trace_block_tokens % block_tokens:
        file.fail(
            f"block_tokens: {block_tokens} does not divide the trace's blocks of {trace_block_tokens} tokens;"
            " take a divisor"
        )
    return trace_block_tokens // block_tokens


def _open(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def _explain(line: bytes, error: Exception) -> str:
    """`field: rule, got what`, out of msgspec's own words."""
    where = _PATH.search(str(error))
    if where is None:
        shown = line[:_SHOWN_CHARS].decode(errors="replace")
        return f"expected a JSON object with timestamp, input_length and output_length: {error}, got {shown!r}"
    rule = str(error)[: where.start()].replace("`", "")
    found = _at(msgspec.json.decode(line), where["path"])
    return f"{where['path']}: {rule[:1].lower()}{rule[1:]}, got {found!r}"


def _at(data: Any, path: str) -> Any:
    """What stands at `a[2]` in a decoded line; `[...]`, msgspec's word for some element, is the list itself."""
    for key, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
        try:
            data = data[int(index)] if index else data[key]
        except (KeyError, IndexError, TypeError):
            return data
    return data

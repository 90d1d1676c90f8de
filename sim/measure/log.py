"""How each request ended, in columns: a million of them fit into memory.

Rule 1: append-only. What was recorded is never changed, and comes back as it was.
Rule 2: bounded memory per request: fixed-width columns, names as codes into one table, ids as bytes behind each other.
Rule 3: no wall-clock time. Every time is virtual and in seconds since the run began.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import chain
from math import isnan, nan
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from homing.router.core.types import Outcome

if TYPE_CHECKING:
    import numpy as np

OUTCOMES = frozenset(str(outcome) for outcome in Outcome)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request from its arrival to its end, as the client and the workers saw it."""

    id: str
    at_s: float
    """When it arrived."""
    session: str = ""
    tenant: str = ""
    origin: str = ""
    """The site of the client."""
    model: str = ""
    outcome: str
    """A value of `Outcome`: finished, rejected, cancelled or failed."""
    reason: str = ""
    """Why it was rejected or failed; empty when it finished."""
    plan: str = ""
    """The kind of the last plan that was carried out; empty when there was none."""
    prefill: str = ""
    decode: str = ""
    """Workers; `prefill` is empty when the decode worker computed the prompt itself."""
    prefill_site: str = ""
    decode_site: str = ""
    attempts: int = 0
    """How often it was dispatched."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    device_hit_tokens: int = 0
    host_hit_tokens: int = 0
    disk_hit_tokens: int = 0
    """Prompt tokens found in the computing worker's own cache, by tier."""
    moved_tokens: int = 0
    """Prompt tokens found in another worker's cache and moved."""
    computed_tokens: int = 0
    """Prompt tokens that were computed."""
    shipped_bytes: int = 0
    """KV from the prefill to the decode worker."""
    moved_bytes: int = 0
    """KV out of another worker's cache."""
    waited_s: float = 0.0
    """In the router's admission queue."""
    queued_s: float = 0.0
    """In the worker, before its first pass."""
    ttft_s: float | None = None
    """Time to first token; None when there was none."""
    tpot_s: float | None = None
    """Mean time per output token after the first; None when there was none after the first."""
    worst_itl_s: float | None = None
    """The longest time between two tokens."""
    e2e_s: float = 0.0
    """From arrival to end."""
    predicted_ttft_s: float | None = None
    """What the router expected when it dispatched."""
    finished_at_s: float = 0.0

    def __post_init__(self) -> None:
        if self.outcome not in OUTCOMES:
            raise ValueError(f"outcome: expected one of {', '.join(sorted(OUTCOMES))}, got {self.outcome!r}")
        if self.outcome == "finished" and self.ttft_s is None:
            raise ValueError(f"ttft_s: request {self.id!r} finished, so it had a first token; got None")


TEXTS = ("id", "session")
"""As many different ones as requests: kept as bytes."""
NAMES = ("tenant", "origin", "model", "outcome", "reason", "plan", "prefill", "decode", "prefill_site", "decode_site")
"""A few different ones: kept as codes."""
OPTIONAL = ("ttft_s", "tpot_s", "worst_itl_s", "predicted_ttft_s")
"""Seconds that may be missing: kept as NaN."""
SECONDS = ("at_s", "waited_s", "queued_s", "e2e_s", "finished_at_s")
BYTES = ("shipped_bytes", "moved_bytes")
COUNTS = (
    "attempts",
    "prompt_tokens",
    "output_tokens",
    "device_hit_tokens",
    "host_hit_tokens",
    "disk_hit_tokens",
    "moved_tokens",
    "computed_tokens",
)

_texts, _names, _optional, _seconds, _bytes, _counts = (
    attrgetter(*group) for group in (TEXTS, NAMES, OPTIONAL, SECONDS, BYTES, COUNTS)
)
_ORDER = (*NAMES, *OPTIONAL, *SECONDS, *BYTES, *COUNTS, *TEXTS)
assert sorted(_ORDER) == sorted(field.name for field in fields(RequestRecord))


class _Codes(dict[str, int]):
    """A code per name, in the order of their first use; looking up a new name gives it the next code."""

    def __missing__(self, name: str) -> int:
        self[str(name)] = code = len(self)
        return code


class _Text:
    """Strings behind each other, and their lengths."""

    __slots__ = ("bytes", "lengths")

    def __init__(self) -> None:
        self.bytes = bytearray()
        self.lengths = array("H")

    def append(self, text: str) -> None:
        encoded = text.encode()
        self.lengths.append(len(encoded))
        self.bytes += encoded

    def __iter__(self) -> Iterator[str]:
        end = 0
        for length in self.lengths:
            start, end = end, end + length
            yield self.bytes[start:end].decode()


class _Block:
    """Columns of one type beside each other in one array, because one `extend` is much faster than many `append`s."""

    __slots__ = ("fields", "values")

    def __init__(self, names: tuple[str, ...], typecode: str) -> None:
        self.fields = names
        self.values: array[Any] = array(typecode)

    def __len__(self) -> int:
        return len(self.values) // len(self.fields)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return zip(*[iter(self.values)] * len(self.fields), strict=True)

    def column(self, name: str) -> "np.ndarray[Any, Any]":
        import numpy as np  # noqa: PLC0415 - part of the extra `sim`; recording needs none of it

        return np.array(self.values, dtype=self.values.typecode)[self.fields.index(name) :: len(self.fields)].copy()


class RequestLog:
    """Records in the order in which they ended; iterating gives them back, `column` gives one field of all."""

    def __init__(self) -> None:
        self._table = _Codes()
        self._names = _Block(NAMES, "I")
        self._optional = _Block(OPTIONAL, "d")
        self._seconds = _Block(SECONDS, "d")
        self._bytes = _Block(BYTES, "Q")
        self._counts = _Block(COUNTS, "I")
        self._texts = {name: _Text() for name in TEXTS}

    def __len__(self) -> int:
        return len(self._seconds)

    def add(self, record: RequestRecord) -> None:
        """Append a record; OverflowError for a number that is negative or takes more than its 32 or 64 bits, and for
        a name of more than 65535 bytes. Then the log is as it was.
        """
        rows = len(self)
        try:
            self._names.values.extend(map(self._table.__getitem__, _names(record)))
            self._optional.values.extend([nan if seconds is None else seconds for seconds in _optional(record)])
            self._bytes.values.extend(_bytes(record))
            self._counts.values.extend(_counts(record))
            for text, value in zip(self._texts.values(), _texts(record), strict=True):
                text.append(value)
            self._seconds.values.extend(_seconds(record))
        except Exception:
            self._cut(rows)
            raise

    def __iter__(self) -> Iterator[RequestRecord]:
        names = tuple(self._table)
        texts = zip(*self._texts.values(), strict=True)
        for codes, optional, *numbers, text in zip(*self._blocks(), texts, strict=True):
            values: list[Any] = [
                *map(names.__getitem__, codes),
                *(None if isnan(seconds) else seconds for seconds in optional),
                *chain.from_iterable(numbers),
                *text,
            ]
            yield RequestRecord(**dict(zip(_ORDER, values, strict=True)))

    def column(self, name: str) -> "np.ndarray[Any, Any]":
        """One number of all requests, shape (len,); seconds that are missing are NaN. A copy: the log may grow."""
        blocks = (self._optional, self._seconds, self._bytes, self._counts)
        return next(block for block in blocks if name in block.fields).column(name)

    def codes(self, name: str) -> tuple["np.ndarray[Any, Any]", tuple[str, ...]]:
        """One name of all requests, as codes of shape (len,) and the names that they stand for."""
        return self._names.column(name), tuple(self._table)

    def texts(self, name: str) -> list[str]:
        """The ids or sessions of all requests."""
        return list(self._texts[name])

    def nbytes(self) -> int:
        """Bytes of memory that the columns hold, with what they keep in reserve; without the table of names."""
        texts = [part for text in self._texts.values() for part in (text.bytes, text.lengths)]
        return sum(held.__sizeof__() for held in (*(block.values for block in self._blocks()), *texts))

    def check(self) -> None:
        """Assert that the columns are equally long and that every code stands for a name."""
        lengths = [len(block) for block in self._blocks()] + [len(text.lengths) for text in self._texts.values()]
        assert len(set(lengths)) == 1, lengths
        assert all(len(block.values) == len(block) * len(block.fields) for block in self._blocks())
        assert all(sum(text.lengths) == len(text.bytes) for text in self._texts.values())
        assert max(self._names.values, default=-1) < max(len(self._table), 1)

    def _cut(self, rows: int) -> None:
        for block in self._blocks():
            del block.values[rows * len(block.fields) :]
        for text in self._texts.values():
            del text.lengths[rows:]
            del text.bytes[sum(text.lengths) :]

    def _blocks(self) -> tuple[_Block, ...]:
        return self._names, self._optional, self._seconds, self._bytes, self._counts

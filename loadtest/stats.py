"""What is measured of a request, told to Locust as statistics of their own: TTFT, the time between tokens, the whole.

Locust keeps whole milliseconds; `Percentiles` keeps 2 % of whatever it is, which the time between tokens needs.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from .asks import Api, Ask, AskError

TTFT = "TTFT"
ITL = "ITL"
Fire = Callable[..., object]
"""Locust's `events.request.fire`."""
_STEP = math.log(1.02)


def timed(api: Api, ask: Ask, fire: Fire, clock: Callable[[], float]) -> str | None:
    """Send a request and tell what it took, in milliseconds; its whole answer, or None when it failed."""
    began_s = last_s = clock()
    pieces: list[str] = []
    error: Exception | None = None
    try:
        for piece in api.stream(ask):
            now_s = clock()
            told = TTFT if not pieces else ITL
            _tell(fire, told, ask.name, now_s - last_s, None, len(piece))
            pieces.append(piece)
            last_s = now_s
        error = None if pieces else AskError("the answer has no token")
    except Exception as raised:
        error = raised
    answer = "".join(pieces)
    _tell(fire, api.kind, ask.name, clock() - began_s, error, len(answer))
    return answer if error is None else None


def _tell(fire: Fire, kind: str, name: str, seconds: float, error: Exception | None, length: int) -> None:
    fire(
        request_type=kind,
        name=name,
        response_time=seconds * 1000.0,
        response_length=length,
        exception=error,
        context={},
    )


class Percentiles:
    """Percentiles of what was added, each within 2 %. Bounded memory: values of one step are counted together.

    >>> some = Percentiles()
    >>> for value in range(1, 101):
    ...     some.add(value)
    >>> [round(some.at(part)) for part in (0.5, 0.9, 1.0)]
    [50, 90, 100]
    """

    def __init__(self) -> None:
        self._counts: dict[int, int] = defaultdict(int)
        self.count = 0

    def add(self, value: float) -> None:
        """One more; what is not above 0 counts as next to nothing."""
        self._counts[math.floor(math.log(max(value, 1e-6)) / _STEP)] += 1
        self.count += 1

    def at(self, part: float) -> float:
        """The value below which so large a part lies; NaN of nothing."""
        left = math.ceil(part * self.count)
        for step in sorted(self._counts):
            left -= self._counts[step]
            if left <= 0:
                return math.exp((step + 0.5) * _STEP)
        return math.nan


class Summary:
    """Listens to all requests; `table` is a line for each statistic."""

    def __init__(self) -> None:
        self._percentiles: dict[tuple[str, str], Percentiles] = defaultdict(Percentiles)
        self.failures: dict[tuple[str, str], int] = defaultdict(int)

    def heard(
        self, *, request_type: str, name: str, response_time: float, exception: BaseException | None = None, **_: Any
    ) -> None:
        """A listener of Locust's `events.request`."""
        if exception is None:
            self._percentiles[request_type, name].add(response_time)
        else:
            self.failures[request_type, name] += 1

    def table(self) -> str:
        """Count, failures, and p50, p90 and p99 in milliseconds."""
        lines = [f"{'':24}{'count':>9}{'failed':>9}{'p50 ms':>11}{'p90 ms':>11}{'p99 ms':>11}"]
        for kind, name in sorted({*self._percentiles, *self.failures}):
            some = self._percentiles[kind, name]
            times = "".join(f"{some.at(part):11.2f}" for part in (0.5, 0.9, 0.99))
            lines.append(f"{f'{kind} {name}':24}{some.count:9}{self.failures[kind, name]:9}{times}")
        return "\n".join(lines)

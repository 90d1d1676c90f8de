"""How long a prompt takes: overhead and work.

`prefill_s(c, n) = overhead_s + work_s(n) - work_s(c)`: the tokens [c, n) are what n takes beyond what c takes. That is
exact where a token's time depends on its position alone, as it does for matrix products (the same for every token)
and attention (one more key for every token), and it makes the parts of a prompt add up to the whole, however it is cut
into chunks.

Rule 1: `work_s` begins with 0 at 0 tokens and never falls.
Rule 2: at a measured length `overhead_s + work_s` is what was measured.
Rule 3: hot path: plain floats, one bisection, no allocation.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from math import log
from typing import Protocol

Point = tuple[int, float]
"""Tokens of a whole prompt, and the seconds of its prefill."""

POWER_MAX = 4.0
"""Attention grows with the square of the tokens. A measured table that is steeper than this holds a wrong number."""


class PrefillCurve(Protocol):
    """The prefill of one prompt at a time, without a cached prefix."""

    overhead_s: float
    """What a pass costs before its first token: launches, the server's own work."""

    def work_s(self, tokens: int) -> float:
        """What the first `tokens` of a prompt cost beside the overhead."""
        ...


class LinearPrefill:
    """`a_s + b_s*n + q_s*n^2`: overhead, a share per token, and attention. The closed form for synthetic workers."""

    __slots__ = ("_b_s", "_q_s", "overhead_s")

    def __init__(self, *, a_s: float, b_s: float, q_s: float) -> None:
        if a_s < 0 or q_s < 0 or b_s <= 0:
            raise ValueError(f"expected a_s and q_s of at least 0 and b_s above 0, got {a_s}, {q_s} and {b_s}")
        self.overhead_s, self._b_s, self._q_s = a_s, b_s, q_s

    def work_s(self, tokens: int) -> float:
        """What the first `tokens` of a prompt cost beside the overhead."""
        return tokens * (self._b_s + self._q_s * tokens)


class QuadraticPrefill:
    """Through measured points with `work = tokens * rate`, where the rate is linear in the tokens between two points.

    That is b*n + q*n^2 in every segment, the form that the arithmetic of a transformer has. Below the first point the
    rate is that of the first point; beyond the last one the last segment goes on.
    """

    __slots__ = ("_pieces", "_tokens", "overhead_s")

    def __init__(self, points: Sequence[Point], *, overhead_s: float) -> None:
        _check_points(points, overhead_s)
        self.overhead_s = overhead_s
        self._tokens = [tokens for tokens, _ in points]
        rates = [(tokens, (seconds - overhead_s) / tokens) for tokens, seconds in points]
        pieces = [(rates[0][1], 0.0)]
        for (low, low_rate), (high, high_rate) in pairwise(rates):
            q_s = (high_rate - low_rate) / (high - low)
            pieces.append((low_rate - q_s * low, q_s))
            if min(pieces[-1][0] + 2 * q_s * low, pieces[-1][0] + 2 * q_s * high) <= 0:
                raise ValueError(
                    f"between {low} and {high} tokens the curve would fall; interpolate it as a power law, or measure"
                    " a point between them"
                )
        self._pieces = [*pieces, pieces[-1]]
        if pieces[-1][1] < 0:
            self._pieces[-1] = (rates[-1][1], 0.0)

    def work_s(self, tokens: int) -> float:
        """What the first `tokens` of a prompt cost beside the overhead."""
        b_s, q_s = self._pieces[bisect_right(self._tokens, tokens)]
        return tokens * (b_s + q_s * tokens)


class PowerLawPrefill:
    """Through measured points with `overhead + work = A * tokens^k` between two of them: straight in log and log.

    For tables with few and distant points. Below the first point work is proportional to the tokens; beyond the last
    one the last power law goes on.
    """

    __slots__ = ("_pieces", "_tokens", "overhead_s")

    def __init__(self, points: Sequence[Point], *, overhead_s: float) -> None:
        _check_points(points, overhead_s)
        self.overhead_s = overhead_s
        self._tokens = [tokens for tokens, _ in points]
        first_tokens, first_s = points[0]
        pieces = [((first_s - overhead_s) / first_tokens, 1.0, 0.0)]
        for (low, low_s), (high, high_s) in pairwise(points):
            power = log(high_s / low_s) / log(high / low)
            if power > POWER_MAX:
                raise ValueError(
                    f"between {low} and {high} tokens time would grow with their power of {power:.1f}, expected at most"
                    f" {POWER_MAX:.0f}; measure one of the two again"
                )
            pieces.append((low_s / low**power, power, overhead_s))
        self._pieces = [*pieces, pieces[-1]]

    def work_s(self, tokens: int) -> float:
        """What the first `tokens` of a prompt cost beside the overhead."""
        factor, power, overhead_s = self._pieces[bisect_right(self._tokens, tokens)]
        return float(factor * tokens**power - overhead_s)


def _check_points(points: Sequence[Point], overhead_s: float) -> None:
    if len(points) < 2:
        raise ValueError(f"expected at least two points, got {len(points)}")
    if not 0 <= overhead_s < points[0][1]:
        raise ValueError(f"overhead_s: expected at least 0 and less than {points[0][1]} (point 0), got {overhead_s}")
    previous = (0, 0.0)
    for number, point in enumerate(points):
        if point[0] <= previous[0] or point[1] <= previous[1]:
            raise ValueError(f"point {number}: expected more tokens and more seconds than {previous}, got {point}")
        previous = point

"""Speeds as the router has come to believe them: prefill per worker, links per site pair, decode steps.

Every belief starts from a prior and is then learned from what really happened, in relative terms (the logarithm of
measured over believed), so that a prior wrong by a factor of ten is corrected as quickly as one wrong by a tenth.

Rule 1: a measurement teaches; a prediction never does.
Rule 2: one absurd measurement moves a belief by a bounded step, several in a row move it all the way.
"""

from math import exp, exp2, isfinite, log, sqrt

from .types import PrefillPrior

MEMORY = 0.9
"""Weight that a past measurement keeps when the next one comes: about ten measurements are remembered."""
PRIOR_WEIGHT = 0.1
"""How many measurements a prior is worth: little, since priors are guesses and measurements are not."""
STEP_MAX = log(2.0)
"""Once settled, one measurement counts as at most this far (a factor of two) from the belief."""
REFERENCE_TOKENS = 2048
"""The prompt length at which the terms of a prefill are weighed against each other, and workers are ranked by speed."""
SETTLED_AFTER = 3
"""Measurements after which a belief is settled, and an outlier is no longer taken at its word."""
ABSURD = 1e3
"""A prefill this many times slower or quicker than its prior is a broken clock; fitting it would lose all digits."""


class LearnedScale:
    """A positive number learned in the log domain with exponential forgetting and clipped steps."""

    __slots__ = ("_log_value", "_weight", "samples", "value")

    def __init__(self, prior: float, *, weight: float = PRIOR_WEIGHT) -> None:
        assert prior > 0, prior
        self.value = prior
        """The current belief."""
        self._log_value = log(prior)
        self._weight = weight
        self.samples = 0

    def learn(self, measured: float) -> None:
        """Move towards one measurement (positive, finite; others are ignored: they are clock noise, not speeds)."""
        if measured <= 0 or not isfinite(measured):
            return
        step = log(measured) - self._log_value
        if self.samples >= SETTLED_AFTER:
            step = max(-STEP_MAX, min(STEP_MAX, step))
        self._weight = self._weight * MEMORY + 1.0
        self._log_value += step / self._weight
        self.value = exp(self._log_value)
        self.samples += 1


class PrefillRate:
    """`prefill_s(c, n) = a + b*(n-c) + q*(n^2-c^2)` of one worker: overhead, linear layers, attention.

    The three coefficients are fitted by recursive least squares on relative errors with forgetting. What is fitted
    are the *shares* that the three terms have at REFERENCE_TOKENS, and a ridge pulls them towards the prior's shares
    at the learned *level*: the first measurement corrects the level at once, the shape follows as measurements of
    different lengths come in, and a term that the prior got wrong by a factor of a hundred is found as easily as by
    two. None gets negative.
    """

    __slots__ = (
        "_a_s",
        "_b_s",
        "_level",
        "_moment",
        "_normal",
        "_prior",
        "_q_s",
        "_to_share",
        "reference_s",
        "samples",
    )

    RIDGE = 0.001

    def __init__(self, prior: PrefillPrior) -> None:
        self._prior = (prior.a_s, prior.b_s, prior.q_s)
        self._believe(*self._prior)
        self._to_share = tuple(x / self.reference_s for x in _features(0, REFERENCE_TOKENS))
        self._level = LearnedScale(1.0, weight=0.0)
        self._normal = [0.0] * 6
        """The upper triangle, row by row."""
        self._moment = [0.0] * 3
        self.samples = 0

    @property
    def coefficients(self) -> tuple[float, float, float]:
        """`(a, b, q)` in seconds, seconds per token, seconds per squared token."""
        return self._a_s, self._b_s, self._q_s

    def prefill_s(self, cached_tokens: int, end_tokens: int) -> float:
        """Seconds to compute tokens `[cached, end)` of a prompt; nothing to compute takes no time."""
        new = end_tokens - cached_tokens
        if new <= 0:
            return 0.0
        return self._a_s + new * (self._b_s + self._q_s * (end_tokens + cached_tokens))

    def learn(self, cached_tokens: int, end_tokens: int, seconds: float) -> None:
        """Learn from one measured prefill (nothing computed and absurd times teach nothing)."""
        if end_tokens <= cached_tokens:
            return
        a, b, q = self._prior
        one, new, pairs = _features(cached_tokens, end_tokens)
        at_prior_s = a * one + b * new + q * pairs
        if not at_prior_s / ABSURD < seconds < at_prior_s * ABSURD:
            return
        self._level.learn(seconds / at_prior_s)
        surprise = abs(log(seconds / self.prefill_s(cached_tokens, end_tokens)))
        trust = min(1.0, STEP_MAX / surprise) if self.samples >= SETTLED_AFTER and surprise > 0 else 1.0
        to_share = self._to_share
        x, y, z = one / to_share[0] / seconds, new / to_share[1] / seconds, pairs / to_share[2] / seconds
        self._moment = [MEMORY * old + trust * part for old, part in zip(self._moment, (x, y, z), strict=True)]
        products = (x * x, x * y, x * z, y * y, y * z, z * z)
        self._normal = [MEMORY * old + trust * part for old, part in zip(self._normal, products, strict=True)]
        self.samples += 1
        self._fit()

    def _fit(self) -> None:
        """Solve for the shares; where one would be negative, hold it at zero and solve again."""
        ridge = self.RIDGE
        pull = ridge * self._level.value
        xx, xy, xz, yy, yz, zz = self._normal
        xx, yy, zz = xx + ridge, yy + ridge, zz + ridge
        p, s, m = self._prior, self._to_share, self._moment
        right = (m[0] + pull * p[0] * s[0], m[1] + pull * p[1] * s[1], m[2] + pull * p[2] * s[2])
        below, further = xy / xx, xz / xx
        yy_left, yz_left = yy - below * xy, yz - below * xz
        second = right[1] - below * right[0]
        third = yz_left / yy_left
        z = (right[2] - further * right[0] - third * second) / (zz - further * xz - third * yz_left)
        y = (second - yz_left * z) / yy_left
        x = (right[0] - xy * y - xz * z) / xx
        if x < 0 or y < 0 or z < 0:
            x, y, z = _not_negative(((xx, xy, xz), (xy, yy, yz), (xz, yz, zz)), right, (x, y, z))
        self._believe(x / s[0], y / s[1], z / s[2])

    def _believe(self, a_s: float, b_s: float, q_s: float) -> None:
        self._a_s, self._b_s, self._q_s = a_s, b_s, q_s
        self.reference_s = self.prefill_s(0, REFERENCE_TOKENS)


def _not_negative(
    normal: tuple[tuple[float, ...], ...], right: tuple[float, ...], shares: tuple[float, ...]
) -> tuple[float, float, float]:
    """The solution with the most negative share held at zero, and again until none is negative."""
    free = [0, 1, 2]
    found = list(shares)
    while min(found) < 0:
        del free[found.index(min(found))]
        found = solve([[*(normal[i][j] for j in free), right[i]] for i in free])
    held = dict(zip(free, found, strict=True))
    return held.get(0, 0.0), held.get(1, 0.0), held.get(2, 0.0)


def _features(cached_tokens: int, end_tokens: int) -> tuple[float, float, float]:
    new = end_tokens - cached_tokens
    return 1.0, float(new), float(new * (end_tokens + cached_tokens))


DOUBT_HALF_S = 30.0
"""A link that broke is believed to be whole again with time."""
HOPE_HALF_S = 300.0
"""A link that was found slower than told is hoped to be as told with time."""


class LinkRate:
    """One directed site pair: round trip and capacity.

    A link that is believed slow is not used, so that nothing would set a wrong belief right: hence one measurement
    alone that is slower than told is believed by half, and what nobody measures is hoped to be as told again.
    """

    __slots__ = (
        "_bytes_per_s",
        "_doubt",
        "_doubted_s",
        "_lost_s",
        "_measured_s",
        "_rtt_s",
        "_told_bytes_per_s",
        "rtt_samples",
        "samples",
    )

    def __init__(self, rtt_s: float, bytes_per_s: float) -> None:
        self._doubt = 0.0
        self._doubted_s = 0.0
        self._lost_s = 0.0
        self._rtt_s = LearnedScale(max(rtt_s, 1e-6))
        self._bytes_per_s = LearnedScale(bytes_per_s)
        self._told_bytes_per_s = bytes_per_s
        self._measured_s = 0.0
        self.samples = 0
        self.rtt_samples = 0

    @property
    def rtt_s(self) -> float:
        """Round-trip time."""
        return self._rtt_s.value

    @property
    def bytes_per_s(self) -> float:
        """What the link carries in all, shared by its flows."""
        learned = self._bytes_per_s.value
        told = self._told_bytes_per_s
        return sqrt(learned * told) if self.samples == 1 and learned < told else learned

    def hoped_bytes_per_s(self, now: float) -> float:
        """What the next transfer may find: where less than what was told is believed, half the way back to it each
        `HOPE_HALF_S` without a measurement.
        """
        believed, told = self.bytes_per_s, self._told_bytes_per_s
        if believed >= told:
            return believed
        return float(told * (believed / told) ** exp2(-max(0.0, now - self._measured_s) / HOPE_HALF_S))

    def learn_bytes_per_s(self, measured: float, flows: float, now: float) -> None:
        """Learn from one flow's speed, seen while on average `flows` flows (itself included) shared the link."""
        self._bytes_per_s.learn(measured * max(1.0, flows))
        self._measured_s = now
        self.samples += 1

    def broke(self, lost_s: float, now: float) -> None:
        """A transfer did not get through, and what waited for it lost so many seconds."""
        doubt = self._doubt_at(now)
        self._doubt, self._doubted_s = doubt + (1 - doubt) / 2, now
        self._lost_s = max(0.0, lost_s)

    def worked(self, now: float) -> None:
        """A transfer got through."""
        if self._doubt:
            self._doubt, self._doubted_s = self._doubt_at(now) / 2, now

    def risk_s(self, now: float) -> float:
        """Seconds that the next transfer is expected to lose by not getting through: their chance times the last loss.

        Failures raise the chance half the way to certainty and successes halve it; it fades by half in `DOUBT_HALF_S`,
        so that a link that nobody uses any more is tried again.
        """
        return self._doubt_at(now) * self._lost_s if self._doubt else 0.0

    def _doubt_at(self, now: float) -> float:
        return self._doubt * exp2(-max(0.0, now - self._doubted_s) / DOUBT_HALF_S)

    def learn_rtt_s(self, measured: float) -> None:
        """Learn from one measured round trip.

        A busy machine only ever makes a round trip look longer, so going up is believed by a quarter only.
        """
        believed = self.rtt_s
        slower = self.rtt_samples > 0 and measured > believed
        self._rtt_s.learn(believed * (measured / believed) ** 0.25 if slower else measured)
        self.rtt_samples += 1


def solve(rows: list[list[float]]) -> list[float]:
    """Solve a small symmetric positive definite system given as rows `[coefficients..., right side]`.

    >>> solve([[2.0, 0.0, 4.0], [0.0, 4.0, 4.0]])
    [2.0, 1.0]
    """
    size = len(rows)
    rows = [row[:] for row in rows]
    for pivot in range(size):
        for below in range(pivot + 1, size):
            factor = rows[below][pivot] / rows[pivot][pivot]
            for column in range(pivot, size + 1):
                rows[below][column] -= factor * rows[pivot][column]
    answer = [0.0] * size
    for i in reversed(range(size)):
        known = sum(rows[i][j] * answer[j] for j in range(i + 1, size))
        answer[i] = (rows[i][size] - known) / rows[i][i]
    return answer

"""The rates of gorgo-2d: milliseconds per uncached and per queued token, fitted to the TTFT of recent requests."""

from collections import deque
from dataclasses import dataclass

from ..types import Site

SAMPLES_MAX = 512
REFIT_EVERY = 32
SINGULAR = 1e-9
"""Below this share of the product of variances the two inputs move as one, and cannot be told apart."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one request found where it went, and its TTFT."""

    site: Site
    uncached_tokens: float
    queued_tokens: float
    ttft_ms: float


class TtftRates:
    """Ordinary least squares of `ttft_ms ~ intercept(site) + P*uncached + Q*queued` (gorgo-lb 0.2.0, `gorgo-2d`).

    Over the last SAMPLES_MAX requests, anew every REFIT_EVERY (both inferred). A negative rate counts as 0; a fit that
    cannot tell the two rates apart leaves the last one standing.
    """

    def __init__(self) -> None:
        self.fitted: tuple[float, float] | None = None
        """(P, Q) in ms per token, once there is a fit."""
        self._samples: deque[Sample] = deque(maxlen=SAMPLES_MAX)
        self._since_fit = 0

    def learn(self, sample: Sample) -> None:
        """Take one more request in."""
        self._samples.append(sample)
        self._since_fit += 1
        if self._since_fit == REFIT_EVERY:
            self._since_fit = 0
            self.fitted = self._fit() or self.fitted

    def _fit(self) -> tuple[float, float] | None:
        rows = list(self._within_sites())
        xx = sum(x * x for x, _, _ in rows)
        yy = sum(y * y for _, y, _ in rows)
        xy = sum(x * y for x, y, _ in rows)
        xt = sum(x * t for x, _, t in rows)
        yt = sum(y * t for _, y, t in rows)
        determinant = xx * yy - xy * xy
        if determinant > SINGULAR * xx * yy:
            return max(0.0, (xt * yy - yt * xy) / determinant), max(0.0, (yt * xx - xt * xy) / determinant)
        if xx > 0 and yy == 0:
            return max(0.0, xt / xx), max(0.0, xt / xx)
        return None

    def _within_sites(self) -> list[tuple[float, float, float]]:
        """Deviations from the means of each site, which take the intercepts out."""
        by_site: dict[Site, list[Sample]] = {}
        for sample in self._samples:
            by_site.setdefault(sample.site, []).append(sample)
        rows = []
        for samples in by_site.values():
            uncached = sum(s.uncached_tokens for s in samples) / len(samples)
            queued = sum(s.queued_tokens for s in samples) / len(samples)
            ttft_ms = sum(s.ttft_ms for s in samples) / len(samples)
            rows += [(s.uncached_tokens - uncached, s.queued_tokens - queued, s.ttft_ms - ttft_ms) for s in samples]
        return rows

"""GORGO's tuner: a (1+1) evolution strategy on the two weights, judged by the p95 of TTFT."""

from collections import deque
from math import ceil, exp, log
from random import Random
from typing import NamedTuple

WINDOW = 128
HOP = 32
SIGMA_FIRST, SIGMA_MIN, SIGMA_FACTOR = 0.5, 0.02, 0.817
TRIALS = 8
"""How many trials the one-fifth rule looks back on."""
BETTER = 0.005
RTT_BOUNDS, QUEUE_BOUNDS = (0.05, 2.0), (0.05, 0.5)


class Weights(NamedTuple):
    """What is searched."""

    rtt: float
    queue: float


class Tuner:
    """One trial at a time: draw weights near the best, use them for HOP requests, keep them if they were better.

    Steps are normal in the logarithm of the weights. Every HOP first tokens the p95 over the last WINDOW is taken; a
    trial is kept if it is better by more than BETTER; after TRIALS trials the step grows by 1/SIGMA_FACTOR if more than
    one in five was kept, and shrinks by SIGMA_FACTOR otherwise (arXiv 2602.11688, appendix; gorgo-lb 0.2.0).
    """

    def __init__(self, first: Weights) -> None:
        self.best = first
        self.sigma = SIGMA_FIRST
        self._tried = first
        self._is_due = False
        self._best_ms: float | None = None
        self._kept: list[bool] = []
        self._ttft_ms: deque[float] = deque(maxlen=WINDOW)
        self._since_trial = 0

    def weights(self, random: Random) -> Weights:
        """What to score with; draws the next trial when one is due."""
        if self._is_due:
            self._is_due = False
            self._tried = Weights(
                _step(self.best.rtt, self.sigma, RTT_BOUNDS, random),
                _step(self.best.queue, self.sigma, QUEUE_BOUNDS, random),
            )
        return self._tried

    def learn(self, ttft_ms: float) -> None:
        """One more first token; ends a trial when there were enough."""
        self._ttft_ms.append(ttft_ms)
        self._since_trial += 1
        if self._since_trial >= HOP and len(self._ttft_ms) == WINDOW:
            self._since_trial = 0
            self._judge(sorted(self._ttft_ms)[ceil(0.95 * WINDOW) - 1])

    def _judge(self, p95_ms: float) -> None:
        self._is_due = True
        if self._best_ms is None:
            self._best_ms = p95_ms
            return
        is_better = p95_ms < self._best_ms * (1 - BETTER)
        if is_better:
            self.best, self._best_ms = self._tried, p95_ms
        self._kept.append(is_better)
        if len(self._kept) == TRIALS:
            grow = sum(self._kept) > TRIALS / 5
            self.sigma = max(SIGMA_MIN, self.sigma / SIGMA_FACTOR if grow else self.sigma * SIGMA_FACTOR)
            self._kept.clear()


def _step(value: float, sigma: float, bounds: tuple[float, float], random: Random) -> float:
    low, high = bounds
    return min(high, max(low, exp(log(max(value, low)) + random.gauss(0.0, sigma))))

"""The best threshold and the best split of the PD cluster (arXiv 2604.15039, section 3.4.3, equations 7 and 8).

    (7) theta_prfaas / p = theta_pd_p / (1 - p)              the threshold balances the two prefill pools
    (8) theta_prfaas + theta_pd_p = theta_pd_d               prefill and decode balance

The left side of (7) falls with p and the right one rises, so the optimum is where they meet; whole instances meet (8)
only roughly. As in the paper all pairs on a grid are tried, which needs neither of the two.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from .model import Split, System, Throughput, throughput

STEP_TOKENS = 100
"""Of the grid of thresholds: half a percent of the optimum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """What one bandwidth gives with the best split for it, and with a split that stays what it is."""

    egress_bytes_per_s: float
    best: Throughput
    fixed: Throughput

    @property
    def gain(self) -> float:
        """How much more the best split serves, as a share of what the fixed one does."""
        return self.best.requests_per_s / self.fixed.requests_per_s - 1.0


def best(system: System, pd_instances: int) -> Throughput:
    """The most requests per second over all thresholds on the grid and all N_p + N_d = `pd_instances`.

    Without PrfaaS instances there is one threshold, above all lengths. Of equals the one with the least egress wins.
    """
    splits = [
        Split(threshold_tokens=threshold, prefill=prefill, decode=pd_instances - prefill)
        for threshold in _thresholds(system)
        for prefill in range(1, pd_instances)
    ]
    return max((throughput(system, split) for split in splits), key=_merit)


def sensitivity(
    system: System, pd_instances: int, fixed: Split, egress_bytes_per_s: Iterable[float]
) -> list[Sensitivity]:
    """For each bandwidth the best split, and what `fixed` gives there."""
    rows = []
    for bandwidth in egress_bytes_per_s:
        narrowed = replace(system, egress_bytes_per_s=bandwidth)
        kept = throughput(narrowed, fixed)
        chosen = max(best(narrowed, pd_instances), kept, key=_merit)
        rows.append(Sensitivity(egress_bytes_per_s=bandwidth, best=chosen, fixed=kept))
    return rows


def _thresholds(system: System) -> Sequence[float]:
    low, high = system.lengths.low_tokens, system.lengths.high_tokens
    if not system.prfaas_instances:
        return [high]
    first = -(-low // STEP_TOKENS)
    return [STEP_TOKENS * (first + i) for i in range(int(high // STEP_TOKENS - first) + 1)] + [high]


def _merit(found: Throughput) -> tuple[float, float]:
    return found.requests_per_s, -found.egress_bytes_per_s

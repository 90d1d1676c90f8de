"""Congestion prices: what a plan takes from others, in seconds.

A second of a pool's compute or of a link's time costs nothing while there is plenty, and as much as it delays others
when it is wanted more than there is. All prices start at zero, which makes the planner greedy on TTFT. Money is a
toll too: a link's price per GB is turned into seconds by what a second is worth to the operator.
"""

from .topology import Topology
from .types import Site, WorkerId


class Tolls:
    """Prices per worker and per link; `set_*` is where a learner puts what it finds."""

    def __init__(self, *, dollars_per_s: float = 0.0) -> None:
        self._dollars_per_s = dollars_per_s
        self._worker: dict[WorkerId, float] = {}
        self._link: dict[tuple[Site, Site], float] = {}

    def set_worker(self, worker: WorkerId, price: float) -> None:
        """Seconds that one second of this worker's compute takes from others (0: it idles anyway)."""
        assert price >= 0, price
        self._worker[worker] = price

    def set_link(self, source: Site, target: Site, price: float) -> None:
        """Seconds that one second of this link's whole capacity takes from others."""
        assert price >= 0, price
        self._link[source, target] = price

    def compute_s(self, worker: WorkerId, seconds: float) -> float:
        """The toll on compute."""
        price = self._worker.get(worker)
        return 0.0 if price is None else price * seconds

    def link_s(self, topology: Topology, source: Site, target: Site, moved_bytes: int) -> float:
        """The toll on bytes over a link: its congestion, and its price in money."""
        toll_s = 0.0
        price = self._link.get((source, target))
        if price:
            toll_s = price * moved_bytes / topology.rate(source, target).bytes_per_s
        if self._dollars_per_s > 0:
            toll_s += topology.price_per_gb(source, target) * moved_bytes / 1e9 / self._dollars_per_s
        return toll_s

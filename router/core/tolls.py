"""Congestion prices: what a plan takes from others, in seconds.

A second of a pool's compute or of a link's time costs nothing while there is plenty, and as much as it delays others
when it is wanted more than there is. Money is a toll too: a link's price per GB is turned into seconds by what a second
is worth to the operator. With all prices at zero the planner is greedy on TTFT.

Rule 1: prices are put here by whoever learns them (`congestion`); nothing here learns.
Rule 2: a price is in seconds per second, so that a toll is in seconds.
"""

from .topology import Topology
from .types import Site, WorkerId


class Tolls:
    """Prices per worker and per link.

    `stall`: what a second is worth in which an answer stalls because a prompt is computed beside it, as a share of a
    second of waiting for a first token; `crowd_s`: what one more answer on a worker costs each that is decoded there
    already, in seconds; `together`: what a second is worth by which a prompt ends later because another shares its
    pass, as a share likewise. All are 0 for a planner that cares for the first token of this one request alone.
    """

    def __init__(
        self, *, dollars_per_s: float = 0.0, stall: float = 0.0, crowd_s: float = 0.0, together: float = 0.0
    ) -> None:
        assert stall >= 0 and crowd_s >= 0 and together >= 0, (stall, crowd_s, together)
        self._dollars_per_s = dollars_per_s
        self.stall = stall
        self.crowd_s = crowd_s
        self.together = together
        self._worker: dict[WorkerId, float] = {}
        self._place: dict[WorkerId, float] = {}
        self._link: dict[tuple[Site, Site], float] = {}

    def set_worker(self, worker: WorkerId, price: float) -> None:
        """Seconds that one second of this worker's compute takes from others (0: it idles anyway)."""
        assert price >= 0, price
        self._worker[worker] = price

    def set_place(self, worker: WorkerId, price_s: float) -> None:
        """Seconds that others lose by each token that is put into this worker's cache (0: it has room)."""
        assert price_s >= 0, price_s
        self._place[worker] = price_s

    def place_s(self, worker: WorkerId, tokens: int) -> float:
        """The toll on places in a cache."""
        return self._place.get(worker, 0.0) * tokens

    def forget_worker(self, worker: WorkerId) -> None:
        """The worker is gone, and its price with it."""
        self._worker.pop(worker, None)
        self._place.pop(worker, None)

    def set_link(self, source: Site, target: Site, price: float) -> None:
        """Seconds that one second of this link's whole capacity takes from others."""
        assert price >= 0, price
        self._link[source, target] = price

    def worker(self, worker: WorkerId) -> float:
        """The price of a worker's compute."""
        return self._worker.get(worker, 0.0)

    def link(self, source: Site, target: Site) -> float:
        """The price of a link's time."""
        return self._link.get((source, target), 0.0)

    def compute_s(self, worker: WorkerId, seconds: float, decoding: int = 0) -> float:
        """The toll on compute: of those who want the worker's time, and of the answers that stall meanwhile."""
        price = self._worker.get(worker, 0.0) + self.stall * decoding
        return price * seconds

    def together_s(self, pass_s: float, prompts: float) -> float:
        """The toll of sharing a pass: so many prompts could have ended sooner, by at most the time of one pass."""
        return self.together * pass_s * prompts

    def decode_s(self, decoding: int) -> float:
        """The toll of one more answer beside so many."""
        return self.crowd_s * decoding

    def link_s(self, topology: Topology, source: Site, target: Site, moved_bytes: int) -> float:
        """The toll on bytes over a link: its congestion, and its price in money."""
        toll_s = 0.0
        price = self._link.get((source, target))
        if price:
            toll_s = price * moved_bytes / topology.rate(source, target).bytes_per_s
        if self._dollars_per_s > 0:
            toll_s += topology.price_per_gb(source, target) * moved_bytes / 1e9 / self._dollars_per_s
        return toll_s

"""What flows share: a link, a NIC, a PCIe lane, a fabric. It has a capacity, users and books.

Rule 1: a resource never decides; `sharing` does, and keeps the scratch fields here.
Rule 2: the books are brought up to date when something changes or somebody reads, never by a timer.
"""

from dataclasses import dataclass, replace
from math import inf

from .bundle import Bundle


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """The books of a resource between two times.

    `bytes` were carried, `offered_bytes` could have been (the integral of its capacity: I9 is bytes <= offered_bytes),
    `busy_s` is the time with at least one flow that had bytes to send, `flow_s` the integral of their number. `flows`,
    `bytes_per_s` and `capacity_bytes_per_s` are those of the end; `flows_max` is the peak since the start.
    """

    from_s: float
    to_s: float
    bytes: float
    offered_bytes: float
    busy_s: float
    flow_s: float
    flows: int
    flows_max: int
    bytes_per_s: float
    capacity_bytes_per_s: float
    dollars: float = 0.0

    @property
    def utilisation(self) -> float:
        """The part of the capacity that was used; 0 where there was none, or no limit."""
        return self.bytes / self.offered_bytes if self.offered_bytes else 0.0

    @property
    def flows_mean(self) -> float:
        """How many flows were sending, averaged over time."""
        return self.flow_s / (self.to_s - self.from_s) if self.to_s > self.from_s else float(self.flows)

    def since(self, earlier: "Usage") -> "Usage":
        """The same between an earlier reading and this one."""
        return replace(
            self,
            from_s=earlier.to_s,
            bytes=self.bytes - earlier.bytes,
            offered_bytes=self.offered_bytes - earlier.offered_bytes if self.offered_bytes < inf else inf,
            busy_s=self.busy_s - earlier.busy_s,
            flow_s=self.flow_s - earlier.flow_s,
            dollars=self.dollars - earlier.dollars,
        )


class Resource:
    """Something with a capacity in bytes per second; infinity limits nobody but is counted all the same."""

    __slots__ = (
        "_began_s",
        "_busy_s",
        "_flow_s",
        "_flows",
        "_flows_max",
        "_offered_bytes",
        "_settled_s",
        "bundles",
        "capacity",
        "carried_bytes",
        "is_tight",
        "left",
        "name",
        "number",
        "seen",
        "weight",
    )

    def __init__(self, name: str, number: int, capacity: float, now: float) -> None:
        self.name = name
        self.number = number
        """Its place among all: what equal levels are told apart by (I5)."""
        self.capacity = capacity
        self.bundles: dict[Bundle, None] = {}
        """The users that have bytes to send, in the order in which they began."""
        self.is_tight = False
        """Whether it can bind: its users could together take more than it has."""
        self.carried_bytes = 0.0
        """Of users that are gone; those of the present are in their bundles."""
        self.seen = 0
        self.left = 0.0
        self.weight = 0
        self._began_s = self._settled_s = now
        self._flows = self._flows_max = 0
        self._busy_s = self._flow_s = self._offered_bytes = 0.0

    def is_overbooked(self) -> bool:
        """Whether its users could take more than it has. O(1) with one user, else O(users) at most."""
        if len(self.bundles) < 2:
            return False
        wanted = 0.0
        for bundle in self.bundles:
            wanted += bundle.bound
            if wanted > self.capacity:
                return True
        return False

    def count(self, change: int, now: float) -> None:
        """So many flows more, or fewer, have bytes to send from now on."""
        self.settle(now)
        self._flows += change
        self._flows_max = max(self._flows_max, self._flows)

    def settle(self, now: float) -> None:
        """Bring the books up to date, before the capacity or the number of flows changes."""
        elapsed_s = now - self._settled_s
        if elapsed_s > 0:
            self._offered_bytes += self.capacity * elapsed_s
            if self._flows:
                self._busy_s += elapsed_s
                self._flow_s += self._flows * elapsed_s
            self._settled_s = now
        if self.capacity == inf:
            self._offered_bytes = inf

    def usage(self, now: float, price_per_gb: float = 0.0) -> Usage:
        """The books since the start. O(users)."""
        self.settle(now)
        carried = self.carried_bytes + sum(bundle.carried_at(now) for bundle in self.bundles)
        return Usage(
            from_s=self._began_s,
            to_s=now,
            bytes=carried,
            offered_bytes=self._offered_bytes,
            busy_s=self._busy_s,
            flow_s=self._flow_s,
            flows=self._flows,
            flows_max=self._flows_max,
            bytes_per_s=sum(bundle.rate * bundle.flowing for bundle in self.bundles),
            capacity_bytes_per_s=self.capacity,
            dollars=carried / 1e9 * price_per_gb,
        )

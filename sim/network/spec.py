"""The truth about one direction between two sites, and what packet loss makes of it.

Rule 1: only facts of the path and of its congestion control; what the router believes of it is elsewhere (I6).
Rule 2: a spec cannot be built wrong: ConfigError names the link, the field, what was found and the fix.
"""

from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise
from math import inf, isfinite, sqrt
from operator import itemgetter
from typing import Final

from homing.router.core.errors import ConfigError

Profile = tuple[tuple[float, float], ...]
"""A piecewise constant function of time: (from_s, value), times ascending."""

MSS_BYTES: Final = 1460
"""What one packet carries: Ethernet's 1500 bytes less 40 of IPv4 and TCP headers."""
MATHIS: Final = 1.22
"""The constant sqrt(3/2) of the formula below."""
BBR_LOSS_MAX: Final = 0.15
"""Up to this loss BBR fills the path: a design parameter of it, named in the message of the Linux commit `tcp_bbr: add
BBR congestion control` (4.9); the measurement is figure 8 of Cardwell et al., BBR, ACM Queue 14(5), 2016."""
NEAR_RTT_S: Final = 2e-4
"""Inside one site, where no link was listed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSpec:
    """One direction between two sites.

    `bytes_per_s` is the capacity of the path. `jitter_s` is the mean of an exponential extra one-way delay, drawn once
    per flow. `loss` is the ratio of packets lost at random, `connections` how many each flow uses in parallel. Others'
    traffic is in `background` (bytes per second that they take), changes of the path in `capacity` (a factor of
    `bytes_per_s`; 0 is a cut): both piecewise constant, 0 and 1 before their first entry. `price_per_gb` is in dollars
    per 1e9 bytes.
    """

    source: str
    target: str
    bytes_per_s: float
    rtt_s: float
    jitter_s: float = 0.0
    loss: float = 0.0
    connections: int = 1
    congestion: str = "bbr"
    price_per_gb: float = 0.0
    background: Profile = ()
    capacity: Profile = ()

    def __post_init__(self) -> None:
        self._require("bytes_per_s", self.bytes_per_s > 0, "more than 0", "say how fast the link is")
        for name in ("rtt_s", "jitter_s", "price_per_gb"):
            value = getattr(self, name)
            self._require(name, isfinite(value) and value >= 0, "a finite number of at least 0", "leave it out for 0")
        self._require("connections", self.connections >= 1, "at least 1", "leave it out for 1")
        known = self.congestion in {"bbr", "cubic"}
        self._require("congestion", known, "bbr or cubic", "other algorithms have no formula here")
        self._require("loss", 0 <= self.loss < 1, "a ratio from 0 to below 1", "1 % is 0.01")
        filled = self.congestion != "bbr" or self.loss <= BBR_LOSS_MAX
        self._require("loss", filled, f"at most {BBR_LOSS_MAX} under bbr", "model a worse path as a smaller capacity")
        for name in ("background", "capacity"):
            self._require(name, _is_profile(getattr(self, name)), "(from_s, value of at least 0) with ascending times")

    def _require(self, name: str, holds: bool, rule: str, fix: str = "sort it and see that no time is twice") -> None:
        if not holds:
            found = getattr(self, name)
            raise ConfigError(f"link {self.source} -> {self.target}: {name}: expected {rule}, found {found!r}; {fix}")

    @property
    def flow_bytes_per_s(self) -> float:
        """What one flow gets at most for its congestion control's sake; infinity where only the path limits it.

        CUBIC under random loss: per connection MSS / RTT * 1.22 / sqrt(loss), the macroscopic model of Mathis, Semke,
        Mahdavi and Ott, ACM CCR 27(3), 1997, section 2. It is Reno's, which CUBIC falls back to where losses are
        frequent (RFC 9438, section 4.3); with rare loss over a long path CUBIC is quicker than this says.
        """
        if self.congestion == "bbr" or not self.loss or not self.rtt_s:
            return inf
        return self.connections * MATHIS * MSS_BYTES / (self.rtt_s * sqrt(self.loss))

    def capacity_bytes_per_s(self, at_s: float, factor: float = 1.0) -> float:
        """What all flows together can carry at a time, with a fault's factor upon the profile.

        Lost packets take room and are sent again, so (1 - loss) of what the background leaves is useful: the most that
        any congestion control can reach (Cardwell et al., as above).
        """
        scaled = factor * _value(self.capacity, at_s, 1.0)
        path = self.bytes_per_s * scaled if scaled else 0.0
        return max(0.0, path - _value(self.background, at_s, 0.0)) * (1.0 - self.loss)

    def next_change_s(self, after_s: float) -> float:
        """When a profile changes next, strictly later; infinity when none does."""
        return min(_next_s(self.background, after_s), _next_s(self.capacity, after_s))


def near_link(site: str) -> LinkSpec:
    """Inside a site for which no link was listed: a fifth of a millisecond, and no limit but the resources' own."""
    return LinkSpec(source=site, target=site, bytes_per_s=inf, rtt_s=NEAR_RTT_S)


def _is_profile(profile: Profile) -> bool:
    times = [from_s for from_s, _ in profile]
    ascend = all(earlier < later for earlier, later in pairwise(times))
    return ascend and all(isfinite(from_s) and isfinite(value) and value >= 0 for from_s, value in profile)


def _value(profile: Profile, at_s: float, before: float) -> float:
    position = bisect_right(profile, at_s, key=itemgetter(0))
    return profile[position - 1][1] if position else before


def _next_s(profile: Profile, after_s: float) -> float:
    position = bisect_right(profile, after_s, key=itemgetter(0))
    return profile[position][0] if position < len(profile) else inf

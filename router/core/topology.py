"""Sites and the links between them, as the router believes them: the operator's priors, then what was measured."""

from collections.abc import Iterable

from .rates import LinkRate
from .types import Link, Site

NEAR_RTT_S = 2e-4
NEAR_BYTES_PER_S = 1.25e9
"""Inside one site, unless told otherwise: a 10 Gbit/s network of a fifth of a millisecond."""
FAR_RTT_S = 0.05
FAR_BYTES_PER_S = 1.25e7
"""Between two sites that no configured link joins: a cautious 100 Mbit/s of 50 ms, soon corrected by measuring."""
RATES_MAX = 65_536
"""Directions that are remembered: senders name sites too, and must not fill the memory by inventing names."""


class Topology:
    """Directed links between sites; a pair that was never configured gets a cautious prior on first use.

    Beyond `RATES_MAX` pairs the one that was learned of first is forgotten, back to its prior.
    """

    def __init__(self, links: Iterable[Link] = ()) -> None:
        self._priors: dict[tuple[Site, Site], Link] = {(link.source, link.target): link for link in links}
        self._rates: dict[tuple[Site, Site], LinkRate] = {}

    def rate(self, source: Site, target: Site) -> LinkRate:
        """What is believed of one direction; the same object for the same pair, so that it learns."""
        pair = (source, target)
        found = self._rates.get(pair)
        if found is None:
            if len(self._rates) >= RATES_MAX:
                del self._rates[next(iter(self._rates))]
            prior = self._priors.get(pair) or self._default(source, target)
            found = self._rates[pair] = LinkRate(prior.rtt_s, prior.bytes_per_s)
        return found

    def configure(self, links: Iterable[Link]) -> None:
        """Take the operator's word anew; what was learned of a link that changed is forgotten."""
        before, self._priors = self._priors, {(link.source, link.target): link for link in links}
        for pair in {*before, *self._priors}:
            if before.get(pair) != self._priors.get(pair):
                self._rates.pop(pair, None)

    def price_per_gb(self, source: Site, target: Site) -> float:
        """What the operator pays for a gigabyte (1e9 bytes) on this link."""
        link = self._priors.get((source, target))
        return 0.0 if link is None else link.price_per_gb

    def known(self) -> list[tuple[Site, Site]]:
        """Every pair that was configured or used, sorted."""
        return sorted(set(self._priors) | set(self._rates))

    def _default(self, source: Site, target: Site) -> Link:
        if source == target:
            return Link(source=source, target=target, rtt_s=NEAR_RTT_S, bytes_per_s=NEAR_BYTES_PER_S)
        return Link(source=source, target=target, rtt_s=FAR_RTT_S, bytes_per_s=FAR_BYTES_PER_S)

"""Links: configured, assumed, learned, and never more than fit in memory."""

import pytest

from homing.router.core import topology
from homing.router.core.topology import FAR_BYTES_PER_S, FAR_RTT_S, NEAR_BYTES_PER_S, NEAR_RTT_S, Topology
from homing.router.core.types import Site

from .fleets import HERE, THERE, link


def test_a_configured_link_is_directed():
    known = Topology([link(HERE, THERE, 0.1, 1e6, price_per_gb=0.5)])
    assert known.rate(HERE, THERE).rtt_s == pytest.approx(0.1)
    assert known.rate(HERE, THERE).bytes_per_s == pytest.approx(1e6)
    assert known.rate(THERE, HERE).bytes_per_s == pytest.approx(FAR_BYTES_PER_S)
    assert (known.price_per_gb(HERE, THERE), known.price_per_gb(THERE, HERE)) == (0.5, 0.0)


def test_unknown_pairs_get_a_cautious_prior():
    """Within a site quick, between sites slow: nothing is moved over a link that nobody knows without a good reason."""
    known = Topology()
    near, far = known.rate(HERE, HERE), known.rate(HERE, THERE)
    assert (near.rtt_s, near.bytes_per_s) == pytest.approx((NEAR_RTT_S, NEAR_BYTES_PER_S))
    assert (far.rtt_s, far.bytes_per_s) == pytest.approx((FAR_RTT_S, FAR_BYTES_PER_S))


def test_the_same_pair_is_the_same_object_so_that_it_learns():
    known = Topology()
    known.rate(HERE, THERE).learn_bytes_per_s(1e9, 1.0, 0.0)
    assert known.rate(HERE, THERE).samples == 1
    assert known.rate(HERE, THERE).bytes_per_s > 2 * FAR_BYTES_PER_S


def test_known_pairs_are_those_configured_or_used():
    known = Topology([link(THERE, HERE, 0.1, 1e6)])
    known.rate(HERE, HERE)
    assert known.known() == [(HERE, HERE), (THERE, HERE)]


def test_invented_sites_do_not_fill_the_memory(monkeypatch):
    """A request names the site where it came in; a configured link is back at its prior when it is asked for again."""
    monkeypatch.setattr(topology, "RATES_MAX", 10)
    known = Topology([link(HERE, THERE, 0.1, 1e6)])
    known.rate(HERE, THERE)
    for number in range(100):
        known.rate(Site(f"invented {number}"), HERE)
    assert len(known.known()) <= 11
    assert known.rate(HERE, THERE).rtt_s == pytest.approx(0.1)

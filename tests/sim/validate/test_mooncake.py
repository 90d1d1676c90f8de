"""The conversation trace through the simulated world, in the ten minutes of it that are part of the package."""

from homing.sim.validate.mooncake import EXCERPT, LIGHT, check_world, compare, measure


def test_a_worker_that_forgets_nothing_finds_what_the_pool_finds():
    check = check_world(EXCERPT)
    assert check.passed, check


def test_caches_and_moves_shorten_waits():
    """Two of figure 5's gaps; its whole order is a matter of minutes and `make validate`."""
    policies = ("least-loaded", "prfaas-threshold")
    rows = [measure(policy, LIGHT, EXCERPT, 1, lambda text: None) for policy in policies]
    check = compare(rows, LIGHT, EXCERPT)
    assert check.passed, check
    assert not compare(rows[::-1], LIGHT, EXCERPT).passed

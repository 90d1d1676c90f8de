"""Queues that are known, in short runs, and the formulas themselves."""

from math import factorial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homing.sim.validate.queueing import SERVICE_S, Queue, erlang_c, measure


@given(st.integers(1, 12), st.floats(0.05, 0.95))
def test_erlang_c_is_the_textbooks_sum(servers, load):
    offered = servers * load
    waiting = offered**servers / factorial(servers) / (1 - load)
    naive = waiting / (sum(offered**k / factorial(k) for k in range(servers)) + waiting)
    assert erlang_c(servers, offered) == pytest.approx(naive, rel=1e-9)


def test_the_formulas_meet_where_they_should():
    assert Queue(service="M", workers=1, load=0.8).wait_s() == pytest.approx(SERVICE_S * 0.8 / 0.2)
    assert Queue(service="M", workers=1, load=0.8).wait_s() == 2 * Queue(service="D", workers=1, load=0.8).wait_s()


@pytest.mark.parametrize(
    "queue",
    [
        Queue(service="M", workers=1, load=0.5),
        Queue(service="D", workers=1, load=0.7),
        Queue(service="M", workers=3, load=0.7),
    ],
    ids=lambda queue: queue.name,
)
def test_a_short_run_is_within_its_error(queue):
    """A message of 0.1 ms more or less could not be seen here; a wrong order, a lost wake-up or a wrong time could."""
    found = measure(queue, 4000)
    assert abs(found.wait_s - queue.wait_s()) < 4 * found.error_s
    assert found.error_s < 0.2 * queue.wait_s()

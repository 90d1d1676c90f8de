"""The ledger against a naive model (I4): sums by adding up, queues as lists, nothing kept that can be computed."""

from math import fsum

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from homing.router.core.ledger import Charge, Flow, Ledger
from homing.router.core.types import RequestId, Site, WorkerId

A, B = WorkerId("a"), WorkerId("b")
R, S, T = RequestId("r"), RequestId("s"), RequestId("t")
LINK = (Site("here"), Site("there"))

names = st.sampled_from([RequestId(f"r{i}") for i in range(6)])
workers = st.sampled_from([WorkerId(f"w{i}") for i in range(4)])
links = st.sampled_from([(Site("x"), Site("y")), (Site("y"), Site("x")), (Site("x"), Site("x"))])
flows = st.builds(Flow, source=workers, target=workers, link=links, bytes=st.integers(0, 100))
works = st.tuples(workers, st.floats(0, 10), st.integers(0, 100))
charges = st.builds(
    Charge,
    compute=st.lists(works, max_size=2, unique_by=lambda one: one[0]).map(tuple),
    memory=st.lists(st.tuples(workers, st.integers(0, 50)), max_size=2, unique_by=lambda one: one[0]).map(tuple),
    flows=st.lists(flows, max_size=2).map(tuple),
)


class LedgerAgainstLists(RuleBasedStateMachine):
    """What is booked stands in three lists; everything that the ledger sums is summed anew from them."""

    def __init__(self):
        super().__init__()
        self.ledger = Ledger()
        self.now = 0.0
        self.compute = []
        self.memory = []
        self.flows = []

    def holders(self):
        return {one[0] for one in (*self.compute, *self.memory, *self.flows)}

    @rule(request=names, charge=charges, later=st.floats(0, 5))
    def charge(self, request, charge, later):
        self.now += later
        if request in self.holders():
            with pytest.raises(AssertionError, match="charged twice"):
                self.ledger.charge(request, charge, self.now)
            return
        self.ledger.charge(request, charge, self.now)
        self.compute += [(request, *work) for work in charge.compute]
        self.memory += [(request, *part) for part in charge.memory]
        self.flows += [(request, flow) for flow in charge.flows]

    @rule(request=names, later=st.floats(0, 5))
    def release(self, request, later):
        """Also of requests that hold nothing, and twice."""
        self.now += later
        touched = self.ledger.release(request, self.now)
        assert set(touched) == {one[1] for one in (*self.compute, *self.memory) if one[0] == request}
        for booked in (self.compute, self.memory, self.flows):
            booked[:] = [one for one in booked if one[0] != request]

    @rule(request=names, worker=st.none() | workers, later=st.floats(0, 5))
    def release_compute(self, request, worker, later):
        self.now += later
        ended = [one for one in self.compute if one[0] == request and worker in (None, one[1])]
        found = self.ledger.release_compute(request, self.now, worker)
        assert sorted(found) == sorted(one[1] for one in ended)
        self.compute = [one for one in self.compute if one not in ended]

    @rule(request=names, ends=st.tuples(workers, workers), later=st.floats(0, 5))
    def release_flow(self, request, ends, later):
        self.now += later
        shared = self.ledger.release_flow(request, *ends, self.now)
        found = [f for f in self.flows if f[0] == request and (f[1].source, f[1].target) == ends]
        assert (shared is not None) == bool(found)
        if found:
            assert shared >= 1 - 1e-9, "a flow shares its link with itself at least"
            del self.flows[self.flows.index(found[0])]

    @invariant()
    def sums_are_sums(self):
        ledger = self.ledger
        ledger.check()
        assert len(ledger) == len(self.holders())
        for worker in [f"w{i}" for i in range(4)]:
            mine = [one for one in self.compute if one[1] == worker]
            assert ledger.queued_requests(worker) == len(mine)
            assert ledger.queued_tokens(worker) == sum(one[3] for one in mine)
            total_s = fsum(one[2] for one in mine)
            behind_s = fsum(one[2] for one in mine[1:])
            assert behind_s - 1e-6 <= ledger.queue_s(worker, self.now) <= total_s + 1e-6
            blocks = [one[2] for one in self.memory if one[1] == worker]
            assert (ledger.blocks(worker), ledger.running(worker)) == (sum(blocks), len(blocks))
        for link in {flow.link for _, flow in self.flows}:
            assert ledger.flows(link) == sum(flow.link == link for _, flow in self.flows)

    def teardown(self):
        """I4: whoever ends, in whatever state, leaves nothing."""
        for number in range(6):
            self.ledger.release(RequestId(f"r{number}"), self.now)
        self.compute, self.memory, self.flows = [], [], []
        self.sums_are_sums()
        assert len(self.ledger) == 0
        assert all(self.ledger.free_at_s(WorkerId(f"w{i}")) == 0 for i in range(4))


TestLedgerAgainstLists = LedgerAgainstLists.TestCase
TestLedgerAgainstLists.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


# -- queues by hand ----------------------------------------------------------------------------------------------------


def compute(worker, seconds, tokens=1):
    return Charge(compute=((worker, seconds, tokens),))


def test_the_head_of_a_queue_is_worked_on_and_the_others_wait():
    ledger = Ledger()
    ledger.charge(R, compute(A, 4.0), 10.0)
    ledger.charge(S, compute(A, 2.0), 11.0)
    assert ledger.queue_s(A, 11.0) == pytest.approx(5.0)
    assert ledger.queue_s(A, 13.0) == pytest.approx(3.0)
    assert ledger.free_at_s(A) == pytest.approx(16.0)


def test_a_head_that_overruns_hides_nobody_behind_it():
    ledger = Ledger()
    ledger.charge(R, compute(A, 4.0), 0.0)
    ledger.charge(S, compute(A, 2.0), 0.0)
    assert ledger.queue_s(A, 100.0) == pytest.approx(2.0)


def test_the_next_head_begins_when_the_first_is_done():
    ledger = Ledger()
    ledger.charge(R, compute(A, 4.0), 0.0)
    ledger.charge(S, compute(A, 2.0), 0.0)
    ledger.release_compute(R, 9.0)
    assert ledger.queue_s(A, 9.5) == pytest.approx(1.5)


def test_who_leaves_from_the_middle_does_not_restart_the_head():
    ledger = Ledger()
    for request in (R, S, T):
        ledger.charge(request, compute(A, 4.0), 0.0)
    ledger.release_compute(S, 1.0)
    assert ledger.queue_s(A, 1.0) == pytest.approx(3.0 + 4.0)


def test_compute_ends_before_memory():
    ledger = Ledger()
    ledger.charge(R, Charge(compute=((A, 1.0, 5), (B, 0.5, 3)), memory=((A, 2), (B, 2))), 0.0)
    assert ledger.release_compute(R, 1.0, A) == [A]
    assert (ledger.queued_tokens(A), ledger.queued_tokens(B)) == (0, 3)
    assert (ledger.running(A), ledger.blocks(A)) == (1, 2)
    assert ledger.holds(R)
    assert sorted(ledger.release(R, 2.0)) == [A, B], "each once"
    assert not ledger.holds(R)


# -- how many shared a link --------------------------------------------------------------------------------------------


def flow(source, target):
    return Flow(source=WorkerId(source), target=WorkerId(target), link=LINK, bytes=1)


def test_a_flow_alone_had_the_link_to_itself():
    ledger = Ledger()
    ledger.charge(R, Charge(flows=(flow("a", "b"),)), 0.0)
    assert ledger.release_flow(R, A, B, 10.0) == pytest.approx(1.0)


def test_a_flow_that_had_company_for_half_of_its_time():
    """5 s alone and 5 s at half: 7.5 s worth of the link in 10 s, as with 4/3 flows all the time."""
    ledger = Ledger()
    ledger.charge(R, Charge(flows=(flow("a", "b"),)), 0.0)
    ledger.charge(S, Charge(flows=(flow("b", "a"),)), 5.0)
    assert ledger.flows(LINK) == 2
    assert ledger.release_flow(R, A, B, 10.0) == pytest.approx(10 / 7.5)
    assert ledger.release_flow(S, B, A, 15.0) == pytest.approx(10 / 7.5)
    assert ledger.flows(LINK) == 0


def test_an_idle_link_adds_nothing_to_anybodys_share():
    ledger = Ledger()
    for begin in (0.0, 100.0):
        ledger.charge(R, Charge(flows=(flow("a", "b"),)), begin)
        assert ledger.release_flow(R, A, B, begin + 1.0) == pytest.approx(1.0)


def test_a_flow_that_ends_as_it_begins_counts_as_alone():
    ledger = Ledger()
    ledger.charge(R, Charge(flows=(flow("a", "b"), flow("b", "a"))), 0.0)
    assert ledger.release_flow(R, A, B, 0.0) == 1.0
    assert ledger.release_flow(R, A, B, 0.0) is None

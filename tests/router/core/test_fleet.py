"""The fleet: bits, ranks, room, and how much of a report is news."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from homing.router.core.fleet import DECODE_STEP_PRIOR_S, Fleet
from homing.router.core.ledger import Charge
from homing.router.core.rates import REFERENCE_TOKENS
from homing.router.core.types import LoadReport, ModelName, PrefillPrior, RequestId, Role, Site, WorkerId

from .fleets import HERE, MODEL, THERE, worker

A, B, C = WorkerId("a"), WorkerId("b"), WorkerId("c")
R = RequestId("r")


def fleet(*workers):
    made = Fleet()
    for one in workers:
        made.join(one, 0.0)
    return made


def report(name, sequence=1, *, queued=0, running=0, used=0, at=0.0):
    return LoadReport(
        worker=WorkerId(name),
        sequence=sequence,
        measured_s=at,
        queued_prefill_tokens=queued,
        running_requests=running,
        kv_blocks_used=used,
    )


def charge(made, request, name, *, seconds=1.0, tokens=100, blocks=10, now=0.0):
    booked = Charge(compute=((WorkerId(name), seconds, tokens),), memory=((WorkerId(name), blocks),))
    made.charge(RequestId(request), booked, now)


def prefillers(made, site=HERE, model=MODEL):
    return [state.worker.id for state in made.pools(model)[site].prefillers()]


def decoders(made, site=HERE, model=MODEL):
    return [state.worker.id for state in made.pools(model)[site].least_decoding()]


# -- who is there ------------------------------------------------------------------------------------------------------


def test_bits_are_handed_out_from_zero_and_used_again():
    made = fleet(worker("a"), worker("b"), worker("c"))
    assert [made.get(name).bit for name in (A, B, C)] == [0, 1, 2]
    assert made.lose(B).bit == 1
    assert made.join(worker("d"), 1.0).bit == 1
    assert made.join(worker("e"), 1.0).bit == 3
    assert {state.worker.id: state.bit for state in made} == {"a": 0, "d": 1, "c": 2, "e": 3}
    made.check()


def test_a_worker_that_comes_back_knows_nothing_of_its_former_life():
    made = fleet(worker("a"))
    state = made.get(A)
    state.rate.learn(0, 1000, 5.0)
    state.decode_step_s.learn(3.0)
    made.report(report("a", 7, queued=50, running=2, used=9), 1.0)
    made.drain(A)
    made.lose(A)
    back = made.join(worker("a"), 2.0)
    assert back is not state
    assert (back.rate.samples, back.draining, back.report, back.foreign_tokens) == (0, False, None, 0)
    assert back.decode_step_s.value == pytest.approx(DECODE_STEP_PRIOR_S)
    made.report(report("a", 1, queued=30), 3.0)
    assert back.foreign_tokens == 30, "its sequence begins anew too"


def test_what_a_lost_worker_was_promised_is_there_when_it_comes_back():
    """Its requests have not ended yet for all that the router knows; each is given back when it does."""
    made = fleet(worker("a"))
    charge(made, "r", "a")
    made.lose(A)
    made.join(worker("a"), 1.0)
    assert made.running(made.get(A)) == 1
    made.release(R, 2.0)
    assert made.running(made.get(A)) == 0
    made.check()


def test_losing_and_draining_strangers_is_no_error():
    made = fleet(worker("a"))
    assert made.lose(B) is None
    made.drain(B)
    made.rerank(B)
    made.report(report("b"), 1.0)
    assert len(made) == 1
    made.check()


def test_joining_twice_is_a_fault_of_the_caller():
    made = fleet(worker("a"))
    with pytest.raises(AssertionError, match="a joined twice"):
        made.join(worker("a"), 1.0)


def test_pools_are_by_model_and_site():
    other = ModelName("other")
    made = fleet(worker("a"), worker("b", THERE), worker("c", THERE, model=other))
    assert (prefillers(made, HERE), prefillers(made, THERE)) == (["a"], ["b"])
    assert prefillers(made, THERE, other) == ["c"]
    assert made.models() == [MODEL, other]
    made.lose(C)
    assert made.models() == [MODEL]
    assert made.pools(ModelName("unheard of")) == {}


def test_the_largest_worker_of_a_model_is_known():
    made = fleet(worker("a", kv_blocks_max=10), worker("b", THERE, kv_blocks_max=30))
    assert made.largest_kv_blocks(MODEL) == 30
    made.lose(B)
    assert made.largest_kv_blocks(MODEL) == 10
    made.lose(A)
    assert made.largest_kv_blocks(MODEL) is None


# -- ranks -------------------------------------------------------------------------------------------------------------


def test_idle_workers_come_first_and_the_quickest_of_them_before_all():
    slow, quick = PrefillPrior(b_s=2e-3), PrefillPrior(b_s=1e-3)
    made = fleet(worker("a", prior=slow), worker("b", prior=quick), worker("c", prior=quick))
    assert prefillers(made) == ["b", "c", "a"]
    charge(made, "r", "b", seconds=0.001)
    assert prefillers(made) == ["c", "a", "b"], "busy for a millisecond is busy"


def test_busy_workers_stand_in_the_order_in_which_they_will_be_free():
    made = fleet(worker("a"), worker("b"), worker("c"))
    for name, seconds in (("a", 3.0), ("b", 1.0), ("c", 2.0)):
        charge(made, f"of {name}", name, seconds=seconds)
    assert prefillers(made) == ["b", "c", "a"]
    charge(made, "more", "b", seconds=9.0)
    assert prefillers(made) == ["c", "a", "b"]


def test_a_busy_worker_that_is_quick_may_stand_before_a_slow_one():
    """What counts is when a reference prompt would be done."""
    slow = PrefillPrior(a_s=0.0, b_s=1.0 / REFERENCE_TOKENS, q_s=0.0)
    quick = PrefillPrior(a_s=0.0, b_s=0.1 / REFERENCE_TOKENS, q_s=0.0)
    made = fleet(worker("a", prior=slow), worker("b", prior=quick))
    charge(made, "r", "a", seconds=1.0)
    charge(made, "s", "b", seconds=1.5)
    assert prefillers(made) == ["b", "a"]


def test_what_was_learned_changes_the_rank():
    made = fleet(worker("a"), worker("b"))
    for _ in range(5):
        made.get(B).rate.learn(0, REFERENCE_TOKENS, 0.1)
    made.rerank(B)
    assert prefillers(made) == ["b", "a"]


def test_decoders_stand_by_how_many_requests_they_have():
    made = fleet(worker("a"), worker("b"), worker("c"))
    charge(made, "r", "a", blocks=1)
    charge(made, "s", "a", blocks=1)
    charge(made, "t", "b", blocks=5000)
    assert decoders(made) == ["c", "b", "a"]
    made.release(R, 1.0)
    made.release(RequestId("s"), 1.0)
    assert decoders(made) == ["a", "c", "b"]


def test_each_role_stands_in_its_ranks_only():
    made = fleet(worker("a", role=Role.PREFILL), worker("b", role=Role.DECODE), worker("c"))
    assert prefillers(made) == ["a", "c"]
    assert decoders(made) == ["b", "c"]
    made.check()


def test_a_full_worker_is_in_no_rank_until_somebody_leaves():
    made = fleet(worker("a", requests_max=1), worker("b"))
    charge(made, "r", "a")
    assert (prefillers(made), decoders(made)) == (["b"], ["b"])
    made.release_compute(R, 1.0)
    assert prefillers(made) == ["b"], "it still decodes"
    made.release(R, 2.0)
    assert (prefillers(made), decoders(made)) == (["a", "b"], ["a", "b"])


def test_a_draining_worker_is_in_no_rank_for_good_but_its_cache_may_be_read():
    made = fleet(worker("a"), worker("b"))
    charge(made, "r", "a")
    made.drain(A)
    made.release(R, 1.0)
    made.report(report("a"), 1.0)
    made.rerank(A)
    assert (prefillers(made), decoders(made)) == (["b"], ["b"])
    assert not made.has_room(made.get(A), 1)
    assert made.pools(MODEL)[HERE].mask == 0b11
    made.check()


# -- load --------------------------------------------------------------------------------------------------------------


def test_room_is_blocks_and_requests():
    made = fleet(worker("a", kv_blocks_max=30, requests_max=3))
    state = made.get(A)
    assert made.has_room(state, 30)
    assert not made.has_room(state, 31)
    charge(made, "r", "a", blocks=20)
    assert made.has_room(state, 10)
    assert not made.has_room(state, 11)
    charge(made, "s", "a", blocks=0)
    charge(made, "t", "a", blocks=0)
    assert not made.has_room(state, 1), "three requests are all that it takes"


def test_a_report_adds_only_what_others_sent():
    """What the ledger knows of is in the report too, and must not count twice."""
    made = fleet(worker("a"))
    state = made.get(A)
    charge(made, "r", "a", seconds=1.0, tokens=100, blocks=10)
    made.report(report("a", queued=160, running=3, used=35), 0.0)
    assert (state.foreign_tokens, state.foreign_requests, state.foreign_blocks) == (60, 2, 25)
    assert made.running(state) == 3
    assert made.queue_s(state, 0.0) == pytest.approx(1.0 + state.rate.prefill_s(0, 60))


def test_a_report_of_less_than_was_promised_is_old_news():
    made = fleet(worker("a"))
    charge(made, "r", "a", seconds=1.0)
    made.report(report("a", queued=0, running=0, used=0), 0.0)
    assert (made.running(made.get(A)), made.queue_s(made.get(A), 0.0)) == (1, 1.0)


def test_reports_that_arrive_in_the_wrong_order_change_nothing_but_that_it_lives():
    made = fleet(worker("a"))
    state = made.get(A)
    made.report(report("a", 5, queued=50), 1.0)
    made.report(report("a", 4, queued=9000), 2.0)
    made.report(report("a", 5, queued=9000), 3.0)
    assert (state.foreign_tokens, state.report.sequence, state.last_seen_s) == (50, 5, 3.0)
    made.report(report("a", 6), 2.5)
    assert (state.foreign_tokens, state.last_seen_s) == (0, 3.0)


def test_the_work_of_others_makes_a_worker_busy():
    made = fleet(worker("a"), worker("b"))
    made.report(report("a", queued=500), 0.0)
    assert prefillers(made) == ["b", "a"]
    made.report(report("a", 2), 0.0)
    assert prefillers(made) == ["a", "b"]


def test_the_requests_of_others_take_room():
    made = fleet(worker("a", requests_max=2, kv_blocks_max=100))
    made.report(report("a", running=2), 0.0)
    assert prefillers(made) == decoders(made) == []
    made.report(report("a", 2, running=1, used=95), 0.0)
    assert made.has_room(made.get(A), 5)
    assert not made.has_room(made.get(A), 6)


# -- everything at once ------------------------------------------------------------------------------------------------

names = st.sampled_from("abcde").map(WorkerId)
requests = st.integers(0, 7).map(lambda number: RequestId(f"r{number}"))


class FleetUnderChange(RuleBasedStateMachine):
    """Ranks must equal sorting all workers anew, whatever happened."""

    def __init__(self):
        super().__init__()
        self.fleet = Fleet()
        self.now = 0.0
        self.sequence = 0
        self.most = 0

    @rule(name=names, site=st.sampled_from([HERE, THERE]), role=st.sampled_from(Role), most=st.integers(1, 3))
    def join(self, name, site, role, most):
        if self.fleet.get(name) is None:
            before = {state.bit for state in self.fleet}
            state = self.fleet.join(worker(name, site, role, requests_max=most, kv_blocks_max=40), self.now)
            assert state.bit not in before
            self.most = max(self.most, len(self.fleet))
            assert state.bit < self.most, "bits are used again, or masks would grow for ever"

    @rule(name=names)
    def lose(self, name):
        assert (self.fleet.lose(name) is None) or self.fleet.get(name) is None

    @rule(name=names)
    def drain(self, name):
        self.fleet.drain(name)

    @rule(name=names, queued=st.integers(0, 300), running=st.integers(0, 3), used=st.integers(0, 40))
    def report(self, name, queued, running, used):
        self.sequence += 1
        self.fleet.report(report(name, self.sequence, queued=queued, running=running, used=used, at=self.now), self.now)

    @rule(request=requests, name=names, seconds=st.floats(0, 5), later=st.floats(0, 2))
    def charge(self, request, name, seconds, later):
        self.now += later
        if not self.fleet.ledger.holds(request) and self.fleet.get(name) is not None:
            charge(self.fleet, request, name, seconds=seconds, now=self.now)

    @rule(request=requests, compute_only=st.booleans(), later=st.floats(0, 2))
    def release(self, request, compute_only, later):
        self.now += later
        if compute_only:
            self.fleet.release_compute(request, self.now)
        else:
            self.fleet.release(request, self.now)

    @invariant()
    def ranks_are_right(self):
        self.fleet.check()
        for site in (HERE, THERE):
            pool = self.fleet.pools(MODEL).get(Site(site))
            if pool is None:
                continue
            states = [state for state in self.fleet if state.worker.site == site]
            assert pool.mask == sum(state.mask for state in states)
            assert pool.by_bit == {state.bit: state for state in states}
            open_ = [s for s in states if not s.draining and self.fleet.running(s) < s.worker.requests_max]
            decoding = [s for s in open_ if s.worker.role.can_decode]
            expected = sorted(decoding, key=lambda s: (self.fleet.running(s), s.bit))
            assert list(pool.least_decoding()) == expected
            computing = {s.bit for s in open_ if s.worker.role.can_prefill}
            waits = [self.fleet.queue_s(state, self.now) > 0 for state in pool.prefillers()]
            assert {state.bit for state in pool.prefillers()} == computing
            assert waits == sorted(waits) or 0.0 in {self.fleet.ledger.queue_s(s.worker.id, self.now) for s in open_}


TestFleetUnderChange = FleetUnderChange.TestCase
TestFleetUnderChange.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)

"""Who waits and in which order, against sorting everybody anew."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from homing.router.core.admission import Admission
from homing.router.core.types import RequestId

from .fleets import request

QUEUE_MAX = 5


def waiting(name, **facts):
    return request(name, tokens=1, **facts)


def order(admission):
    return [one.id for one in admission]


class AdmissionAgainstAList(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.admission = Admission(QUEUE_MAX)
        self.model = []

    @rule(
        number=st.integers(0, 8),
        priority=st.integers(-1, 1),
        deadline_s=st.none() | st.integers(1, 6),
        arrived_s=st.integers(0, 3),
    )
    def add(self, number, priority, deadline_s, arrived_s):
        one = waiting(f"r{number}", priority=priority, ttft_deadline_s=deadline_s, arrived_s=float(arrived_s))
        if len(self.model) == QUEUE_MAX or any(other.id == one.id for other in self.model):
            with pytest.raises(AssertionError):
                self.admission.add(one)
            return
        self.admission.add(one)
        self.model.append(one)

    @rule(number=st.integers(0, 8))
    def remove(self, number):
        name = RequestId(f"r{number}")
        expected = next((one for one in self.model if one.id == name), None)
        assert self.admission.remove(name) is expected
        self.model = [one for one in self.model if one.id != name]

    @rule(now=st.integers(0, 6))
    def expire(self, now):
        late = [one for one in self.model if one.ttft_deadline_s is not None and one.ttft_deadline_s <= now]
        found = self.admission.expired(float(now))
        assert found == sorted(late, key=lambda one: (one.ttft_deadline_s, one.id))
        self.model = [one for one in self.model if one not in late]

    @invariant()
    def same_as_the_list(self):
        self.admission.check()
        assert len(self.admission) == len(self.model)
        assert self.admission.is_full() == (len(self.model) == QUEUE_MAX)
        assert all((RequestId(f"r{i}") in self.admission) == any(o.id == f"r{i}" for o in self.model) for i in range(9))
        never = float("inf")
        expected = sorted(
            self.model,
            key=lambda one: (-one.priority, one.ttft_deadline_s or never, one.arrived_s, one.id),
        )
        assert list(self.admission) == expected
        deadlines = [one.ttft_deadline_s for one in self.model if one.ttft_deadline_s is not None]
        assert self.admission.next_deadline_s() == min(deadlines, default=None)


TestAdmissionAgainstAList = AdmissionAgainstAList.TestCase
TestAdmissionAgainstAList.settings = settings(max_examples=80, stateful_step_count=25, deadline=None)


def test_priority_then_deadline_then_arrival():
    admission = Admission(10)
    admission.add(waiting("patient", arrived_s=0.0))
    admission.add(waiting("late", arrived_s=1.0, ttft_deadline_s=9.0))
    admission.add(waiting("soon", arrived_s=2.0, ttft_deadline_s=5.0))
    admission.add(waiting("important", arrived_s=3.0, priority=1))
    admission.add(waiting("patient too", arrived_s=0.5))
    assert order(admission) == ["important", "soon", "late", "patient", "patient too"]


def test_a_deadline_that_is_now_has_passed():
    admission = Admission(1)
    admission.add(waiting("r", ttft_deadline_s=2.0))
    assert admission.expired(1.999) == []
    assert [one.id for one in admission.expired(2.0)] == ["r"]


def test_those_who_wait_may_be_served_while_they_are_gone_through():
    admission = Admission(3)
    for name in "abc":
        admission.add(waiting(name))
    assert [admission.remove(one.id).id for one in admission] == ["a", "b", "c"]
    assert len(admission) == 0


def test_a_queue_of_no_length_is_always_full():
    assert Admission(0).is_full()

"""No at once, where the answer is foreseen to come too late: before anything is taken."""

from dataclasses import replace

import pytest

from homing.router.core.commands import Dispatch, Reject
from homing.router.core.events import DispatchFailed, FirstToken, RequestArrived, RequestFinished
from homing.router.core.limits import Limits
from homing.router.core.policies import POLICIES, make_policy
from homing.router.core.tolls import Tolls
from homing.router.core.types import Outcome, RejectReason, RequestId, WorkerId

from .fleets import busy, load, request, scheduler, worker

EARLY = Limits(reject_early=True)
A = WorkerId("a")
TOKENS = 1000
TTFT_S = 1.01 + 0.0002 + 0.005
"""Computing, the way to a worker in the same site, and the overhead that is believed at first."""


def arrive(made, deadline_s, now=0.0, name="r", tokens=TOKENS):
    (command,) = made.handle(RequestArrived(request=request(name, tokens=tokens, ttft_deadline_s=deadline_s)), now)
    return command


def test_what_is_foreseen_late_is_told_no_and_when_to_ask_again():
    made = scheduler(worker("a"), limits=EARLY)
    assert arrive(made, 0.5) == Reject(
        request_id=RequestId("r"),
        reason=RejectReason.TOO_LATE,
        detail="its first token is foreseen 0.5 s after its deadline",
        retry_after_s=1.0,
    )
    made.check()
    assert not made.in_flight
    assert not made._attempts
    assert len(made.fleet.ledger) == len(made.admission) == 0


def test_what_is_in_time_is_not():
    made = scheduler(worker("a"), limits=EARLY)
    assert isinstance(arrive(made, 7.0 + TTFT_S + 1e-6, 7.0), Dispatch)
    assert arrive(scheduler(worker("a"), limits=EARLY), 7.0 + TTFT_S - 1e-6, 7.0).reason is RejectReason.TOO_LATE


def test_who_has_no_deadline_is_never_late():
    made = scheduler(worker("a"), limits=EARLY)
    busy(made, "a", 1e6)
    assert isinstance(arrive(made, None), Dispatch)


def test_off_unless_asked_for():
    assert isinstance(arrive(scheduler(worker("a")), 0.5), Dispatch)


def test_a_queue_is_foreseen_and_another_worker_helps():
    made = scheduler(worker("a"), limits=EARLY)
    busy(made, "a", 1.0)
    assert arrive(made, 2.0).retry_after_s == 1.0, "never sooner than anybody else is asked to wait"
    made = scheduler(worker("a"), worker("b"), limits=EARLY)
    busy(made, "a", 1.0)
    assert arrive(made, 2.0).decision.plan.decode == "b"


def test_what_others_lose_makes_nobody_late():
    """A toll is in the score and not in the time to first token."""
    tolls = Tolls()
    tolls.set_worker(A, 8.0)
    assert isinstance(arrive(scheduler(worker("a"), limits=EARLY, tolls=tolls), TTFT_S + 0.1), Dispatch)


def test_a_resumed_request_goes_on():
    """Its sender may have tokens already."""
    made = scheduler(worker("a"), worker("b"), limits=EARLY)
    asked = arrive(made, TTFT_S + 0.1).decision.request
    failed = DispatchFailed(request_id=asked.id, worker_id=A, reason="broke", resume_as=asked)
    (again,) = made.handle(failed, TTFT_S)
    assert (again.decision.attempt, again.decision.plan.decode) == (2, "b")
    longer = replace(asked, prompt_tokens=TOKENS + 5)
    (again,) = made.handle(replace(failed, worker_id=WorkerId("b"), resume_as=longer), 100.0)
    assert again.decision.attempt == 3


def test_an_id_that_was_told_no_may_come_again():
    made = scheduler(worker("a"), limits=EARLY)
    assert isinstance(arrive(made, 0.5), Reject)
    assert isinstance(arrive(made, 0.9, 1.0), Reject), "and it is no resumed one"
    assert isinstance(arrive(made, 9.0, 2.0), Dispatch)


def test_who_waits_for_room_is_told_when_it_appears():
    """Those behind it are served."""
    made = scheduler(worker("a", requests_max=1), limits=EARLY)
    arrive(made, None, name="first")
    for name, deadline_s in (("late", 1.5), ("patient", 9.0)):
        waits = request(name, tokens=TOKENS, ttft_deadline_s=deadline_s)
        assert made.handle(RequestArrived(request=waits), 0.0) == []
    made.handle(FirstToken(request_id=RequestId("first"), ttft_s=TTFT_S), 1.0)
    end = RequestFinished(request_id=RequestId("first"), outcome=Outcome.FINISHED, output_tokens=1)
    late, served = made.handle(end, 1.0)
    assert (late.request_id, late.reason) == ("late", RejectReason.TOO_LATE)
    assert served.decision.request.id == "patient"
    made.check()
    assert len(made.admission) == 0


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_every_policy_foresees(name):
    made = scheduler(worker("a"), limits=EARLY, policy=make_policy(name))
    assert arrive(made, 0.5).reason is RejectReason.TOO_LATE
    assert isinstance(arrive(made, 9.0), Dispatch)


def test_where_nobody_has_room_nothing_is_foreseen():
    """It waits as it always did: what ends next is not known."""
    made = scheduler(worker("a", requests_max=1), limits=EARLY)
    made.handle(load("a", running=1), 0.0)
    assert made.handle(RequestArrived(request=request("r", tokens=TOKENS, ttft_deadline_s=0.5)), 0.0) == []
    assert RequestId("r") in made.admission

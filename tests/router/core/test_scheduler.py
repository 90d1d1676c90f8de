"""The state machine, told in stories: what happened, and what was asked for in answer, step by step."""

from dataclasses import replace
from typing import NamedTuple

import pytest

from homing.router.core.commands import Abandon, Cancel, Dispatch, Forget, Reject, Resync
from homing.router.core.events import (
    BlocksRemoved,
    BlocksStored,
    CacheCleared,
    DecodeMeasured,
    DispatchFailed,
    FirstToken,
    LinkMeasured,
    PrefillFinished,
    PrefillMeasured,
    RequestArrived,
    RequestCancelled,
    RequestFinished,
    TimerFired,
    TransferFinished,
    WorkerDraining,
    WorkerJoined,
    WorkerLost,
)
from homing.router.core.limits import Limits
from homing.router.core.policies import make_policy
from homing.router.core.prefix_index import Level
from homing.router.core.types import ModelName, Outcome, PlanKind, RejectReason, RequestId, Role, Tier, WorkerId

from .fleets import (
    BLOCK,
    HERE,
    MODEL,
    PRIOR,
    PROFILE,
    THERE,
    both_ways,
    chain,
    link,
    load,
    request,
    scheduler,
    stored,
    worker,
)

A, B, C = WorkerId("a"), WorkerId("b"), WorkerId("c")
FAR = both_ways(link(HERE, THERE, 0.05, 1e6))


class Sent(NamedTuple):
    """A dispatch, in short."""

    request: str
    worker: str
    attempt: int = 1


def short(command):
    if not isinstance(command, Dispatch):
        return command
    decision = command.decision
    return Sent(decision.request.id, "+".join(decision.plan.workers), decision.attempt)


def tell(made, *steps):
    """Each step is (now, event, the commands expected); the invariants hold after each."""
    for now, event, expected in steps:
        found = [short(command) for command in made.handle(event, now)]
        assert found == expected, f"at {now}: {event}"
        made.check()


def arrived(name, keys=(), tokens=None, **facts):
    return RequestArrived(request=request(name, keys, tokens or (None if keys else 100), **facts))


def finished(name, outcome=Outcome.FINISHED):
    return RequestFinished(request_id=RequestId(name), outcome=outcome, output_tokens=3)


def failed(resumed, by=None, reason="it broke"):
    return DispatchFailed(request_id=resumed.id, worker_id=by and WorkerId(by), reason=reason, resume_as=resumed)


def rejected(name, reason, detail, retry_after_s=None):
    return Reject(request_id=RequestId(name), reason=reason, detail=detail, retry_after_s=retry_after_s)


def assert_idle(made):
    """I4: nothing is booked, nobody waits, nothing is remembered of any request."""
    made.check()
    assert len(made.fleet.ledger) == 0
    assert not made.in_flight
    assert len(made.admission) == 0
    assert not made._attempts
    assert not made.in_flight._of_worker
    for state in made.fleet:
        assert made.fleet.ledger.queue_s(state.worker.id, made._now) == 0
        assert made.fleet.ledger.blocks(state.worker.id) == 0
        assert made.fleet.ledger.running(state.worker.id) == 0


# -- how requests end ----------------------------------------------------------------------------------------------


def test_a_request_is_placed_answered_and_forgotten():
    made = scheduler(worker("a"))
    tell(made, (1.0, arrived("r"), [Sent("r", "a")]))
    assert made.knows(RequestId("r"))
    assert made.fleet.ledger.queued_tokens(A) == 100
    tell(made, (1.2, FirstToken(request_id=RequestId("r"), ttft_s=0.2), []))
    assert made.fleet.ledger.queued_tokens(A) == 0, "its prompt is done, its memory is not free yet"
    assert made.fleet.ledger.running(A) == 1
    tell(made, (2.0, finished("r"), []))
    assert_idle(made)


@pytest.mark.parametrize("outcome", list(Outcome))
def test_whatever_the_outcome_the_end_is_the_end(outcome):
    made = scheduler(worker("a"))
    tell(made, (0.0, arrived("r"), [Sent("r", "a")]), (1.0, finished("r", outcome), []))
    assert_idle(made)


def test_a_sender_who_goes_away_while_the_request_is_out():
    made = scheduler(worker("a"))
    gone = RequestCancelled(request_id=RequestId("r"))
    cancel = Cancel(request_id=RequestId("r"), reason="the sender went away")
    tell(made, (0.0, arrived("r"), [Sent("r", "a")]), (1.0, gone, [cancel]), (1.1, gone, []))
    assert_idle(made)


def test_a_sender_who_goes_away_while_the_request_waits():
    """There is nobody to tell: no command about it."""
    made = scheduler(worker("a", requests_max=1))
    gone = RequestCancelled(request_id=RequestId("second"))
    tell(
        made,
        (0.0, arrived("first"), [Sent("first", "a")]),
        (0.1, arrived("second"), []),
        (0.2, gone, []),
        (0.3, finished("first"), []),
    )
    assert_idle(made)


def test_nobody_ends_a_request_and_its_lease_does():
    made = scheduler(worker("a"), limits=Limits(lease_s=10.0, lost_after_s=100.0))
    lease = Cancel(request_id=RequestId("r"), reason="no end was seen in 10.0 s")
    tell(made, (5.0, arrived("r"), [Sent("r", "a")]))
    assert made.next_timer() == 15.0
    tell(made, (14.9, TimerFired(), []), (15.0, TimerFired(), [lease]), (16.0, finished("r"), []))
    assert_idle(made)


# -- every reason to say no ----------------------------------------------------------------------------------------


def test_an_unknown_model():
    no = rejected("r", RejectReason.UNKNOWN_MODEL, "no model 'x'; known: m")
    tell(scheduler(worker("a")), (0.0, arrived("r", model=ModelName("x")), [no]))


def test_an_id_that_waits_or_is_out_already():
    made = scheduler(worker("a", requests_max=1))
    no = RejectReason.DUPLICATE_REQUEST, "this id is being answered"
    tell(
        made,
        (0.0, arrived("out"), [Sent("out", "a")]),
        (0.0, arrived("waits"), []),
        (0.1, arrived("out"), [rejected("out", *no)]),
        (0.1, arrived("waits"), [rejected("waits", *no)]),
        (0.2, finished("out"), [Sent("waits", "a")]),
        (0.3, arrived("out"), []),
        (0.4, finished("waits"), [Sent("out", "a")]),
    )


def test_a_prompt_that_exceeds_the_context():
    detail = "100001 tokens with the answer, the context holds 100000"
    no = rejected("r", RejectReason.PROMPT_TOO_LONG, detail)
    made = scheduler(worker("a"))
    tell(made, (0.0, arrived("r", tokens=99_985), [no]), (0.0, arrived("s", tokens=99_984), [Sent("s", "a")]))


def test_a_prompt_that_no_worker_could_ever_hold():
    """Waiting would not help: it is told no for good."""
    made = scheduler(worker("a", kv_blocks_max=10), worker("b", kv_blocks_max=20))
    no = rejected("r", RejectReason.PROMPT_TOO_LONG, "needs 21 KV blocks, the largest worker has 20")
    fits = 20 * BLOCK - 16
    tell(made, (0.0, arrived("r", tokens=fits + 1), [no]), (0.0, arrived("s", tokens=fits), [Sent("s", "b")]))


def test_no_worker_at_all():
    no = rejected("r", RejectReason.NO_WORKER, "no worker serves 'm' at the moment", 1.0)
    tell(scheduler(), (0.0, arrived("r"), [no]))


def test_a_full_queue_says_no_at_once():
    made = scheduler(worker("a", requests_max=1), limits=Limits(queue_max=1, retry_after_s=2.5))
    no = rejected("third", RejectReason.QUEUE_FULL, "1 requests wait already", 2.5)
    tell(
        made,
        (0.0, arrived("first"), [Sent("first", "a")]),
        (0.0, arrived("second"), []),
        (0.0, arrived("third"), [no]),
    )


LATE = RejectReason.DEADLINE_PASSED, "its deadline passed while it waited for room", 1.0


def test_a_deadline_that_passes_while_waiting():
    made = scheduler(worker("a", requests_max=1))
    tell(made, (0.0, arrived("first"), [Sent("first", "a")]), (0.0, arrived("r", ttft_deadline_s=0.5), []))
    assert made.next_timer() == 0.5
    tell(
        made,
        (0.4, TimerFired(), []),
        (0.5, TimerFired(), [rejected("r", *LATE)]),
        (0.6, finished("first"), []),
    )
    assert_idle(made)


def test_what_is_too_late_is_not_served_even_when_room_appears_before_the_timer():
    made = scheduler(worker("a", requests_max=1))
    tell(
        made,
        (0.0, arrived("first"), [Sent("first", "a")]),
        (0.0, arrived("late", ttft_deadline_s=0.5), []),
        (0.0, arrived("patient"), []),
        (0.6, finished("first"), [rejected("late", *LATE), Sent("patient", "a")]),
    )


def test_a_deadline_is_met_as_long_as_it_has_not_passed():
    made = scheduler(worker("a", requests_max=1))
    tell(
        made,
        (0.0, arrived("first"), [Sent("first", "a")]),
        (0.0, arrived("r", ttft_deadline_s=0.5), []),
        (0.4, finished("first"), [Sent("r", "a")]),
        (0.6, TimerFired(), []),
    )


# -- failures ------------------------------------------------------------------------------------------------------


def test_a_retry_goes_to_another_worker():
    made = scheduler(worker("a"), worker("b"), worker("c"))
    again = request("r", tokens=100)
    tell(
        made,
        (0.0, RequestArrived(request=again), [Sent("r", "a")]),
        (0.1, failed(again, "a"), [Sent("r", "b", 2)]),
        (0.2, failed(again, "b"), [Sent("r", "c", 3)]),
        (0.3, finished("r"), []),
    )
    assert_idle(made)


def test_when_all_have_failed_the_request_they_are_asked_again():
    """Better a worker that failed once than nobody."""
    made = scheduler(worker("a"))
    again = request("r", tokens=100)
    tell(
        made,
        (0.0, RequestArrived(request=again), [Sent("r", "a")]),
        (0.1, failed(again, "a"), [Sent("r", "a", 2)]),
        (0.2, failed(again, "a"), [Sent("r", "a", 3)]),
    )


def test_a_worker_that_failed_twice_is_still_the_one_that_is_avoided():
    """It is on the list of failures twice, and must not count as its neighbour."""
    made = scheduler(worker("a"))
    again = request("r", tokens=100)
    tell(
        made,
        (0.0, RequestArrived(request=again), [Sent("r", "a")]),
        (0.1, failed(again, "a"), [Sent("r", "a", 2)]),
        (0.2, WorkerJoined(worker=worker("b", prior=replace(PRIOR, b_s=1.0))), []),
        (0.3, failed(again, "a"), [Sent("r", "b", 3)]),
    )


def test_a_failure_that_is_nobodys_fault_excludes_nobody():
    made = scheduler(worker("a"), worker("b", prior=replace(PRIOR, b_s=1.0)))
    again = request("r", tokens=100)
    tell(made, (0.0, RequestArrived(request=again), [Sent("r", "a")]), (0.1, failed(again), [Sent("r", "a", 2)]))


def test_retries_end():
    made = scheduler(worker("a"), limits=Limits(retries_max=1))
    again = request("r", tokens=100)
    no = rejected("r", RejectReason.RETRIES_SPENT, "2 attempts failed, the last because it broke", 1.0)
    tell(
        made,
        (0.0, RequestArrived(request=again), [Sent("r", "a")]),
        (0.1, failed(again, "a"), [Sent("r", "a", 2)]),
        (0.2, failed(again, "a"), [no]),
    )
    assert_idle(made)


def test_a_failure_that_cannot_be_mended_ends_the_request_and_makes_room():
    made = scheduler(worker("a", requests_max=1))
    end = DispatchFailed(request_id=RequestId("r"), worker_id=A, reason="bad input", resume_as=None)
    tell(made, (0.0, arrived("r"), [Sent("r", "a")]), (0.0, arrived("s"), []), (0.1, end, [Sent("s", "a")]))
    tell(made, (0.2, finished("s"), []))
    assert_idle(made)


def test_an_answer_goes_on_elsewhere_with_what_was_sent_already():
    """After the first token the prompt is longer, the answer shorter, and the keys reach further."""
    made = scheduler(worker("a"), worker("b"))
    keys = chain(("doc", 4))
    begun = request("r", keys[:3], tokens=60)
    resumed = replace(begun, block_keys=keys, prompt_tokens=70, max_output_tokens=6)
    tell(
        made,
        (0.0, RequestArrived(request=begun), [Sent("r", "a")]),
        (0.1, FirstToken(request_id=begun.id, ttft_s=0.1), []),
        (0.2, failed(resumed, "a"), [Sent("r", "b", 2)]),
    )
    assert made.in_flight[begun.id].decision.request == resumed
    assert made.fleet.ledger.queued_tokens(B) == 70


def test_a_retry_that_finds_no_room_waits_and_keeps_its_count():
    made = scheduler(worker("a", requests_max=1), limits=Limits(retries_max=1))
    again = request("r", tokens=100)
    tell(
        made,
        (0.0, RequestArrived(request=again), [Sent("r", "a")]),
        (0.1, load("a", running=2), []),
        (0.2, failed(again, "a"), []),
        (0.25, finished("r"), []),
        (0.3, load("a", 2), [Sent("r", "a", 2)]),
        (
            0.4,
            failed(again, "a"),
            [rejected("r", RejectReason.RETRIES_SPENT, "2 attempts failed, the last because it broke", 1.0)],
        ),
    )


# -- workers come and go -------------------------------------------------------------------------------------------


def test_a_lost_worker_takes_its_requests_along():
    """Whoever carries them out is told in a fixed order, and answers with what is left to do."""
    made = scheduler(worker("a"))
    one, other = request("2", tokens=100), request("1", tokens=100)
    reason = "its stream ended"
    tell(
        made,
        (0.0, RequestArrived(request=one), [Sent("2", "a")]),
        (0.0, RequestArrived(request=other), [Sent("1", "a")]),
        (0.1, WorkerJoined(worker=worker("b")), []),
        (
            0.2,
            WorkerLost(worker_id=A, reason=reason),
            [Abandon(request_id=RequestId(name), worker_id=A, reason=reason) for name in "12"],
        ),
        (0.3, WorkerLost(worker_id=A, reason=reason), []),
        (0.3, failed(one, "a"), [Sent("2", "b", 2)]),
        (0.3, failed(other, "a"), [Sent("1", "b", 2)]),
        (1.0, finished("1"), []),
        (1.0, finished("2"), []),
    )
    assert_idle(made)


def test_both_workers_of_a_remote_plan_can_break_it():
    made = scheduler(worker("p", role=Role.PREFILL), worker("d", role=Role.DECODE))
    tell(
        made,
        (0.0, arrived("r", chain(("doc", 20))), [Sent("r", "p+d")]),
        (
            0.1,
            WorkerLost(worker_id=WorkerId("d"), reason="x"),
            [Abandon(request_id=RequestId("r"), worker_id=WorkerId("d"), reason="x")],
        ),
        (
            0.1,
            WorkerLost(worker_id=WorkerId("p"), reason="x"),
            [Abandon(request_id=RequestId("r"), worker_id=WorkerId("p"), reason="x")],
        ),
        (
            0.2,
            failed(request("r", chain(("doc", 20))), "d"),
            [rejected("r", RejectReason.NO_WORKER, "no worker serves 'm' at the moment", 1.0)],
        ),
    )
    assert_idle(made)


def test_a_silent_worker_is_given_up():
    made = scheduler(worker("a"), worker("b"), limits=Limits(lost_after_s=4.0))
    reason = "no report for 4.0 s"
    assert made.next_timer() == 1.0
    tell(
        made,
        (0.0, arrived("r"), [Sent("r", "a")]),
        (1.0, TimerFired(), []),
        (3.0, load("b"), []),
        (4.0, TimerFired(), []),
        (
            5.0,
            TimerFired(),
            [Forget(worker_id=A, reason=reason), Abandon(request_id=RequestId("r"), worker_id=A, reason=reason)],
        ),
    )
    assert made.fleet.get(A) is None
    assert made.fleet.get(B) is not None
    assert made.next_timer() == 6.0


def test_a_draining_worker_gets_nothing_new_but_finishes_and_may_be_read():
    keys = chain(("doc", 40))
    made = scheduler(worker("a"), worker("b"), links=[link(HERE, HERE, 0.001, 1e9)])
    tell(
        made,
        (0.0, stored("a", keys), []),
        (0.0, arrived("one", keys), [Sent("one", "a")]),
        (0.1, WorkerDraining(worker_id=A), []),
        (0.2, arrived("two", keys), [Sent("two", "b")]),
    )
    plan = made.in_flight[RequestId("two")].decision.plan
    assert plan.kind is PlanKind.FETCH
    assert plan.moves[0].source == A
    tell(made, (0.3, finished("one"), []), (0.4, finished("two"), []), (0.5, WorkerDraining(worker_id=C), []))
    assert_idle(made)


def test_a_worker_that_joins_again_begins_with_an_empty_cache():
    """Its number may be somebody else's by then, and neither inherits anything."""
    keys = chain(("doc", 8))
    made = scheduler(worker("a"))
    tell(
        made,
        (0.0, stored("a", keys), []),
        (0.1, WorkerLost(worker_id=A, reason="x"), []),
        (0.2, stored("a", keys), []),
        (0.3, WorkerJoined(worker=worker("b")), []),
        (0.4, WorkerJoined(worker=worker("a")), []),
    )
    assert made.index[Tier.DEVICE].match(keys) == []
    assert {state.bit for state in made.fleet} == {0, 1}


def test_a_contradiction_clears_what_was_believed_and_asks_anew():
    made = scheduler(worker("a"), worker("b"))
    keys = chain(("doc", 3))
    device, host = made.index[Tier.DEVICE], made.index[Tier.HOST]
    below_wrong = BlocksStored(worker_id=A, keys=(keys[2],), parent=keys[0])
    says = f"block {keys[2]:#x}: its parent is {keys[1]:#x}, an event says {keys[0]:#x}"
    tell(
        made,
        (0.0, stored("a", keys), []),
        (0.0, stored("b", keys), []),
        (0.0, BlocksStored(worker_id=A, keys=keys, tier=Tier.HOST), []),
        (0.1, below_wrong, [Resync(worker_id=A, reason=says)]),
    )
    assert device.match(keys) == [Level(3, 0b10)]
    assert host.match(keys) == []
    tell(made, (0.2, stored("a", keys), []))
    assert device.match(keys) == [Level(3, 0b11)]


def test_caches_are_believed_as_told():
    made = scheduler(worker("a"))
    keys, device = chain(("doc", 4)), made.index[Tier.DEVICE]
    tell(made, (0.0, stored("a", keys), []), (0.1, BlocksRemoved(worker_id=A, keys=keys[3:]), []))
    assert device.match(keys) == [Level(3, 1)]
    tell(made, (0.1, BlocksRemoved(worker_id=A, keys=keys, tier=Tier.DISK), []))
    assert device.match(keys) == [Level(3, 1)]
    tell(made, (0.2, CacheCleared(worker_id=A), []))
    assert device.match(keys) == []


# -- who waits, and who is served (I7) -----------------------------------------------------------------------------

ROOM = {
    "an end": [finished("out")],
    "a cancelled request": [RequestCancelled(request_id=RequestId("out"))],
    "a failure for good": [DispatchFailed(request_id=RequestId("out"), worker_id=A, reason="x", resume_as=None)],
    "a new worker": [WorkerJoined(worker=worker("b"))],
    "a report": [load("a", running=1), finished("out"), load("a", 2)],
    "an expired lease": [TimerFired()],
}


@pytest.mark.parametrize("events", ROOM.values(), ids=ROOM.keys())
def test_room_appears_and_who_waits_is_placed(events):
    made = scheduler(worker("a", requests_max=1), limits=Limits(lease_s=1.0, lost_after_s=10.0))
    tell(made, (0.0, arrived("out"), [Sent("out", "a")]), (0.0, arrived("waits"), []))
    commands = [short(command) for event in events for command in made.handle(event, 1.0)]
    assert commands[-1:] in ([Sent("waits", "a")], [Sent("waits", "b")])
    made.check()


def test_memory_is_room_too():
    """A worker with free slots and no free blocks is full; what others hold there counts beside ours."""
    made = scheduler(worker("a", kv_blocks_max=15))
    tell(
        made,
        (0.0, arrived("r", tokens=100), [Sent("r", "a")]),
        (0.0, arrived("s", tokens=100), []),
        (0.1, load("a", used=8 + 8), []),
        (0.2, finished("r"), []),
        (0.3, load("a", 2, used=7), [Sent("s", "a")]),
    )


def test_a_report_that_makes_no_room_is_no_reason_to_ask_again():
    """A thousand reports a second while everybody waits must cost next to nothing."""
    made = scheduler(worker("a", requests_max=1), worker("b", requests_max=1))
    asked = []
    choose = made.policy.choose
    made.policy.choose = lambda question, random: asked.append(question) or choose(question, random)
    tell(
        made,
        (0.0, arrived("r"), [Sent("r", "a")]),
        (0.0, arrived("s"), [Sent("s", "b")]),
        (0.0, arrived("waits"), []),
        (0.1, load("a", running=1), []),
        (0.2, load("b", running=3), []),
        (0.3, load("b", 2, running=2), []),
    )
    assert len(asked) == 2, "nobody had room for the third"
    tell(made, (0.4, finished("s"), []), (0.5, load("b", 3), [Sent("waits", "b")]))


def test_priority_then_deadline_then_arrival():
    made = scheduler(worker("a", requests_max=1))
    tell(
        made,
        (0.0, arrived("out"), [Sent("out", "a")]),
        (0.1, arrived("late", arrived_s=0.1), []),
        (0.2, arrived("later", arrived_s=0.2), []),
        (0.3, arrived("hurried", arrived_s=0.3, ttft_deadline_s=99.0), []),
        (0.4, arrived("important", arrived_s=0.4, priority=1), []),
        (1.0, finished("out"), [Sent("important", "a")]),
        (2.0, finished("important"), [Sent("hurried", "a")]),
        (3.0, finished("hurried"), [Sent("late", "a")]),
        (4.0, finished("late"), [Sent("later", "a")]),
    )


def test_a_large_request_at_the_head_does_not_keep_small_ones_waiting():
    made = scheduler(worker("a", kv_blocks_max=20), limits=Limits(backfill_max=1))
    tell(
        made,
        (0.0, arrived("r", tokens=200), [Sent("r", "a")]),
        (0.0, arrived("large", tokens=300), []),
        (0.0, arrived("small", tokens=100, arrived_s=0.1), []),
        (0.0, arrived("also small", tokens=100, arrived_s=0.2), []),
        (0.1, load("a", used=14 + 9), []),
        (0.2, finished("r"), [Sent("small", "a")]),
        (0.3, load("a", 2, used=8), [Sent("also small", "a")]),
    )


def test_only_so_many_are_tried_when_the_first_do_not_fit():
    """Bounded work per event: what stands further behind is tried when those before it are gone."""
    made = scheduler(worker("a", kv_blocks_max=20, requests_max=1), limits=Limits(backfill_max=1))
    tell(
        made,
        (0.0, arrived("r", tokens=200), [Sent("r", "a")]),
        (0.0, arrived("large", tokens=300), []),
        (0.0, arrived("large too", tokens=300, arrived_s=0.1), []),
        (0.0, arrived("small", tokens=100, arrived_s=0.2), []),
        (0.1, load("a", used=14 + 8, running=1), []),
        (0.2, finished("r"), []),
        (0.3, TimerFired(), []),
        (0.3, RequestCancelled(request_id=RequestId("large too")), [Sent("small", "a")]),
    )


# -- what is learned -----------------------------------------------------------------------------------------------


def test_a_remote_plan_frees_its_prefill_worker_first():
    made = scheduler(worker("p", role=Role.PREFILL), worker("d", role=Role.DECODE))
    ledger, keys = made.fleet.ledger, chain(("doc", 20))
    tell(made, (0.0, arrived("r", keys), [Sent("r", "p+d")]))
    assert ledger.queue_s(WorkerId("p"), 0.0) == pytest.approx(0.01 + 0.320)
    assert ledger.queue_s(WorkerId("d"), 0.0) == pytest.approx(0.01 + 0.001)
    assert ledger.flows((HERE, HERE)) == 1
    tell(made, (0.3, PrefillFinished(request_id=RequestId("r")), []))
    assert ledger.queued_requests(WorkerId("p")) == 0
    assert ledger.queued_requests(WorkerId("d")) == 1
    arrived_all = TransferFinished(
        request_id=RequestId("r"),
        source=WorkerId("p"),
        target=WorkerId("d"),
        bytes=320_000,
        seconds=0.1,
        complete=True,
        rtt_s=0.001,
    )
    tell(made, (0.4, arrived_all, []))
    assert ledger.flows((HERE, HERE)) == 0
    rate = made.topology.rate(HERE, HERE)
    assert rate.bytes_per_s < 1e8, "one measurement is believed by half: the prior is 1.25e9"
    assert rate.rtt_s == pytest.approx(0.001, rel=0.2)
    tell(made, (0.5, finished("r"), []))
    assert_idle(made)


def test_measurements_change_what_is_believed():
    made = scheduler(worker("a"))
    state = made.fleet.get(A)
    tell(made, (0.0, PrefillMeasured(worker_id=A, cached_tokens=0, end_tokens=1000, seconds=10.1), []))
    assert state.rate.prefill_s(0, 1000) == pytest.approx(10.1, rel=0.2)
    assert state.prefill_rank[1][0] > 15, "its rank follows its speed"
    tell(made, (0.0, DecodeMeasured(worker_id=A, tokens=10, seconds=0.1), []))
    assert state.decode_step_s.value == pytest.approx(0.01, rel=0.2)
    tell(made, (0.0, DecodeMeasured(worker_id=A, tokens=0, seconds=0.1), []))
    for _ in range(2):
        tell(made, (0.0, LinkMeasured(source=HERE, target=THERE, rtt_s=0.2, bytes_per_s=1e6), []))
    assert made.topology.rate(HERE, THERE).rtt_s == pytest.approx(0.2, rel=0.2)
    assert made.topology.rate(HERE, THERE).bytes_per_s == pytest.approx(1e6, rel=0.3)


def test_the_overhead_of_a_dispatch_is_learned_from_plain_requests():
    made = scheduler(worker("a"), links=[link(HERE, HERE, 1e-5, 1e9)])
    tell(made, (0.0, arrived("r"), [Sent("r", "a")]))
    tell(made, (0.5, FirstToken(request_id=RequestId("r"), ttft_s=0.11 + 0.04), []))
    assert made.world.overhead_s.value == pytest.approx(0.04, rel=0.25)


@pytest.mark.parametrize("nonsense", [float("nan"), float("inf"), -1.0, 0.0])
def test_a_broken_clock_teaches_nothing(nonsense):
    """Workers and clients tell these numbers; one of them must not spoil every later price."""
    made = scheduler(worker("a"))
    tell(made, (0.0, arrived("r"), [Sent("r", "a")]))
    before = (
        made.world.overhead_s.value,
        made.fleet.get(A).rate.prefill_s(0, 1000),
        made.topology.rate(HERE, HERE).rtt_s,
    )
    tell(
        made,
        (0.1, PrefillMeasured(worker_id=A, cached_tokens=0, end_tokens=100, seconds=nonsense), []),
        (0.1, DecodeMeasured(worker_id=A, tokens=3, seconds=nonsense), []),
        (0.1, LinkMeasured(source=HERE, target=HERE, rtt_s=nonsense, bytes_per_s=nonsense), []),
    )
    assert before[1:] == (made.fleet.get(A).rate.prefill_s(0, 1000), made.topology.rate(HERE, HERE).rtt_s)
    tell(made, (0.2, FirstToken(request_id=RequestId("r"), ttft_s=nonsense), []))
    assert 0 < made.world.overhead_s.value <= before[0]
    tell(made, (0.3, arrived("s"), [Sent("s", "a")]))


# -- late, early, backwards ----------------------------------------------------------------------------------------

R = RequestId("r")
TOO_LATE = [
    FirstToken(request_id=R, ttft_s=1.0),
    PrefillFinished(request_id=R),
    finished("r"),
    RequestCancelled(request_id=R),
    failed(request("r", tokens=100), "a"),
    DispatchFailed(request_id=R, worker_id=None, reason="x", resume_as=None),
    TransferFinished(request_id=R, source=A, target=B, bytes=10, seconds=None, complete=False),
    TransferFinished(request_id=R, source=A, target=C, bytes=10, seconds=1.0, complete=True, rtt_s=1.0),
    PrefillMeasured(worker_id=C, cached_tokens=0, end_tokens=10, seconds=1.0),
    DecodeMeasured(worker_id=C, tokens=1, seconds=1.0),
    WorkerDraining(worker_id=C),
    WorkerLost(worker_id=C, reason="x"),
    stored("c", chain(("doc", 2))),
    BlocksRemoved(worker_id=C, keys=chain(("doc", 2))),
    CacheCleared(worker_id=C),
    load("c"),
    load("a", 3, queued=10_000),
    TimerFired(),
]


@pytest.mark.parametrize("event", TOO_LATE, ids=lambda event: type(event).__name__)
def test_late_events_change_nothing(event):
    """About a request that ended, a worker that is gone, or older than what is known: no command, no change."""
    made, twin = (scheduler(worker("a"), worker("b", prior=replace(PRIOR, b_s=0.01))) for _ in range(2))
    for one in (made, twin):
        tell(one, (0.0, load("a", 4), []), (0.0, load("b", 4), []))
        tell(
            one, (0.0, arrived("r"), [Sent("r", "a")]), (0.1, arrived("s"), [Sent("s", "a")]), (0.2, finished("r"), [])
        )
    tell(made, (0.3, event, []))
    probe = arrived("t", chain(("doc", 9)))
    assert made.handle(probe, 0.4) == twin.handle(probe, 0.4)
    assert_same_end(made, twin)


def assert_same_end(made, twin):
    for one in (made, twin):
        tell(one, (0.5, finished("s"), []), (0.5, finished("t"), []))
        assert_idle(one)


def test_time_never_goes_back():
    """I2: an event from the past is taken as of the latest time seen."""
    made = scheduler(worker("a"), limits=Limits(lease_s=10.0, lost_after_s=1000.0))
    tell(made, (100.0, TimerFired(), []), (50.0, arrived("r"), [Sent("r", "a")]))
    decision = made.in_flight[R].decision
    assert decision.decided_s == 100.0
    assert made.in_flight[R].lease_until_s == 110.0


def test_nothing_to_wait_for_means_no_timer():
    made = scheduler()
    assert made.next_timer() is None
    tell(made, (0.0, WorkerJoined(worker=worker("a")), []))
    assert made.next_timer() == made.limits.lost_after_s / 4


def test_asking_changes_nothing():
    """`question` is what dry runs and dashboards use."""
    made = scheduler(worker("a"), worker("b"))
    asked = request("r", tokens=100)
    plans = made.policy.choose(made.question(asked), made._random)
    assert plans
    assert_idle(made)
    assert made.handle(RequestArrived(request=asked), 0.0)[0].decision.plan == plans[0]


def test_models_of_one_group_read_each_others_caches():
    """A frozen prefill module: KV of one model serves the decoders of the other."""
    names = ModelName("m"), ModelName("n")
    profiles = [replace(PROFILE, name=name, kv_group="shared") for name in names]
    made = scheduler(
        worker("a", model=names[0]),
        worker("b", model=names[1]),
        links=[link(HERE, HERE, 0.001, 1e9)],
        profiles=profiles,
    )
    keys = chain(("doc", 40))
    tell(made, (0.0, stored("a", keys), []), (0.1, arrived("r", keys, model=names[1]), [Sent("r", "b")]))
    assert [move.source for move in made.in_flight[R].decision.plan.moves] == [A]


def test_models_of_their_own_do_not():
    names = ModelName("m"), ModelName("n")
    profiles = [replace(PROFILE, name=name) for name in names]
    made = scheduler(worker("a", model=names[0]), worker("b", model=names[1]), profiles=profiles)
    keys = chain(("doc", 40))
    tell(made, (0.0, stored("a", keys), []), (0.1, arrived("r", keys, model=names[1]), [Sent("r", "b")]))
    assert made.in_flight[R].decision.plan.kind is PlanKind.LOCAL
    assert made.in_flight[R].decision.plan.estimate.hit_tokens == 0


def test_the_policy_is_told_in_the_decision():
    made = scheduler(worker("a"), worker("b"), policy=make_policy("round-robin"))
    tell(made, (0.0, arrived("r"), [Sent("r", "a")]), (0.0, arrived("s"), [Sent("s", "b")]))
    assert made.in_flight[R].decision.policy == "round-robin"
    assert made.in_flight[R].decision.plans_priced == 1


def test_what_a_request_wants_of_a_worker_is_booked_at_once():
    """Three requests in one instant go to three workers: the booking is older than any report."""
    made = scheduler(*(worker(name) for name in "abc"))
    tell(
        made,
        (0.0, arrived("r"), [Sent("r", "a")]),
        (0.0, arrived("s"), [Sent("s", "b")]),
        (0.0, arrived("t"), [Sent("t", "c")]),
    )
    assert MODEL in made.models

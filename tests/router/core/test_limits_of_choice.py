"""Requests that only some workers may take, questions from which nothing follows, links that an operator changes."""

import pytest

from homing.router.core.commands import Dispatch, Reject
from homing.router.core.events import LinksConfigured, RequestArrived, TransferFinished, WorkerDraining
from homing.router.core.journal import digest
from homing.router.core.policies import POLICIES, make_policy
from homing.router.core.types import RejectReason, RequestId, WorkerId

from .fleets import HERE, THERE, chain, link, request, scheduler, stored, worker
from .plan_worlds import random_world

KEYS = chain(("doc", 20))


def only(*names):
    return frozenset(WorkerId(name) for name in names)


def test_a_request_goes_only_where_it_may():
    made = scheduler(*(worker(name) for name in "abcd"))
    made.handle(stored("a", KEYS), 0.0)
    for number in range(20):
        (sent,) = made.handle(RequestArrived(request=request(f"r{number}", KEYS, among=only("c", "d"))), 0.0)
        assert sent.decision.plan.decode in {"c", "d"}
    made.check()


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_no_policy_sends_it_elsewhere(name):
    made = scheduler(*(worker(each) for each in "abcd"), policy=make_policy(name))
    for number in range(6):
        for command in made.handle(RequestArrived(request=request(f"r{number}", KEYS, among=only("b"))), 0.0):
            assert isinstance(command, Dispatch) and command.decision.plan.workers == ("b",)


def test_blocks_may_come_from_where_it_may_not_go():
    made = scheduler(worker("far", THERE), worker("near"), links=[link(THERE, HERE, 0.001, 1e10)])
    made.handle(stored("far", KEYS), 0.0)
    (sent,) = made.handle(RequestArrived(request=request("r", KEYS, among=only("near"))), 0.0)
    assert sent.decision.plan.decode == "near"
    assert [move.source for move in sent.decision.plan.moves] == ["far"]


def test_where_none_of_those_is_here_the_answer_is_no_at_once():
    made = scheduler(worker("a"), worker("b"))
    made.handle(WorkerDraining(worker_id=WorkerId("b")), 0.0)
    for among in (only(), only("x"), only("b"), only("b", "x")):
        (told,) = made.handle(RequestArrived(request=request("r", KEYS, among=among)), 0.0)
        assert isinstance(told, Reject) and told.reason is RejectReason.NO_WORKER


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_a_question_changes_no_decision(name):
    """Asked between any two requests, however often, nothing comes out otherwise (I5)."""

    def decided(asks):
        made = scheduler(*(worker(each) for each in "abcd"), policy=make_policy(name), seed=3)
        made.handle(stored("a", KEYS[:10]), 0.0)
        told = []
        for number in range(12):
            one = request(f"r{number}", KEYS[: 5 + number])
            for _ in range(asks):
                made.foresee(one)
            told.append(digest(made.handle(RequestArrived(request=one), number / 10)))
        return told

    assert decided(0) == decided(3)


def test_what_is_foreseen_is_what_is_decided():
    for seed in range(40):
        world = random_world(seed, sites=3, per_site=4, spread=2.0)
        foreseen = world.scheduler.foresee(world.request)
        commands = world.scheduler.handle(RequestArrived(request=world.request), 0.0)
        decided = [command.decision.plan for command in commands if isinstance(command, Dispatch)]
        assert decided == foreseen[:1]


def test_an_operator_changes_a_link_and_what_was_learned_of_it_is_forgotten():
    slow, kept = link(THERE, HERE, 0.1, 1e6), link(HERE, THERE, 0.1, 1e6)
    made = scheduler(worker("far", THERE), worker("near"), links=[slow, kept])
    for source, target in ((THERE, HERE), (HERE, THERE)):
        names = {THERE: "far", HERE: "near"}
        done = TransferFinished(
            request_id=RequestId("r"),
            source=WorkerId(names[source]),
            target=WorkerId(names[target]),
            bytes=10_000_000,
            seconds=1.0,
            complete=True,
        )
        made.handle(done, 0.0)
    learned = made.topology.rate(HERE, THERE).bytes_per_s
    assert learned > 1e6
    made.handle(LinksConfigured(links=(link(THERE, HERE, 0.01, 1e9), kept)), 1.0)
    assert made.topology.rate(THERE, HERE).bytes_per_s == 1e9
    assert made.topology.rate(HERE, THERE).bytes_per_s == learned, "what did not change is still known"

"""A storm: anything may happen at any time, in any order, late or twice, and the invariants hold after each step.

The machine carries a view of its own (who waits, who is out, who ended) from the commands alone, and compares.
"""

from dataclasses import replace
from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from homing.router.core.commands import Abandon, Cancel, Dispatch, Forget, Reject, Resync
from homing.router.core.events import (
    BlocksRemoved,
    BlocksStored,
    CacheCleared,
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
from homing.router.core.policies import POLICIES, make_policy
from homing.router.core.types import Outcome, RejectReason, RequestId, Role, Site, Tier, WorkerId

from .fleets import BLOCK, HERE, THERE, both_ways, chain, link, load, request, scheduler, worker

NAMES = [WorkerId(name) for name in "abcd"]
SITES = [HERE, THERE, Site("elsewhere")]
names = st.sampled_from(NAMES)
picks = st.integers(0, 1_000_000)
seconds = st.floats(1e-3, 10.0)
prompts = st.builds(
    lambda doc, shared, name, own: chain((doc, shared), (name, own)),
    st.sampled_from(["x", "y"]),
    st.sampled_from([0, 20, 30]),
    st.sampled_from(["p", "q"]),
    st.integers(0, 3),
)
shapes = st.tuples(
    st.sampled_from(SITES),
    st.sampled_from([Role.BOTH, Role.BOTH, Role.PREFILL, Role.DECODE]),
    st.integers(1, 3),
    st.integers(20, 120),
)
LIMITS = Limits(queue_max=3, retries_max=2, backfill_max=2, lost_after_s=20.0, lease_s=30.0)


class Storm(RuleBasedStateMachine):
    """`waits`, `out` and `ended` are this test's own account of every request (I1)."""

    @initialize(
        policy=st.sampled_from(["homing", "homing", *sorted(POLICIES)]),
        seed=st.integers(0, 3),
        first=st.lists(shapes, min_size=2, max_size=4),
    )
    def begin(self, policy, seed, first):
        self.make = lambda: scheduler(
            links=both_ways(link(HERE, THERE, 0.05, 2e6)), policy=make_policy(policy), limits=LIMITS, seed=seed
        )
        self.made, self.now, self.count = self.make(), 0.0, 0
        self.waits, self.out, self.ended = {}, {}, []
        self.joined, self.draining, self.abandoned = {}, set(), set()
        self.told, self.answers = [], []
        for name, shape in zip(NAMES, first, strict=False):
            self.join(name, shape)

    def tell(self, event, *, back_s=0.0):
        """One fact; `back_s` lets a clock run behind (I2)."""
        now = self.now - back_s
        commands = self.made.handle(event, now)
        self.told.append((event, now))
        self.made.next_timer()
        self.answers.append(commands)
        for command in commands:
            self.take(command)
        return commands

    def take(self, command):
        match command:
            case Dispatch(decision=decision):
                name = decision.request.id
                assert self.waits.pop(name) == decision.request
                assert self.joined.keys() >= set(decision.plan.workers), "it was sent to who is not here"
                assert not self.draining & set(decision.plan.workers)
                assert {move.source for move in decision.plan.moves} <= self.joined.keys()
                self.out[name] = decision
            case Reject(request_id=name, reason=reason):
                if reason is not RejectReason.DUPLICATE_REQUEST:
                    self.waits.pop(name)
                    self.end(name)
            case Cancel(request_id=name):
                self.out.pop(name)
                self.end(name)
            case Abandon(request_id=name, worker_id=lost):
                assert lost in self.out[name].plan.workers
                self.abandoned.add(name)
            case Forget(worker_id=name):
                self.gone(name)
            case Resync(worker_id=name):
                state = self.made.fleet.get(name)
                assert all(index.blocks_of(state.bit) == 0 for index in self.made.index.values())

    def end(self, name):
        assert name not in self.ended
        self.abandoned.discard(name)
        self.ended.append(name)

    def gone(self, name):
        del self.joined[name]
        self.draining.discard(name)

    @staticmethod
    def id_of(command):
        return command.decision.request.id if isinstance(command, Dispatch) else command.request_id

    def pick(self, among, number):
        return sorted(among)[number % len(among)]

    # -- workers ---------------------------------------------------------------------------------------------------

    @rule(name=names, shape=shapes)
    def join(self, name, shape):
        if name not in self.joined:
            site, role, slots, room = shape
            self.joined[name] = worker(name, site, role, requests_max=slots, kv_blocks_max=room)
            self.tell(WorkerJoined(worker=self.joined[name]))

    @precondition(lambda self: len(self.draining) < len(self.joined) / 2)
    @rule(name=names)
    def drain(self, name):
        self.draining |= {name} & self.joined.keys()
        assert self.tell(WorkerDraining(worker_id=name)) == []

    @rule(name=names)
    def lose(self, name):
        was_here = name in self.joined
        if was_here:
            self.gone(name)
        commands = self.tell(WorkerLost(worker_id=name, reason="gone"))
        hit = sorted(r for r, decision in self.out.items() if name in decision.plan.workers) if was_here else []
        assert [command.request_id for command in commands] == hit

    @rule(name=names, sequence=st.integers(0, 5), queued=st.integers(0, 500), running=st.integers(0, 3))
    def report(self, name, sequence, queued, running):
        self.tell(load(name, len(self.told) * (sequence > 0), queued=queued, running=running, at=self.now))

    @rule(name=names, keys=prompts, other=prompts, first=st.integers(0, 10), what=st.sampled_from("sssshhrrcx"))
    def change_cache(self, name, keys, other, first, what):
        """Beginnings and middles stored on two tiers, some blocks removed, all cleared, a contradiction."""
        parent = keys[first - 1] if 0 < first <= len(keys) else None
        some = Random(first).sample(keys, k=min(3, len(keys)))
        event = {
            "s": BlocksStored(worker_id=name, keys=keys[first:] if parent else keys, parent=parent),
            "h": BlocksStored(worker_id=name, keys=keys, tier=Tier.HOST),
            "r": BlocksRemoved(worker_id=name, keys=tuple(some)),
            "c": CacheCleared(worker_id=name),
            "x": BlocksStored(worker_id=name, keys=keys[-1:], parent=other[-1] if other else None),
        }[what]
        commands = self.tell(event)
        # Whoever tells something else after a lie was believed is asked to start over, liar or not.
        assert all(isinstance(command, Resync) for command in commands)

    @rule(name=names, cached=st.integers(0, 50), new=st.integers(0, 500), took_s=seconds)
    def measure(self, name, cached, new, took_s):
        self.tell(PrefillMeasured(worker_id=name, cached_tokens=cached, end_tokens=cached + new, seconds=took_s))

    @rule(ends=st.tuples(st.sampled_from(SITES), st.sampled_from(SITES)), rtt_s=seconds, speed=st.floats(1e3, 1e10))
    def measure_link(self, ends, rtt_s, speed):
        source, target = ends
        self.tell(LinkMeasured(source=source, target=target, rtt_s=rtt_s, bytes_per_s=speed))

    # -- requests --------------------------------------------------------------------------------------------------

    @rule(
        keys=prompts,
        rest=st.integers(1, BLOCK),
        output=st.integers(1, 100),
        priority=st.integers(0, 1),
        patience_s=st.none() | seconds,
        back_s=st.sampled_from([0.0, 0.0, 5.0]),
        burst=st.integers(1, 4),
    )
    def arrive(self, keys, rest, output, priority, patience_s, back_s, burst):
        for _ in range(burst):
            self.count += 1
            facts = {"max_output_tokens": output, "priority": priority, "arrived_s": self.now}
            deadline_s = None if patience_s is None else self.now + patience_s
            one = request(f"r{self.count}", keys, len(keys) * BLOCK + rest, ttft_deadline_s=deadline_s, **facts)
            self.waits[one.id] = one
            self.tell(RequestArrived(request=one), back_s=back_s)

    @precondition(lambda self: self.waits or self.out)
    @rule(number=picks)
    def arrive_again(self, number):
        name = self.pick([*self.waits, *self.out], number)
        commands = self.tell(RequestArrived(request=request(name, tokens=5)))
        assert [command.reason for command in commands] == [RejectReason.DUPLICATE_REQUEST]

    @precondition(lambda self: self.waits)
    @rule(number=picks)
    def cancel_waiting(self, number):
        name = self.pick(self.waits, number)
        del self.waits[name]
        self.end(name)
        commands = self.tell(RequestCancelled(request_id=name))
        assert all(isinstance(command, Dispatch | Reject) and self.id_of(command) != name for command in commands)

    @precondition(lambda self: self.out)
    @rule(number=picks)
    def cancel(self, number):
        name = self.pick(self.out, number)
        first, *_ = self.tell(RequestCancelled(request_id=name))
        assert first == Cancel(request_id=name, reason="the sender went away")

    @precondition(lambda self: self.out)
    @rule(number=picks, ttft_s=seconds)
    def first_token(self, number, ttft_s):
        self.tell(FirstToken(request_id=self.pick(self.out, number), ttft_s=ttft_s))

    @precondition(lambda self: self.out)
    @rule(number=picks)
    def prefill_finished(self, number):
        self.tell(PrefillFinished(request_id=self.pick(self.out, number)))

    @precondition(lambda self: any(decision.plan.moves for decision in self.out.values()))
    @rule(number=picks, took_s=st.none() | seconds)
    def transfer_finished(self, number, took_s):
        """Also twice, and after its worker is gone."""
        name = self.pick([r for r, decision in self.out.items() if decision.plan.moves], number)
        move = self.out[name].plan.moves[-1]
        facts = {"bytes": move.bytes, "seconds": took_s, "complete": took_s is not None}
        self.tell(TransferFinished(request_id=name, source=move.source, target=move.target, **facts))

    @precondition(lambda self: self.out)
    @rule(number=picks, outcome=st.sampled_from([Outcome.FINISHED, Outcome.FAILED]))
    def finish(self, number, outcome):
        name = self.pick(self.out, number)
        del self.out[name]
        self.end(name)
        self.tell(RequestFinished(request_id=name, outcome=outcome, output_tokens=1))

    @precondition(lambda self: self.out)
    @rule(number=picks, blame=picks, sent=st.integers(0, 3), mended=st.booleans())
    def fail(self, number, blame, sent, mended):
        name = self.pick(self.abandoned or self.out, number)
        decision = self.out.pop(name)
        by = (*decision.plan.workers, None)[blame % (len(decision.plan.workers) + 1)]
        asked = decision.request
        rest = replace(asked, prompt_tokens=asked.prompt_tokens + sent) if mended else None
        if rest is None:
            self.end(name)
        else:
            self.waits[name] = rest
            self.abandoned.discard(name)
        self.tell(DispatchFailed(request_id=name, worker_id=by, reason="broke", resume_as=rest))

    @precondition(lambda self: self.ended)
    @rule(number=picks, kind=st.integers(0, 4))
    def late(self, number, kind):
        """I1: about who ended already, whatever it is, and nothing is asked for."""
        name = self.pick(self.ended, number)
        event = (
            FirstToken(request_id=name, ttft_s=1.0),
            RequestFinished(request_id=name, outcome=Outcome.FINISHED, output_tokens=1),
            RequestCancelled(request_id=name),
            DispatchFailed(request_id=name, worker_id=NAMES[0], reason="late", resume_as=request(name, tokens=5)),
            TransferFinished(request_id=name, source=NAMES[0], target=NAMES[1], bytes=1, seconds=None, complete=False),
        )[kind]
        before = len(self.made.in_flight)
        commands = self.tell(event)
        assert len(self.made.in_flight) == before + len(commands)
        assert all(isinstance(command, Dispatch) for command in commands)

    # -- time ------------------------------------------------------------------------------------------------------

    @rule(forward_s=st.floats(0, 3.0))
    def wait(self, forward_s):
        due_s = self.made.next_timer()
        self.now += forward_s
        if due_s is not None and due_s <= self.now:
            self.tell(TimerFired())

    @rule()
    def wait_for_the_timer(self):
        due_s = self.made.next_timer()
        if due_s is not None:
            self.now = max(self.now, due_s)
            self.tell(TimerFired())
            later_s = self.made.next_timer()
            assert later_s is None or later_s > self.now, "a timer that fires for ever at one time"

    @invariant()
    def both_accounts_agree(self):
        if not hasattr(self, "made"):
            return
        self.made.check()
        assert set(self.made.in_flight) == set(self.out)
        assert {waiting.id: waiting for waiting in self.made.admission} == self.waits
        assert {state.worker.id for state in self.made.fleet} == set(self.joined)
        assert not self.abandoned - set(self.out)
        assert set(self.made._attempts) <= set(self.out) | set(self.waits)
        for name, one in self.joined.items():
            assert self.made.fleet.ledger.running(name) <= one.requests_max + self.strangers(name)

    @invariant()
    def nobody_waits_beside_room(self):
        """I7, as far as `backfill_max` lets the core look, unless the policy's own rule is to hold requests back."""
        if not hasattr(self, "made") or self.made.policy.name == "skywalker":
            return
        for waiting in list(self.made.admission)[: LIMITS.backfill_max + 1]:
            question = self.made.question(waiting)
            alone = [w for w in question.prefillers() if w.worker.role.can_decode]
            late = waiting.ttft_deadline_s is not None and waiting.ttft_deadline_s <= self.now
            assert late or not alone, f"{waiting.id} waits, {alone[0].worker.id} has room"

    def strangers(self, name):
        """Requests of this worker's former life, which end when their executors say so."""
        return sum(
            decision.plan.workers.count(name)
            for request_id, decision in self.out.items()
            if request_id in self.abandoned
        )

    def teardown(self):
        if not hasattr(self, "made"):
            return
        self.same_again()
        self.now += 1.0
        while self.out or self.waits:
            for name in [*self.out]:
                if self.out.pop(name, None) is not None:
                    self.end(name)
                    self.tell(RequestFinished(request_id=name, outcome=Outcome.FAILED, output_tokens=0))
            for name in [*self.waits]:
                if self.waits.pop(name, None) is not None:
                    self.end(name)
                    self.tell(RequestCancelled(request_id=name))
        assert sorted(self.ended) == sorted(RequestId(f"r{i + 1}") for i in range(self.count)), "I1"
        assert len(self.made.fleet.ledger) == 0, "I4"
        assert not self.made._attempts
        for name in self.joined:
            assert self.made.fleet.ledger.queue_s(name, self.now) == 0
        for source in SITES:
            assert all(self.made.fleet.ledger.flows((source, target)) == 0 for target in SITES)

    def same_again(self):
        """I5: the same events at the same times give the same commands."""
        twin = self.make()
        for (event, now), expected in zip(self.told, self.answers, strict=True):
            assert twin.handle(event, now) == expected
            twin.next_timer()


TestStorm = Storm.TestCase
TestStorm.settings = settings(max_examples=250, stateful_step_count=60, deadline=None)

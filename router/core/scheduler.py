"""The state machine: events in, commands out.

Rule 1: it reads no clock, draws no randomness of its own and awaits nothing; the same events at the same times give the
same commands (I5).
Rule 2: a decision is booked in the same step in which it is made, and given back once, however the request ends (I4).
Rule 3: every request ends exactly once (I1). Events about requests that ended are late, not wrong, and change nothing.
Rule 4: time never goes back (I2); an event that says so is taken as of the latest time seen.
"""

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from random import Random
from typing import Any

from .admission import Admission
from .commands import Abandon, Cancel, ChangeRole, Command, Dispatch, Forget, Reject, Resync
from .events import (
    BlocksRemoved,
    BlocksStored,
    CacheCleared,
    DecodeMeasured,
    DispatchFailed,
    Event,
    FirstToken,
    LinkMeasured,
    LinksConfigured,
    LoadReported,
    PrefillFinished,
    PrefillMeasured,
    RequestArrived,
    RequestCancelled,
    RequestFinished,
    TimerFired,
    TransferFinished,
    TrustChanged,
    WorkerDraining,
    WorkerJoined,
    WorkerLost,
)
from .flights import Flights, InFlight
from .limits import Limits
from .policies import Foreseeing, Observing, Policy, Rebalancing
from .question import Question
from .tolls import Tolls
from .topology import Topology
from .types import (
    Decision,
    ModelProfile,
    Plan,
    RejectReason,
    Request,
    RequestId,
    Site,
    WorkerId,
)
from .world import CacheChange, Measured, World


@dataclass(slots=True)
class _Attempts:
    """What was tried for a request before."""

    count: int = 0
    failed: set[WorkerId] = field(default_factory=set)


class Scheduler:
    """Homing's decisions, for the live router and the simulator alike.

    `models` are the profiles of all models that may be asked for; `site` is where this router stands.
    """

    def __init__(
        self,
        *,
        models: Iterable[ModelProfile],
        topology: Topology,
        policy: Policy,
        random: Random,
        site: Site,
        limits: Limits | None = None,
        tolls: Tolls | None = None,
    ) -> None:
        self.world = World(models=models, topology=topology, tolls=tolls or Tolls(), site=site)
        self.models = self.world.models
        self.topology = self.world.topology
        self.fleet = self.world.fleet
        self.index = self.world.index
        self.policy = policy
        self.limits = limits or Limits()
        self.admission = Admission(self.limits.queue_max)
        self.in_flight = Flights()
        self._observer = policy if isinstance(policy, Observing) else None
        self._random = random
        self._attempts: dict[RequestId, _Attempts] = {}
        self._next_sweep_s: float | None = None
        self._now = 0.0
        self._handle = self._handlers()

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take one fact in; the answer is what is to be done about it, in order."""
        self._now = now = max(now, self._now)
        commands = self._handle[type(event)](event)
        if self._observer is not None:
            self._observer.observe(event, commands, now)
        return commands

    def _handlers(self) -> dict[type, Callable[[Any], list[Command]]]:
        """One per event."""
        return {
            RequestArrived: lambda event: self._arrived(event.request),
            RequestCancelled: lambda event: self._cancelled(event.request_id),
            FirstToken: self._first_token,
            PrefillFinished: self._prefill_finished,
            RequestFinished: lambda event: self._ended(event.request_id),
            DispatchFailed: self._dispatch_failed,
            LoadReported: self._load_reported,
            BlocksStored: self._cache_changed,
            BlocksRemoved: self._cache_changed,
            CacheCleared: self._cache_changed,
            TrustChanged: self._trust_changed,
            TransferFinished: self._measured,
            PrefillMeasured: self._measured,
            DecodeMeasured: self._measured,
            LinkMeasured: self._measured,
            LinksConfigured: self._links_configured,
            WorkerJoined: self._worker_joined,
            WorkerDraining: self._worker_draining,
            WorkerLost: lambda event: self._worker_lost(event.worker_id, event.reason),
            TimerFired: lambda event: self._timer_fired(),
        }

    def next_timer(self) -> float | None:
        """When `TimerFired` is wanted next; None when nothing is waited for."""
        due_s = None
        if len(self.fleet):
            if self._next_sweep_s is None:
                self._next_sweep_s = self._now + self.limits.lost_after_s / 4
            due_s = self._next_sweep_s
        deadline_s = self.admission.next_deadline_s()
        if deadline_s is not None and (due_s is None or deadline_s < due_s):
            due_s = deadline_s
        lease_s = self.in_flight.first_lease_s()
        if lease_s is not None and (due_s is None or lease_s < due_s):
            due_s = lease_s
        return due_s

    def question(self, request: Request) -> Question:
        """All that is known at this moment about where a request could go, for whoever asks without deciding."""
        return self.world.question(request, self._now)

    def foresee(self, request: Request) -> list[Plan]:
        """What would be decided at this moment, the best plan first, without deciding: nothing is booked or learned."""
        outside = self.fleet.mask_outside(request.among)
        question = self.world.question(request, self._now, excluded=outside, hypothetical=True)
        policy = self.policy if isinstance(self.policy, Foreseeing) else deepcopy(self.policy)
        return policy.choose(question, deepcopy(self._random))

    def knows(self, request: RequestId) -> bool:
        """Whether a request of this id waits or is out."""
        return request in self.in_flight or request in self.admission

    def check(self) -> None:
        """Assert the invariants that can be seen from here (I1, I4, I10 within each part)."""
        self.world.check()
        self.admission.check()
        assert not any(request in self.admission for request in self.in_flight), "waits and is out"
        assert len(self.fleet.ledger) <= len(self.in_flight)
        assert all(self.fleet.ledger.holds(r) is False for r in self._attempts if r not in self.in_flight)
        self.in_flight.check()

    # -- requests ------------------------------------------------------------------------------------------------

    def _arrived(self, request: Request) -> list[Command]:
        if self.knows(request.id):
            return [self._reject(request, RejectReason.DUPLICATE_REQUEST, "this id is being answered")]
        profile = self.models.get(request.model)
        if profile is None:
            known = ", ".join(sorted(self.models)) or "none"
            return [self._reject(request, RejectReason.UNKNOWN_MODEL, f"no model {request.model!r}; known: {known}")]
        total_tokens = request.prompt_tokens + request.max_output_tokens
        if total_tokens > profile.context_tokens:
            detail = f"{total_tokens} tokens with the answer, the context holds {profile.context_tokens}"
            return [self._reject(request, RejectReason.PROMPT_TOO_LONG, detail)]
        return self._place_or_wait(request)

    def _place_or_wait(self, request: Request) -> list[Command]:
        room = self.fleet.largest_kv_blocks(request.model)
        if room is None:
            detail = f"no worker serves {request.model!r} at the moment"
            return self._give_up(request, RejectReason.NO_WORKER, detail, self.limits.retry_after_s)
        if request.among is not None and not self.fleet.serves(request.model, request.among):
            detail = "none of the workers that may take it serves its model"
            return self._give_up(request, RejectReason.NO_WORKER, detail, self.limits.retry_after_s)
        blocks = self.world.blocks_needed(request)
        if blocks > room:
            detail = f"needs {blocks} KV blocks, the largest worker has {room}"
            return self._give_up(request, RejectReason.PROMPT_TOO_LONG, detail)
        placed = self._place(request)
        if placed:
            return placed
        if self.admission.is_full():
            detail = f"{len(self.admission)} requests wait already"
            return self._give_up(request, RejectReason.QUEUE_FULL, detail, self.limits.retry_after_s)
        self.admission.add(request)
        return []

    def _place(self, request: Request) -> list[Command]:
        if not self.fleet.can_answer(request.model, self.world.blocks_needed(request)):
            return []
        chosen = self._choose(request)
        if chosen is None:
            return []
        plans, priced = chosen
        late_s = self._late_by_s(request, plans[0])
        if late_s > 0:
            detail = f"its first token is foreseen {late_s:.1f} s after its deadline"
            return self._give_up(request, RejectReason.TOO_LATE, detail, max(late_s, self.limits.retry_after_s))
        attempts = self._attempts.setdefault(request.id, _Attempts())
        attempts.count += 1
        decision = Decision(
            request=request,
            plan=plans[0],
            runners_up=tuple(plans[1:]),
            policy=self.policy.name,
            decided_s=self._now,
            attempt=attempts.count,
            plans_priced=priced,
        )
        self._book(decision)
        return [Dispatch(decision=decision)]

    def _late_by_s(self, request: Request, plan: Plan) -> float:
        """By how much a plan would miss the deadline; a request that has been answered in part goes on."""
        if not self.limits.reject_early or request.ttft_deadline_s is None or request.id in self._attempts:
            return 0.0
        return self._now + plan.estimate.ttft_s - request.ttft_deadline_s

    def _choose(self, request: Request) -> tuple[list[Plan], int] | None:
        """Ask the policy, first without the workers that failed this request, then, if nobody is left, with them."""
        failed = self._attempts[request.id].failed if request.id in self._attempts else set()
        states = [state for name in failed if (state := self.fleet.get(name)) is not None]
        outside = self.fleet.mask_outside(request.among)
        excluded = outside | sum(state.mask for state in states)
        question = self.world.question(request, self._now, excluded=excluded)
        plans = self.policy.choose(question, self._random)
        if not plans and excluded != outside:
            question = self.world.question(request, self._now, excluded=outside)
            plans = self.policy.choose(question, self._random)
        return (plans, question.pricer.priced) if plans else None

    def _book(self, decision: Decision) -> None:
        request = decision.request
        self.fleet.charge(request.id, self.world.charge_of(decision), self._now)
        self.in_flight.add(decision, self._now + self.limits.lease_s)

    def _unbook(self, request: RequestId) -> InFlight | None:
        flight = self.in_flight.remove(request)
        if flight is not None:
            self.fleet.release(request, self._now)
        return flight

    def _first_token(self, event: FirstToken) -> list[Command]:
        flight = self.in_flight.get(event.request_id)
        if flight is None:
            return []
        self.world.learn_overhead(flight.decision.plan, event.ttft_s)
        self.fleet.release_compute(event.request_id, self._now)
        return self._pump()

    def _prefill_finished(self, event: PrefillFinished) -> list[Command]:
        flight = self.in_flight.get(event.request_id)
        if flight is not None:
            self.fleet.release_compute(event.request_id, self._now, flight.decision.plan.prefill)
        return []

    def _ended(self, request: RequestId) -> list[Command]:
        if self._unbook(request) is None:
            return []
        self._attempts.pop(request, None)
        return self._pump()

    def _cancelled(self, request: RequestId) -> list[Command]:
        self._attempts.pop(request, None)
        if self.admission.remove(request) is not None:
            return self._pump()
        if self._unbook(request) is None:
            return []
        return [Cancel(request_id=request, reason="the sender went away"), *self._pump()]

    def _dispatch_failed(self, event: DispatchFailed) -> list[Command]:
        if self._unbook(event.request_id) is None:
            return []
        request = event.resume_as
        attempts = self._attempts.get(event.request_id)
        assert attempts is not None, "what was dispatched was counted"
        if request is None:
            self._attempts.pop(event.request_id)
            return self._pump()
        if attempts.count > self.limits.retries_max:
            detail = f"{attempts.count} attempts failed, the last because {event.reason}"
            retry_s = self.limits.retry_after_s
            return [*self._give_up(request, RejectReason.RETRIES_SPENT, detail, retry_s), *self._pump()]
        if event.worker_id is not None:
            attempts.failed.add(event.worker_id)
        return [*self._place_or_wait(request), *self._pump()]

    def _pump(self) -> list[Command]:
        """Serve those who wait, in order, as far as there is room (I7); who waited too long is told no."""
        commands = self._expire()
        if not len(self.admission):
            return commands
        misses = 0
        for request in self.admission:
            placed = self._place(request)
            if placed:
                self.admission.remove(request.id)
                commands += placed
            else:
                misses += 1
                if misses > self.limits.backfill_max:
                    break
        return commands

    def _expire(self) -> list[Command]:
        commands: list[Command] = []
        for request in self.admission.expired(self._now):
            detail = "its deadline passed while it waited for room"
            commands += self._give_up(request, RejectReason.DEADLINE_PASSED, detail, self.limits.retry_after_s)
        return commands

    def _give_up(
        self, request: Request, reason: RejectReason, detail: str, retry_after_s: float | None = None
    ) -> list[Command]:
        self._attempts.pop(request.id, None)
        return [self._reject(request, reason, detail, retry_after_s)]

    def _reject(
        self, request: Request, reason: RejectReason, detail: str, retry_after_s: float | None = None
    ) -> Reject:
        return Reject(request_id=request.id, reason=reason, detail=detail, retry_after_s=retry_after_s)

    # -- what workers tell ---------------------------------------------------------------------------------------

    def _load_reported(self, event: LoadReported) -> list[Command]:
        return self._pump() if self.fleet.report(event.report, self._now) else []

    def _measured(self, event: Measured) -> list[Command]:
        self.world.learn(event, self._now)
        return []

    def _links_configured(self, event: LinksConfigured) -> list[Command]:
        self.topology.configure(event.links)
        return []

    def _worker_joined(self, event: WorkerJoined) -> list[Command]:
        self.fleet.join(event.worker, self._now)
        return self._pump()

    def _worker_draining(self, event: WorkerDraining) -> list[Command]:
        self.fleet.drain(event.worker_id)
        return []

    def _cache_changed(self, event: CacheChange) -> list[Command]:
        contradiction = self.world.cache_changed(event)
        return [Resync(worker_id=event.worker_id, reason=contradiction)] if contradiction else []

    def _trust_changed(self, event: TrustChanged) -> list[Command]:
        self.fleet.trust(event.worker_id, event.trust)
        return []

    def _worker_lost(self, worker: WorkerId, reason: str) -> list[Command]:
        if not self.world.lose(worker):
            return []
        orphans = self.in_flight.of_worker(worker)
        return [Abandon(request_id=request, worker_id=worker, reason=reason) for request in orphans]

    def _timer_fired(self) -> list[Command]:
        commands: list[Command] = []
        for request_id in self.in_flight.overdue(self._now):
            self._attempts.pop(request_id, None)
            self._unbook(request_id)
            commands.append(Cancel(request_id=request_id, reason=f"no end was seen in {self.limits.lease_s} s"))
        if self._next_sweep_s is not None and self._next_sweep_s <= self._now:
            self._next_sweep_s = self._now + self.limits.lost_after_s / 4
            commands += self._sweep()
            if isinstance(self.policy, Rebalancing):
                wishes = self.policy.wishes(self._now)
                commands += [ChangeRole(worker_id=name, role=role, reason=why) for name, role, why in wishes]
        return [*commands, *self._pump()]

    def _sweep(self) -> list[Command]:
        commands: list[Command] = []
        silent_since_s = self._now - self.limits.lost_after_s
        for state in [state for state in self.fleet if state.last_seen_s < silent_since_s]:
            reason = f"no report for {self.limits.lost_after_s} s"
            commands.append(Forget(worker_id=state.worker.id, reason=reason))
            commands += self._worker_lost(state.worker.id, reason)
        return commands

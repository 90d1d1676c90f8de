"""The whole simulated world of one run: it joins workers, network, workload and router, and writes down what happens.

Rule 1: everything happens on one kernel; randomness comes from named streams of one seed (I5).
Rule 2: the router is told what live workers would tell it, when it would have it (I6).
"""

from collections import Counter
from collections.abc import Iterator
from math import inf

from homing.router.core.commands import Abandon, Cancel, ChangeRole, Command, Dispatch, Forget, Reject, Resync
from homing.router.core.events import (
    DispatchFailed,
    Event,
    LoadReported,
    RequestArrived,
    WorkerJoined,
    WorkerLost,
)
from homing.router.core.scheduler import Scheduler
from homing.router.core.types import Decision, ModelName, ModelProfile, Request, RequestId, Site, WorkerId

from ..kernel import Callback, Kernel
from ..measure.histogram import WeightedHistogram
from ..measure.log import RequestLog
from ..measure.records import Mark, RunResult
from ..network.network import Network
from ..rng import Streams
from ..scenario import KvEventsSection, Scenario, WorkerSection
from ..workload.arrival import Arrival
from .attempt import Attempt
from .building import build_workers, calibration, model_profiles, router_core
from .faults import Faults
from .flight import Flight
from .gauges import Gauges
from .messages import KvChannel
from .ports import Told
from .roles import change_role
from .router import SimulatedRouter
from .worker import SimulatedWorker

QUIET_S = 1.0
"""How long beyond the longest way a world that is over waits for what is still on its way."""


class World:
    """One run. `arrivals` are sorted by time; `check_every` events all invariants are asserted."""

    def __init__(
        self, scenario: Scenario, arrivals: Iterator[Arrival], streams: Streams, *, check_every: int = 0
    ) -> None:
        self.scenario = scenario
        self.kernel = Kernel()
        self.log = RequestLog()
        self.itl = WeightedHistogram()
        self.plans: Counter[str] = Counter()
        self.commands: Counter[str] = Counter()
        self.marks: list[Mark] = []
        self.flights: dict[RequestId, Flight] = {}
        self.dispatch_s = scenario.router.dispatch_s
        self.models: dict[ModelName, ModelProfile] = {m.name: m for m in model_profiles(scenario)}
        specs = [spec for link in scenario.links for spec in link.specs()]
        self.network = Network(self.kernel, specs, streams.stream("network"))
        self.sections: dict[WorkerId, WorkerSection] = {}
        self.workers: dict[WorkerId, SimulatedWorker] = build_workers(scenario, self)
        self._policy_random = streams.stream("policy")
        self._check_every = check_every
        self.router = SimulatedRouter(self.kernel, self.make_scheduler(), self._carry_out, check_every=check_every)
        self._kv = {
            name: KvChannel(self, worker, streams.stream(f"kv events of {name}"))
            for name, worker in self.workers.items()
        }
        self._kv_is_plain = scenario.router.kv_events == KvEventsSection() and not scenario.router.report_lag_s
        """Nothing is late or lost: then what a worker tells at one moment travels as one message."""
        self._ways: dict[tuple[str, str], float] = {}
        self._joined: set[WorkerId] = set()
        """Who has announced itself to the router and was not lost since."""
        self._arrivals = arrivals
        self._arrived = 0
        self._ended_arriving = False
        self.gauges = Gauges(self)
        self.faults = Faults(self, scenario.faults, streams.stream("faults"))
        self._heard = 0

    # -- running -------------------------------------------------------------------------------------------------

    def run(self) -> RunResult:
        """Let everything arrive and end, at most `drain_s` behind the last arrival."""
        self.begin()
        self.kernel.run_until(inf)
        return self.result()

    def begin(self) -> None:
        """Let workers join and the first request be due."""
        for worker in self.workers.values():
            self.join(worker)
        self.faults.begin()
        self._next_arrival()
        self.gauges.begin()
        self._keep_alive()

    @property
    def is_over(self) -> bool:
        """Whether nothing more is going to happen that matters."""
        return self._ended_arriving and not self.flights

    def result(self) -> RunResult:
        """What there is to tell of the run."""
        since_s = self.scenario.warmup_s
        return self.gauges.result(unfinished=sum(f.arrival.at_s >= since_s for f in self.flights.values()))

    def make_scheduler(self) -> Scheduler:
        """A router's core that knows what its operator knows."""
        return router_core(self.scenario, self.models.values(), self._policy_random)

    def join(self, worker: SimulatedWorker) -> None:
        """A worker announces itself, and tells what it measured of itself before; harmless when it did already."""
        if worker.facts.id in self._joined:
            return
        self._joined.add(worker.facts.id)
        events: list[Event] = [WorkerJoined(worker=worker.facts)]
        if self.scenario.router.calibrate:
            events += calibration(worker)
        self.router.tell(events)

    def leave(self, worker: SimulatedWorker, reason: str) -> None:
        """The router hears that a worker is gone."""
        self._joined.discard(worker.facts.id)
        self.router.tell((WorkerLost(worker_id=worker.facts.id, reason=reason),))

    def check(self) -> None:
        """Assert what is true between any two callbacks of the kernel (I1, I3, I4, I9)."""
        self.network.check()
        for worker in self.workers.values():
            worker.check()
        known = self.router.scheduler
        known.check()
        assert self._arrived == len(self.flights) + len(self.log), "a request is lost, or ended twice (I1)"
        for name, flight in self.flights.items():
            assert flight.is_travelling or known.knows(name), f"{name} is nowhere (I1)"

    def check_over(self) -> None:
        """Assert what is true when all requests have ended: nobody holds or moves anything (I3, I4, I9)."""
        self.check()
        assert not self.flights
        assert not self.router.scheduler.in_flight
        assert not len(self.router.scheduler.admission)
        assert not len(self.router.scheduler.fleet.ledger), "the ledger is not empty (I4)"
        for name, worker in self.workers.items():
            flows = [self.network.usage_of(f"{name}/{way}").flows for way in ("in", "out")]
            assert not any(flows), f"something still flows to or from {name} (I9)"
            assert not len(worker) and not worker.transfers, f"{name} works for nobody"
            assert not worker.cache.used, f"{name} has {worker.cache.used} blocks in use for nobody (I3)"

    # -- arrivals ------------------------------------------------------------------------------------------------

    def _next_arrival(self) -> None:
        arrival = next(self._arrivals, None)
        end_s = self.scenario.duration_s
        if arrival is None:
            self._end_arriving()
            return
        if end_s is not None and arrival.at_s > end_s:
            self.kernel.at(max(end_s, self.kernel.now), self._end_arriving)
            return
        self.kernel.at(max(arrival.at_s, self.kernel.now), lambda: self._arrive(arrival))

    def _end_arriving(self) -> None:
        """The measured span is over: what is out may still end."""
        self._ended_arriving = True
        self.gauges.close()
        self.kernel.after(self.scenario.drain_s, self._stop)
        self._stop_if_over()

    def _arrive(self, arrival: Arrival) -> None:
        router = self.scenario.router
        deadline_s = None if router.ttft_deadline_s is None else arrival.at_s + router.ttft_deadline_s
        request = Request(
            id=RequestId(arrival.id),
            model=next(iter(self.models)),
            block_keys=arrival.keys,
            prompt_tokens=arrival.prompt_tokens,
            max_output_tokens=router.max_output_tokens,
            arrived_s=self.kernel.now,
            ttft_deadline_s=deadline_s,
            session=arrival.session,
            tenant=arrival.tenant,
            priority=arrival.priority,
            origin=None if arrival.origin is None else Site(arrival.origin),
        )
        self._arrived += 1
        self.flights[request.id] = Flight(arrival, request)
        self.router.tell((RequestArrived(request=request),))
        self._next_arrival()

    # -- commands ------------------------------------------------------------------------------------------------

    def _carry_out(self, command: Command) -> None:
        """Requests of commands may have ended while the news of it is on its way: then there is nothing left to do."""
        match command:
            case Dispatch(decision=decision):
                self._dispatch(decision)
            case Reject(request_id=name, reason=reason):
                self.commands[f"reject {reason.value}"] += 1
                self._end(self.flights[name], "rejected", self.kernel.now, reason.value)
            case Cancel(request_id=name, reason=reason):
                self.commands["cancel"] += 1
                if name in self.flights:
                    self._end(self.flights[name], "failed", self.kernel.now, reason)
            case Abandon(request_id=name, worker_id=lost, reason=reason):
                flight = self.flights.get(name)
                if flight is not None and flight.attempt is not None:
                    self.broke(flight.attempt, lost, reason)
            case Forget(worker_id=name):
                self.commands["forget"] += 1
                self._join_again(self.workers[name])
            case Resync(worker_id=name):
                self.commands["resync"] += 1
                self.resync(self.workers[name])
            case ChangeRole():
                change_role(self, command)

    def _dispatch(self, decision: Decision) -> None:
        flight = self.flights[decision.request.id]
        self.plans[decision.plan.kind.value] += 1
        attempt = Attempt(self, flight, decision)
        flight.begin(attempt)
        attempt.start()

    def broke(self, attempt: Attempt, lost: WorkerId, reason: str, *, heard_after_s: float = 0.0) -> None:
        """An attempt failed at a worker: what it generated was sent, the rest is to be answered by another."""
        if attempt.is_over:
            return
        flight = self.flights[attempt.request_id]
        attempt.cancel()
        flight.note_broke()
        failed = DispatchFailed(
            request_id=attempt.request_id, worker_id=lost, reason=reason, resume_as=flight.resumed()
        )
        self.kernel.after(heard_after_s, lambda: self.router.tell((failed,)))

    def landed(self, flight: Flight, at_s: float) -> None:
        """The sender has the whole answer."""
        self._end(flight, "finished", at_s)

    def _end(self, flight: Flight, outcome: str, ended_s: float, reason: str = "") -> None:
        """I1: the flight is taken out, so that it can end once only."""
        del self.flights[flight.request.id]
        if flight.attempt is not None and outcome != "finished":
            flight.attempt.cancel()
        self.log.add(flight.record(outcome, ended_s, reason))
        self._stop_if_over()

    # -- what workers tell ---------------------------------------------------------------------------------------

    def hear(self, worker: SimulatedWorker, events: list[Told], kv_events: list[Event]) -> None:
        """A worker's messages are on their way to the router."""
        if kv_events and self._kv_is_plain:
            events = [(event, None) for event in kv_events] + events
        elif kv_events:
            self._kv[worker.facts.id].send(kv_events)
        if events:
            delay_s = self.one_way_s(worker.facts.site, self.router.site) + self.scenario.router.report_lag_s
            lives = worker.lives
            self.kernel.after(delay_s, lambda: self._deliver(worker, lives, events))
        if self._check_every:
            self._heard += 1
            if self._heard % self._check_every == 0:
                self.kernel.after(0.0, self.check)

    def _deliver(self, worker: SimulatedWorker, lives: int, told: list[Told]) -> None:
        events = [event for event, about in told if about is None or not about.is_over]
        if worker.lives != lives:
            events = [event for event in events if not isinstance(event, LoadReported)]
        self.router.tell(events)

    def resync(self, worker: SimulatedWorker) -> None:
        """A worker tells its whole cache anew."""
        if worker.is_up:
            self._kv[worker.facts.id].resync()

    def _keep_alive(self) -> None:
        """Idle workers, and those in a long pass, have no end of a pass at which they would report."""
        every_s = self.scenario.router.lost_after_s / 3
        silent_since_s = self.kernel.now - every_s
        for worker in self.workers.values():
            if worker.is_up and worker.reported_s <= silent_since_s:
                worker.flush(report=True)
        if not self.is_over:
            self.kernel.after(every_s, self._keep_alive)

    # -- facts of the world --------------------------------------------------------------------------------------

    def one_way_s(self, source: str, target: str) -> float:
        """How long a small message takes."""
        known = self._ways.get((source, target))
        if known is None:
            known = self._ways[source, target] = self.network.rtt_s(source, target) / 2
        return known

    def block_bytes(self, model: ModelName) -> float:
        """KV bytes of one block."""
        profile = self.models[model]
        return float(profile.bytes_per_token * profile.block_tokens)

    def state_bytes(self, model: ModelName) -> float:
        """KV bytes that a sequence has beside its blocks."""
        return float(self.models[model].state_bytes)

    def layers(self, model: ModelName) -> int:
        """Layers whose KV travels."""
        return self.models[model].layers

    # -- what goes wrong -----------------------------------------------------------------------------------------

    def lose(self, worker: SimulatedWorker, reason: str) -> None:
        """A worker dies; the router notices when the broken connection reaches it."""
        worker.crash()
        self._kv[worker.facts.id].begin_anew()
        self._after_the_way(worker, lambda: self.leave(worker, reason))

    def bring_back(self, worker: SimulatedWorker) -> None:
        """A worker is there again, and says so; what it says goes the way that the news of its end went."""
        worker.come_back()
        self._after_the_way(worker, lambda: self.join(worker))

    def restart_router(self) -> None:
        """The router forgets everything: what is out fails, workers join anew and tell their caches."""
        for flight in list(self.flights.values()):
            self._end(flight, "failed", self.kernel.now, "the router began anew")
        self.router.scheduler = self.make_scheduler()
        self._joined.clear()
        for worker in self.workers.values():
            if worker.is_up:
                self.join(worker)
                self.resync(worker)

    def _join_again(self, worker: SimulatedWorker) -> None:
        """A worker that the router gave up finds its connection closed, and opens another."""
        lives = worker.lives
        self._joined.discard(worker.facts.id)

        def joined() -> None:
            if worker.is_up and worker.lives == lives:
                self.join(worker)
                self.resync(worker)

        self.kernel.after(self.network.rtt_s(self.router.site, worker.facts.site), joined)

    def _after_the_way(self, worker: SimulatedWorker, callback: Callback) -> None:
        self.kernel.after(self.one_way_s(worker.facts.site, self.router.site), callback)

    def _stop_if_over(self) -> None:
        """Nobody decides anything any more; what is on its way is heard, so that all books are closed."""
        if self.is_over:
            self.router.stop()
            ways_s = [self.one_way_s(worker.facts.site, self.router.site) for worker in self.workers.values()]
            self.kernel.after(max(ways_s) + self.scenario.router.report_lag_s + QUIET_S, self._close)

    def _close(self) -> None:
        """A pass that was given up while it ran holds its blocks to its end."""
        if any(worker.is_computing for worker in self.workers.values()):
            self.kernel.after(QUIET_S, self._close)
        else:
            self.kernel.clear()

    def _stop(self) -> None:
        """Nothing that is still due matters."""
        self.router.stop()
        self.kernel.clear()

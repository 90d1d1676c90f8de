"""Prometheus metrics: an observer of the driver, and gauges that are read when they are scraped.

Names begin with `homing_` and end in their base unit. `homing_ttft_error_seconds` makes the price falsifiable.
"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from homing.router.core.commands import Cancel, Command, Dispatch, Reject
from homing.router.core.events import (
    DispatchFailed,
    Event,
    FirstToken,
    RequestArrived,
    RequestCancelled,
    RequestFinished,
    TimerFired,
    TransferFinished,
)
from homing.router.core.scheduler import Scheduler
from homing.router.core.types import Decision, Outcome, PlanKind, RejectReason, RequestId, Tier

MODELS_MAX = 1024
"""Names of models whose counters are kept at hand."""
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_DECISION_SECONDS = (2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 5e-2)
_ERROR_SECONDS = (-10.0, -3.0, -1.0, -0.3, -0.1, -0.03, 0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


class Metrics:
    """Counts events and commands. Call it as the driver's observer."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Gauges(scheduler))
        self._requests = Counter("homing_requests", "Requests by how they ended.", ["outcome"], registry=self.registry)
        self._arrived = Counter("homing_arrivals", "Requests that arrived.", ["model"], registry=self.registry)
        self._plans = Counter("homing_plans", "Dispatched plans.", ["kind"], registry=self.registry)
        self._rejected = Counter("homing_rejects", "Requests that were told no.", ["reason"], registry=self.registry)
        self._retries = Counter("homing_dispatch_failures", "Dispatches that broke.", registry=self.registry)
        self._tokens = Counter(
            "homing_prompt_tokens",
            "Prompt tokens of dispatched plans by where their KV is to come from.",
            ["source"],
            registry=self.registry,
        )
        self._moved = Counter(
            "homing_moved_bytes", "KV bytes that arrived.", ["source", "target"], registry=self.registry
        )
        self._broken = Counter("homing_transfer_failures", "Moves that did not complete.", registry=self.registry)
        self.kv_event_gaps = Counter(
            "homing_kv_event_gaps", "Gaps seen in what workers tell of their caches.", registry=self.registry
        )
        self._ttft = Histogram(
            "homing_ttft_seconds", "From dispatch to first token.", ["kind"], buckets=_SECONDS, registry=self.registry
        )
        self._error = Histogram(
            "homing_ttft_error_seconds",
            "Measured minus predicted TTFT.",
            ["kind"],
            buckets=_ERROR_SECONDS,
            registry=self.registry,
        )
        self._deciding = Histogram(
            "homing_decision_seconds", "Time to decide on a request.", buckets=_DECISION_SECONDS, registry=self.registry
        )
        self._open: dict[RequestId, Decision | None] = {}
        self._by_kind = {
            kind: (self._plans.labels(kind), self._ttft.labels(kind), self._error.labels(kind)) for kind in PlanKind
        }
        self._by_outcome = {outcome: self._requests.labels(outcome) for outcome in Outcome}
        self._computed, self._cached = self._tokens.labels("computed"), self._tokens.labels("cached")
        self._by_model: dict[str, Counter] = {}

    def __call__(self, event: Event, commands: list[Command], now: float, took_s: float) -> None:
        """Count one event and its commands."""
        match event:
            case RequestArrived():
                self._arrivals(event.request.model).inc()
                self._deciding.observe(took_s)
                self._open.setdefault(event.request.id, None)
            case FirstToken():
                self._first_token(event)
            case DispatchFailed():
                self._retries.inc()
            case TransferFinished():
                self._transferred(event)
            case _:
                pass
        outcome = _outcome(event)
        if outcome is not None:
            self._ended(outcome[0], outcome[1])
        for command in commands:
            if isinstance(command, Dispatch):
                self._dispatched(command.decision)
            elif isinstance(command, Cancel) and isinstance(event, TimerFired):
                self._ended(command.request_id, Outcome.FAILED)
            elif isinstance(command, Reject):
                self._told_no(command)

    def _transferred(self, event: TransferFinished) -> None:
        self._moved.labels(event.source, event.target).inc(event.bytes)
        if not event.complete:
            self._broken.inc()

    def _dispatched(self, decision: Decision) -> None:
        plan = decision.plan
        self._open[decision.request.id] = decision
        self._by_kind[plan.kind][0].inc()
        self._computed.inc(plan.estimate.computed_tokens)
        self._cached.inc(plan.estimate.hit_tokens)

    def _arrivals(self, model: str) -> Counter:
        """Looking a label up takes microseconds, each time."""
        known = self._by_model.get(model)
        if known is None:
            if len(self._by_model) >= MODELS_MAX:
                self._by_model.clear()
            known = self._by_model[model] = self._arrived.labels(model)
        return known

    def _first_token(self, event: FirstToken) -> None:
        decision = self._open.get(event.request_id)
        if decision is not None:
            _, ttft, error = self._by_kind[decision.plan.kind]
            ttft.observe(event.ttft_s)
            error.observe(event.ttft_s - decision.plan.estimate.ttft_s)

    def _told_no(self, command: Reject) -> None:
        self._rejected.labels(command.reason).inc()
        if command.reason is RejectReason.DUPLICATE_REQUEST:
            # The first request of this id goes on.
            self._by_outcome[Outcome.REJECTED].inc()
        else:
            self._ended(command.request_id, Outcome.REJECTED)

    def _ended(self, request: RequestId, outcome: Outcome) -> None:
        """Count an end once (I1): what is told of a request that ended before is late."""
        if request in self._open:
            del self._open[request]
            self._by_outcome[outcome].inc()


def _outcome(event: Event) -> tuple[RequestId, Outcome] | None:
    """The end of a request that an event tells; rejections come as commands."""
    match event:
        case RequestFinished():
            return event.request_id, event.outcome
        case RequestCancelled():
            return event.request_id, Outcome.CANCELLED
        case DispatchFailed(resume_as=None):
            return event.request_id, Outcome.FAILED
        case _:
            return None


class _Gauges(Collector):
    """What is true at the moment of a scrape."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def collect(self) -> Iterator[GaugeMetricFamily]:
        scheduler = self._scheduler
        yield GaugeMetricFamily("homing_requests_in_flight", "Dispatched, not ended.", len(scheduler.in_flight))
        yield GaugeMetricFamily("homing_requests_waiting", "Waiting for room.", len(scheduler.admission))
        blocks = GaugeMetricFamily("homing_index_blocks", "Blocks believed cached.", labels=["worker", "tier"])
        running = GaugeMetricFamily("homing_worker_requests", "Requests on a worker.", labels=["worker"])
        for state in sorted(scheduler.fleet, key=lambda state: state.worker.id):
            for tier in Tier:
                blocks.add_metric([state.worker.id, tier], scheduler.index[tier].blocks_of(state.bit))
            running.add_metric([state.worker.id], scheduler.fleet.running(state))
        yield blocks
        yield running
        yield from self._links()

    def _links(self) -> Iterator[GaugeMetricFamily]:
        topology = self._scheduler.topology
        speed = GaugeMetricFamily(
            "homing_link_bytes_per_second", "Believed capacity of a link.", labels=["source", "target"]
        )
        rtt = GaugeMetricFamily("homing_link_rtt_seconds", "Believed round trip.", labels=["source", "target"])
        for source, target in topology.known():
            rate = topology.rate(source, target)
            speed.add_metric([source, target], rate.bytes_per_s)
            rtt.add_metric([source, target], rate.rtt_s)
        yield speed
        yield rtt

"""What the core is told of one call, and learns from it: first token, tokens, transfers, hits, failures, the end."""

import asyncio
import logging
from dataclasses import dataclass, field

from homing.router.actuators.types import Actuator, Post
from homing.router.core.events import (
    DecodeMeasured,
    DispatchFailed,
    FirstToken,
    PrefillFinished,
    PrefillMeasured,
    RequestFinished,
)
from homing.router.core.types import Decision, Outcome, PlanKind, Request, WorkerId
from homing.router.engines.usage import Usage

from ..backends.endpoint import Endpoint, Endpoints
from ..driver import Driver
from .calls import Call
from .hits import Hits
from .orders import transfers_told
from .tracing import Tracing

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Carrier:
    """What calls are carried with."""

    driver: Driver
    endpoints: Endpoints
    post: Post
    hits: Hits
    tracing: Tracing | None = None
    asking: "set[asyncio.Task[None]]" = field(default_factory=set)
    """Questions about transfers whose clients have left already."""


class Telling:
    """One call's side of the conversation with the core. `close` it, however the call ends."""

    def __init__(self, carrier: Carrier, call: Call, request: Request) -> None:
        self._driver = carrier.driver
        self._endpoints = carrier.endpoints
        self._hits = carrier.hits
        self._asking = carrier.asking
        self._span = None if carrier.tracing is None else carrier.tracing.begin(call)
        self._call = call
        self._request = request
        self._dispatched_s = 0.0
        self._first_s = 0.0
        self._releasing: asyncio.TimerHandle | None = None
        self.is_over = False
        """Whether the request has ended."""

    def decided(self) -> None:
        """A plan is about to be carried out."""
        self._dispatched_s = self._driver.now()

    def asking(self, decision: Decision, endpoint: Endpoint) -> dict[str, str]:
        """The engine is asked; the headers that say whose span its own belongs to.

        An answer that comes whole does not say when its prompt was computed: it is taken to be when foreseen.
        """
        if not self._call.streams:
            loop = asyncio.get_running_loop()
            self._releasing = loop.call_later(decision.plan.estimate.ttft_s, self._release)
        if endpoint.on_sent is not None and self._request.block_keys:
            endpoint.on_sent(self._request.block_keys)
        return {} if self._span is None else dict(self._span.attempt(decision))

    def prefilled(self) -> None:
        """The prefill worker of a remote plan is done."""
        self._driver.feed(PrefillFinished(request_id=self._request.id))

    def first_token(self, decision: Decision) -> None:
        """The answer began."""
        self.stop_waiting()
        self._first_s = self._driver.now()
        ttft_s = self._first_s - self._dispatched_s
        if self._span is not None:
            self._span.first_token(ttft_s)
        self._learn_prefill(decision, ttft_s)
        self._driver.feed(FirstToken(request_id=self._request.id, ttft_s=ttft_s))

    async def settle(self, decision: Decision, endpoint: Endpoint, usage: Usage | None, events: int) -> None:
        """The client has its answer, and may leave; the core is to hear of all that was measured all the same."""
        asking = self._ask_of_transfers(decision, endpoint, usage)
        try:
            if asking is not None:
                await asyncio.shield(asking)
        finally:
            self._finish(decision, endpoint, usage, events)

    def settle_alone(self, decision: Decision, endpoint: Endpoint, usage: Usage | None, events: int) -> None:
        """The same for a client that has left already."""
        self._ask_of_transfers(decision, endpoint, usage)
        self._finish(decision, endpoint, usage, events)

    def _ask_of_transfers(
        self, decision: Decision, endpoint: Endpoint, usage: Usage | None
    ) -> "asyncio.Task[None] | None":
        """Ask how the plan's transfers went, whether anybody waits for it or not."""
        if endpoint.actuator is None or not decision.plan.moves:
            return None
        task = asyncio.create_task(self._learn_transfers(endpoint.actuator, decision, usage))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)
        return task

    def _finish(self, decision: Decision, endpoint: Endpoint, usage: Usage | None, events: int) -> None:
        output_tokens = events
        if usage is not None:
            output_tokens = usage.completion_tokens or events
            self._learn_hits(decision, endpoint, usage)
        if self._first_s and output_tokens > 1:
            seconds = self._driver.now() - self._first_s
            self._driver.feed(DecodeMeasured(worker_id=endpoint.worker, tokens=output_tokens - 1, seconds=seconds))
        self.ended(Outcome.FINISHED, output_tokens)

    def broke(self, worker: WorkerId, reason: str) -> None:
        """An attempt failed before the client got anything."""
        self.stop_waiting()
        log.warning("request %s: attempt failed: %s", self._call.id, reason)
        if self._span is not None:
            self._span.attempt_ended(reason)
        event = DispatchFailed(request_id=self._request.id, worker_id=worker, reason=reason, resume_as=self._request)
        self._driver.feed(event)

    def ended(self, outcome: Outcome, output_tokens: int) -> None:
        """The request is over."""
        self.is_over = True
        self._driver.feed(RequestFinished(request_id=self._request.id, outcome=outcome, output_tokens=output_tokens))

    def stop_waiting(self) -> None:
        """The attempt's prompt is computed, or never will be."""
        if self._releasing is not None:
            self._releasing.cancel()
            self._releasing = None

    def close(self) -> None:
        """Leave nothing booked."""
        self.stop_waiting()
        self._driver.close_request(self._request.id)
        if self._span is not None:
            self._span.end("" if self.is_over else "the client left")

    def _release(self) -> None:
        self._releasing = None
        self.prefilled()

    def _learn_prefill(self, decision: Decision, ttft_s: float) -> None:
        """Only of a worker that did nothing else for us or others the time is that of this prompt."""
        plan = decision.plan
        state = self._driver.scheduler.fleet.get(plan.decode)
        is_alone = state is not None and self._driver.scheduler.fleet.running(state) <= 1
        computed = plan.estimate.computed_tokens
        seconds = ttft_s - plan.estimate.network_s
        if plan.kind is PlanKind.LOCAL and plan.estimate.queue_s == 0 and is_alone and computed and seconds > 0:
            end = self._request.prompt_tokens
            self._driver.feed(
                PrefillMeasured(worker_id=plan.decode, cached_tokens=end - computed, end_tokens=end, seconds=seconds)
            )

    async def _learn_transfers(self, actuator: Actuator, decision: Decision, usage: Usage | None) -> None:
        home = self._driver.scheduler.world.site
        peers = self._endpoints.peers()
        for event in await transfers_told(actuator, self._call, decision, peers, usage, home):
            self._driver.feed(event)

    def _learn_hits(self, decision: Decision, endpoint: Endpoint, usage: Usage) -> None:
        if usage.cached_tokens is None or decision.plan.kind is not PlanKind.LOCAL:
            return
        self._hits.compare(endpoint.worker, decision.plan.estimate.hit_tokens, usage.cached_tokens)
        if endpoint.on_cached is not None and self._request.block_keys:
            endpoint.on_cached(self._request.block_keys, usage.cached_tokens, self._dispatched_s)

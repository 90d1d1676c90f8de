"""Picks engines for a gateway that forwards requests itself: the same decisions as the door's, not carried out here.

Rule 1: a pick is booked until the gateway tells of its end, and given back then, whoever served it; one that the
gateway never got, because it left meanwhile or something failed, is given back at once.
Rule 2: after the chosen engine come others that could answer the same bytes, so that the gateway can fail over by
itself.
Rule 3: the gateway shows no bodies. Engines send the headers of a stream before they compute, and those of a whole
answer after its last token: neither is a first token, so nothing is learned from them, and a prompt is taken to be
computed when that was foreseen.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from homing.router.actuators.types import Post, Prepared
from homing.router.core.commands import Cancel, Dispatch, Reject
from homing.router.core.events import DispatchFailed, PrefillFinished, RequestFinished
from homing.router.core.types import Decision, ModelName, ModelProfile, Outcome, Request, RequestId, WorkerId
from homing.router.envoy.types import Pick, PickRefusedError
from homing.router.tokens.types import PromptTokens

from .addresses import Addresses
from .backends.endpoint import Alias, Endpoint, Endpoints
from .door.calls import PLAIN_PATHS, PROMPT_PATHS, Call, CallReader, read_call, request_id_of, unknown_model
from .door.errors import DoorError, refused
from .door.forward import plan_headers
from .door.http import HttpRequest
from .door.orders import prepare
from .driver import Driver, RequestCommand

log = logging.getLogger(__name__)

FALLBACKS_MAX: Final = 4
"""Engines after the chosen one."""
UNBOOKED: Final = ""
"""The id of picks that are nothing to the core: no request of it has this one."""
RETRY_AFTER_S: Final = 1.0


@dataclass(slots=True)
class _Held:
    """A request that was dispatched and has not ended."""

    call: Call
    decision: Decision
    endpoint: Endpoint
    address: str
    prepared: Prepared = Prepared()  # noqa: RUF009 - frozen
    releasing: asyncio.TimerHandle | None = None
    was_served: bool = False

    @property
    def id(self) -> RequestId:
        return self.decision.request.id


class _Box:
    """The commands of one request, read until it is placed. What is told afterwards is the gateway's to find out."""

    def __init__(self) -> None:
        self._commands: deque[RequestCommand] = deque()
        self._arrived = asyncio.Event()
        self.is_placed = False

    def put_nowait(self, command: RequestCommand, /) -> None:
        if not self.is_placed:
            self._commands.append(command)
            self._arrived.set()

    async def take(self) -> RequestCommand:
        while not self._commands:
            self._arrived.clear()
            await self._arrived.wait()
        return self._commands.popleft()


class EndpointPicker:
    """A `Picker` on the router's core (`router/envoy`). While `draining` it picks nothing."""

    def __init__(self, driver: Driver, endpoints: Endpoints, reader: CallReader, post: Post) -> None:
        self.draining = False
        self._driver = driver
        self._endpoints = endpoints
        self._reader = reader
        self._post = post
        self._addresses = Addresses(driver.now)
        self._held: dict[str, _Held] = {}

    async def pick(self, path: str, headers: Mapping[str, str], body: bytes, subset: frozenset[str] | None) -> Pick:
        """Where a request goes; raises PickRefusedError."""
        plain = {name: value for name, value in headers.items() if not name.startswith(":")}
        is_inference = path in PROMPT_PATHS or path in PLAIN_PATHS
        try:
            if self.draining:
                raise _unavailable("the router is draining")
            if not is_inference or headers.get(":method", "POST") != "POST":
                return Pick(request_id=UNBOOKED, endpoints=await self._any(subset))
            call = read_call(HttpRequest("POST", path, "", plain, body, True), request_id_of(plain))
            return await self._placed(call, subset)
        except DoorError as error:
            raise PickRefusedError(error.status, error.message, error.retry_after_s) from error

    def served(self, pick: Pick, endpoint: str, status: int) -> None:
        """An engine began to answer."""
        held = self._held.get(pick.request_id)
        if held is None:
            return
        held.was_served = True
        is_elsewhere = endpoint != held.address
        if is_elsewhere or status >= 500:
            held.endpoint.on_trouble()
        if is_elsewhere or status != 200 or not held.call.streams:
            self._computed(held)

    def ended(self, pick: Pick, *, cancelled: bool) -> None:
        """The answer is whole, or nobody waits for it any more."""
        held = self._held.pop(pick.request_id, None)
        if held is None:
            return
        self._let_go(held)
        if cancelled and not held.was_served:
            held.endpoint.on_trouble()
        outcome = Outcome.CANCELLED if cancelled else Outcome.FINISHED
        self._driver.feed(RequestFinished(request_id=held.id, outcome=outcome, output_tokens=0))
        self._driver.forget(held.id)

    # -- a pick ---------------------------------------------------------------------------------------------------

    async def _placed(self, call: Call, subset: frozenset[str] | None) -> Pick:
        """Nothing waits between the reading of a request, which makes its id unique, and its arrival at the core.

        Its id is open until the gateway tells of its end, and the engine is told it: two requests of one id are two.
        """
        alias, profile = self._named(call.model)
        among = await self._among(alias.model, subset)
        request, prompt = await self._reader.read(call, alias, profile, self._driver.now())
        if request.among is not None and among is not None:
            among &= request.among
        request = replace(request, among=request.among if among is None else among)
        call.id = request.id
        box = _Box()
        self._driver.open_with(request, box)
        try:
            held = await self._decided(call, request, box)
            box.is_placed = True
            self._held[request.id] = held
            return await self._sent(held, prompt)
        except BaseException:
            unsent = self._held.pop(request.id, None)
            if unsent is not None:
                self._let_go(unsent)
            self._driver.close_request(request.id)
            raise

    def _named(self, name: str) -> tuple[Alias, ModelProfile]:
        """What a client's model name stands for."""
        alias = self._endpoints.alias(name)
        profile = None if alias is None else self._driver.scheduler.models.get(alias.model)
        if alias is not None and profile is not None:
            return alias, profile
        if self._endpoints.knew(name) or not self._endpoints.names():
            raise _unavailable(f"no engine serves {name} at the moment")
        raise unknown_model(name, self._endpoints.names())

    async def _among(self, model: ModelName, subset: frozenset[str] | None) -> frozenset[WorkerId] | None:
        """The workers that a gateway can send to: those at these addresses, and none but engines with HTTP."""
        fleet = self._driver.scheduler.fleet
        engines = list(self._endpoints)
        if subset is None and len(fleet) == len(engines):
            return None
        found = set()
        for endpoint in engines:
            state = fleet.get(endpoint.worker)
            if endpoint.model != model or state is None or state.draining:
                continue
            if subset is None or await self._addresses.of(endpoint.url) in subset:
                found.add(endpoint.worker)
        if not found:
            where = "" if subset is None else " at the addresses that the gateway allows"
            raise _unavailable(f"no engine{where} serves {model} at the moment")
        return frozenset(found)

    async def _decided(self, call: Call, request: Request, box: _Box) -> _Held:
        """The core's plan, asked for anew where its engine has left meanwhile or cannot be found."""
        while True:
            command = await box.take()
            if isinstance(command, Reject | Cancel):
                raise refused(command)
            if not isinstance(command, Dispatch):
                continue
            worker = command.decision.plan.decode
            endpoint = self._endpoints.get(worker)
            address = None if endpoint is None else await self._addresses.of(endpoint.url)
            if endpoint is not None and address is not None and self._endpoints.get(worker) is endpoint:
                return _Held(call, command.decision, endpoint, address)
            reason = f"worker {worker} is gone" if endpoint is None else f"{endpoint.url}: its address is not known"
            failed = DispatchFailed(request_id=request.id, worker_id=worker, reason=reason, resume_as=request)
            self._driver.feed(failed)

    async def _sent(self, held: _Held, prompt: PromptTokens | None) -> Pick:
        """What the gateway is to send, and where."""
        call, endpoint, decision = held.call, held.endpoint, held.decision
        loop = asyncio.get_running_loop()
        held.releasing = loop.call_later(decision.plan.estimate.ttft_s, self._computed, held)
        held.prepared = await self._prepare(held, prompt)
        fallbacks = await self._fallbacks(held)
        if endpoint.on_sent is not None and decision.request.block_keys:
            endpoint.on_sent(decision.request.block_keys)
        patch = held.prepared.patch
        changes = {**endpoint.patch.body, **patch.body}
        return Pick(
            request_id=held.id,
            endpoints=(held.address, *fallbacks),
            headers={**endpoint.headers, **endpoint.patch.headers, **patch.headers, **plan_headers(decision, call.id)},
            body=call.with_body(changes) if changes else None,
        )

    async def _prepare(self, held: _Held, prompt: PromptTokens | None) -> Prepared:
        actuator, decision = held.endpoint.actuator, held.decision
        if actuator is None or not (decision.plan.moves or held.endpoint.prepares_local):
            return Prepared()
        profile = self._driver.scheduler.models[decision.request.model]
        prepared = await prepare(actuator, self._post, held.call, decision, profile, self._endpoints, prompt)
        if prepared.prefill_s is not None:
            self._computed(held)
        if prepared.beside is not None:
            prepared.beside.add_done_callback(partial(self._prefilled, held))
        return prepared

    def _prefilled(self, held: _Held, beside: "asyncio.Task[float]") -> None:
        """The prefill worker is done. If it failed, the decode worker finds out: the gateway cannot be told."""
        if beside.cancelled() or self._held.get(held.id) is not held:
            return
        error = beside.exception()
        if error is not None:
            prefill = held.decision.plan.prefill
            log.warning("request %s: its prefill worker %s failed: %s", held.id, prefill, error)
            endpoint = self._endpoints.get(prefill)
            if endpoint is not None:
                endpoint.on_trouble()
        self._computed(held)

    def _computed(self, held: _Held) -> None:
        """The prompt is computed, or nobody computes it any more."""
        if held.releasing is not None:
            held.releasing.cancel()
            held.releasing = None
            self._driver.feed(PrefillFinished(request_id=held.id))

    def _let_go(self, held: _Held) -> None:
        """Hold nothing for a request any more, but what the core holds."""
        if held.releasing is not None:
            held.releasing.cancel()
        if held.prepared.beside is not None:
            held.prepared.beside.cancel()
        if held.endpoint.actuator is not None:
            held.endpoint.actuator.ended(held.call.engine_id)

    # -- other engines --------------------------------------------------------------------------------------------

    async def _fallbacks(self, held: _Held) -> list[str]:
        """Others that could answer in the chosen one's place, the best first."""
        chosen, found = held.address, list[str]()
        for endpoint in self._stand_ins(held):
            address = await self._addresses.of(endpoint.url)
            if address is not None and address != chosen and address not in found:
                found.append(address)
        return found[:FALLBACKS_MAX]

    def _stand_ins(self, held: _Held) -> list[Endpoint]:
        """As many as are wanted, of different URLs."""
        found: dict[str, Endpoint] = {}
        for worker in self._ranked(held):
            endpoint = self._endpoints.get(worker)
            if endpoint is not None and endpoint.url not in found and self._can_stand_in(endpoint, held):
                found[endpoint.url] = endpoint
                if len(found) == FALLBACKS_MAX:
                    break
        return list(found.values())

    def _ranked(self, held: _Held) -> Iterator[WorkerId]:
        """The decision's runners-up, then who does least, near ones first, then those that have no room."""
        yield from (plan.decode for plan in held.decision.runners_up)
        pools = self._driver.scheduler.fleet.pools(held.endpoint.model).values()
        near_first = sorted(pools, key=lambda pool: (pool.site != held.endpoint.site, pool.site))
        for pool in near_first:
            yield from (state.worker.id for state in pool.least_decoding())
        for pool in near_first:
            yield from (state.worker.id for state in pool.by_bit.values())

    def _can_stand_in(self, other: Endpoint, held: _Held) -> bool:
        """Whether the same bytes and headers, credentials among them, are right for another engine."""
        state = self._driver.scheduler.fleet.get(other.worker)
        among, chosen = held.decision.request.among, held.endpoint
        if state is None or state.draining or other.url == chosen.url or not (among is None or other.worker in among):
            return False
        role = state.worker.role
        does_both = role.can_prefill and role.can_decode
        is_alike = other.headers == chosen.headers and other.patch == chosen.patch
        return does_both and is_alike and (not held.prepared.patch or other.actuator is chosen.actuator)

    async def _any(self, subset: frozenset[str] | None) -> tuple[str, ...]:
        """For what is no inference: any that the gateway allows."""
        found: dict[str, None] = {}
        for endpoint in list(self._endpoints):
            address = await self._addresses.of(endpoint.url)
            if address is not None and (subset is None or address in subset):
                found[address] = None
            if len(found) > FALLBACKS_MAX:
                break
        if not found:
            raise _unavailable("no engine is there at the moment")
        return tuple(found)


def _unavailable(message: str) -> DoorError:
    return DoorError(503, message, "server_error", "no_worker", retry_after_s=RETRY_AFTER_S)

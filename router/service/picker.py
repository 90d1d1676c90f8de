"""Picks engines for a gateway that forwards requests itself: the same decisions as the door's, not carried out here.

Rule 1: a pick is booked until the gateway tells of its end, and given back then, whoever served it.
Rule 2: after the chosen engine come the others that could answer, so that the gateway can fail over by itself.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from homing.router.actuators.types import Post, Prepared
from homing.router.core.commands import Cancel, Dispatch, Reject
from homing.router.core.events import DispatchFailed, FirstToken, RequestFinished
from homing.router.core.types import Decision, Outcome, Request, WorkerId
from homing.router.envoy.types import Pick, PickRefusedError
from homing.router.tokens.types import PromptTokens

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
RESOLVED_S: Final = 30.0
"""How long an engine's address is believed."""


@dataclass(slots=True)
class _Open:
    """A pick that was given and has not ended."""

    request: Request
    decision: Decision
    endpoint: Endpoint
    picked_s: float
    address: str
    prepared: Prepared
    call_id: str
    was_served: bool = False


class _Box:
    """The commands of one request until it is placed."""

    def __init__(self) -> None:
        self.commands: deque[RequestCommand] = deque()
        self.arrived = asyncio.Event()

    def put_nowait(self, command: RequestCommand, /) -> None:
        self.commands.append(command)
        self.arrived.set()

    async def take(self) -> RequestCommand:
        while not self.commands:
            self.arrived.clear()
            await self.arrived.wait()
        return self.commands.popleft()


class EndpointPicker:
    """A `Picker` on the router's core (`router/envoy`)."""

    def __init__(self, driver: Driver, endpoints: Endpoints, reader: CallReader, post: Post) -> None:
        self._driver = driver
        self._endpoints = endpoints
        self._reader = reader
        self._post = post
        self._open: dict[str, _Open] = {}
        self._resolved: dict[str, tuple[str, float]] = {}

    async def pick(self, path: str, headers: Mapping[str, str], body: bytes, subset: frozenset[str] | None) -> Pick:
        """Where a request goes; raises PickRefusedError."""
        plain = {name: value for name, value in headers.items() if not name.startswith(":")}
        request_id = request_id_of(plain)
        if path not in PROMPT_PATHS and path not in PLAIN_PATHS:
            return Pick(request_id=request_id, endpoints=await self._any(subset))
        try:
            call = read_call(HttpRequest("POST", path, "", dict(plain), body, True), request_id)
            return await self._placed(call, subset)
        except DoorError as error:
            raise PickRefusedError(error.status, error.message, error.retry_after_s) from error

    def served(self, pick: Pick, endpoint: str, status: int) -> None:
        """An engine began to answer."""
        held = self._open.get(pick.request_id)
        if held is None:
            return
        held.was_served = True
        if endpoint and endpoint != held.address:
            held.endpoint.on_trouble()
        elif status == 200:
            ttft_s = self._driver.now() - held.picked_s
            self._driver.feed(FirstToken(request_id=held.request.id, ttft_s=ttft_s))

    def ended(self, pick: Pick, *, cancelled: bool) -> None:
        """The answer is whole, or nobody waits for it any more."""
        held = self._open.pop(pick.request_id, None)
        if held is None:
            return
        if held.prepared.beside is not None:
            held.prepared.beside.cancel()
        if held.endpoint.actuator is not None:
            held.endpoint.actuator.ended(held.call_id)
        if cancelled and not held.was_served:
            held.endpoint.on_trouble()
        outcome = Outcome.CANCELLED if cancelled else Outcome.FINISHED
        self._driver.feed(RequestFinished(request_id=held.request.id, outcome=outcome, output_tokens=0))

    async def _placed(self, call: Call, subset: frozenset[str] | None) -> Pick:
        alias = self._endpoints.alias(call.model)
        profile = None if alias is None else self._driver.scheduler.models.get(alias.model)
        if alias is None or profile is None:
            raise unknown_model(call.model, self._endpoints.names())
        request, prompt = await self._reader.read(call, alias, profile, self._driver.now())
        if subset is not None:
            request = replace(request, among=await self._within(subset))
        decision, endpoint, address = await self._decided(request)
        prepared = await self._prepare(call, decision, endpoint, prompt)
        self._open[request.id] = _Open(request, decision, endpoint, self._driver.now(), address, prepared, call.id)
        if endpoint.on_sent is not None and request.block_keys:
            endpoint.on_sent(request.block_keys)
        changes = {**endpoint.patch.body, **prepared.patch.body}
        return Pick(
            request_id=request.id,
            endpoints=(address, *await self._fallbacks(alias, address, subset)),
            headers={
                **endpoint.headers,
                **endpoint.patch.headers,
                **prepared.patch.headers,
                **plan_headers(decision, call.id),
            },
            body=call.with_body(changes) if changes else None,
        )

    async def _within(self, subset: frozenset[str]) -> frozenset[WorkerId]:
        """The workers at these addresses."""
        found = [endpoint.worker for endpoint in self._endpoints if await self._address(endpoint) in subset]
        if not found:
            raise DoorError(503, "none of the gateway's endpoints is an engine of this router", "server_error")
        return frozenset(found)

    async def _decided(self, request: Request) -> tuple[Decision, Endpoint, str]:
        """The core's plan, asked for anew where its engine has left meanwhile."""
        box = _Box()
        self._driver.open_with(request, box)
        placed = False
        try:
            while True:
                command = await box.take()
                if isinstance(command, Reject | Cancel):
                    raise refused(command)
                if not isinstance(command, Dispatch):
                    continue
                worker = command.decision.plan.decode
                endpoint = self._endpoints.get(worker)
                if endpoint is not None:
                    address = await self._address(endpoint)
                    placed = True
                    return command.decision, endpoint, address
                failed = DispatchFailed(request_id=request.id, worker_id=worker, reason="it is gone", resume_as=request)
                self._driver.feed(failed)
        finally:
            if placed:
                self._driver.forget(request.id)
            else:
                self._driver.close_request(request.id)

    async def _prepare(
        self, call: Call, decision: Decision, endpoint: Endpoint, prompt: PromptTokens | None
    ) -> Prepared:
        actuator = endpoint.actuator
        if actuator is None or not (decision.plan.moves or endpoint.prepares_local):
            return Prepared()
        profile = self._driver.scheduler.models[decision.request.model]
        return await prepare(actuator, self._post, call, decision, profile, self._endpoints, prompt)

    async def _fallbacks(self, alias: Alias, chosen: str, subset: frozenset[str] | None) -> list[str]:
        """Others that serve the model, the least loaded first."""
        fleet = self._driver.scheduler.fleet
        ranked = []
        for endpoint in self._endpoints:
            state = fleet.get(endpoint.worker)
            if endpoint.model != alias.model or state is None or state.draining:
                continue
            if state.worker.role.can_prefill and state.worker.role.can_decode:
                ranked.append((fleet.running(state), await self._address(endpoint)))
        addresses = dict.fromkeys(address for _, address in sorted(ranked))
        return [each for each in addresses if each != chosen and (subset is None or each in subset)][:FALLBACKS_MAX]

    async def _any(self, subset: frozenset[str] | None) -> tuple[str, ...]:
        addresses = [await self._address(endpoint) for endpoint in self._endpoints]
        found = tuple(dict.fromkeys(each for each in addresses if subset is None or each in subset))
        if not found:
            raise PickRefusedError(503, "no engine is there at the moment", 1.0)
        return found[: 1 + FALLBACKS_MAX]

    async def _address(self, endpoint: Endpoint) -> str:
        """`ip:port` of an engine, as gateways want it."""
        known = self._resolved.get(endpoint.url)
        now = self._driver.now()
        if known is not None and now - known[1] < RESOLVED_S:
            return known[0]
        parts = urlsplit(endpoint.url)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        address = f"{await _resolve(host, port)}:{port}"
        self._resolved[endpoint.url] = address, now
        return address


async def _resolve(host: str, port: int) -> str:
    try:
        found = str(ip_address(host))
    except ValueError:
        try:
            infos = await asyncio.get_running_loop().getaddrinfo(host, port)
        except OSError as error:
            raise DoorError(503, f"{host}: its address is not known: {error}", "server_error") from error
        found = str(infos[0][4][0])
    return f"[{found}]" if ":" in found else found

"""What the door offers: OpenAI's API for inference, the models that can be asked for, and decisions without answers."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote

import msgspec

from homing.router.core.types import Estimate, ModelName, ModelProfile, Plan
from homing.router.tokens.types import PromptReader

from ..backends.endpoint import Alias
from .calls import PLAIN_PATHS, PROMPT_PATHS, Call, CallReader, read_call, request_id_of, unknown_model
from .errors import DoorError, bad_request
from .forward import Forwarding
from .http import HttpRequest, Responder
from .native import NativeAnswers
from .openapi import OPENAPI
from .telling import Carrier
from .usage import error_event

log = logging.getLogger(__name__)

ROUTE_PATH: Final = "/v1/route"
MODELS_PATH: Final = "/v1/models"


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorParts:
    """What the door works with."""

    carrier: Carrier
    native: NativeAnswers
    reader_of: Callable[[str], PromptReader]
    not_ready: Callable[[], str]
    is_looking: Callable[[], bool]
    """Whether there are engines of which nothing is known yet."""
    request_timeout_s: float


class Door:
    """Handles requests of an `HttpServer`."""

    def __init__(self, parts: DoorParts) -> None:
        self.parts = parts
        self._driver = parts.carrier.driver
        self._endpoints = parts.carrier.endpoints
        self.reader = CallReader(parts.reader_of, parts.carrier.driver.is_open)
        self.draining = False
        self._routes: dict[tuple[str, str], Callable[[HttpRequest, Responder, str], Awaitable[None]]] = {
            ("GET", MODELS_PATH): self._list_models,
            ("GET", "/health"): self._tell_health,
            ("GET", "/ready"): self._tell_ready,
            ("GET", "/openapi.json"): self._tell_openapi,
            ("POST", ROUTE_PATH): self._route,
        }
        for path in (*PROMPT_PATHS, *PLAIN_PATHS):
            self._routes["POST", path] = self._answer
        self._paths = {path for _, path in self._routes}

    async def __call__(self, request: HttpRequest, responder: Responder) -> None:
        """Answer one request; never raises but when it is cancelled."""
        request_id = request_id_of(request.headers)
        try:
            await self._handle(request, responder, request_id)
        except DoorError as error:
            self._tell(error, responder, request_id)
        except TimeoutError:
            detail = f"the request did not end within {self.parts.request_timeout_s:g} s"
            self._tell(DoorError(504, detail, "server_error", "timeout"), responder, request_id)
        except Exception:
            log.exception("request %s: %s %s failed", request_id, request.method, request.path)
            detail = f"the router failed on this request; its log tells more under {request_id}"
            self._tell(DoorError(500, detail, "server_error"), responder, request_id)

    def _tell(self, error: DoorError, responder: Responder, request_id: str) -> None:
        if not responder.started:
            error.tell(responder, {"x-request-id": request_id})
        elif responder.sends_events and not responder.finished:
            responder.write(error_event(error.body))
            responder.finish()
        elif not responder.finished:
            responder.break_off()

    async def _handle(self, request: HttpRequest, responder: Responder, request_id: str) -> None:
        method = "GET" if request.method == "HEAD" else request.method
        route = self._routes.get((method, request.path))
        if route is not None:
            await route(request, responder, request_id)
        elif method == "GET" and request.path.startswith(f"{MODELS_PATH}/"):
            self._tell_model(unquote(request.path.removeprefix(f"{MODELS_PATH}/")), responder, request_id)
        elif request.path in self._paths:
            allowed = ", ".join(sorted(method for method, path in self._routes if path == request.path))
            message = f"{request.path} takes {allowed}, not {request.method}"
            responder.send(405, DoorError(405, message).body, {"allow": allowed, "x-request-id": request_id})
        else:
            known = ", ".join(sorted(self._paths))
            message = f"nothing is at {request.path}; there are {known}"
            raise DoorError(404, message, code="unknown_url")

    # -- inference ------------------------------------------------------------------------------------------------

    async def _answer(self, request: HttpRequest, responder: Responder, request_id: str) -> None:
        if self.draining:
            raise DoorError(503, "the router is draining", "server_error", "draining", retry_after_s=1.0)
        call = read_call(request, request_id)
        alias, profile = self._named(call.model)
        if self._endpoints.alias(call.model) is None:
            async with asyncio.timeout(self.parts.request_timeout_s):
                await self.parts.native.answer(call, responder)
            return
        core_request, prompt = await self.reader.read(call, alias, profile, self._driver.now())
        forwarding = Forwarding(self.parts.carrier, call, core_request, prompt, responder)
        async with asyncio.timeout(self.parts.request_timeout_s):
            await forwarding.run()

    def _named(self, name: str) -> tuple[Alias, ModelProfile]:
        """What a client's model name stands for."""
        alias = self._endpoints.alias(name)
        if alias is None and self._endpoints.knew(name) and name not in self._driver.scheduler.fleet.models():
            detail = f"no engine serves {name} at the moment"
            raise DoorError(503, detail, "server_error", "no_worker", retry_after_s=1.0)
        alias = alias or Alias(ModelName(name))
        profile = self._driver.scheduler.models.get(alias.model)
        if profile is None and self.parts.is_looking():
            detail = f"no engine is known to serve {name} yet; engines are still looked for"
            raise DoorError(503, detail, "server_error", "no_worker", retry_after_s=1.0)
        if profile is None:
            raise unknown_model(name, self._model_names())
        return alias, profile

    async def _route(self, request: HttpRequest, responder: Responder, request_id: str) -> None:
        """The decision, and the priced runners-up, for a request that is not sent."""
        call = read_call(request, request_id)
        call.path = _path_of(call)
        alias, profile = self._named(call.model)
        core_request, prompt = await self.reader.read(call, alias, profile, self._driver.now())
        plans = self._driver.scheduler.foresee(core_request)
        if not plans:
            raise DoorError(503, "no worker could take this request at the moment", "server_error", "no_worker")
        told = {
            "request_id": request_id,
            "model": profile.name,
            "prompt_tokens": core_request.prompt_tokens,
            "prompt_blocks": len(core_request.block_keys),
            "tokens_from": None if prompt is None else prompt.source.value,
            "policy": self._driver.scheduler.policy.name,
            "plan": self._plan(plans[0]),
            "runners_up": [self._plan(plan) for plan in plans[1:]],
        }
        responder.send(200, msgspec.json.encode(told), {"x-request-id": request_id})

    def _plan(self, plan: Plan) -> dict[str, Any]:
        endpoint = self._endpoints.get(plan.decode)
        return {
            "kind": plan.kind.value,
            "prefill": plan.prefill,
            "decode": plan.decode,
            "url": None if endpoint is None else endpoint.url,
            "moves": [
                {
                    "kind": move.kind.value,
                    "source": move.source,
                    "target": move.target,
                    "block_first": move.block_first,
                    "block_end": move.block_end,
                    "bytes": move.bytes,
                }
                for move in plan.moves
            ],
            "estimate": _estimate(plan.estimate),
        }

    # -- asking ---------------------------------------------------------------------------------------------------

    def _model_names(self) -> list[str]:
        return sorted({*self._endpoints.names(), *self._driver.scheduler.fleet.models()})

    async def _list_models(self, request: HttpRequest, responder: Responder, request_id: str) -> None:
        models = [self._model(name) for name in self._model_names()]
        responder.send(200, msgspec.json.encode({"object": "list", "data": models}), {"x-request-id": request_id})

    def _tell_model(self, name: str, responder: Responder, request_id: str) -> None:
        if name not in self._model_names():
            raise unknown_model(name, self._model_names())
        responder.send(200, msgspec.json.encode(self._model(name)), {"x-request-id": request_id})

    def _model(self, name: str) -> Mapping[str, Any]:
        alias = self._endpoints.alias(name) or Alias(ModelName(name))
        profile = self._driver.scheduler.models.get(alias.model)
        return {
            "id": name,
            "object": "model",
            "created": 0,
            "owned_by": "homing",
            "root": alias.model,
            "parent": alias.model if alias.lora else None,
            "max_model_len": None if profile is None else profile.context_tokens,
        }

    async def _tell_health(self, request: HttpRequest, responder: Responder, request_id: str) -> None:
        responder.send(200, b"ok\n", {"content-type": "text/plain", "x-request-id": request_id})

    async def _tell_ready(self, request: HttpRequest, responder: Responder, request_id: str) -> None:
        problem = self.parts.not_ready()
        headers = {"content-type": "text/plain", "x-request-id": request_id}
        responder.send(503 if problem else 200, f"{problem or 'ready'}\n".encode(), headers)

    async def _tell_openapi(self, request: HttpRequest, responder: Responder, request_id: str) -> None:
        responder.send(200, OPENAPI, {"x-request-id": request_id})


def _path_of(call: Call) -> str:
    """Which of OpenAI's requests this is the body of."""
    if "messages" in call.body:
        return "/v1/messages" if "system" in call.body else "/v1/chat/completions"
    if "input" in call.body:
        return "/v1/responses"
    if "prompt" in call.body:
        return "/v1/completions"
    raise bad_request("give messages, prompt or input, as in the request that is to be routed")


def _estimate(estimate: Estimate) -> dict[str, float | int]:
    return {
        "score_s": estimate.score_s,
        "ttft_s": estimate.ttft_s,
        "network_s": estimate.network_s,
        "queue_s": estimate.queue_s,
        "fetch_s": estimate.fetch_s,
        "prefill_s": estimate.prefill_s,
        "ship_s": estimate.ship_s,
        "toll_s": estimate.toll_s,
        "hit_tokens": estimate.hit_tokens,
        "computed_tokens": estimate.computed_tokens,
        "moved_bytes": estimate.moved_bytes,
    }

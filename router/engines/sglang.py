"""SGLang: its cache and limits from `/server_info`, its load from `/v1/loads`; written against 0.5.23.

Older builds are asked by their older names: `/get_server_info`, `/get_load`, or their metrics.
"""

from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any

import msgspec

from .http import Answer, EngineHttp
from .kv_sources import kv_source, sglang_binds
from .openai import CANNOT_SAY, OpenAiEngine, given_tokens, known, prompt_text, served_models
from .prometheus import by_rank, samples
from .types import EngineError, EngineFacts, EngineKind, EngineLoad, KvSource, Patch

RUNNING = "sglang:num_running_reqs"
WAITING = "sglang:num_queue_reqs"
KV_USE = "sglang:token_usage"
HEALTH_S = 10.0
"""An idle SGLang answers `/health` when it has computed a token, and looks once a second whether it has."""

_CHAT = "/v1/chat/completions"
_LoadWay = Callable[[], Awaitable[tuple[EngineLoad, ...] | None]]
"""A way to ask for the load; None if this server does not know it."""


class KvEvents(msgspec.Struct, frozen=True):
    """`kv_events` of `/server_info` (`describe_kv_events_publisher`): rank r is at each base port + r."""

    publisher: str
    endpoint_host: str
    endpoint_port_base: int
    topic: str = ""
    block_size: int | None = None
    dp_size: int = 1
    replay_endpoint_port_base: int | None = None


class ServerInfo(msgspec.Struct, frozen=True):
    """What is used of `/server_info`; counts are of one data-parallel rank."""

    max_total_num_tokens: int
    page_size: int | None = None
    max_running_requests: int | None = None
    dp_size: int = 1
    version: str = ""
    kv_events: KvEvents | None = None


class _Load(msgspec.Struct, frozen=True):
    dp_rank: int = 0
    num_running_reqs: int = 0
    num_waiting_reqs: int = 0
    token_usage: float | None = None


class _Loads(msgspec.Struct, frozen=True):
    loads: list[_Load]


class _OldLoad(msgspec.Struct, frozen=True):
    """`num_reqs` counts those that wait too."""

    num_reqs: int
    num_waiting_reqs: int
    dp_rank: int | None = None


class _Tokenized(msgspec.Struct, frozen=True):
    tokens: list[int]


class SglangEngine(OpenAiEngine):
    """One SGLang server, with one scheduler for each data-parallel rank behind it."""

    kind = EngineKind.SGLANG
    actuators = frozenset({"lmcache", "sglang"})

    def __init__(self, http: EngineHttp, *, health_s: float = HEALTH_S) -> None:
        super().__init__(http)
        self._health_s = health_s
        self._ranks = 1
        self._load_ways: tuple[_LoadWay, ...] = (self._load_now, self._load_old, self._load_of_metrics)
        self._load_way: _LoadWay = self._load_now

    async def facts(self) -> EngineFacts:
        """Its models, the size of its caches and where their events are published."""
        info = (await server_info(self.http)).json(ServerInfo)
        events = info.kv_events
        block_tokens = known((events.block_size if events else None) or info.page_size)
        self._ranks = max(1, info.dp_size, events.dp_size if events else 1)
        return EngineFacts(
            kind=self.kind,
            version=info.version,
            models=served_models(await self._cards()),
            block_tokens=block_tokens,
            kv_blocks_max=known(info.max_total_num_tokens // block_tokens) if block_tokens else None,
            requests_max=known(info.max_running_requests),
            ranks=self._ranks,
            kv_sources=self._kv_sources(events) if events and events.publisher == "zmq" else (),
        )

    async def is_healthy(self) -> bool:
        """Whether its scheduler computes: it waits for a token of it."""
        return (await self.http.get("/health", timeout_s=self._health_s)).is_ok

    async def load(self) -> tuple[EngineLoad, ...]:
        """Each rank's requests and KV use, by the newest way that this server knows."""
        for way in dict.fromkeys((self._load_way, *self._load_ways)):
            told = await way()
            if told is not None:
                self._load_way = way
                return told
        raise EngineError(
            f"GET {self.http.url}/metrics: has no {RUNNING} and {WAITING}, and neither /v1/loads nor /get_load is "
            "there; run SGLang with --enable-metrics"
        )

    async def tokenize(self, path: str, body: Mapping[str, Any]) -> tuple[int, ...] | None:
        """The prompt's tokens from `/tokenize`, which takes a chat as it is; builds that know only texts say none."""
        given = given_tokens(path, body)
        if given is not None:
            return given
        question: Mapping[str, Any] = body
        if path == "/v1/completions":
            text = prompt_text(body)
            if text is None:
                return None
            question = {key: body[key] for key in ("model",) if key in body} | {"prompt": text}
        elif path != _CHAT:
            return None
        answer = await self.http.post("/tokenize", question)
        return None if answer.status in CANNOT_SAY else tuple(answer.json(_Tokenized).tokens)

    def to_rank(self, rank: int) -> Patch:
        """The key that sends a request to one rank, by the name of today and the one that older builds know."""
        if not rank and self._ranks == 1:
            return Patch()
        return Patch(body={"routed_dp_rank": rank, "data_parallel_rank": rank})

    async def cancel(self, request_id: str) -> None:
        """Abort the request whose body bore this id as `rid`; one that it does not know is no error."""
        if not request_id:
            raise EngineError(f"POST {self.http.url}/abort_request: an empty id would abort every request")
        answer = await self.http.post("/abort_request", {"rid": request_id})
        if not answer.is_ok:
            raise answer.error()

    def _kv_sources(self, events: KvEvents) -> tuple[KvSource, ...]:
        host, replay_base = events.endpoint_host, events.replay_endpoint_port_base
        return tuple(
            kv_source(
                rank,
                endpoint=f"tcp://{host}:{events.endpoint_port_base + rank}",
                replay_endpoint=f"tcp://*:{replay_base + rank}" if replay_base else None,
                topic=events.topic,
                binds=sglang_binds(host),
                url_host=self.http.host,
            )
            for rank in range(events.dp_size)
        )

    async def _load_now(self) -> tuple[EngineLoad, ...] | None:
        answer = await self.http.get("/v1/loads?include=core")
        if answer.status == HTTPStatus.NOT_FOUND:
            return None
        loads = sorted(answer.json(_Loads).loads, key=lambda load: load.dp_rank)
        return tuple(
            EngineLoad(running=load.num_running_reqs, waiting=load.num_waiting_reqs, kv_use=load.token_usage)
            for load in loads
        )

    async def _load_old(self) -> tuple[EngineLoad, ...] | None:
        answer = await self.http.get("/get_load")
        if answer.status == HTTPStatus.NOT_FOUND:
            return None
        loads = sorted(answer.json(list[_OldLoad]), key=lambda load: load.dp_rank or 0)
        return tuple(
            EngineLoad(running=max(0, load.num_reqs - load.num_waiting_reqs), waiting=load.num_waiting_reqs)
            for load in loads
        )

    async def _load_of_metrics(self) -> tuple[EngineLoad, ...] | None:
        answer = await self.http.get("/metrics")
        if answer.status == HTTPStatus.NOT_FOUND:
            return None
        ranks = by_rank(samples(answer.text(), (RUNNING, WAITING, KV_USE)), "dp_rank")
        if not ranks or not all(RUNNING in values and WAITING in values for values in ranks):
            return None
        return tuple(
            EngineLoad(running=int(values[RUNNING]), waiting=int(values[WAITING]), kv_use=values.get(KV_USE))
            for values in ranks
        )


async def server_info(http: EngineHttp) -> Answer:
    """`/server_info`, or what it is called in older builds."""
    answer = await http.get("/server_info")
    return await http.get("/get_server_info") if answer.status == HTTPStatus.NOT_FOUND else answer

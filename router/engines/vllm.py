"""vLLM: its version, models, cache and load from routes that it serves as it comes; written against 0.32.

Its data-parallel ranks are numbered here as this server orders them, which is what its header wants; the label `engine`
of its metrics is the number in the whole deployment. `max_num_seqs` it tells nowhere that is served by default.
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec

from .http import Answer, EngineHttp
from .kv_sources import kv_source, vllm_binds
from .openai import CANNOT_SAY, OpenAiEngine, given_tokens, known, prompt_text, served_models
from .prometheus import Sample, by_rank, samples
from .types import EngineError, EngineFacts, EngineKind, EngineLoad, KvSource, Patch

RUNNING = "vllm:num_requests_running"
WAITING = "vllm:num_requests_waiting"
KV_USE = "vllm:kv_cache_usage_perc"
KV_USE_OLD = "vllm:gpu_cache_usage_perc"
CACHE_CONFIG = "vllm:cache_config_info"
RANK_HEADER = "X-data-parallel-rank"

_CHAT = "/v1/chat/completions"
_TEXT = "/v1/completions"
_RENDERED = (_CHAT, _TEXT, "/v1/messages")
"""Requests that have a route `/render` beside them."""
_TEMPLATE_KEYS = ("documents", "reasoning_effort")
_CHAT_KEYS = (
    "model",
    "messages",
    "tools",
    "add_generation_prompt",
    "add_special_tokens",
    "continue_final_message",
    "chat_template",
    "media_io_kwargs",
    "mm_processor_kwargs",
)


class Version(msgspec.Struct, frozen=True):
    """The answer to `GET /version`."""

    version: str


class Publisher(msgspec.Struct, frozen=True):
    """One rank's entry of `GET /kv_event_sources`: vLLM's KVEventsConfig."""

    enable_kv_cache_events: bool = False
    publisher: str | None = None
    endpoint: str = ""
    replay_endpoint: str | None = None
    topic: str = ""

    @property
    def is_reachable(self) -> bool:
        """Whether it publishes, and not only within its own process."""
        return self.enable_kv_cache_events and self.publisher == "zmq" and not self.endpoint.startswith("inproc://")


class _Tokenized(msgspec.Struct, frozen=True):
    tokens: list[int]


class _Rendered(msgspec.Struct, frozen=True):
    token_ids: list[int]


class VllmEngine(OpenAiEngine):
    """One vLLM API server, with one engine for each data-parallel rank behind it."""

    kind = EngineKind.VLLM
    actuators = frozenset({"homing", "llm_d", "lmcache", "lmcache_pd", "mooncake", "nixl", "offloading_p2p"})

    def __init__(self, http: EngineHttp) -> None:
        super().__init__(http)
        self._ranks = 1
        self._rendered = set(_RENDERED)

    async def facts(self) -> EngineFacts:
        """Its models, the size of its caches and where their events are published.

        A block is what its events and its cache count in: `hash_block_size` where that differs from `block_size`.
        """
        version = (await self.http.get("/version")).json(Version).version
        models = served_models(await self._cards())
        found = await self._samples((CACHE_CONFIG, RUNNING))
        block_tokens, blocks = _cache_of([sample for sample in found if sample.name == CACHE_CONFIG])
        sources = await self._kv_sources()
        self._ranks = max(1, len(sources), len(by_rank(found, "engine")))
        return EngineFacts(
            kind=self.kind,
            version=version,
            models=models,
            block_tokens=block_tokens,
            kv_blocks_max=blocks,
            ranks=self._ranks,
            kv_sources=sources,
        )

    async def load(self) -> tuple[EngineLoad, ...]:
        """Each rank's requests and KV use, from its metrics."""
        ranks = by_rank(await self._samples((RUNNING, WAITING, KV_USE, KV_USE_OLD)), "engine")
        if not ranks or not all(RUNNING in values and WAITING in values for values in ranks):
            url = f"GET {self.http.url}/metrics"
            raise EngineError(f"{url}: has no {RUNNING} and {WAITING}; vLLM must not run with --disable-log-stats")
        return tuple(
            EngineLoad(
                running=int(values[RUNNING]),
                waiting=int(values[WAITING]),
                kv_use=values.get(KV_USE, values.get(KV_USE_OLD)),
            )
            for values in ranks
        )

    async def tokenize(self, path: str, body: Mapping[str, Any]) -> tuple[int, ...] | None:
        """The prompt's tokens: as it renders the whole request where it does (`--enable-scale-out`), or else from
        `/tokenize`, which knows chats and texts.
        """
        given = given_tokens(path, body)
        if given is not None:
            return given
        if path in self._rendered:
            answer = await self.http.post(f"{path}/render", body)
            if answer.is_ok:
                return _rendered(answer)
            if answer.status not in CANNOT_SAY:
                raise answer.error()
            if _has_no_renderer(answer):
                self._rendered.discard(path)
        return await self._tokenized(path, body)

    def to_rank(self, rank: int) -> Patch:
        """The header that sends a request to one rank."""
        return Patch(headers={RANK_HEADER: str(rank)}) if rank or self._ranks > 1 else Patch()

    async def _tokenized(self, path: str, body: Mapping[str, Any]) -> tuple[int, ...] | None:
        question = _question(path, body)
        if question is None:
            return None
        answer = await self.http.post("/tokenize", question)
        return None if answer.status in CANNOT_SAY else tuple(answer.json(_Tokenized).tokens)

    async def _samples(self, names: Sequence[str]) -> list[Sample]:
        return samples((await self.http.get("/metrics")).text(), names)

    async def _kv_sources(self) -> tuple[KvSource, ...]:
        answer = await self.http.get("/kv_event_sources")
        if answer.status == HTTPStatus.NOT_FOUND:
            return ()
        publishers = answer.json(dict[int, Publisher])
        return tuple(
            kv_source(
                rank,
                endpoint=publisher.endpoint,
                replay_endpoint=publisher.replay_endpoint,
                topic=publisher.topic,
                binds=vllm_binds(publisher.endpoint, self.http.host),
                url_host=self.http.host,
            )
            for rank, (_, publisher) in enumerate(sorted(publishers.items()))
            if publisher.is_reachable
        )


def _cache_of(configs: Sequence[Sample]) -> tuple[int | None, int | None]:
    """Tokens of a block, and blocks of the smallest rank's cache."""
    sizes = [_cache_size(sample.labels) for sample in configs]
    block_tokens = next((tokens for tokens, _ in sizes if tokens), None)
    return block_tokens, min((blocks for _, blocks in sizes if blocks), default=None)


def _cache_size(labels: Mapping[str, str]) -> tuple[int | None, int | None]:
    def count(key: str) -> int | None:
        text = labels.get(key, "")
        return known(int(text)) if text.isdecimal() else None

    block_tokens, kept_tokens, blocks = count("block_size"), count("kv_cache_size_tokens"), count("num_gpu_blocks")
    hashed_tokens = count("hash_block_size") or block_tokens
    if hashed_tokens and not kept_tokens and blocks and block_tokens:
        kept_tokens = blocks * block_tokens
    return hashed_tokens, known(kept_tokens // hashed_tokens) if hashed_tokens and kept_tokens else None


def _has_no_renderer(answer: Answer) -> bool:
    """Whether the route is closed or not there; an unknown model is 404 too, but told as an error of vLLM's own."""
    is_absent = answer.status == HTTPStatus.NOT_FOUND and b'"error"' not in answer.data
    return is_absent or answer.status == HTTPStatus.FORBIDDEN


def _rendered(answer: Answer) -> tuple[int, ...] | None:
    """A chat renders to one prompt, completions to a list of them."""
    if answer.data.lstrip().startswith(b"["):
        prompts = answer.json(list[_Rendered])
        return tuple(prompts[0].token_ids) if len(prompts) == 1 else None
    return tuple(answer.json(_Rendered).token_ids)


def _question(path: str, body: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `/tokenize` is asked for a request. It has no place of its own for some of what a chat hands its template
    (`ChatCompletionRequest.build_chat_params`, vLLM 0.32).
    """
    if path == _CHAT:
        question = {key: body[key] for key in _CHAT_KEYS if key in body}
        inner = {key: body[key] for key in _TEMPLATE_KEYS if body.get(key) is not None}
        if "reasoning_effort" in inner:
            inner["enable_thinking"] = inner["reasoning_effort"] != "none"
        given = body.get("chat_template_kwargs")
        inner |= given if isinstance(given, Mapping) else {}
        return question | ({"chat_template_kwargs": inner} if inner else {})
    text = prompt_text(body) if path == _TEXT else None
    if text is None:
        return None
    return {key: body[key] for key in ("model", "add_special_tokens") if key in body} | {"prompt": text}

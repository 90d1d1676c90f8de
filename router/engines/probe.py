"""Which engine is it? By asking for what only that one has.

An engine is vLLM if it tells a version and one of `/kv_event_sources`, metrics of vLLM's name or models that it owns;
SGLang if `/server_info` tells the size of its cache; llama.cpp if `/props` tells its slots; and otherwise any server
that lists models as OpenAI's API does.
"""

from collections.abc import Awaitable, Callable, Mapping

import aiohttp

from .http import NO_HEADERS, TIMEOUT_S, EngineHttp
from .llama_cpp import LlamaCppEngine, Props
from .openai import ModelList, OpenAiEngine
from .sglang import ServerInfo, SglangEngine, server_info
from .types import Adapter, EngineError, EngineKind
from .vllm import Publisher, Version, VllmEngine

_ADAPTERS: Mapping[EngineKind, type[OpenAiEngine]] = {
    EngineKind.VLLM: VllmEngine,
    EngineKind.SGLANG: SglangEngine,
    EngineKind.LLAMA_CPP: LlamaCppEngine,
    EngineKind.OPENAI: OpenAiEngine,
}


async def probe(
    url: str,
    session: aiohttp.ClientSession,
    kind: EngineKind | None = None,
    *,
    headers: Mapping[str, str] = NO_HEADERS,
    timeout_s: float = TIMEOUT_S,
) -> Adapter:
    """The adapter of the engine at a URL. With `kind` nothing is asked.

    Raises EngineError: with the first failure if there is no answer at all, and otherwise with everything that was
    tried and what came.
    """
    http = EngineHttp(url, session, headers=headers, timeout_s=timeout_s)
    return _ADAPTERS[kind or await _kind(http)](http)


async def _kind(http: EngineHttp) -> EngineKind:
    tried: list[str] = []
    for kind, is_it in _SIGNS.items():
        try:
            await is_it(http)
        except EngineError as error:
            if error.status is None and not tried:
                raise
            tried.append(f"{kind}: {error}")
        else:
            return kind
    raise EngineError(f"{http.url}: is no engine that is known, or not ready; tried " + "; ".join(tried))


async def _is_vllm(http: EngineHttp) -> None:
    version = await http.get("/version")
    version.json(Version)
    sources = await http.get("/kv_event_sources")
    if sources.is_ok:
        sources.json(dict[int, Publisher])
        return
    metrics = await http.get("/metrics")
    if metrics.is_ok and b"\nvllm:" in metrics.data:
        return
    models = await http.get("/v1/models")
    if models.is_ok and any(card.owned_by == EngineKind.VLLM for card in models.json(ModelList).data):
        return
    raise version.error("a version, but neither KV event sources nor metrics nor models of vLLM's")


async def _is_sglang(http: EngineHttp) -> None:
    (await server_info(http)).json(ServerInfo)


async def _is_llama_cpp(http: EngineHttp) -> None:
    (await http.get("/props")).json(Props)


async def _is_openai(http: EngineHttp) -> None:
    (await http.get("/v1/models")).json(ModelList)


_SIGNS: Mapping[EngineKind, Callable[[EngineHttp], Awaitable[None]]] = {
    EngineKind.VLLM: _is_vllm,
    EngineKind.SGLANG: _is_sglang,
    EngineKind.LLAMA_CPP: _is_llama_cpp,
    EngineKind.OPENAI: _is_openai,
}

"""Tokens from the engine itself: exact for any model that it can tell them for, at the price of a request to it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from homing.router.core.blocks import pack_tokens
from homing.router.engines.types import EngineError

from .lru import ExactCache
from .text import TextReader
from .types import PromptReader, PromptTokens, TokenSource

log = logging.getLogger(__name__)

Tokenize = Callable[[str, Mapping[str, Any]], Awaitable[tuple[int, ...] | None]]
"""`Adapter.tokenize` of an engine."""

TIMEOUT_S = 2.0
PAUSE_S = 5.0
CACHE_BYTES = 64 << 20
_NOT_IN_THE_PROMPT = frozenset({
    "best_of", "echo", "frequency_penalty", "ignore_eos", "logit_bias", "logprobs", "max_completion_tokens",
    "max_output_tokens", "max_tokens", "metadata", "min_p", "min_tokens", "n", "parallel_tool_calls",
    "presence_penalty", "priority", "prompt_cache_key", "repetition_penalty", "request_id", "safety_identifier", "seed",
    "service_tier", "stop", "store", "stream", "stream_options", "temperature", "top_k", "top_logprobs", "top_p",
    "user",
})  # fmt: skip
"""Fields that change how an answer is made and not what it answers."""


class EngineReader:
    """Asks an engine for the tokens of prompts, and remembers them in at most `cache_bytes`.

    An engine that has no way to say, answers with an error or takes longer than `timeout_s` is answered for by
    `fallback`; after an error it is left alone for `pause_s`, so that requests do not wait for it one by one.
    """

    source = TokenSource.ENGINE

    def __init__(
        self,
        tokenize: Tokenize,
        *,
        fallback: PromptReader | None = None,
        timeout_s: float = TIMEOUT_S,
        pause_s: float = PAUSE_S,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._tokenize = tokenize
        self._fallback = fallback or TextReader()
        self._timeout_s = timeout_s
        self._pause_s = pause_s
        self._cache = ExactCache(cache_bytes)
        self._paused_until = float("-inf")

    @property
    def used_bytes(self) -> int:
        """What the cache holds."""
        return self._cache.used_bytes

    async def read(self, path: str, body: Mapping[str, Any]) -> PromptTokens:
        """The engine's tokens, or those of the fallback."""
        question = _question(path, body)
        packed = self._cache.get(question)
        if packed is None:
            packed = await self._asked(path, body)
            if packed is None:
                return await self._fallback.read(path, body)
            self._cache.put(question, packed)
        return PromptTokens(packed=packed, source=TokenSource.ENGINE)

    async def _asked(self, path: str, body: Mapping[str, Any]) -> bytes | None:
        clock = asyncio.get_running_loop().time
        if clock() < self._paused_until:
            return None
        try:
            async with asyncio.timeout(self._timeout_s):
                tokens = await self._tokenize(path, body)
        except (EngineError, TimeoutError) as error:
            self._paused_until = clock() + self._pause_s
            reason = str(error) or f"no answer within {self._timeout_s} s"
            log.warning("an engine did not tell a prompt's tokens, its text stands for them: %s", reason)
            return None
        return None if tokens is None else pack_tokens(tokens)


def _question(path: str, body: Mapping[str, Any]) -> bytes:
    """What the tokens follow from."""
    return msgspec.json.encode([path, {key: value for key, value in body.items() if key not in _NOT_IN_THE_PROMPT}])

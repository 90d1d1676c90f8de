"""How many tokens a request took, and how many of them came out of the engine's cache, from the engine's own answer.

Engines tell it in different places, and of the cache often only when they were asked to: vLLM with
`--enable-prompt-tokens-details`, SGLang with `--enable-cache-report`, llama.cpp always.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

_DATA = b"data:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of one request. `cached_tokens` is the part of `prompt_tokens` that was not computed; None: not told."""

    prompt_tokens: int
    cached_tokens: int | None = None
    completion_tokens: int = 0
    handle: Mapping[str, Any] | None = None
    """What a KV connector gave back with the answer (`kv_transfer_params`)."""


def usage_of(answer: Any) -> Usage | None:
    """The usage that an answer, or one event of a stream, tells of; None if none.

    Known are OpenAI's chats and completions (`usage`), its responses (`input_tokens`, in the answer or inside of the
    event that ends its stream), Anthropic's messages, whose `input_tokens` are those that the cache did not give,
    SGLang's own (`meta_info`) and llama.cpp's (`timings`, which needs no asking).
    """
    if not isinstance(answer, Mapping):
        return None
    answer = _mapping(answer, "response") or answer
    timings, meta = _mapping(answer, "timings"), _mapping(answer, "meta_info")
    usage = _mapping(answer, "usage") or meta
    prompt = _count(usage, "prompt_tokens", "input_tokens")
    if prompt is None:
        return _usage_of_timings(timings)
    details = _mapping(usage, "prompt_tokens_details") or _mapping(usage, "input_tokens_details")
    cached = _count(details, "cached_tokens")
    for place, key in ((meta, "cached_tokens"), (timings, "cache_n")):
        cached = _count(place, key) if cached is None else cached
    if cached is None and "prompt_tokens" not in usage:
        cached = _count(usage, "cache_read_input_tokens")
        prompt += (cached or 0) + (_count(usage, "cache_creation_input_tokens") or 0)
    return Usage(
        prompt_tokens=prompt,
        cached_tokens=None if cached is None else min(cached, prompt),
        completion_tokens=_count(usage, "completion_tokens", "output_tokens") or 0,
        handle=_mapping(answer, "kv_transfer_params") or None,
    )


def usage_at_end(stream: bytes) -> Usage | None:
    """The usage that the last events of a stream tell of, given its last bytes, which may begin within an event."""
    for line in reversed(stream.splitlines()):
        if not line.startswith(_DATA):
            continue
        try:
            event = msgspec.json.decode(line.removeprefix(_DATA))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
        usage = usage_of(event)
        if usage is not None:
            return usage
    return None


def _usage_of_timings(timings: Mapping[str, Any]) -> Usage | None:
    cached, computed = _count(timings, "cache_n"), _count(timings, "prompt_n")
    if cached is None or computed is None:
        return None
    return Usage(
        prompt_tokens=cached + computed,
        cached_tokens=cached,
        completion_tokens=_count(timings, "predicted_n") or 0,
    )


def _mapping(inside: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = inside.get(key)
    return value if isinstance(value, Mapping) else {}


def _count(inside: Mapping[str, Any], *keys: str) -> int | None:
    for key in keys:
        value = inside.get(key)
        if type(value) is int and value >= 0:
            return value
    return None

"""The JSON of vLLM's OpenAI answers: whole ones, chunks of a stream, and what it says of itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .engine import EchoEngine
from .prompts import TOKENIZER
from .settings import EchoSettings

VERSION = "0.32.0"
"""The vLLM whose wire format this is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer's name, and how its parts are written."""

    id: str
    model: str
    created_s: int
    chat: bool

    def whole(self, text: str, finish_reason: str | None, usage: Mapping[str, Any]) -> dict[str, Any]:
        """The answer in one piece."""
        content: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": finish_reason, "stop_reason": None}
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._head(kind), "choices": [choice], "usage": usage, "kv_transfer_params": None}

    def opening(self) -> dict[str, Any]:
        """The first chunk of a chat: whose answer it is."""
        return self._chunk({"delta": {"role": "assistant", "content": ""}}, None)

    def chunk(self, text: str, finish_reason: str | None) -> dict[str, Any]:
        """The next piece of text."""
        return self._chunk({"delta": {"content": text}} if self.chat else {"text": text}, finish_reason)

    def last(self, usage: Mapping[str, Any]) -> dict[str, Any]:
        """What a stream ends with when it was asked to count: no piece of text, but the usage."""
        return {**self._head(self._stream_kind), "choices": [], "usage": usage}

    @property
    def _stream_kind(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _chunk(self, content: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": finish_reason}
        return {**self._head(self._stream_kind), "choices": [choice]}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created_s, "model": self.model}


def usage_of(prompt_tokens: int, output_tokens: int, cached_tokens: int) -> dict[str, Any]:
    """What a request took, in tokens."""
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + output_tokens,
        "completion_tokens": output_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


def models_of(settings: EchoSettings, created_s: int) -> dict[str, Any]:
    """The answer of `/v1/models`: adapters name their base model."""
    common = {"object": "model", "created": created_s, "owned_by": "vllm"}
    base = {"id": settings.model, **common, "root": settings.model, "parent": None}
    loras = [{"id": name, **common, "root": name, "parent": settings.model} for name in settings.loras]
    return {"object": "list", "data": [{**base, "max_model_len": settings.context_tokens}, *loras]}


def tokenized(tokens: list[int], settings: EchoSettings) -> dict[str, Any]:
    """The answer of `/tokenize`."""
    return {
        "count": len(tokens),
        "max_model_len": settings.context_tokens,
        "tokens": tokens,
        "token_strs": None,
    }


def detokenized(tokens: list[int]) -> dict[str, Any]:
    """The answer of `/detokenize`."""
    return {"prompt": TOKENIZER.decode(tokens)}


def metrics_of(engine: EchoEngine) -> str:
    """The gauges and counters that routers read, in vLLM's names."""
    settings, counts = engine.settings, engine.counts
    labels = f'engine="0",model_name="{settings.model}"'
    config = f'block_size="{settings.block_tokens}",num_gpu_blocks="{settings.kv_blocks}",engine="0"'
    series = (
        ("gauge", "vllm:num_requests_running", labels, engine.running),
        ("gauge", "vllm:num_requests_waiting", labels, engine.waiting),
        ("gauge", "vllm:kv_cache_usage_perc", labels, engine.kv_use),
        ("gauge", "vllm:cache_config_info", config, 1),
        ("counter", "vllm:prefix_cache_queries_total", labels, counts.prompt_tokens),
        ("counter", "vllm:prefix_cache_hits_total", labels, counts.hit_tokens),
        ("counter", "vllm:prompt_tokens_total", labels, counts.prompt_tokens),
        ("counter", "vllm:generation_tokens_total", labels, counts.output_tokens),
        ("counter", "homing_echo:requests_total", labels, counts.requests),
        ("counter", "homing_echo:requests_cancelled_total", labels, counts.cancelled),
    )
    lines = (f"# TYPE {name} {kind}\n{name}{{{labelled}}} {value}\n" for kind, name, labelled, value in series)
    return "".join(lines)

"""What an engine is asked and what it answers, whatever it is.

An engine is one HTTP server. It may hold several caches, one per data-parallel rank, each of which is a worker of its
own for the router.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol


class EngineError(Exception):
    """An engine did not answer, or not as it should: says what was asked and what came.

    `status` is the HTTP status that came; None where nothing came.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class EngineKind(StrEnum):
    """The engines that have an adapter."""

    VLLM = "vllm"
    SGLANG = "sglang"
    LLAMA_CPP = "llama_cpp"
    OPENAI = "openai"
    """Any server that speaks OpenAI's API and tells no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model, or a LoRA on one, by the name under which it is asked for."""

    name: str
    context_tokens: int | None = None
    lora_of: str | None = None
    """The base model, when this is a LoRA adapter on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KvSource:
    """Where one cache's events are published: ZeroMQ addresses.

    With `bind` the engine connects to `endpoint` and the router has to listen there; many engines may share the
    address, told apart by `topic`.
    """

    rank: int
    endpoint: str
    replay_endpoint: str | None = None
    topic: str = ""
    bind: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What an engine says of itself; None is what it does not tell."""

    kind: EngineKind
    version: str = ""
    models: tuple[ServedModel, ...]
    block_tokens: int | None = None
    kv_blocks_max: int | None = None
    requests_max: int | None = None
    ranks: int = 1
    kv_sources: tuple[KvSource, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLoad:
    """How busy one rank is. `kv_use` is the used part of its KV cache, 0 to 1."""

    running: int = 0
    waiting: int = 0
    kv_use: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """What is laid over a request before it is sent: keys of its JSON body, and headers."""

    body: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.body or self.headers)


class Adapter(Protocol):
    """One engine behind one URL. Whatever fails raises EngineError; every call has a time-out."""

    kind: EngineKind
    actuators: frozenset[str]
    """Names of the cache moves that this kind of engine can be configured for (`router/actuators`)."""

    async def facts(self) -> EngineFacts:
        """What it says of itself."""
        ...

    async def is_healthy(self) -> bool:
        """Whether it would take a request."""
        ...

    async def load(self) -> tuple[EngineLoad, ...]:
        """How busy each rank is."""
        ...

    async def tokenize(self, path: str, body: Mapping[str, Any]) -> tuple[int, ...] | None:
        """The prompt's token ids of a request to `path` as the engine sees them; None where it has no way to say."""
        ...

    def to_rank(self, rank: int) -> Patch:
        """What sends a request to one rank; nothing for an engine of one."""
        ...

    async def cancel(self, request_id: str) -> None:
        """Stop a request whose connection is closed, where closing it is not enough."""
        ...

"""Any server that speaks OpenAI's API: the models that it lists, and whether it answers. It tells no more.

The adapters of engines that tell more begin with this one.
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec

from .http import EngineHttp
from .types import EngineFacts, EngineKind, EngineLoad, Patch, ServedModel

CANNOT_SAY = frozenset({
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.NOT_FOUND,
    HTTPStatus.METHOD_NOT_ALLOWED,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
    HTTPStatus.NOT_IMPLEMENTED,
})  # fmt: skip
"""An engine that will not tokenize a request, because it has no such route or the request is wrong: the engine is well
and tells the client itself what is wrong."""


class ModelCard(msgspec.Struct, frozen=True):
    """An entry of `GET /v1/models`, with what vLLM, SGLang and llama.cpp add."""

    id: str
    owned_by: str | None = None
    root: str | None = None
    parent: str | None = None
    max_model_len: int | None = None
    aliases: list[str] | None = None


class ModelList(msgspec.Struct, frozen=True):
    """The answer to `GET /v1/models`."""

    data: list[ModelCard]


class OpenAiEngine:
    """One server behind one URL."""

    kind = EngineKind.OPENAI
    actuators: frozenset[str] = frozenset({"trtllm"})
    """TensorRT-LLM's server is one of these."""

    def __init__(self, http: EngineHttp) -> None:
        self.http = http

    async def facts(self) -> EngineFacts:
        """The models that it lists."""
        return EngineFacts(kind=self.kind, models=served_models(await self._cards()))

    async def is_healthy(self) -> bool:
        """Whether `/health` answers with success; of a server without one, whether it lists its models."""
        answer = await self.http.get("/health")
        if answer.status == HTTPStatus.NOT_FOUND:
            answer = await self.http.get("/v1/models")
        return answer.is_ok

    async def load(self) -> tuple[EngineLoad, ...]:
        """Nothing: it does not tell."""
        return ()

    async def tokenize(self, path: str, body: Mapping[str, Any]) -> tuple[int, ...] | None:
        """The prompt's tokens where the request bears them already; None otherwise."""
        return given_tokens(path, body)

    def to_rank(self, rank: int) -> Patch:
        """Nothing: it is one."""
        return Patch()

    async def cancel(self, request_id: str) -> None:
        """Closing the connection is enough."""

    async def _cards(self) -> list[ModelCard]:
        return (await self.http.get("/v1/models")).json(ModelList).data


def served_models(cards: Sequence[ModelCard]) -> tuple[ServedModel, ...]:
    """Models by every name that they have. A LoRA has the context of its base, which is the model of that name or of
    that place, where it says none of its own.
    """
    bases = {name: card for card in reversed(cards) if not card.parent for name in (card.root, card.id) if name}
    models = []
    for card in cards:
        base = bases.get(card.parent or "")
        context_tokens = known(card.max_model_len) or (known(base.max_model_len) if base else None)
        lora_of = base.id if base else card.parent or None
        names = dict.fromkeys((card.id, *(card.aliases or ())))
        models += [ServedModel(name=name, context_tokens=context_tokens, lora_of=lora_of) for name in names]
    return tuple(models)


def known(number: int | None) -> int | None:
    """A count that an engine tells; what is not above zero stands for one that it does not."""
    return number if number is not None and number > 0 else None


def given_tokens(path: str, body: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The tokens of a completion request whose prompt is one list of ids."""
    if path != "/v1/completions":
        return None
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], list):
        prompt = prompt[0]
    if not isinstance(prompt, list) or not all(type(token) is int and 0 <= token < 1 << 32 for token in prompt):
        return None
    return tuple(prompt)


def prompt_text(body: Mapping[str, Any]) -> str | None:
    """The text of a completion request with one prompt."""
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    return prompt if isinstance(prompt, str) else None

"""llama.cpp's server: its slots, its context and its load; written against build 11434.

It has no blocks and publishes no events: each slot holds one prompt, of which a request takes what it shares from the
start (`cache_prompt`). What a slot holds can be saved to a file and restored from one, in this server or another that
has the same model and sees the same folder (`--slot-save-path`).
"""

from collections.abc import Collection, Mapping
from http import HTTPStatus
from typing import Any

import msgspec

from .http import EngineHttp, Shape
from .openai import CANNOT_SAY, OpenAiEngine, given_tokens, known, prompt_text, served_models
from .prometheus import samples
from .types import EngineError, EngineFacts, EngineKind, EngineLoad

RUNNING = "llamacpp:requests_processing"
WAITING = "llamacpp:requests_deferred"
SLOT_TIMEOUT_S = 60.0
"""A slot that is busy saves when its request is over; gigabytes are written at the speed of the disk."""

_CHAT = "/v1/chat/completions"


class _Settings(msgspec.Struct, frozen=True):
    n_ctx: int | None = None


class Props(msgspec.Struct, frozen=True):
    """What is used of `GET /props`. `n_ctx` is the context of one slot."""

    default_generation_settings: _Settings
    total_slots: int
    build_info: str = ""


class Slot(msgspec.Struct, frozen=True, rename={"context_tokens": "n_ctx", "prompt_tokens": "n_prompt_tokens"}):
    """An entry of `GET /slots`. A slot that had no request yet tells no `prompt_tokens`."""

    id: int
    context_tokens: int
    is_processing: bool
    prompt_tokens: int = 0


class _Saved(msgspec.Struct, frozen=True):
    n_saved: int


class _Restored(msgspec.Struct, frozen=True):
    n_restored: int


class _Erased(msgspec.Struct, frozen=True):
    n_erased: int


class _Prompt(msgspec.Struct, frozen=True):
    prompt: str


class _Tokenized(msgspec.Struct, frozen=True):
    tokens: list[int]


class LlamaCppEngine(OpenAiEngine):
    """One llama-server with one model."""

    kind = EngineKind.LLAMA_CPP
    actuators = frozenset({"llama_cpp"})

    async def facts(self) -> EngineFacts:
        """Its models by name and alias, each with a slot's context, and how many slots there are."""
        props = (await self.http.get("/props")).json(Props)
        context_tokens = known(props.default_generation_settings.n_ctx)
        cards = [msgspec.structs.replace(card, max_model_len=context_tokens) for card in await self._cards()]
        return EngineFacts(
            kind=self.kind,
            version=props.build_info,
            models=served_models(cards),
            requests_max=known(props.total_slots),
        )

    async def load(self) -> tuple[EngineLoad, ...]:
        """From its metrics (`--metrics`); without them, from its slots, which do not tell who waits for one."""
        answer = await self.http.get("/metrics")
        if answer.status in {HTTPStatus.NOT_IMPLEMENTED, HTTPStatus.NOT_FOUND}:
            slots = await LlamaSlots(self.http).list()
            return (EngineLoad(running=sum(slot.is_processing for slot in slots)),)
        values = {sample.name: sample.value for sample in samples(answer.text(), (RUNNING, WAITING))}
        if RUNNING not in values or WAITING not in values:
            raise EngineError(f"{answer.asked}: has no {RUNNING} and {WAITING}", status=answer.status)
        return (EngineLoad(running=int(values[RUNNING]), waiting=int(values[WAITING])),)

    async def tokenize(self, path: str, body: Mapping[str, Any]) -> tuple[int, ...] | None:
        """The prompt's tokens: a chat is put into the model's template first. Pictures and sounds are no tokens yet
        when it tells them, so that nothing is told of a request with such.
        """
        given = given_tokens(path, body)
        if given is not None:
            return given
        text = await self._templated(body) if path == _CHAT else None
        if path == "/v1/completions":
            text = prompt_text(body)
        if text is None:
            return None
        answer = await self.http.post("/tokenize", {"content": text, "add_special": True, "parse_special": True})
        return None if answer.status in CANNOT_SAY else tuple(answer.json(_Tokenized).tokens)

    async def _templated(self, body: Mapping[str, Any]) -> str | None:
        if not _is_text_only(body):
            return None
        answer = await self.http.post("/apply-template", body)
        return None if answer.status in CANNOT_SAY else answer.json(_Prompt).prompt


class LlamaSlots:
    """The slots of one server: its way of moving KV. File names are names in its `--slot-save-path`, not paths."""

    def __init__(self, http: EngineHttp, *, timeout_s: float = SLOT_TIMEOUT_S) -> None:
        self._http = http
        self._timeout_s = timeout_s

    async def list(self) -> tuple[Slot, ...]:
        """All slots. Raises EngineError, also for a server with `--no-slots`."""
        return (await self._http.get("/slots")).json(tuple[Slot, ...])

    async def choose(self, *, prompt_tokens: int = 0, taken: Collection[int] = ()) -> int | None:
        """The idle slot with room for a prompt that holds least; None if none is idle. `taken` are not considered."""
        idle = [
            slot
            for slot in await self.list()
            if not slot.is_processing and slot.id not in taken and slot.context_tokens >= prompt_tokens
        ]
        return min(idle, key=lambda slot: (slot.prompt_tokens, slot.id)).id if idle else None

    async def save(self, slot: int, filename: str) -> int:
        """Write what a slot holds to a file, when its request is over; tokens written."""
        return (await self._act(slot, "save", filename, _Saved)).n_saved

    async def restore(self, slot: int, filename: str) -> int:
        """Fill a slot from a file, when its request is over; tokens read."""
        return (await self._act(slot, "restore", filename, _Restored)).n_restored

    async def erase(self, slot: int) -> int:
        """Forget what a slot holds; tokens forgotten."""
        return (await self._act(slot, "erase", None, _Erased)).n_erased

    async def _act(self, slot: int, action: str, filename: str | None, shape: type[Shape]) -> Shape:
        body = {} if filename is None else {"filename": filename}
        answer = await self._http.post(f"/slots/{slot:d}?action={action}", body, timeout_s=self._timeout_s)
        return answer.json(shape)


def _is_text_only(body: Mapping[str, Any]) -> bool:
    messages = body.get("messages")
    if not isinstance(messages, list):
        return False
    contents = [message.get("content") for message in messages if isinstance(message, Mapping)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return all(isinstance(part, Mapping) and part.get("type") == "text" for part in parts)

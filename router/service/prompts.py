"""From what a sender gives to what the core decides on: tokens, keys, limits; and a clear no for what cannot be."""

import math
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from homing.router.core.blocks import TOKEN_BYTES, block_keys, group_seed, pack_tokens, unpack_tokens
from homing.router.core.errors import RequestError
from homing.router.core.types import BlockKey, ModelName, ModelProfile, Request, RequestId, Site

from .text import CodecOf
from .wire import chat_messages, common_pb2, packed_tokens, ready_keys, router_pb2

REQUEST_ID_BYTES_MAX = 128
OUTPUT_TOKENS_DEFAULT = 16
PRIORITY_MAX = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt that can be computed: packed token ids, and the seed of its block keys."""

    packed: bytes
    key_seed: int

    @property
    def tokens(self) -> int:
        """Its length."""
        return len(self.packed) // TOKEN_BYTES


class Intake:
    """Reads requests. `profile` knows the models, `codec_of` makes tokens of text (None for what is unknown)."""

    def __init__(
        self,
        profile: Callable[[str], ModelProfile | None],
        codec_of: CodecOf,
        known: Callable[[], list[str]],
    ) -> None:
        self._profile = profile
        self._codec_of = codec_of
        self._known = known

    def read(self, message: router_pb2.RouteRequest, now: float) -> tuple[Request, Prompt | None]:
        """The request, and its prompt unless it came as bare keys. Raises RequestError, or LookupError for the
        model.
        """
        profile = self._profile(message.model)
        if profile is None:
            known = ", ".join(self._known()) or "none"
            raise LookupError(f"model: no model {message.model!r}; known are {known}")
        seed = group_seed(lora=message.lora, tenant_salt=message.tenant_salt)
        output_tokens = message.max_output_tokens or OUTPUT_TOKENS_DEFAULT
        if message.prompt.WhichOneof("form") == "block_keys":
            keys, prompt_tokens = self._checked_keys(message.prompt, profile)
            prompt = None
        else:
            prompt = Prompt(packed=self._tokens(message, profile), key_seed=seed)
            prompt_tokens = prompt.tokens
            keys = block_keys(prompt.packed, profile.block_tokens, seed=seed)
        if prompt_tokens + output_tokens > profile.context_tokens:
            raise RequestError(
                "prompt",
                f"{prompt_tokens} tokens and {output_tokens} to generate exceed the context of "
                f"{profile.context_tokens} tokens of {profile.name}; shorten the prompt or ask for less",
            )
        return self._request(message, keys, prompt_tokens, output_tokens, now), prompt

    def _request(
        self,
        message: router_pb2.RouteRequest,
        keys: tuple[BlockKey, ...],
        prompt_tokens: int,
        output_tokens: int,
        now: float,
    ) -> Request:
        if len(message.request_id.encode()) > REQUEST_ID_BYTES_MAX:
            raise RequestError("request_id", f"longer than {REQUEST_ID_BYTES_MAX} bytes")
        deadline_s = message.ttft_deadline_s
        if not math.isfinite(deadline_s) or deadline_s < 0:
            raise RequestError("ttft_deadline_s", f"expected seconds from now, at least 0, got {deadline_s}")
        if abs(message.priority) > PRIORITY_MAX:
            raise RequestError("priority", f"expected at most {PRIORITY_MAX} either way, got {message.priority}")
        return Request(
            id=RequestId(message.request_id or uuid.uuid4().hex),
            model=ModelName(message.model),
            block_keys=keys,
            prompt_tokens=prompt_tokens,
            max_output_tokens=output_tokens,
            arrived_s=now,
            ttft_deadline_s=now + deadline_s if deadline_s else None,
            session=message.session or None,
            tenant=message.tenant,
            priority=message.priority,
            origin=Site(message.origin) if message.origin else None,
        )

    def _checked_keys(self, prompt: common_pb2.Prompt, profile: ModelProfile) -> tuple[tuple[BlockKey, ...], int]:
        keys, prompt_tokens = ready_keys(prompt)
        if prompt_tokens < 1:
            raise RequestError("prompt.block_keys.prompt_tokens", "the prompt is empty")
        full = prompt_tokens // profile.block_tokens
        if len(keys) != full:
            raise RequestError(
                "prompt.block_keys.keys",
                f"{prompt_tokens} tokens have {full} full blocks of {profile.block_tokens}, got {len(keys)} keys",
            )
        return keys, prompt_tokens

    def _tokens(self, message: router_pb2.RouteRequest, profile: ModelProfile) -> bytes:
        packed = packed_tokens(message.prompt)
        if packed is None:
            packed = self._tokenised(message, profile)
        if not packed:
            raise RequestError("prompt", "the prompt is empty; give at least one token")
        if profile.vocabulary_tokens is not None:
            largest = max(unpack_tokens(packed))
            if largest >= profile.vocabulary_tokens:
                raise RequestError(
                    "prompt", f"token id {largest} is outside the vocabulary of {profile.vocabulary_tokens}"
                )
        return packed

    def _tokenised(self, message: router_pb2.RouteRequest, profile: ModelProfile) -> bytes:
        form = message.prompt.WhichOneof("form")
        if form is None:
            raise RequestError("prompt", "missing; give tokens_le32, token_list, block_keys, text or chat")
        codec = self._codec_of(message.model)
        if codec is None:
            raise RequestError(
                f"prompt.{form}",
                f"the router has no tokenizer for {profile.name}; send token ids, or name one in its config "
                "(models[].tokenizer)",
            )
        if form == "text":
            return pack_tokens(codec.encode(message.prompt.text))
        try:
            return pack_tokens(codec.chat(chat_messages(message.prompt.chat)))
        except ValueError as error:
            raise RequestError("prompt.chat", str(error)) from error

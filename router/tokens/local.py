"""Tokens made here, by the model's own tokenizer and chat template, as vLLM makes them (version 0.32).

What cannot be known here is left to another reader: a chat without a template, a request that brings its own, history
that the engine keeps, and prompts with pictures or sound, for which each engine puts tokens of its own. vLLM's prompts
for gpt-oss and for Mistral's own tokenizer format are not made by a template either: read those from the engine.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from homing.router.core.blocks import TOKEN_BYTES

from .anthropic import of_anthropic
from .completions import of_completion
from .conversations import Conversation, of_chat
from .folder import read_folder
from .incremental import CACHE_BYTES, IncrementalTokenizer
from .messages import NotTextError, template_messages, without_developers
from .responses import of_responses
from .template import ChatTemplate
from .text import TextReader
from .types import PromptError, PromptReader, PromptTokens, TokenSource

if TYPE_CHECKING:
    from tokenizers import Tokenizer

log = logging.getLogger(__name__)

COMPLETIONS, CHATS, RESPONSES, MESSAGES = "/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages"
_SAMPLE = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
]


class LocalReader:
    """Reads prompts with a tokenizer and its chat templates by name (`default`, and `tool_use` if there are tools).

    `special_tokens` are the templates' variables `bos_token` and so on. `context_tokens` is the model's limit, to which
    a request may ask to be shortened. `fallback` reads what cannot be known here. Raises ValueError for a template that
    cannot be compiled.
    """

    source = TokenSource.LOCAL

    def __init__(
        self,
        tokenizer: "Tokenizer",
        *,
        chat_template: str | Mapping[str, str] | None = None,
        special_tokens: Mapping[str, str] | None = None,
        context_tokens: int | None = None,
        cache_bytes: int = CACHE_BYTES,
        fallback: PromptReader | None = None,
    ) -> None:
        sources = {"default": chat_template} if isinstance(chat_template, str) else dict(chat_template or {})
        self._templates = {
            name: ChatTemplate(source, special_tokens=special_tokens) for name, source in sources.items()
        }
        cuts = self._cut_tokens(tokenizer, special_tokens or {})
        self._tokens = IncrementalTokenizer(tokenizer, cuts, cache_bytes=cache_bytes)
        self._context_tokens = context_tokens
        self._fallback = fallback or TextReader()
        if self.refusal:
            log.info("prompts are tokenised whole each time: %s", self.refusal)

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        *,
        chat_template: str | None = None,
        context_tokens: int | None = None,
        cache_bytes: int = CACHE_BYTES,
        fallback: PromptReader | None = None,
    ) -> "LocalReader":
        """The reader of a folder in Hugging Face's layout; `chat_template` takes the place of the folder's own. Raises
        ConfigError for what is wrong with its files, ValueError for a template.
        """
        read = read_folder(folder)
        return cls(
            read.tokenizer,
            chat_template=chat_template or read.templates,
            special_tokens=read.special_tokens,
            context_tokens=context_tokens,
            cache_bytes=cache_bytes,
            fallback=fallback,
        )

    @property
    def refusal(self) -> str:
        """Why prompts are tokenised whole each time; empty if they are not."""
        return self._tokens.refusal

    @property
    def used_bytes(self) -> int:
        """What the cache of tokens holds."""
        return self._tokens.used_bytes

    async def read(self, path: str, body: Mapping[str, Any]) -> PromptTokens:
        """The tokens of a request's prompt; of several prompts, the first one's. Raises PromptError."""
        try:
            prompt = of_completion(body) if path == COMPLETIONS else self._rendered(self._conversation(path, body))
        except NotTextError:
            return await self._fallback.read(path, body)
        try:
            packed = await self._tokens_of(prompt, body, special=path == COMPLETIONS)
        except UnicodeEncodeError as error:
            raise PromptError(f"prompt: is no Unicode text: {error}") from error
        return PromptTokens(packed=packed, source=TokenSource.LOCAL)

    def _conversation(self, path: str, body: Mapping[str, Any]) -> Conversation:
        if path == CHATS:
            return of_chat(body)
        if path == RESPONSES:
            return of_responses(body)
        if path == MESSAGES:
            return of_anthropic(body, system_first=any(template.system_first for template in self._templates.values()))
        known = f"{COMPLETIONS}, {CHATS}, {RESPONSES} and {MESSAGES}"
        raise PromptError(f"path: no prompt is known in {path!r}, only in {known}")

    def _rendered(self, conversation: Conversation) -> str:
        name = "tool_use" if conversation.tools is not None and "tool_use" in self._templates else "default"
        template = self._templates.get(name)
        if template is None:
            raise NotTextError("there is no chat template")
        messages = template_messages(conversation.messages, template.content_format)
        return template.render(
            messages if template.knows_developer else without_developers(messages),
            add_generation_prompt=conversation.add_generation_prompt,
            continue_final_message=conversation.continue_final_message,
            tools=conversation.tools,
            documents=conversation.documents,
            variables=conversation.variables,
        )

    async def _tokens_of(self, prompt: str | bytes, body: Mapping[str, Any], *, special: bool) -> bytes:
        """A prompt's tokens with those around it, shortened if the request asks for it."""
        room, side = self._room(body)
        if isinstance(prompt, bytes):
            return _shortened(prompt, room, side or "left")
        if not body.get("add_special_tokens", special):
            return _shortened(await self._tokens.encode(prompt), room, side or "left")
        if self._tokens.around is None:
            return _shortened(self._tokens.encode_whole(prompt), room, side or "left")
        before, after = self._tokens.around
        packed = await self._tokens.encode(prompt)
        if side is None and room is not None:
            room = max(0, room - (len(before) + len(after)) // TOKEN_BYTES)
            return before + _shortened(packed, room, "left") + after
        return _shortened(before + packed + after, room, side or "left")

    def _room(self, body: Mapping[str, Any]) -> tuple[int | None, str | None]:
        """To how many tokens a prompt is to be shortened, and on which side, if the request says so."""
        room, side = body.get("truncate_prompt_tokens"), body.get("truncation_side")
        if room is None:
            return None, None
        if not isinstance(room, int) or room < -1:
            raise PromptError(f"truncate_prompt_tokens: must be a number of tokens, or -1, found {room!r}")
        if side not in (None, "left", "right"):
            raise PromptError(f"truncation_side: must be left or right, found {side!r}")
        if room == -1:
            room = None if self._context_tokens is None else self._context_tokens - bool(_output_tokens(body))
        return room, side

    def _cut_tokens(self, tokenizer: "Tokenizer", special_tokens: Mapping[str, str]) -> list[str]:
        """Added tokens by how often the default template writes them, of two the later first; then the end token."""
        added = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.content]
        try:
            sample = self._rendered(Conversation(messages=_SAMPLE))
        except (PromptError, NotTextError):
            sample = ""
        counted = sorted((sample.count(token), sample.rfind(token), token) for token in added if token in sample)
        end = [special_tokens["eos_token"]] if "eos_token" in special_tokens else []
        return [token for _, _, token in reversed(counted)] + end


def _shortened(packed: bytes, room_tokens: int | None, side: str) -> bytes:
    """At most so many tokens: the last ones, or the first ones if it is shortened on the right."""
    size = len(packed) if room_tokens is None else room_tokens * TOKEN_BYTES
    if size >= len(packed):
        return packed
    return packed[:size] if side == "right" else packed[len(packed) - size :]


def _output_tokens(body: Mapping[str, Any]) -> int:
    return body.get("max_completion_tokens") or body.get("max_tokens") or 0

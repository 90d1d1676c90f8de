"""OpenAI request bodies made into prompts of bytes, and the errors that vLLM answers with.

Rule 1: tokens are bytes (`ByteTokenizer`); a chat is written as `role: content` lines.
Rule 2: what is answered is what was asked: the last user's message, or the prompt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from homing.workers.model.tokenizer import ByteTokenizer

from .settings import EchoSettings

TOKENIZER = ByteTokenizer()


class BadRequestError(Exception):
    """What is wrong with a request: the field, the rule and what was given."""

    def __init__(self, param: str | None, message: str, *, code: int = 400, kind: str = "BadRequestError") -> None:
        super().__init__(message)
        self.param = param
        self.code = code
        self.kind = kind

    def body(self) -> dict[str, Any]:
        """The answer's JSON."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A checked request."""

    model: str
    lora: str
    salt: str
    tokens: Sequence[int]
    echo: Sequence[int]
    max_output_tokens: int
    repeats: bool
    streams: bool
    with_usage: bool
    usage_all_along: bool


def read_ask(body: Any, settings: EchoSettings, *, chat: bool) -> Ask:
    """Check a body; BadRequestError says what is wrong with it."""
    if not isinstance(body, Mapping):
        raise BadRequestError(None, "body: expected a JSON object")
    model = check_model(body, settings)
    tokens, echo = read_prompt(body, chat=chat)
    room = settings.context_tokens - len(tokens)
    asked = _asked_tokens(body, chat=chat)
    if room < 1 or (asked is not None and asked > room):
        raise BadRequestError(
            "messages" if chat else "prompt",
            f"This model's maximum context length is {settings.context_tokens} tokens. However, you requested"
            f" {asked or 0} output tokens and your prompt contains {len(tokens)} input tokens.",
        )
    if body.get("n", 1) != 1:
        raise BadRequestError("n", f"n: expected 1, got {body['n']!r}")
    options = body.get("stream_options") or {}
    repeats = bool(body.get("ignore_eos"))
    whole = room if repeats else min(room, len(echo) + 1)
    return Ask(
        model=model,
        lora=model if model in settings.loras else "",
        salt=str(body.get("cache_salt") or ""),
        tokens=tokens,
        echo=echo,
        max_output_tokens=whole if asked is None else asked,
        repeats=repeats,
        streams=bool(body.get("stream")),
        with_usage=bool(options.get("include_usage")),
        usage_all_along=bool(options.get("continuous_usage_stats")),
    )


def read_prompt(body: Mapping[str, Any], *, chat: bool) -> tuple[Sequence[int], Sequence[int]]:
    """The prompt's tokens, and those that are echoed."""
    if chat:
        messages = _messages(body.get("messages"))
        asked = [m["content"] for m in messages if m["role"] == "user"]
        return TOKENIZER.chat(messages), TOKENIZER.encode(asked[-1] if asked else "")
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str) and prompt:
        tokens: Sequence[int] = TOKENIZER.encode(prompt)
    elif isinstance(prompt, list) and prompt and all(isinstance(token, int) for token in prompt):
        if not all(0 <= token < TOKENIZER.vocab_tokens for token in prompt):
            raise BadRequestError("prompt", f"prompt: token ids must be within 0..{TOKENIZER.vocab_tokens - 1}")
        tokens = prompt
    else:
        raise BadRequestError("prompt", "prompt: expected a text or a list of token ids that is not empty")
    return tokens, tokens


def check_model(body: Mapping[str, Any], settings: EchoSettings) -> str:
    """The model that is asked for; BadRequestError when it is not served here."""
    model = body.get("model") or settings.model
    if model not in {settings.model, *settings.loras}:
        served = ", ".join((settings.model, *settings.loras))
        message = f"The model `{model}` does not exist. Valid aliases: {served}."
        raise BadRequestError("model", message, code=404, kind="NotFoundError")
    return str(model)


def _asked_tokens(body: Mapping[str, Any], *, chat: bool) -> int | None:
    asked = body.get("max_completion_tokens") if chat else None
    asked = body.get("max_tokens") if asked is None else asked
    if asked is None:
        return None if chat else 16
    if not isinstance(asked, int) or asked < 1:
        raise BadRequestError("max_tokens", f"max_tokens: expected at least 1, got {asked!r}")
    return asked


def _messages(messages: Any) -> list[dict[str, str]]:
    if not isinstance(messages, list) or not messages:
        raise BadRequestError("messages", "messages: expected a list that is not empty")
    return [{"role": _role(message), "content": _text(message.get("content"))} for message in messages]


def _role(message: Any) -> str:
    role = message.get("role") if isinstance(message, Mapping) else None
    if not isinstance(role, str):
        raise BadRequestError("messages", "messages: each has a role and a content")
    return {"developer": "system", "tool": "user", "function": "user"}.get(role, role)


def _text(content: Any) -> str:
    """A message's text; parts that are no text are left out."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return "" if content is None else str(content)

"""Chat messages as vLLM hands them to a chat template (`vllm/renderers/chat_utils.py`, version 0.32).

Of a message, the role, the content, the name, tool calls, the id of a tool's call and the reasoning are kept. Parts of
the content become one string, or stay parts, as the template wants it (`content_format`). Arguments of tool calls are
parsed. A message for a developer becomes one for the system where the template knows none.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .content_format import ContentFormat
from .template import Message
from .types import PromptError

_TEXT_KEY = {
    "text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal", "thinking": "thinking",
    "tool_reference": "name",
}  # fmt: skip
_MAY_BE_NONE = ("text", "refusal")
_OWN_KEYS = frozenset({
    "audio_embeds", "audio_url", "closed", "data", "file", "image_embeds", "image_pil", "image_url", "input_audio",
    "name", "prompt_cache_breakpoint", "refusal", "text", "thinking", "type", "uuid", "video_embeds", "video_url",
})  # fmt: skip
"""Keys of a part that mean something to vLLM; a part of text keeps all others."""
BILLING_HEADER = "x-anthropic-billing-header"
"""Claude Code's first line of system prompts, with a number that changes with each request: vLLM drops it."""


class NotTextError(Exception):
    """The prompt has parts that are no text: which tokens stand for them, the engine alone knows."""


def template_messages(messages: Any, content_format: ContentFormat) -> list[Message]:
    """Messages of a request, as the template wants them. Raises PromptError, and NotTextError for pictures and such."""
    if not isinstance(messages, list):
        raise PromptError(f"messages: must be a list, found {type(messages).__name__}")
    return [_template_message(message, position, content_format) for position, message in enumerate(messages)]


def without_developers(messages: list[Message]) -> list[Message]:
    """For a template that knows no developer: they speak as the system, which speaks once and first."""
    if not any(message["role"] == "developer" for message in messages):
        return messages
    renamed = [
        {**{key: value for key, value in message.items() if key != "tools"}, "role": "system"}
        if message["role"] == "developer"
        else message
        for message in messages
    ]
    speeches = [position for position, message in enumerate(renamed) if message["role"] == "system"]
    if speeches == [0]:
        return renamed
    texts = [text for position in speeches if (text := _plain(renamed[position].get("content")))]
    others = [message for message in renamed if message["role"] != "system"]
    return [{"role": "system", "content": "\n\n".join(texts)}, *others]


def _plain(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content if "text" in part)
    return content or ""


def _template_message(message: Any, position: int, content_format: ContentFormat) -> Message:
    if type(message) is dict and len(message) == 2 and content_format == "string":
        role, content = message.get("role"), message.get("content")
        if type(content) is str and role in _PLAIN_ROLES:
            return {"role": role, "content": content}
    role = message.get("role") if isinstance(message, Mapping) else None
    if not isinstance(role, str):
        raise PromptError(f"messages[{position}].role: must be text, found {role!r}")
    content = message.get("content")
    parts = list(_parts(content, role, f"messages[{position}].content"))
    if content_format == "openai":
        told: Message = {"role": role, "content": parts}
    else:
        told = {"role": role, "content": "\n".join(part.get("text", part.get("name", "")) for part in parts)}
    if role == "assistant":
        _add_calls(told, message, position)
    elif role == "tool":
        if "tool_call_id" in message:
            told["tool_call_id"] = message["tool_call_id"]
        if content_format == "openai" and all(part["type"] == "text" for part in parts):
            told["content"] = "\n".join(part["text"] for part in parts)
    told.update({key: message[key] for key in ("name", "task") if isinstance(message.get(key), str)})
    if role == "developer":
        told["tools"] = message.get("tools")
    return told


_PLAIN_ROLES = ("user", "assistant")
"""Nothing in their messages changes if they hold a role and a text alone."""


def _parts(content: Any, role: str, path: str) -> Iterator[dict[str, Any]]:
    """The parts of a content: text, or the name of a tool that is referred to."""
    if content is None:
        return
    if isinstance(content, str):
        content = [content]
    if not isinstance(content, list):
        raise PromptError(f"{path}: must be text or a list of parts, found {type(content).__name__}")
    for position, part in enumerate(content):
        found = _part(part, f"{path}[{position}]")
        if found is not None and role == "system":
            found = _without_billing(found)
        if found is not None:
            yield found


def _part(part: Any, path: str) -> dict[str, Any] | None:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, Mapping):
        raise PromptError(f"{path}: must be text or an object, found {type(part).__name__}")
    kind = part.get("type")
    if not isinstance(kind, str) or kind not in _TEXT_KEY or part.get("uuid") is not None:
        raise NotTextError(f"{path}: of type {kind!r}")
    text = part.get(_TEXT_KEY[kind])
    if text is None and kind in _MAY_BE_NONE:
        return None
    if not isinstance(text, str):
        raise PromptError(f"{path}.{_TEXT_KEY[kind]}: must be text, found {type(text).__name__}")
    if kind == "tool_reference":
        return {"type": kind, "name": text}
    return {"type": "text", "text": text, **{key: value for key, value in part.items() if key not in _OWN_KEYS}}


def _without_billing(part: dict[str, Any]) -> dict[str, Any] | None:
    text = part.get("text", "")
    if not text.startswith(BILLING_HEADER):
        return part
    rest = text.partition("\n")[2]
    return {**part, "text": rest} if rest else None


def _add_calls(told: Message, message: Mapping[str, Any], position: int) -> None:
    """What an assistant called and thought."""
    calls = message.get("tool_calls")
    if calls:
        path = f"messages[{position}].tool_calls"
        if not isinstance(calls, Sequence) or isinstance(calls, str):
            raise PromptError(f"{path}: must be a list, found {type(calls).__name__}")
        told["tool_calls"] = [_call(call, f"{path}[{index}]") for index, call in enumerate(calls)]
    reasoning = message.get("reasoning")
    if reasoning is None:
        reasoning = message.get("reasoning_content")
    if reasoning is not None:
        told["reasoning"] = told["reasoning_content"] = reasoning


def _call(call: Any, path: str) -> dict[str, Any]:
    """A tool call with its keys in vLLM's order, which shows where a template writes it as JSON."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or call.get("type", "function") != "function":
        raise PromptError(f"{path}: must be the call of a function, found {call!r:.80}")
    called = {**_ordered(function, ("arguments", "name")), "arguments": _arguments(function.get("arguments"))}
    return _ordered({**call, "function": called}, ("id", "function", "type"))


def _arguments(arguments: Any) -> dict[str, Any]:
    """Arguments as an object: what is none, or no JSON, counts as none."""
    if isinstance(arguments, str) and arguments:
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return {}
    return arguments if isinstance(arguments, dict) else {}


def _ordered(mapping: Mapping[str, Any], first: Sequence[str]) -> dict[str, Any]:
    known = {key: mapping[key] for key in first if key in mapping}
    return {**known, **{key: value for key, value in mapping.items() if key not in known}}

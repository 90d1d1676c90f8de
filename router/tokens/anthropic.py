"""Bodies of Anthropic's messages API as chat messages, as vLLM translates them (`entrypoints/anthropic/serving.py`,
version 0.32), as far as they are text and tools.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from .conversations import Conversation, an_object, objects, tools_of, variables_of
from .messages import BILLING_HEADER, NotTextError


def of_anthropic(body: Mapping[str, Any], *, system_first: bool = False) -> Conversation:
    """The conversation of a body of `/v1/messages`. With `system_first`, what the system says later is said first."""
    messages: list[dict[str, Any]] = []
    told = objects(body, "messages")
    later = [_system_text(message.get("content")) for message in told if message.get("role") == "system"]
    system = body.get("system")
    first = system if isinstance(system, str) else _system_text(system)
    _add_system(messages, "".join([first, *later]) if system_first else first)
    for message in told:
        if message.get("role") != "system":
            _add_anthropic(messages, message)
        elif not system_first:
            _add_system(messages, _system_text(message.get("content")))
    tools = [
        {"type": "function", "function": {**tool, "parameters": tool.get("input_schema")}}
        for tool in objects(body, "tools")
    ]
    effort = an_object(body, "output_config").get("effort")
    if an_object(body, "thinking").get("type") == "disabled":
        effort = "none"
    return Conversation(messages=messages, tools=tools_of(tools or None), variables=variables_of(body, effort))


def _system_text(content: Any) -> str:
    return "".join(text for text in _texts(content) if not text.startswith(BILLING_HEADER))


def _add_system(messages: list[dict[str, Any]], text: str) -> None:
    if text:
        messages.append({"role": "system", "content": text})


def _texts(content: Any) -> Iterable[str]:
    if isinstance(content, str):
        return [content]
    blocks = content if isinstance(content, list) else []
    return [
        str(block.get("text") or "") for block in blocks if isinstance(block, Mapping) and block.get("type") == "text"
    ]


def _add_anthropic(messages: list[dict[str, Any]], message: Mapping[str, Any]) -> None:
    """A message of blocks. Results of tools come before it as messages of their own."""
    role, content = message.get("role"), message.get("content")
    if isinstance(content, str):
        messages.append({"role": role, "content": content})
        return
    told: dict[str, Any] = {"role": role}
    parts: list[dict[str, Any]] = []
    for block in objects(message, "content"):
        match block.get("type"):
            case "text":
                parts.extend([{"type": "text", "text": block["text"]}] if block.get("text") else [])
            case "thinking":
                told["reasoning"] = told.get("reasoning", "") + str(block.get("thinking") or "")
            case "tool_use":
                function = {"name": block.get("name") or "", "arguments": json.dumps(block.get("input") or {})}
                call = {"id": block.get("id"), "type": "function", "function": function}
                told.setdefault("tool_calls", []).append(call)
            case "tool_result" if role == "user":
                messages.append(_tool_result(block))
            case "redacted_thinking" | "tool_reference":
                pass
            case kind:
                raise NotTextError(f"messages: a block of type {kind!r}")
    if parts:
        told["content"] = parts[0]["text"] if len(parts) == 1 else parts
    if role != "user" or "content" in told:
        messages.append(told)


def _tool_result(block: Mapping[str, Any]) -> dict[str, Any]:
    content = block.get("content")
    if isinstance(content, list) and any(item.get("type") != "text" for item in objects(block, "content")):
        raise NotTextError("messages: a tool's result that is not text")
    return {"role": "tool", "tool_call_id": block.get("tool_use_id") or "", "content": "\n".join(_texts(content))}

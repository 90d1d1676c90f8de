"""Bodies of OpenAI's responses API as chat messages, as vLLM translates them (`entrypoints/openai/responses/utils.py`,
version 0.32), as far as they are text and functions.
"""

from collections.abc import Mapping
from typing import Any

from .conversations import Conversation, an_object, objects, tools_of, variables_of
from .messages import NotTextError
from .types import PromptError


def of_responses(body: Mapping[str, Any]) -> Conversation:
    """The conversation of a body of `/v1/responses`."""
    for key in ("previous_response_id", "conversation", "prompt"):
        if body.get(key) is not None:
            raise NotTextError(f"{key}: the engine keeps what it refers to")
    asked = body.get("input")
    messages: list[dict[str, Any]] = []
    if instructions := body.get("instructions"):
        messages.append({"role": "system", "content": instructions})
    unfinished = False
    if isinstance(asked, str):
        messages.append({"role": "user", "content": asked})
    elif isinstance(asked, list):
        for position, item in enumerate(asked):
            _add_item(messages, item, f"input[{position}]")
        unfinished = bool(asked) and _is_unfinished(asked[-1])
    else:
        raise PromptError(f"input: must be text or a list, found {type(asked).__name__}")
    tools = [
        {"type": "function", "function": tool} for tool in objects(body, "tools") if tool.get("type") == "function"
    ]
    return Conversation(
        messages=messages,
        tools=tools_of(tools or None),
        variables=variables_of(body, an_object(body, "reasoning").get("effort")),
        add_generation_prompt=not unfinished,
        continue_final_message=unfinished,
    )


def _add_item(messages: list[dict[str, Any]], item: Any, path: str) -> None:
    """An item of a response's input. What an assistant thought, said and called in turn is one message."""
    if not isinstance(item, Mapping):
        raise PromptError(f"{path}: must be an object, found {type(item).__name__}")
    last = messages[-1] if messages and messages[-1]["role"] == "assistant" else {}
    match item.get("type", "message"):
        case "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            if last:
                last.setdefault("tool_calls", []).append(call)
            else:
                messages.append({"role": "assistant", "tool_calls": [call]})
        case "function_call_output":
            messages.append({"role": "tool", "content": item.get("output"), "tool_call_id": item.get("call_id")})
        case "reasoning":
            _say(messages, last, "reasoning", _first_text(item.get("content") or item.get("summary")))
        case "message" if item.get("role") == "assistant":
            content = item.get("content")
            _say(messages, last, "content", content if isinstance(content, str) else _first_text(content))
        case "message" if "role" in item:
            messages.append(dict(item))
        case kind:
            raise NotTextError(f"{path}: of type {kind!r}")


def _say(messages: list[dict[str, Any]], last: dict[str, Any], key: str, text: str) -> None:
    if last and last.get(key) is None:
        last[key] = text
    else:
        messages.append({"role": "assistant", key: text})


def _first_text(parts: Any) -> str:
    first = parts[0] if isinstance(parts, list) and parts else {}
    return str(first.get("text") or "") if isinstance(first, Mapping) else ""


def _is_unfinished(item: Any) -> bool:
    return (
        isinstance(item, Mapping)
        and item.get("type", "message") in ("message", "reasoning")
        and (item.get("role") == "assistant" or item.get("type") == "reasoning")
        and item.get("status") in ("in_progress", "incomplete")
    )

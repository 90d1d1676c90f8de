"""Request bodies of three APIs as one kind of conversation: OpenAI's chats and responses, Anthropic's messages.

The last two are translated into chat messages as vLLM does it (`vllm/entrypoints/openai/responses/utils.py` and
`vllm/entrypoints/anthropic/serving.py`, version 0.32), as far as they are text and tools. What refers to history that
the engine keeps, or brings a template of its own, raises NotTextError: its tokens cannot be known here.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .messages import BILLING_HEADER, NotTextError
from .types import PromptError


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What a chat template is given. `variables` are its further variables by name."""

    messages: Any
    tools: list[Any] | None = None
    documents: Any = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True
    continue_final_message: bool = False


def of_chat(body: Mapping[str, Any]) -> Conversation:
    """The conversation of a body of `/v1/chat/completions`."""
    if body.get("chat_template") is not None:
        raise NotTextError("chat_template: an engine takes a request's own template only if it was told to trust it")
    variables = _variables(body, body.get("reasoning_effort"))
    return Conversation(
        messages=body.get("messages"),
        tools=variables.get("tools") or _tools(body.get("tools")),
        documents=body.get("documents"),
        variables=variables,
        add_generation_prompt=bool(body.get("add_generation_prompt", True)),
        continue_final_message=bool(body.get("continue_final_message")),
    )


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
        {"type": "function", "function": tool} for tool in body.get("tools") or [] if tool.get("type") == "function"
    ]
    return Conversation(
        messages=messages,
        tools=_tools(tools or None),
        variables=_variables(body, (body.get("reasoning") or {}).get("effort")),
        add_generation_prompt=not unfinished,
        continue_final_message=unfinished,
    )


def of_anthropic(body: Mapping[str, Any], *, system_first: bool = False) -> Conversation:
    """The conversation of a body of `/v1/messages`. With `system_first`, what the system says later is said first."""
    messages: list[dict[str, Any]] = []
    told = body.get("messages")
    if not isinstance(told, list):
        raise PromptError(f"messages: must be a list, found {type(told).__name__}")
    for message in told:
        if not isinstance(message, Mapping):
            raise PromptError(f"messages: each must be an object, found {type(message).__name__}")
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
        for tool in body.get("tools") or []
    ]
    effort = (body.get("output_config") or {}).get("effort")
    if (body.get("thinking") or {}).get("type") == "disabled":
        effort = "none"
    return Conversation(messages=messages, tools=_tools(tools or None), variables=_variables(body, effort))


def _variables(body: Mapping[str, Any], effort: Any) -> dict[str, Any]:
    """A template's further variables: those asked for, and what the reasoning effort means to most templates."""
    asked = body.get("chat_template_kwargs") or {}
    if not isinstance(asked, Mapping):
        raise PromptError(f"chat_template_kwargs: must be an object, found {type(asked).__name__}")
    variables = dict(asked)
    if effort is not None:
        variables["reasoning_effort"] = effort
        variables.setdefault("enable_thinking", effort != "none")
    return variables


def _tools(tools: Any) -> list[Any] | None:
    """Tools as vLLM writes them: known keys in its order, nothing where a description or parameters are missing."""
    if tools is None:
        return None
    if not isinstance(tools, list):
        raise PromptError(f"tools: must be a list, found {type(tools).__name__}")
    return [_tool(tool, f"tools[{position}]") for position, tool in enumerate(tools)]


def _tool(tool: Any, path: str) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise PromptError(f"{path}.function: must be an object with a name, found {function!r:.80}")
    told = {key: function.get(key) for key in ("name", "description", "parameters")}
    deferred = tool.get("defer_loading")
    flags = {"strict": function.get("strict"), "defer_loading": function.get("defer_loading")}
    if flags["defer_loading"] is None:
        flags["defer_loading"] = deferred
    told.update({key: value for key, value in flags.items() if value is not None})
    outer = {} if deferred is None else {"defer_loading": deferred}
    return {"type": "function", "function": told, **outer}


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
        and item.get("type", "message") in {"message", "reasoning"}
        and (item.get("role") == "assistant" or item.get("type") == "reasoning")
        and item.get("status") in {"in_progress", "incomplete"}
    )


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
    for block in content or []:
        match block.get("type"):
            case "text":
                parts.extend([{"type": "text", "text": block["text"]}] if block.get("text") else [])
            case "thinking":
                told["reasoning"] = told.get("reasoning", "") + (block.get("thinking") or "")
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
    if isinstance(content, list) and any(item.get("type") != "text" for item in content):
        raise NotTextError("messages: a tool's result that is not text")
    return {"role": "tool", "tool_call_id": block.get("tool_use_id") or "", "content": "\n".join(_texts(content))}

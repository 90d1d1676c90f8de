"""What a chat template is given, from a body of OpenAI's chat completions, as vLLM takes it (version 0.32).

Other APIs are translated into the same (`responses`, `anthropic`). What refers to history that the engine keeps, or
brings a template of its own, raises NotTextError: its tokens cannot be known here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .messages import NotTextError
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
    variables = variables_of(body, body.get("reasoning_effort"))
    return Conversation(
        messages=body.get("messages"),
        tools=variables.get("tools") or tools_of(body.get("tools")),
        documents=body.get("documents"),
        variables=variables,
        add_generation_prompt=bool(body.get("add_generation_prompt", True)),
        continue_final_message=bool(body.get("continue_final_message")),
    )


def variables_of(body: Mapping[str, Any], effort: Any) -> dict[str, Any]:
    """A template's further variables: those asked for, and what the reasoning effort means to most templates."""
    variables = dict(an_object(body, "chat_template_kwargs"))
    if effort is not None:
        variables["reasoning_effort"] = effort
        variables.setdefault("enable_thinking", effort != "none")
    return variables


def tools_of(tools: Any) -> list[Any] | None:
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


def an_object(body: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A field that holds an object; an empty one if it is not there."""
    value = body.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise PromptError(f"{key}: must be an object, found {type(value).__name__}")
    return value


def objects(body: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """A field that holds a list of objects; an empty one if it is not there."""
    value = body.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
        raise PromptError(f"{key}: must be a list of objects, found {value!r:.80}")
    return value

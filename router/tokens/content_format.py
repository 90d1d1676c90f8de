"""Whether a chat template wants a message's content as a string or as a list of parts.

vLLM decides it from the template's syntax (`vllm/renderers/hf.py`, `_detect_content_format`, version 0.32), and the
prompt hangs on it: a template that loops over the content of messages gets lists (`openai`), any other gets strings.
This follows the same rules over the same syntax tree. Jinja2 is imported where it is needed: it is optional.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from jinja2 import nodes

ContentFormat = Literal["string", "openai"]


class _UnclearError(Exception):
    """The syntax is none that the rules foresee: the format is then a string."""


def content_format(root: "nodes.Template") -> ContentFormat:
    """The format that a parsed template asks for."""
    try:
        return "openai" if _loops_over_content(root) else "string"
    except _UnclearError:
        return "string"


def _loops_over_content(root: "nodes.Template") -> bool:
    from jinja2 import nodes  # noqa: PLC0415 - optional

    messages = set(_loop_names(root, _aliases(root, "messages")))
    in_macros = {id(loop) for macro in root.find_all(nodes.Macro) for loop in macro.find_all(nodes.For)}
    passed = _macro_loops(root, messages)
    for loop in root.find_all(nodes.For):
        iterated = loop.iter.name if isinstance(loop.iter, nodes.Name) else None
        if (
            any(_is_access(loop.iter, name, "content") for name in messages)
            or iterated in passed.get(id(loop), ())
            or (iterated == "content" and id(loop) not in in_macros)
        ):
            _name(loop.target)
            return True
    return False


def _name(target: "nodes.Node") -> str:
    from jinja2 import nodes  # noqa: PLC0415 - optional

    if not isinstance(target, nodes.Name):
        raise _UnclearError
    return target.name


def _aliases(root: "nodes.Node", name: str) -> list[str]:
    """A variable, and the variables that it or a part of it is assigned to."""
    from jinja2 import nodes  # noqa: PLC0415 - optional

    names = [name]
    for known in names:
        for assign in root.find_all(nodes.Assign):
            if _is_access(assign.node, known) and _name(assign.target) not in names:
                names.append(_name(assign.target))
    return names


def _loop_names(root: "nodes.Node", iterated: list[str]) -> Iterator[str]:
    """The variables of loops over any of these."""
    from jinja2 import nodes  # noqa: PLC0415 - optional

    for loop in root.find_all(nodes.For):
        if any(_is_access(loop.iter, name) for name in iterated):
            yield _name(loop.target)


def _macro_loops(root: "nodes.Node", messages: set[str]) -> dict[int, set[str]]:
    """By loop inside a macro, the macro's parameters that some call hands a message's content."""
    from jinja2 import nodes  # noqa: PLC0415 - optional

    loops = {}
    for macro in root.find_all(nodes.Macro):
        parameters: list[str] = [argument.name for argument in macro.args]
        given: set[str] = set()
        for call in root.find_all(nodes.Call):
            if not (isinstance(call.node, nodes.Name) and call.node.name == macro.name):
                continue
            pairs = [*zip(parameters, call.args, strict=False), *((word.key, word.value) for word in call.kwargs)]
            given.update(
                parameter
                for parameter, value in pairs
                if parameter in parameters and any(_is_access(value, name, "content") for name in messages)
            )
        if given:
            loops.update({id(loop): given for loop in macro.find_all(nodes.For)})
    return loops


def _is_access(node: "nodes.Node | None", name: str, key: str | None = None) -> bool:
    """Whether an expression is the variable (or its `key`), perhaps filtered, tested or sliced."""
    from jinja2 import nodes  # noqa: PLC0415 - optional

    match node:
        case nodes.Filter() | nodes.Test() | nodes.Getitem(arg=nodes.Slice()):
            return _is_access(node.node, name, key)
        case nodes.Getitem(node=nodes.Name(name=variable), arg=nodes.Const(value=value)):
            return key is not None and bool(variable == name and value == key)
        case nodes.Getattr(node=nodes.Name(name=variable), attr=attribute):
            return key is not None and bool(variable == name and attribute == key)
        case nodes.Name(name=variable):
            return key is None and bool(variable == name)
    return False

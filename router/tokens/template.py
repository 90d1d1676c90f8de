"""Chat templates, rendered as `transformers` renders them (`utils/chat_template_utils.py`, version 5).

Jinja2 in its immutable sandbox, with `trim_blocks`, `lstrip_blocks`, loop controls, `{% generation %}`, a `tojson` that
escapes no HTML, `raise_exception` and `strftime_now`. What a template may write is bounded. Jinja2 is optional, and
imported where it is needed.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from .content_format import ContentFormat, content_format
from .types import PromptError

if TYPE_CHECKING:
    from jinja2 import Environment

RENDERED_CHARS_MAX = 16 << 20
_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
_OF_LOOPS = frozenset({"depth", "depth0", "first", "index", "index0", "last", "length", "revindex", "revindex0"})

Message = dict[str, Any]


class ChatTemplate:
    """One compiled template.

    `special_tokens` are its variables `bos_token`, `eos_token` and so on; `now` is what `strftime_now` reads.
    `content_format` says how messages are to be handed in, `knows_developer` and `system_first` what it makes of roles.
    Raises ValueError for a template that cannot be compiled.
    """

    def __init__(
        self,
        source: str,
        *,
        special_tokens: Mapping[str, str] | None = None,
        chars_max: int = RENDERED_CHARS_MAX,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        from jinja2 import TemplateError  # noqa: PLC0415 - optional

        environment = _environment(now)
        try:
            self.content_format: ContentFormat = content_format(environment.parse(source))
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ValueError(f"chat template: {error}") from error
        self._special_tokens = dict(special_tokens or {})
        self._chars_max = chars_max
        self.system_first = _wants_system_first(source)
        self.knows_developer = '"developer"' in source or "'developer'" in source

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Any] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt's text. Raises PromptError if there are no messages, or the template refuses them or writes more
        than `chars_max` characters.
        """
        if not messages:
            raise PromptError("messages: there must be at least one")
        if continue_final_message and add_generation_prompt:
            raise PromptError("continue_final_message cannot go together with add_generation_prompt: set that to false")
        asked = {
            **self._special_tokens,
            **(variables or {}),
            "messages": messages,
            "tools": tools,
            "documents": documents,
            "add_generation_prompt": add_generation_prompt,
        }
        if not continue_final_message:
            return self._written(asked)
        asked["messages"], final = _tagged(messages)
        return _up_to_tag(self._written(asked), final)

    def _written(self, variables: Mapping[str, Any]) -> str:
        chunks = []
        left = self._chars_max
        try:
            template = self._template
            for chunk in template.root_render_func(template.new_context(dict(variables))):
                left -= len(chunk)
                if left < 0:
                    break
                chunks.append(chunk)
        except Exception as error:
            raise PromptError(f"messages: the chat template refuses them: {error}") from error
        if left < 0:
            raise PromptError(f"messages: the prompt is longer than the {self._chars_max} characters that it may have")
        return "".join(chunks)


def _environment(now: Callable[[], datetime]) -> "Environment":
    """What templates are compiled in."""
    from jinja2 import TemplateError, nodes  # noqa: PLC0415 - optional
    from jinja2.ext import Extension, loopcontrols  # noqa: PLC0415
    from jinja2.parser import Parser  # noqa: PLC0415
    from jinja2.runtime import LoopContext  # noqa: PLC0415
    from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415

    class Generation(Extension):
        """`{% generation %}` marks what the model wrote, which only training needs: its body, as it is."""

        tags = {"generation"}  # noqa: RUF012 - as Jinja2 declares it

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

        def _body(self, caller: Callable[[], str]) -> str:
            return caller()

    class Sandbox(ImmutableSandboxedEnvironment):
        """Most templates ask a loop about itself with every message: what it tells is safe without a look at it."""

        def getattr(self, obj: Any, attribute: str) -> Any:
            if type(obj) is LoopContext and attribute in _OF_LOOPS:
                return getattr(obj, attribute)
            return super().getattr(obj, attribute)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: now().strftime(form)
    return environment


def _wants_system_first(source: str) -> bool:
    """Whether a template refuses a system that speaks later, tried as vLLM tries it: without the functions above."""
    from jinja2 import Environment, TemplateError  # noqa: PLC0415 - optional
    from jinja2.ext import loopcontrols  # noqa: PLC0415
    from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415

    bare: Environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    messages = [{"role": role, "content": "t"} for role in ("system", "user", "system", "user")]
    try:
        bare.from_string(source).render(messages=messages, add_generation_prompt=False)
    except (TemplateError, TypeError, ValueError):
        return True
    return False


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _tagged(messages: Sequence[Message]) -> tuple[list[Message], str]:
    """The messages with a tag at the end of the last text of the last one, and that text."""
    *rest, last = messages
    content = last.get("content")
    if isinstance(content, str):
        return [*rest, {**last, "content": content + _TAG}], content
    if isinstance(content, list):
        for position in range(len(content) - 1, -1, -1):
            if "text" in content[position]:
                text = content[position]["text"]
                parts = [*content]
                parts[position] = {**content[position], "text": text + _TAG}
                return [*rest, {**last, "content": parts}], text
    raise PromptError("continue_final_message: the last message has no text to go on from")


def _up_to_tag(rendered: str, final: str) -> str:
    """What was written before the tag, without the space that a template trimmed off with it."""
    tag = _TAG.strip()
    if tag not in rendered or final.strip() not in rendered:
        raise PromptError("continue_final_message: the chat template leaves out the end of the last message")
    end = rendered.rindex(tag)
    if rendered[end : end + len(_TAG)] == _TAG:
        return rendered[:end]
    return rendered[:end].rstrip()

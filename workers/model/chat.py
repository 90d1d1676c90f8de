"""Chat messages to the text that a model was trained on.

A model's own template is a Jinja program. This package runs no programs out of model files: it knows the
ChatML template by its text, and refuses any other by name.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from .config import UnsupportedModelError

ROLES = ("system", "user", "assistant")


class ChatRenderer(Protocol):
    """Renders messages and opens the assistant's answer."""

    def render(self, messages: Iterable[Mapping[str, str]]) -> str:
        """Text of OpenAI-style messages (`role`, `content`). `ValueError` for a message without either."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMl:
    """OpenAI's ChatML, as SmolLM2 and many others use it."""

    default_system: str | None = None
    """Put first if the conversation brings no system message of its own."""

    def render(self, messages: Iterable[Mapping[str, str]]) -> str:
        r"""See `ChatRenderer.render`.

        >>> ChatMl().render([{"role": "user", "content": "Hi"}])
        '<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n'
        """
        turns = _turns(messages)
        if self.default_system is not None and turns[0][0] != "system":
            turns.insert(0, ("system", self.default_system))
        text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
        return f"{text}<|im_start|>assistant\n"


@dataclass(frozen=True, slots=True)
class PlainChat:
    """`role: content` lines, for models that never saw a chat."""

    def render(self, messages: Iterable[Mapping[str, str]]) -> str:
        r"""See `ChatRenderer.render`.

        >>> PlainChat().render([{"role": "user", "content": "Hi"}])
        'user: Hi\nassistant: '
        """
        return "".join(f"{role}: {content}\n" for role, content in _turns(messages)) + "assistant: "


def renderer_for(template: str | None) -> ChatRenderer:
    """The renderer of a model's chat template. `UnsupportedModelError` if there is none, or none is known."""
    if template is None:
        raise UnsupportedModelError("the model has no chat template: use the completions API with a plain prompt")
    squeezed = re.sub(r"\\n", "\n", template)
    match = _CHATML.fullmatch(squeezed)
    if match is None:
        raise UnsupportedModelError(
            "the model's chat template is not ChatML, the only one supported: render the prompt "
            f"yourself and use the completions API. The template begins {template[:80]!r}"
        )
    return ChatMl(default_system=match["default_system"])


# The one loop over messages, with or without a default system message before the first; quotes may be of
# either kind, and blanks around a tag do not matter.
_CHATML = re.compile(
    r"\{%-?\s*for message in messages\s*-?%\}\s*"
    r"(?:\{%-?\s*if loop\.first and messages\[0\]\[['\"]role['\"]\] != ['\"]system['\"]\s*-?%\}\s*"
    r"\{\{-?\s*['\"]<\|im_start\|>system\n(?P<default_system>[^'\"]*?)<\|im_end\|>\n['\"]\s*-?\}\}\s*"
    r"\{%-?\s*endif\s*-?%\}\s*)?"
    r"\{\{-?\s*['\"]<\|im_start\|>['\"] \+ message\[['\"]role['\"]\] \+ ['\"]\n['\"] \+ "
    r"message\[['\"]content['\"]\] \+ ['\"]<\|im_end\|>['\"] \+ ['\"]\n['\"]\s*-?\}\}\s*"
    r"\{%-?\s*endfor\s*-?%\}\s*"
    r"\{%-?\s*if add_generation_prompt\s*-?%\}\s*"
    r"\{\{-?\s*['\"]<\|im_start\|>assistant\n['\"]\s*-?\}\}\s*"
    r"\{%-?\s*endif\s*-?%\}\s*"
)


def _turns(messages: Iterable[Mapping[str, str]]) -> list[tuple[str, str]]:
    turns = []
    for number, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise ValueError(f"messages[{number}]: role {role!r} is not one of {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise ValueError(f"messages[{number}]: content must be a text, not {type(content).__name__}")  # noqa: TRY004 - bad input
        turns.append((role, content))
    if not turns:
        raise ValueError("messages: at least one message is needed")
    return turns

"""The prompt of a body of `/v1/completions`: a text, or token ids that came ready.

One request may hold several prompts. They are sent to one engine together, so the first stands for all.
"""

from collections.abc import Mapping
from typing import Any

from homing.router.core.blocks import pack_tokens

from .messages import NotTextError
from .types import PromptError


def of_completion(body: Mapping[str, Any]) -> str | bytes:
    """A body's first prompt: text, or packed token ids. Raises PromptError, and NotTextError for embeddings alone."""
    prompt = body.get("prompt")
    if prompt is None and body.get("prompt_embeds") is not None:
        raise NotTextError("prompt_embeds: they are no tokens")
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, list):
        raise PromptError(f"prompt: must be text or a list of token ids, found {type(prompt).__name__}")
    if not prompt:
        raise PromptError("prompt: must not be an empty list")
    if isinstance(prompt[0], str):
        return prompt[0]
    return _packed(prompt[0] if isinstance(prompt[0], list) else prompt)


def _packed(ids: list[Any]) -> bytes:
    try:
        return pack_tokens(ids)
    except Exception as error:
        raise PromptError(f"prompt: token ids must be whole numbers from 0 to 2^32 - 1: {error}") from error

"""The request to a prefill worker: the client's prompt, of whose answer only the first token is computed.

Rule 1: the prompt that the engine makes of it is the client's to the last token, so everything that a chat template
reads (messages, tools, template arguments, a response format) stays.
Rule 2: what asks for more than one token, or for more than one answer, goes.
"""

from collections.abc import Mapping
from typing import Any

from homing.router.engines.types import EngineError

from .types import Order

DROPPED = frozenset(
    {
        "best_of",
        "echo",
        "ignore_eos",
        "kv_transfer_params",
        "max_completion_tokens",
        "max_tokens",
        "min_tokens",
        "n",
        "prompt_logprobs",
        "stream",
        "stream_options",
        "use_beam_search",
    }
)


def prefill_body(body: Mapping[str, Any], path: str) -> dict[str, Any]:
    """A copy of a request's JSON that computes its prompt and one token."""
    asked = {key: value for key, value in body.items() if key not in DROPPED}
    asked |= {"max_tokens": 1, "stream": False}
    return asked | {"max_completion_tokens": 1} if is_chat(path) else asked


def is_chat(path: str) -> bool:
    """Whether a path takes chats."""
    return path.rstrip("/").endswith("/chat/completions")


def prompts_of(body: Mapping[str, Any]) -> int:
    """How many prompts a completion has: a text or a list of ids is one, a list of either is as many."""
    prompt = body.get("prompt")
    return len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1


def check_handover(order: Order, *, batches: bool = False) -> None:
    """Raises EngineError for a request whose prompt cannot be computed for another worker."""
    if not order.path.rstrip("/").endswith("/completions"):
        raise EngineError(f"{order.path}: only completions and chat completions can be handed over")
    answers = order.body.get("n") or 1
    if answers != 1:
        raise EngineError(f"n is {answers}: the KV of one prefill is handed over to one answer")
    prompts = prompts_of(order.body)
    if prompts > 1 and not batches:
        raise EngineError(f"{prompts} prompts in one request: only one can be handed over")

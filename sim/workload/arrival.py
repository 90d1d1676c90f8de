"""One request of a workload, with what only the world knows of it."""

from dataclasses import dataclass

from homing.router.core.types import BlockKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A prompt and its true answer.

    `keys` are the chained keys of the prompt's full blocks of `block_tokens` tokens: equal keys, equal prefixes. The
    true output length is known to the worker that decodes, never to a router before the end. `answer_keys` continue the
    chain over the blocks that become full while the answer is generated, where a workload knows that a later prompt
    will begin with this answer.
    """

    id: str
    at_s: float
    prompt_tokens: int
    output_tokens: int
    block_tokens: int
    keys: tuple[BlockKey, ...] = ()
    answer_keys: tuple[BlockKey, ...] = ()
    session: str | None = None
    origin: str | None = None
    tenant: str = ""
    priority: int = 0

    def __post_init__(self) -> None:
        assert self.prompt_tokens > 0 and self.output_tokens > 0 and self.block_tokens > 0, self
        assert len(self.keys) <= self.prompt_tokens // self.block_tokens, self

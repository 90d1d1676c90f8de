"""What an echo worker is told at its start: its sizes, its times, and what it tells of its cache."""

from dataclasses import dataclass, field

from homing.workers.engine.step import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """How long a forward pass takes: the stopwatch in the place of a GPU.

    A prompt of `n` tokens whose first `c` are cached takes `a + b*(n-c) + q*(n^2-c^2)`, however it is cut into chunks;
    a pass in which answers go on takes `decode_s`, and `decode_sequence_s` more for each of them.
    """

    prefill_a_s: float = 0.005
    prefill_b_s: float = 0.00002
    """Per token."""
    prefill_q_s: float = 0.0
    """Per token squared."""
    decode_s: float = 0.005
    decode_sequence_s: float = 0.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if not 0 <= value < 3600:
                raise ValueError(f"{name}: expected seconds, from 0 to an hour, got {value}")

    def prefill_s(self, cached_tokens: int, prompt_tokens: int) -> float:
        """Time that a whole prompt takes.

        >>> times = StepTimes(prefill_a_s=1, prefill_b_s=0.1, prefill_q_s=0.01)
        >>> times.prefill_s(10, 20)
        5.0
        """
        return self.prefill_a_s + self._tokens_s(cached_tokens, prompt_tokens)

    def batch_s(self, batch: Batch) -> float:
        """Time that one pass takes."""
        seconds = 0.0
        for chunk in batch.chunks:
            begins = chunk.start == chunk.sequence.hit_tokens
            seconds += self._tokens_s(chunk.start, chunk.stop) + (self.prefill_a_s if begins else 0.0)
        if batch.decoding:
            seconds += self.decode_s + self.decode_sequence_s * len(batch.decoding)
        return seconds

    def _tokens_s(self, start: int, stop: int) -> float:
        return self.prefill_b_s * (stop - start) + self.prefill_q_s * (stop * stop - start * start)


@dataclass(frozen=True, slots=True, kw_only=True)
class KvEventSettings:
    """Where a worker publishes what its cache holds; `topic` begins each message.

    An address with `*`, `::`, `ipc` or `inproc` is bound, any other one connected to, as vLLM does; a port of `*` is
    chosen by the system. The replay address is always bound.
    """

    endpoint: str = "tcp://127.0.0.1:*"
    replay_endpoint: str | None = "tcp://127.0.0.1:*"
    topic: str = ""
    buffer_steps: int = 10_000
    """Messages that are kept for a replay."""
    hwm: int = 100_000
    """Messages that wait for a slow listener before more are dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EchoSettings:
    """Everything an echo worker is told."""

    model: str = "echo"
    loras: tuple[str, ...] = ()
    """Names that are served as adapters on the model: each has KV of its own."""
    host: str = "127.0.0.1"
    port: int = 0
    block_tokens: int = 16
    kv_blocks: int = 8192
    requests_max: int = 64
    """Requests that are worked on at once; more of them wait."""
    step_tokens_max: int = 2048
    context_tokens: int = 131_072
    times: StepTimes = field(default_factory=StepTimes)
    kv_events: KvEventSettings | None = None
    pause_after_tokens: int = 0
    """A stream stands still after so many tokens; 0: never."""
    pause_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("block_tokens", "kv_blocks", "requests_max", "step_tokens_max", "context_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not self.model:
            raise ValueError("model: expected a name, got nothing")

"""A profile: how long hardware and model really take for a forward pass. The stopwatch of a simulated worker.

Rule 1: times are those of the whole group of GPUs that serves one copy of the model.
Rule 2: a profile knows no queue, no cache and no network; it is told what a pass computes.
Rule 3: hot path: a pass costs one or two microseconds, plus one for each prefill chunk.
"""

from collections.abc import Sequence

from homing.router.core.errors import ConfigError

from .decode import DecodeSteps, LinearDecode
from .prefill import LinearPrefill, PrefillCurve


class Profile:
    """Measured or made-up times of one model on one kind of worker.

    `model` names a shape of the catalogue, `gpus` how many serve one copy, `source` who measured, and `inferred` what
    of it nobody measured. Without decode times it is one for workers that only prefill.
    """

    __slots__ = ("_decode", "_prefill", "_step_s", "_token_s", "_work_s", "gpus", "hardware", "inferred", "model",
                 "name", "source")  # fmt: skip

    def __init__(
        self,
        prefill: PrefillCurve,
        decode: DecodeSteps | None,
        *,
        name: str,
        model: str,
        gpus: int = 1,
        hardware: str = "",
        source: str = "",
        inferred: str = "",
    ) -> None:
        self.name, self.model, self.gpus = name, model, gpus
        self.hardware, self.source, self.inferred = hardware, source, inferred
        self._prefill, self._decode = prefill, decode
        self._work_s = prefill.work_s
        self._token_s = prefill.work_s(1)
        self._step_s = self._refuse if decode is None else decode.step_s

    @property
    def overhead_s(self) -> float:
        """What a pass with a prefill costs before its first token."""
        return self._prefill.overhead_s

    @property
    def decodes(self) -> bool:
        """Whether it knows decode times."""
        return self._decode is not None

    def prefill_s(self, cached_tokens: int, end_tokens: int) -> float:
        """A prompt of `end_tokens` alone, computed in one pass, with the KV of its first `cached_tokens` there.

        Nothing when nothing is left to compute. See the module `prefill` for what is between measured points.
        """
        if end_tokens <= cached_tokens:
            return 0.0
        return self._prefill.overhead_s + self._work_s(end_tokens) - self._work_s(cached_tokens)

    def decode_s(self, batch: int, context_tokens: int) -> float:
        """One decode pass of `batch` sequences; `context_tokens` is the sum over them. Nothing without sequences."""
        return self._step_s(batch, context_tokens) if batch > 0 else 0.0

    def pass_s(self, chunks: Sequence[tuple[int, int]], batch: int, context_tokens: int) -> float:
        """One forward pass: prefill chunks (start, stop), and one token for each of `batch` decoding sequences.

        The chunks of a pass share one overhead. Sequences that decode in the same pass ride along: the weights are
        read once, for the chunks, so that a token computed on the way costs what a token of a prompt costs, and only
        the reading of the sequences' KV comes on top, which is what a decode pass takes beyond the same pass without
        context. Together they take at least what either takes alone, and no more than one after the other.
        """
        work_s, prefill_s = self._work_s, 0.0
        for start, stop in chunks:
            if stop > start:
                prefill_s += work_s(stop) - work_s(start)
        if prefill_s == 0.0:
            return self.decode_s(batch, context_tokens)
        prefill_s += self._prefill.overhead_s
        if batch <= 0:
            return prefill_s
        decode_s = self._step_s(batch, context_tokens)
        riding_s = batch * self._token_s + decode_s - self._step_s(batch, 0)
        return max(prefill_s + min(riding_s, decode_s), decode_s)

    def _refuse(self, batch: int, context_tokens: int) -> float:
        raise ConfigError(
            f"profile {self.name}: it has no decode times, so a pass of {batch} decoding sequences with"
            f" {context_tokens} tokens of context cannot be timed; give it to workers that only prefill"
        )


def linear_profile(
    *,
    a_s: float,
    b_s: float,
    q_s: float = 0.0,
    decode_a_s: float,
    decode_b_s: float = 0.0,
    decode_c_s: float = 0.0,
    name: str = "linear",
    model: str = "",
) -> Profile:
    """A synthetic worker: `a_s + b_s*(n-c) + q_s*(n^2-c^2)`, and `decode_a_s + decode_b_s*batch + decode_c_s*context`.

    ValueError for coefficients with which work would cost nothing or less.

    >>> worker = linear_profile(a_s=0.01, b_s=1e-4, decode_a_s=0.02)
    >>> round(worker.prefill_s(500, 1500), 6), worker.decode_s(8, 4000)
    (0.11, 0.02)
    """
    prefill = LinearPrefill(a_s=a_s, b_s=b_s, q_s=q_s)
    decode = LinearDecode(a_s=decode_a_s, b_s=decode_b_s, c_s=decode_c_s)
    return Profile(prefill, decode, name=name, model=model)

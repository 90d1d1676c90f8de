"""What stands where a GPU would be: a batch, and how long it takes to run it so many times in a row."""

from dataclasses import dataclass
from math import ceil, floor, sqrt

from homing.workers.engine.step import Batch

from ..truth.profile import Profile

ROUNDING = 1e-9
"""In passes: a moment that is as good as the end of a pass is its end."""


@dataclass(slots=True)
class Run:
    """Passes in a row over one batch, the first of which takes `first_s`."""

    batch: Batch
    began_s: float
    passes: int
    first_s: float
    slope_s: float = 0.0
    """By how much each pass takes longer than the one before."""
    counted: int = 0
    """Of its passes, those that are in the worker's books."""

    def lasts_s(self, passes: int) -> float:
        """The time of so many of its passes."""
        return passes * self.first_s + self.slope_s * passes * (passes - 1) / 2

    def worst_s(self) -> float:
        """Its longest pass."""
        return max(self.first_s, self.first_s + self.slope_s * (self.passes - 1))

    def begun_by(self, now: float) -> int:
        """How many passes have begun: the last of them runs, or ends at this very moment."""
        return max(1, min(self.passes, ceil(self._passes_in(now - self.began_s) - ROUNDING)))

    def ended_by(self, now: float) -> int:
        """How many passes have ended."""
        return max(0, min(self.passes, floor(self._passes_in(now - self.began_s) + ROUNDING)))

    def _passes_in(self, elapsed_s: float) -> float:
        """The root of `lasts_s(x) = elapsed_s`, in the form that cancels nothing where the slope is small."""
        half = self.slope_s / 2
        linear = self.first_s - half
        return 2 * elapsed_s / (linear + sqrt(max(0.0, linear**2 + 4 * half * elapsed_s)))


def measured(batch: Batch, profile: Profile, now: float, *, slow_factor: float, exact: bool) -> Run:
    """How long a batch takes, and how many passes of it can be run through before anything else can happen.

    The time of a pass changes linearly over such a run, which is exact where decode time is linear in the context.
    """
    decoding = batch.decoding
    count = len(decoding)
    context = sum([sequence.present for sequence in decoding])
    if batch.chunks:
        spans = [(chunk.start, chunk.stop) for chunk in batch.chunks]
        return Run(batch, now, 1, slow_factor * profile.pass_s(spans, count, context))
    passes = 1 if exact else min([sequence.answer_tokens - sequence.generated for sequence in decoding])
    first_s = slow_factor * profile.decode_s(count, context)
    if passes == 1:
        return Run(batch, now, 1, first_s)
    last_s = slow_factor * profile.decode_s(count, context + count * (passes - 1))
    return Run(batch, now, passes, first_s, (last_s - first_s) / (passes - 1))

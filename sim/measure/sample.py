"""The requests of one run that count, as numpy columns; part of the extra `sim`.

Rule 1: latencies and shares are of the requests that arrived within the span, whenever they ended, so that a policy
cannot look better by finishing late; rates of work done are of those that finished within it.
Rule 2: in the order of arrival, because neighbours wait in the same queues and are not independent.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .records import RunResult
from .schema import Slo

Column = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Sample:
    """Columns over the requests that arrived within a run's span."""

    result: RunResult

    @cached_property
    def rows(self) -> Column:
        """Their places in the log, by arrival."""
        at_s = self.result.log.column("at_s")
        rows = np.flatnonzero((at_s >= self.result.from_s) & (at_s < self.result.to_s))
        return rows[np.argsort(at_s[rows], kind="stable")]

    @cached_property
    def finished(self) -> Column:
        """Whether each was answered to the end."""
        return self.is_named("outcome", "finished")

    def number(self, name: str) -> Column:
        """A number of each request."""
        return self.result.log.column(name)[self.rows]

    def is_named(self, field: str, name: str) -> Column:
        """Whether a field of each request holds a name."""
        codes, names = self.result.log.codes(field)
        held: Column = codes[self.rows] == (names.index(name) if name in names else len(names))
        return held

    def groups(self, field: str) -> dict[str, Column]:
        """Masks by the names in a field, sorted by name."""
        codes, names = self.result.log.codes(field)
        here = codes[self.rows]
        return {names[code]: here == code for code in sorted(np.unique(here), key=names.__getitem__)}

    def ids(self) -> list[str]:
        """The id of each request."""
        texts = self.result.log.texts("id")
        return [texts[row] for row in self.rows]

    def good(self, slo: Slo) -> Column:
        """Whether each finished within both SLOs; an answer of one token is within the second one."""
        slow = self.number("tpot_s") > slo.tpot_s
        kept: Column = self.finished & (self.number("ttft_s") <= slo.ttft_s) & ~slow
        return kept

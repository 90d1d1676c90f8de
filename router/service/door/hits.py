"""What the router foretold of prefix hits, beside what engines say they found."""

from collections.abc import Callable

from homing.router.core.types import WorkerId


class Hits:
    """Counts and passes on; `on_compared` is told the worker, the tokens foretold and the tokens found."""

    def __init__(self, on_compared: Callable[[WorkerId, int, int], None] | None = None) -> None:
        self.compared = 0
        self.agreed = 0
        self.predicted_tokens = 0
        self.found_tokens = 0
        self._on_compared = on_compared

    def compare(self, worker: WorkerId, predicted_tokens: int, found_tokens: int) -> None:
        """One answer told how many tokens of its prompt were cached."""
        self.compared += 1
        self.agreed += predicted_tokens == found_tokens
        self.predicted_tokens += predicted_tokens
        self.found_tokens += found_tokens
        if self._on_compared is not None:
            self._on_compared(worker, predicted_tokens, found_tokens)

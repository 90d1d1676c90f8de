"""The simulator against theory and publications, by running the simulated world.

Each validation yields checks; `validate` runs those that are named. The full versions take minutes and are to be run
before a release, the quick ones take seconds and find what is broken, not what is a percent off.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from homing.router.core.errors import ConfigError

from .check import Check, render
from .conservation import check_conservation
from .live import check_live
from .mooncake import check_mooncake
from .prfaas import check_prfaas
from .queueing import check_queues

__all__ = ["VALIDATIONS", "Check", "render", "validate"]

VALIDATIONS = {
    "queueing": "M/M/1, M/D/1 and M/M/c: mean waits against closed formulas",
    "mooncake": "reuse of the conversation trace, and the order of four scheduling rules in figure 5",
    "prfaas": "sustained rates of table 6, and of narrower links, against the analytic model",
    "live": "the demo's fleet and requests, as recorded live: TTFT and plans",
    "conservation": "all invariants after every event, through faults",
}
"""What can be validated."""


def validate(
    names: Sequence[str] = (),
    *,
    quick: bool = False,
    progress: Callable[[str], None] = lambda text: None,
    trace: Path | None = None,
) -> list[Check]:
    """Run validations, all without names; `progress` is told what runs.

    `trace` is the whole conversation trace of Mooncake (kvcache-ai/Mooncake, FAST25-release/traces): without it the
    first ten minutes, which are part of the package, stand for it, and its published ratios are left out. ConfigError
    for a name that is none and for a trace that is not there.
    """
    for name in names:
        if name not in VALIDATIONS:
            raise ConfigError(f"validate: no validation is named {name!r}; known are {', '.join(VALIDATIONS)}")
    if trace is not None and not trace.is_file():
        raise ConfigError(f"trace: expected a file, found none at {trace}; correct it or leave it out")
    run: dict[str, Callable[..., Iterator[Check]]] = {
        "queueing": check_queues,
        "mooncake": partial(check_mooncake, trace=trace),
        "prfaas": check_prfaas,
        "live": check_live,
        "conservation": check_conservation,
    }
    chosen = names or tuple(VALIDATIONS)
    return [check for name in dict.fromkeys(chosen) for check in run[name](quick=quick, progress=progress)]

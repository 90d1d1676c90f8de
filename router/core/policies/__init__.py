"""How a worker is chosen: one rule per file, all behind one call.

Rule 1: a policy only chooses. It books nothing, and of the fleet it sees what the question tells.
Rule 2: randomness is handed in, and ties go to the smaller worker number, so that a seed decides a run.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import Protocol, runtime_checkable

from ..commands import Command
from ..errors import ConfigError
from ..events import Event
from ..planner import Homing
from ..question import Question
from ..types import Plan
from .least_loaded import LeastLoaded
from .longest_prefix import LongestPrefix
from .power_of_two import PowerOfTwo
from .randomly import Randomly
from .round_robin import RoundRobin
from .session_hash import SessionHash


class Policy(Protocol):
    """A rule for choosing plans."""

    name: str

    def choose(self, question: Question, random: Random) -> list[Plan]:
        """Plans in order of preference, the first is carried out; empty when no worker may take the request."""
        ...


@runtime_checkable
class Observing(Protocol):
    """A policy that remembers: it is told every event after the scheduler has taken it in, with what came of it."""

    def observe(self, event: Event, commands: Sequence[Command], now: float) -> None:
        """Take note of what happened; answers nothing and books nothing."""
        ...


POLICIES: dict[str, Callable[[], Policy]] = {
    policy.name: policy
    for policy in (Homing, LeastLoaded, LongestPrefix, PowerOfTwo, Randomly, RoundRobin, SessionHash)
}


def make_policy(name: str) -> Policy:
    """A fresh policy by its name; an unknown name is a ConfigError that lists the known ones."""
    make = POLICIES.get(name)
    if make is None:
        raise ConfigError(f"policy.name: unknown policy {name!r}; known are {', '.join(sorted(POLICIES))}")
    return make()

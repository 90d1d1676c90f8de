"""How a worker is chosen: one rule per file, all behind one call.

Rule 1: a policy only chooses. It books nothing, and of the fleet it sees what the question tells.
Rule 2: randomness is handed in, and ties go to the smaller worker number unless the rule's source draws them, so that a
seed decides a run.
Rule 3: a policy that is somebody else's rule sees no more than that somebody, has its published defaults, and says in
its docstring where it is from, what it sees and what is inferred.
Rule 4: what a policy remembers is bounded, and what it remembers of a request is released on every end.
"""

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Protocol, runtime_checkable

from ..commands import Command
from ..errors import ConfigError
from ..events import Event
from ..question import Question
from ..types import Plan, Role, WorkerId
from .dynamo_kv import DynamoKv
from .gorgo import Gorgo
from .homing import Homing
from .least_loaded import LeastLoaded
from .llm_d_p2p import LlmDP2p
from .llm_d_precise import LlmDPrecise
from .lmetric import LMetric
from .longest_prefix import LongestPrefix
from .mooncake_alg1 import MooncakeAlg1
from .options import check_options
from .power_of_two import PowerOfTwo
from .preble import Preble
from .prfaas_threshold import PrfaasThreshold
from .prfaas_two_timescale import PrfaasTwoTimescale
from .randomly import Randomly
from .round_robin import RoundRobin
from .session_hash import SessionHash
from .sglang_cache_aware import SglangCacheAware
from .skywalker import SkyWalker
from .smg_cache_aware import SmgCacheAware


class Policy(Protocol):
    """A rule for choosing plans."""

    name: str

    def choose(self, question: Question, random: Random) -> list[Plan]:
        """Plans in order of preference, the first is carried out; empty when the request is to wait: no worker may take
        it, or none shall yet. It is asked again when something ended, joined or reported less.
        """
        ...


@runtime_checkable
class Observing(Protocol):
    """A policy that remembers: it is told every event after the scheduler has taken it in, with what came of it."""

    def observe(self, event: Event, commands: Sequence[Command], now: float) -> None:
        """Take note of what happened; answers nothing and books nothing."""
        ...


@runtime_checkable
class Rebalancing(Protocol):
    """A policy that would have workers change their roles: it is asked from time to time, whoever can does it.

    A worker changes its role by being drained, lost, and joining anew with the other role. The policy takes nothing for
    granted: what became of a wish it sees from who joins.
    """

    def wishes(self, now: float) -> list[tuple[WorkerId, Role, str]]:
        """Which worker should take which role, and why; each wish is told once."""
        ...


@runtime_checkable
class Foreseeing(Protocol):
    """A policy that can be asked a hypothetical question and remembers nothing of it (`Question.hypothetical`)."""

    foresees: bool


POLICIES: dict[str, Callable[..., Policy]] = {
    policy.name: policy
    for policy in (
        Homing,
        DynamoKv,
        Gorgo,
        LeastLoaded,
        LlmDP2p,
        LlmDPrecise,
        LMetric,
        LongestPrefix,
        MooncakeAlg1,
        PowerOfTwo,
        Preble,
        PrfaasThreshold,
        PrfaasTwoTimescale,
        Randomly,
        RoundRobin,
        SessionHash,
        SglangCacheAware,
        SkyWalker,
        SmgCacheAware,
    )
}


def make_policy(name: str, options: Mapping[str, object] | None = None, *, where: str = "policy") -> Policy:
    """A fresh policy by its name, with these options of its constructor; `where` begins every error.

    An unknown name is a ConfigError that lists the known ones, and so is an option that is unknown or does not fit.
    """
    make = POLICIES.get(name)
    if make is None:
        raise ConfigError(f"{where}.name: unknown policy {name!r}; known are {', '.join(sorted(POLICIES))}")
    return make(**check_options(name, make, options or {}, where))

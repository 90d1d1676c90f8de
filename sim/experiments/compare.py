"""Policies beside each other: each with each seed, on all cores, in an order that does not depend on them.

Rule 1: every policy sees the same scenario and the same seeds; the options in the file are those of the file's policy,
all others run with their published defaults.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import replace
from typing import Any

import msgspec

from homing.router.core.errors import ConfigError
from homing.router.core.policies import POLICIES

from ..measure.records import RunResult
from .executors import executor
from .load import Experiment, load
from .run import run

Done = Callable[[RunResult, int, int], None]
"""Called with each result as it comes, and how many there are, of how many."""

ALL = "all"


def experiments(
    name: str, policies: Sequence[str], seeds: Sequence[int], changes: Mapping[str, Any] | None = None
) -> list[Experiment]:
    """One experiment per policy and seed, policies first; ConfigError for a scenario or a policy that is wrong.

    `all` among the policies stands for all there are, Homing's own first.
    """
    named = list(dict.fromkeys(one for policy in policies for one in _meant(policy)))
    if not named or not seeds:
        raise ConfigError("--policies, --seeds: expected at least one of each, such as homing,least-loaded and 0,1,2")
    whole = load(name, changes)
    return [_with(whole, policy, seed) for policy in named for seed in dict.fromkeys(seeds)]


def compare(
    asked: Sequence[Experiment], *, on: str = "", processes: int | None = None, done: Done | None = None
) -> list[RunResult]:
    """The results, in the order of what was asked; `on` and `processes` as `executor` has them."""
    found: dict[int, RunResult] = {}
    with executor(on, processes) as where:
        numbers = {where.submit(run, experiment): number for number, experiment in enumerate(asked)}
        for future in as_completed(numbers):
            found[numbers[future]] = future.result()
            if done is not None:
                done(found[numbers[future]], len(found), len(asked))
    return [found[number] for number in range(len(asked))]


def _meant(policy: str) -> Iterator[str]:
    if policy == ALL:
        yield from POLICIES
    elif policy in POLICIES:
        yield policy
    else:
        raise ConfigError(f"--policies: unknown policy {policy!r}; known are {ALL}, {', '.join(sorted(POLICIES))}")


def _with(whole: Experiment, policy: str, seed: int) -> Experiment:
    router = whole.scenario.router
    options = router.options if policy == router.policy else {}
    router = msgspec.structs.replace(router, policy=policy, options=options)
    return replace(whole, scenario=msgspec.structs.replace(whole.scenario, router=router, seed=seed))

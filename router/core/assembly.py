"""A scheduler and all that it believes at first, made from plain data: for the live router and for simulations."""

from collections.abc import Iterable, Mapping
from random import Random

from .limits import Limits
from .policies import make_policy
from .scheduler import Scheduler
from .tolls import Tolls
from .topology import Topology
from .types import Link, ModelProfile, Site


def make_scheduler(
    *,
    models: Iterable[ModelProfile],
    links: Iterable[Link],
    site: Site,
    policy: str,
    options: Mapping[str, object] | None = None,
    random: Random,
    limits: Limits | None = None,
    dollars_per_s: float = 0.0,
) -> Scheduler:
    """The core of one router at `site`; `options` are the policy's own.

    Raises ConfigError for an unknown policy or option.
    """
    return Scheduler(
        models=models,
        topology=Topology(links),
        policy=make_policy(policy, options),
        random=random,
        site=site,
        limits=limits,
        tolls=Tolls(dollars_per_s=dollars_per_s),
    )

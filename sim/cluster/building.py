"""From a scenario's sections to the parts of a world, and to what the router is told of them at first."""

from collections.abc import Iterable, Iterator
from random import Random
from typing import TYPE_CHECKING

from homing.router.core.assembly import make_scheduler
from homing.router.core.errors import ConfigError
from homing.router.core.events import PrefillMeasured
from homing.router.core.limits import Limits
from homing.router.core.scheduler import Scheduler
from homing.router.core.types import Link, ModelName, ModelProfile, Role, Site, Worker, WorkerId

from ..scenario import LinearSection, ModelSection, Scenario, WorkerSection
from ..truth.catalogue import shape_of
from ..truth.files import load_profile
from ..truth.profile import Profile, linear_profile
from .tiers import LowerTiers
from .worker import SimulatedWorker

if TYPE_CHECKING:
    from .world import World

CALIBRATED = ((0, 512), (0, 2048), (0, 8192), (8192, 16_384), (0, 32_768))
"""Prefills that a worker times of itself before it joins, as live workers do: (cached, end) tokens."""


def model_profiles(scenario: Scenario) -> list[ModelProfile]:
    """What the router knows of each model."""
    size = scenario.workload.block_tokens
    return [_model_profile(number, section, size) for number, section in enumerate(scenario.models)]


def _model_profile(number: int, section: ModelSection, block_tokens: int) -> ModelProfile:
    try:
        known = None if section.shape is None else shape_of(section.shape)
    except ConfigError as error:
        raise ConfigError(f"models[{number}].shape: {error}") from error
    bytes_per_token = section.bytes_per_token or (known and known.bytes_per_token)
    if not bytes_per_token:
        raise ConfigError(f"models[{number}]: give a shape, or bytes_per_token")
    state_bytes = section.state_bytes if section.state_bytes is not None else (known.state_bytes if known else 0)
    return ModelProfile(
        name=ModelName(section.name),
        block_tokens=block_tokens,
        bytes_per_token=bytes_per_token,
        state_bytes=state_bytes,
        layers=section.layers or (known.layers if known else 1),
        context_tokens=section.context_tokens,
    )


def links_believed(scenario: Scenario) -> Iterator[Link]:
    """What the operator would write into the router's file."""
    for section in scenario.links:
        for spec in section.specs():
            yield Link(
                source=Site(spec.source),
                target=Site(spec.target),
                rtt_s=section.rtt_s if section.believed_rtt_s is None else section.believed_rtt_s,
                bytes_per_s=section.believed_bytes_per_s or section.bytes_per_s,
                price_per_gb=spec.price_per_gb,
            )


def router_core(scenario: Scenario, models: Iterable[ModelProfile], random: Random) -> Scheduler:
    """A router's core that knows what its operator knows. Raises ConfigError for an unknown policy or option."""
    router = scenario.router
    limits = Limits(
        queue_max=router.queue_max,
        retries_max=router.retries_max,
        lost_after_s=router.lost_after_s,
        lease_s=router.lease_s,
        reject_early=router.reject_early,
    )
    return make_scheduler(
        models=models,
        links=links_believed(scenario),
        site=Site(router.site or scenario.sites[0].name),
        policy=router.policy,
        options=router.options,
        random=random,
        limits=limits,
        dollars_per_s=router.dollars_per_s,
    )


def build_workers(scenario: Scenario, world: "World") -> dict[WorkerId, SimulatedWorker]:
    """All workers, with their network cards."""
    workers: dict[WorkerId, SimulatedWorker] = {}
    for section in scenario.workers:
        profile = profile_of(section)
        for number in range(1, section.count + 1):
            worker = _build_worker(section, f"{section.name}-{number}", profile, world)
            workers[worker.facts.id] = worker
            world.sections[worker.facts.id] = section
    return workers


def profile_of(section: WorkerSection) -> Profile:
    """The truth about a group's speed."""
    if isinstance(section.profile, LinearSection):
        given = section.profile
        return linear_profile(
            a_s=given.a_s,
            b_s=given.b_s,
            q_s=given.q_s,
            decode_a_s=given.decode_a_s,
            decode_b_s=given.decode_b_s,
            decode_c_s=given.decode_c_s,
        )
    return load_profile(section.profile)


def _build_worker(section: WorkerSection, name: str, profile: Profile, world: "World") -> SimulatedWorker:
    model = world.models[ModelName(section.model)]
    size = model.block_tokens
    facts = Worker(
        id=WorkerId(name),
        model=model.name,
        role=Role(section.role),
        site=Site(section.site),
        block_tokens=size,
        kv_blocks_max=max(1, section.kv_tokens // size),
        requests_max=section.requests_max,
    )
    for way in ("in", "out"):
        world.network.add_resource(f"{name}/{way}", section.nic_bytes_per_s)
    tiers = LowerTiers.of(section, name, world) if section.host_tokens or section.disk_tokens else None
    return SimulatedWorker(
        facts,
        profile,
        world.kernel,
        world,
        step_tokens_max=section.step_tokens_max,
        sequences_max=section.sequences_max or section.requests_max,
        itl=world.itl,
        report_every_s=world.scenario.router.report_every_s,
        tiers=tiers,
        exact=world.scenario.exact,
    )


def calibration(worker: SimulatedWorker) -> list[PrefillMeasured]:
    """What a worker measured of itself, alone, before it joined."""
    return [
        PrefillMeasured(
            worker_id=worker.facts.id,
            cached_tokens=cached,
            end_tokens=end,
            seconds=worker.profile.pass_s([(cached, end)], 0, 0),
        )
        for cached, end in CALIBRATED
        if worker.facts.role.can_prefill or cached == 0
    ]

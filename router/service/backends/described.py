"""What an engine is to the fleet: of what it says of itself and what the file says of it, the file counts."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from homing.router.actuators.types import Actuator
from homing.router.core.errors import ConfigError
from homing.router.core.types import ModelName, ModelProfile, PrefillPrior, Role, Site, Worker, WorkerId
from homing.router.engines.types import EngineFacts, EngineKind, KvSource, ServedModel

from ..config import Config
from ..sections import BLOCK_TOKENS, BackendSection, KvEventsSection, PriorSection
from .endpoint import Alias

CONTEXT_TOKENS: Final = 1 << 20
"""Of an engine that does not say how long a prompt may be: it refuses by itself what is too long."""
KV_BLOCKS: Final = 4096
"""Of an engine that does not say how large its cache is."""
REQUESTS: Final = 256
"""Of an engine that does not say how many requests it takes at once."""
OVERCOMMIT: Final = 4
"""An engine shares prefixes between requests and makes those wait for which there is no room: it is given more than
would fit if each request needed all its blocks for itself."""
_GIVES_USAGE: Final = frozenset({EngineKind.VLLM, EngineKind.SGLANG, EngineKind.LLAMA_CPP})


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """The workers that an engine is, one per rank, and what belongs to all of them."""

    workers: tuple[Worker, ...]
    profile: ModelProfile
    aliases: Mapping[str, Alias]
    kv_blocks_max: int
    kv_sources: Mapping[int, KvSource]
    headers: Mapping[str, str]
    gives_usage: bool


def describe(
    section: BackendSection,
    facts: EngineFacts,
    config: Config,
    known: Mapping[ModelName, ModelProfile],
    actuator: Actuator | None,
) -> Description:
    """Make workers of an engine; ConfigError for what cannot be, with the place in the file that would mend it."""
    bases = [model for model in facts.models if model.lora_of is None]
    if not bases:
        raise ConfigError(f"backends: {section.name}: {section.url} serves no model")
    base = bases[0]
    sources = sources_of(section, facts)
    profile = _profile(section, facts, base, config, known, actuator)
    kv_blocks_max = section.kv_blocks_max or facts.kv_blocks_max or KV_BLOCKS
    workers = tuple(
        Worker(
            id=WorkerId(section.name if facts.ranks == 1 else f"{section.name}/dp{rank}"),
            model=profile.name,
            role=Role(section.role),
            site=Site(section.site or config.router.site),
            block_tokens=profile.block_tokens,
            kv_blocks_max=kv_blocks_max * OVERCOMMIT,
            requests_max=section.requests_max or facts.requests_max or REQUESTS,
            prior=_prior(section.prior),
            transport="" if actuator is None else actuator.name,
            plans=frozenset() if actuator is None else actuator.plans,
            ships_whole=actuator is not None and actuator.ships_whole,
        )
        for rank in range(facts.ranks)
    )
    return Description(
        workers=workers,
        profile=profile,
        aliases=_aliases(facts.models, profile.name),
        kv_blocks_max=kv_blocks_max,
        kv_sources=sources,
        headers=credentials(section),
        gives_usage=facts.kind in _GIVES_USAGE,
    )


def sources_of(section: BackendSection, facts: EngineFacts) -> Mapping[int, KvSource]:
    """Where each rank tells of its cache: as the file says, or as the engine does."""
    if section.kv_events == "off":
        return {}
    if section.kv_events == "auto":
        return {source.rank: source for source in facts.kv_sources}
    given = section.kv_events if isinstance(section.kv_events, tuple) else (section.kv_events,)
    return {each.rank: _source(each) for each in given}


def _source(section: KvEventsSection) -> KvSource:
    return KvSource(
        rank=section.rank,
        endpoint=section.endpoint,
        replay_endpoint=section.replay_endpoint,
        topic=section.topic,
        bind=section.bind,
    )


def _profile(
    section: BackendSection,
    facts: EngineFacts,
    base: ServedModel,
    config: Config,
    known: Mapping[ModelName, ModelProfile],
    actuator: Actuator | None,
) -> ModelProfile:
    """The model as the fleet knows it; the first of its engines tells what the file leaves out."""
    told = config.model(base.name)
    block_tokens = section.block_tokens or (told and told.block_tokens) or facts.block_tokens or BLOCK_TOKENS
    if actuator is not None and (told is None or told.bytes_per_token is None):
        raise ConfigError(
            f"models: {base.name}: bytes_per_token is missing; {section.name} moves KV, which is priced by its bytes "
            "per token: 2 * layers * KV heads * head dimension * bytes per number"
        )
    before = known.get(ModelName(base.name))
    if before is not None:
        if before.block_tokens != block_tokens:
            raise ConfigError(
                f"backends: {section.name}: its blocks are of {block_tokens} tokens, those of {base.name} elsewhere of "
                f"{before.block_tokens}; give all its engines one block size, or serve it under another name"
            )
        return before
    return ModelProfile(
        name=ModelName(base.name),
        block_tokens=block_tokens,
        bytes_per_token=(told and told.bytes_per_token) or 1,
        state_bytes=told.state_bytes if told else 0,
        layers=(told and told.layers) or 1,
        context_tokens=(told and told.context_tokens) or base.context_tokens or CONTEXT_TOKENS,
        vocabulary_tokens=told.vocabulary_tokens if told else None,
        kv_group=told.kv_group if told else "",
    )


def _aliases(models: tuple[ServedModel, ...], base: ModelName) -> dict[str, Alias]:
    return {model.name: Alias(base, model.name if model.lora_of is not None else "") for model in models}


def _prior(section: PriorSection | None) -> PrefillPrior:
    return PrefillPrior() if section is None else PrefillPrior(a_s=section.a_s, b_s=section.b_s, q_s=section.q_s)


def check(section: BackendSection) -> None:
    """What the rules of single keys do not say. Raises ConfigError."""
    where = f"backends: {section.name}"
    try:
        address = urlsplit(section.url)
        address.port  # noqa: B018 - reading it checks it
    except ValueError as error:
        raise ConfigError(f"{where}.url: {section.url}: {error}") from None
    if "@" in address.netloc:
        raise ConfigError(
            "backends: url: holds a user or a password, which would be shown to all who ask for the fleet; put the key "
            "into the environment and name it in api_key_env"
        )
    if section.role_problem:
        raise ConfigError(f"{where}.{section.role_problem}")
    credentials(section)


def credentials(section: BackendSection) -> dict[str, str]:
    """The key of an engine out of the environment, where keys belong."""
    if section.api_key_env is None:
        return {}
    key = os.environ.get(section.api_key_env)
    if not key:
        raise ConfigError(
            f"backends: {section.name}: api_key_env names {section.api_key_env}, which is not set in the environment"
        )
    return {"authorization": f"Bearer {key}"}

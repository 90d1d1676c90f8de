"""All ways of moving KV by name, made from the options of a configuration file and checked against its workers."""

from collections.abc import Callable, Mapping
from functools import partial
from random import Random

from homing.router.core.errors import ConfigError
from homing.router.core.policies.options import check_options
from homing.router.core.types import Role

from .homing import HomingKv
from .llama_cpp import LlamaCpp
from .llm_d import LlmD
from .lmcache import LmCache, LmCacheHandover
from .mooncake import Mooncake
from .nixl import Nixl
from .offloading_p2p import OffloadingP2P
from .sglang import SGLang
from .trtllm import TensorRtLlm
from .types import Actuator

_PLAIN: tuple[type[HomingKv | LlamaCpp | LlmD | LmCache | Nixl], ...] = (HomingKv, LlamaCpp, LlmD, LmCache, Nixl)
_RANDOM: tuple[type[LmCacheHandover | Mooncake | OffloadingP2P | SGLang | TensorRtLlm], ...] = (
    LmCacheHandover,
    Mooncake,
    OffloadingP2P,
    SGLang,
    TensorRtLlm,
)

ACTUATORS = tuple(sorted(kind.name for kind in (*_PLAIN, *_RANDOM)))
"""The names that a configuration may give as a worker's transport."""


def make_actuator(name: str, options: Mapping[str, object], random: Random, where: str = "actuator") -> Actuator:
    """The actuator of a name; `where` is its place in the file. A wrong name or option is a ConfigError."""
    makers: dict[str, Callable[..., Actuator]] = {kind.name: kind for kind in _PLAIN}
    made = {kind.name: partial(kind, random) for kind in _RANDOM}
    make = (makers | made).get(name)
    if make is None:
        raise ConfigError(f"{where}: unknown connector {name!r}; known are {', '.join(ACTUATORS)}")
    return make(**check_options(name, make, options, where))


def check_kv(actuator: Actuator, role: Role, kv: Mapping[str, str], where: str) -> None:
    """A worker's addresses are those that its actuator needs or knows; the first that is not is a ConfigError."""
    concerned = {
        Role.PREFILL: role.can_prefill,
        Role.DECODE: role.can_decode,
        Role.BOTH: True,
    }[actuator.kv_role]
    missing = sorted(actuator.kv_keys - kv.keys()) if concerned else []
    if missing:
        raise ConfigError(f"{where}.kv.{missing[0]}: missing; {actuator.name} needs it of this worker")
    known = actuator.kv_keys | actuator.kv_optional
    for key in kv:
        if key.partition("_from:")[0] not in known:
            listed = f"known are {', '.join(sorted(known))}" if known else "it knows none"
            raise ConfigError(f"{where}.kv.{key}: {actuator.name} knows no such address; {listed}")

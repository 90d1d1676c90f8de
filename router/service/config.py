"""The configuration file: YAML into typed structures, unknown keys refused, errors that name the path.

One file describes a deployment. `homing serve` reads its router, sites, links, models and policy; `homing worker --id`
reads the entry of that worker.
"""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml
from msgspec import Meta

from homing.router.core.errors import ConfigError
from homing.router.core.limits import Limits
from homing.router.core.policies import make_policy
from homing.router.core.types import Link, ModelName, ModelProfile, Site

Positive = Annotated[float, Meta(gt=0, le=1e18)]
NotNegative = Annotated[float, Meta(ge=0, le=1e18)]
Count = Annotated[int, Meta(ge=1)]
Name = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$")]
Address = Annotated[str, Meta(pattern=r"^(\[[0-9A-Fa-f:.]+\]|[^:\s]+):[0-9]{1,5}$")]


BLOCK_TOKENS = 16
"""The block size of a model for which neither the file nor a worker names one."""


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of the file; a key that it does not know is an error."""


class RouterSection(_Section, frozen=True):
    """The router process. Addresses bind to loopback unless told otherwise."""

    site: Name = "home"
    listen: Address = "127.0.0.1:7070"
    http: Address = "127.0.0.1:7071"
    queue_max: Count = 1024
    retries_max: Annotated[int, Meta(ge=0, le=20)] = 3
    lost_after_s: Positive = 5.0
    lease_s: Positive = 900.0
    reject_early: bool = False
    request_timeout_s: Positive = 600.0
    first_token_timeout_s: Positive = 300.0
    drain_s: NotNegative = 30.0
    decisions_kept: Count = 10_000
    journal: Annotated[str, Meta(min_length=1)] | None = None
    log: Literal["console", "json"] = "console"


class SiteSection(_Section, frozen=True):
    """A place where workers stand: a cluster, a datacentre."""

    name: Name


class LinkSection(_Section, frozen=True):
    """What is believed of the way from one site to another until it was measured."""

    source: Name
    target: Name
    bytes_per_s: Positive
    rtt_s: NotNegative
    price_per_gb: NotNegative = 0.0
    both_ways: bool = True


class ModelSection(_Section, frozen=True):
    """A model that may be asked for.

    What workers can tell themselves (KV size, layers, context) may be left out: the first worker that joins tells it.
    With `bytes_per_token` the model is known before any worker joins. What is given here wins over what workers tell,
    but for `block_tokens`, in which they must agree. `tokenizer` names what `source` names of a worker, and is needed
    only for prompts that come as text.
    """

    name: Name
    block_tokens: Count | None = None
    bytes_per_token: Count | None = None
    state_bytes: Annotated[int, Meta(ge=0)] = 0
    layers: Count | None = None
    context_tokens: Count | None = None
    vocabulary_tokens: Count | None = None
    kv_group: str = ""
    tokenizer: str | None = None


class PolicySection(_Section, frozen=True):
    """How plans are chosen; `options` are those of the named policy."""

    name: str = "homing"
    seed: int = 0
    dollars_per_s: NotNegative = 0.0
    options: dict[str, bool | int | float | str | None] = {}


class PriorSection(_Section, frozen=True):
    """First guess of prefill_s(c, n) = a + b*(n-c) + q*(n^2-c^2)."""

    a_s: NotNegative
    b_s: Positive
    q_s: NotNegative


class WorkerSection(_Section, frozen=True):
    """One worker process, as `homing worker --id` starts it."""

    id: Name
    site: Name
    model: Name
    source: str
    role: Literal["prefill", "decode", "both"] = "both"
    listen: Address = "127.0.0.1:0"
    advertise_host: str | None = None
    data_port: Annotated[int, Meta(ge=0, le=65535)] = 0
    routers: tuple[Address, ...] = ()
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "cpu"
    threads: Count = 1
    block_tokens: Count = BLOCK_TOKENS
    kv_blocks_max: Count = 1024
    requests_max: Count = 16
    step_tokens_max: Count = 256
    connections: Annotated[int, Meta(ge=1, le=16)] = 1
    congestion: str | None = None
    inline: bool = False
    calibrate: bool = True
    prior: PriorSection | None = None
    address_from: dict[Name, Address] = {}
    data_address_from: dict[Name, Address] = {}


class Config(_Section, frozen=True):
    """The whole file."""

    router: RouterSection = RouterSection()
    sites: tuple[SiteSection, ...] = ()
    links: tuple[LinkSection, ...] = ()
    models: tuple[ModelSection, ...] = ()
    policy: PolicySection = PolicySection()
    workers: tuple[WorkerSection, ...] = ()

    def worker(self, worker_id: str) -> WorkerSection:
        """One worker's section; an unknown id is a ConfigError that lists the known ones."""
        for section in self.workers:
            if section.id == worker_id:
                return section
        known = ", ".join(section.id for section in self.workers) or "none"
        raise ConfigError(f"workers: no worker has the id {worker_id!r}; known are {known}")

    def directions(self) -> list[Link]:
        """The links as the core believes them at first, one direction each."""
        return [link for section in self.links for link in _links(section)]

    def limits(self) -> Limits:
        """The core's bounds."""
        return Limits(
            queue_max=self.router.queue_max,
            retries_max=self.router.retries_max,
            lost_after_s=self.router.lost_after_s,
            lease_s=self.router.lease_s,
            reject_early=self.router.reject_early,
        )

    def model(self, name: str) -> ModelSection | None:
        """One model's section, if it has one."""
        return next((section for section in self.models if section.name == name), None)

    def profiles(self) -> list[ModelProfile]:
        """Models that are described well enough without any worker."""
        return [
            ModelProfile(
                name=ModelName(section.name),
                block_tokens=section.block_tokens or BLOCK_TOKENS,
                bytes_per_token=section.bytes_per_token,
                state_bytes=section.state_bytes,
                layers=section.layers or 1,
                context_tokens=section.context_tokens or 8192,
                vocabulary_tokens=section.vocabulary_tokens,
                kv_group=section.kv_group,
            )
            for section in self.models
            if section.bytes_per_token is not None
        ]


def load_config(path: Path) -> Config:
    """Read and check a file; raises ConfigError with the path in the file, the rule and what was found."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text: {error}") from error
    return parse_config(text, where=str(path))


def parse_config(text: str, *, where: str = "config") -> Config:
    """Decode and check the text of a file; `where` begins every error.

    >>> parse_config("links: [{source: a, target: b, bytes_per_s: -1, rtt_s: 0}]")
    Traceback (most recent call last):
    ...
    homing.router.core.errors.ConfigError: config: links[0].bytes_per_s: expected a number above 0, got -1
    """
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: is not YAML: {error}") from error
    data = {} if data is None else data
    try:
        config = msgspec.convert(data, type=Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {_explain(str(error), data)}") from error
    for problem in _contradictions(config):
        raise ConfigError(f"{where}: {problem}")
    return config


def _links(section: LinkSection) -> Iterable[Link]:
    pairs = [(section.source, section.target)]
    if section.both_ways:
        pairs.append((section.target, section.source))
    for source, target in pairs:
        yield Link(
            source=Site(source),
            target=Site(target),
            rtt_s=section.rtt_s,
            bytes_per_s=section.bytes_per_s,
            price_per_gb=section.price_per_gb,
        )


def _contradictions(config: Config) -> Iterable[str]:
    """What is well formed and still cannot be meant."""
    lists = {
        "sites": [section.name for section in config.sites],
        "models": [section.name for section in config.models],
        "workers": [section.id for section in config.workers],
    }
    for path, names in lists.items():
        for name, count in Counter(names).items():
            if count > 1:
                yield f"{path}: {name!r} is listed {count} times; each is listed once"
    try:
        make_policy(config.policy.name, config.policy.options)
    except ConfigError as error:
        yield str(error)
    if config.sites:
        yield from _unknown_sites(config)


def _unknown_sites(config: Config) -> Iterable[str]:
    sites = {section.name for section in config.sites}
    mentioned = [("router.site", config.router.site)]
    for position, link in enumerate(config.links):
        mentioned += [(f"links[{position}].source", link.source), (f"links[{position}].target", link.target)]
    mentioned += [(f"workers[{position}].site", worker.site) for position, worker in enumerate(config.workers)]
    for path, name in mentioned:
        if name not in sites:
            yield f"{path}: unknown site {name!r}; sites lists {', '.join(sorted(sites))}"


_BOUND = re.compile(r"Expected `(?:float|int)` (?P<rule>>=|>|<=|<) (?P<bound>[-0-9.]+)")
_RULES = {">": "above", ">=": "at least", "<": "below", "<=": "at most"}


def _explain(message: str, data: Any) -> str:
    """`path: expected ..., got ...` out of msgspec's own words."""
    text, _, path = message.partition(" - at `$")
    path = path.rstrip("`").lstrip(".")
    found = _at(data, path)
    bound = _BOUND.match(text)
    if bound is not None:
        number = bound["bound"].removesuffix(".0")
        return f"{path}: expected a number {_RULES[bound['rule']]} {number}, got {found!r}"
    unknown = re.match(r"Object contains unknown field `(?P<key>.+)`", text)
    if unknown is not None:
        return f"{path + '.' if path else ''}{unknown['key']}: unknown key; remove it or correct its name"
    missing = re.match(r"Object missing required field `(?P<key>.+)`", text)
    if missing is not None:
        return f"{path + '.' if path else ''}{missing['key']}: missing; it has no default"
    if text.startswith("Expected `float`") and isinstance(found, str) and _reads_as_number(found):
        return (
            f"{path}: expected a number, got the text {found!r}; YAML wants an exponent with a dot and a sign: 1.0e+9"
        )
    if "matching regex" in text:
        shape = "host:port" if ":[0-9]{1,5}$" in text else "a name of letters, digits and . _ : / -"
        return f"{path}: expected {shape}, got {found!r}"
    text = text[:1].lower() + text[1:]
    return f"{path or 'file'}: {text}" + (f", got {found!r}" if isinstance(found, str | int | float) else "")


def _reads_as_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _at(data: Any, path: str) -> Any:
    """What stands at `a.b[2].c` in the decoded YAML; None if it cannot be followed."""
    for key, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
        try:
            data = data[int(index)] if index else data[key]
        except (KeyError, IndexError, TypeError):
            return None
    return data

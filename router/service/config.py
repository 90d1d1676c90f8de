"""The configuration file: YAML into typed structures, unknown keys refused, errors that name the path.

One file describes a deployment. `homing serve` reads its router, sites, links, models and policy; `homing worker --id`
reads the entry of that worker.
"""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import yaml

from homing.router.core.errors import ConfigError
from homing.router.core.limits import Limits
from homing.router.core.policies import make_policy
from homing.router.core.types import Link, ModelName, ModelProfile, Site

from .sections import (
    BLOCK_TOKENS,
    BackendSection,
    LinkSection,
    ModelSection,
    PolicySection,
    RouterSection,
    Section,
    SiteSection,
    WorkerSection,
)


class Config(Section, frozen=True):
    """The whole file."""

    router: RouterSection = RouterSection()
    sites: tuple[SiteSection, ...] = ()
    links: tuple[LinkSection, ...] = ()
    models: tuple[ModelSection, ...] = ()
    policy: PolicySection = PolicySection()
    workers: tuple[WorkerSection, ...] = ()
    backends: tuple[BackendSection, ...] = ()

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
        """Models that are described well enough without any worker; engines tell what the file leaves out of theirs."""
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
            and not (self.backends and (section.block_tokens is None or section.context_tokens is None))
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


def parse_backend(data: Any, *, where: str = "backend") -> BackendSection:
    """Check one entry of `backends` that came from elsewhere; ConfigError as for a file."""
    try:
        return msgspec.convert(data, type=BackendSection)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {_explain(str(error), data)}") from error


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
        "backends": [section.name for section in config.backends],
    }
    for path, names in lists.items():
        for name, count in Counter(names).items():
            if count > 1:
                yield f"{path}: {name!r} is listed {count} times; each is listed once"
    try:
        make_policy(config.policy.name, config.policy.options)
    except ConfigError as error:
        yield str(error)
    for position, backend in enumerate(config.backends):
        if backend.role_problem:
            yield f"backends[{position}].{backend.role_problem}"
    if config.sites:
        yield from _unknown_sites(config)


def _unknown_sites(config: Config) -> Iterable[str]:
    sites = {section.name for section in config.sites}
    mentioned = [("router.site", config.router.site)]
    for position, link in enumerate(config.links):
        mentioned += [(f"links[{position}].source", link.source), (f"links[{position}].target", link.target)]
    mentioned += [(f"workers[{position}].site", worker.site) for position, worker in enumerate(config.workers)]
    mentioned += [(f"backends[{place}].site", each.site) for place, each in enumerate(config.backends) if each.site]
    for path, name in mentioned:
        if name not in sites:
            yield f"{path}: unknown site {name!r}; sites lists {', '.join(sorted(sites))}"


_SHAPES = {
    "https?": "a URL such as http://host:8000",
    "tcp|ipc": "a ZeroMQ address such as tcp://host:5557",
    ":[0-9]{1,5}$": "host:port",
    "": "a name of letters, digits and . _ : / -",
}
"""What each pattern of the sections means, by a part of it."""
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
        shape = next(shape for mark, shape in _SHAPES.items() if mark in text)
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

"""Scenario files as plain data, and overrides of single values in them.

An override is a path and a value: `router.policy=least-loaded`, `links[0].bytes_per_s=1e9`, `workers[*].count=4`.
`[*]` stands for every entry of a list. A mapping that is not there is made; an entry of a list must be there.

Rule 1: nothing here knows what a scenario is. Whatever comes out is checked as a file is, so that errors name the path.
Rule 2: numbers are read as people write them: 1e9 is a number, and a whole one.
"""

import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from homing.router.core.errors import ConfigError

_STEP = re.compile(r"\.?(?P<key>[A-Za-z_][\w-]*)|\[(?P<index>\d+|\*)\]")
_EXPONENT = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+")
Step = str | int | None
"""A key, the number of a list's entry, or None for all of them."""


class _Loader(yaml.SafeLoader):
    """YAML with the numbers of version 1.2, where an exponent needs no dot and no sign."""


def _number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int | float:
    value = float(loader.construct_scalar(node))
    return int(value) if value.is_integer() else value


_Loader.add_constructor("!exponent", _number)
_Loader.add_implicit_resolver("!exponent", re.compile(rf"^{_EXPONENT.pattern}$"), list("-+.0123456789"))
# The resolvers of a first character are tried in their order, and 1.1 would take 1e9 for a text before ours is asked.
for _first, _resolvers in _Loader.yaml_implicit_resolvers.items():
    _Loader.yaml_implicit_resolvers[_first] = sorted(_resolvers, key=lambda pair: pair[0] != "!exponent")


def read_document(path: Path) -> Any:
    """What a YAML file holds; ConfigError when it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text: {error}") from error
    return parse_yaml(text, where=str(path))


def parse_yaml(text: str, *, where: str) -> Any:
    """The value that a text stands for; ConfigError that begins with `where`."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: is not YAML: {' '.join(str(error).split())}") from error


def parse_override(text: str) -> tuple[str, Any]:
    """`path=value` as a path and a value.

    >>> parse_override("links[0].bytes_per_s=1e9")
    ('links[0].bytes_per_s', 1000000000)
    """
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise ConfigError(f"--set {text}: expected path=value, such as router.policy=least-loaded")
    return path.strip(), parse_yaml(value, where=f"--set {text}")


def override(document: Any, changes: Mapping[str, Any]) -> Any:
    """A copy with these values in place of those at their paths; ConfigError for a path that leads nowhere.

    >>> override({"links": [{"rtt_s": 0.1}]}, {"links[*].rtt_s": 0.2, "router.policy": "random"})
    {'links': [{'rtt_s': 0.2}], 'router': {'policy': 'random'}}
    """
    changed = deepcopy(document)
    for path, value in changes.items():
        steps = list(_steps(path))
        _place(changed, steps, value, path)
    return changed


def _steps(path: str) -> Iterator[Step]:
    place = 0
    while place < len(path):
        found = _STEP.match(path, place)
        if found is None or (place == 0 and path[0] == "."):
            raise ConfigError(
                f"{path}: expected a path such as links[0].bytes_per_s; {path[place:]!r} is no step of one"
            )
        if found["key"] is not None:
            yield found["key"]
        else:
            yield None if found["index"] == "*" else int(found["index"])
        place = found.end()


def _place(here: Any, steps: list[Step], value: Any, path: str) -> None:
    step, rest = steps[0], steps[1:]
    for place in _places(here, step, path):
        if not rest:
            here[place] = deepcopy(value)
            continue
        if isinstance(place, str) and here.get(place) is None:
            here[place] = {}
        _place(here[place], rest, value, path)


def _places(here: Any, step: Step, path: str) -> list[Any]:
    """The keys or numbers that a step stands for."""
    if isinstance(step, str):
        if not isinstance(here, dict):
            raise ConfigError(f"{path}: {step!r} is a key, and what stands there has none: {here!r:.60}")
        return [step]
    if not isinstance(here, list):
        raise ConfigError(f"{path}: expected a list where [{'*' if step is None else step}] is, got {here!r:.60}")
    if step is not None and step >= len(here):
        raise ConfigError(f"{path}: there are {len(here)} entries, numbered from 0; got [{step}]")
    return list(range(len(here))) if step is None else [step]

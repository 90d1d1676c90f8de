"""Grids of overrides: paths with lists of values, and every combination of them.

    links[*].bytes_per_s: [1e8, 1e9, 1e10]
    router.policy: [homing, least-loaded]

Rule 1: the last path changes fastest, and the order of paths and values is that in which they were given.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from homing.router.core.errors import ConfigError

from .document import parse_yaml

Grid = Mapping[str, Sequence[Any]]
POINTS_MAX = 100_000


def parse_axis(text: str) -> tuple[str, list[Any]]:
    """`path=value,value,...` as a path and its values; a list in brackets is one value.

    >>> parse_axis("links[0].bytes_per_s=1e8,1e9")
    ('links[0].bytes_per_s', [100000000, 1000000000])
    """
    path, equals, values = text.partition("=")
    if not equals or not path.strip() or not values.strip():
        raise ConfigError(f"--set {text}: expected path=value,value, such as router.policy=homing,least-loaded")
    return path.strip(), [parse_yaml(value, where=f"--set {text}") for value in _split(values)]


def check_grid(section: Mapping[str, Any], where: str) -> dict[str, list[Any]]:
    """A `sweep` section as a grid; a single value stands for a list of one. ConfigError for an empty list."""
    grid = {path: values if isinstance(values, list) else [values] for path, values in section.items()}
    for path, values in grid.items():
        if not values:
            raise ConfigError(f"{where}.{path}: expected at least one value")
    return grid


def points(grid: Grid) -> Iterator[dict[str, Any]]:
    """Every combination, as overrides; ConfigError when there are more than anybody can mean."""
    size = 1
    for values in grid.values():
        size *= len(values)
    if size > POINTS_MAX:
        raise ConfigError(f"sweep: {size:,} combinations; at most {POINTS_MAX:,} are run in one sweep")
    for values in product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _split(text: str) -> Iterator[str]:
    """At the commas that are not inside brackets or braces."""
    depth, begin = 0, 0
    for place, sign in enumerate(text):
        depth += (sign in "[{") - (sign in "]}")
        if sign == "," and depth == 0:
            yield text[begin:place]
            begin = place + 1
    yield text[begin:]

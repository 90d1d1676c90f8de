"""Options of policies: the plain keyword arguments of their constructors, checked before a policy is made.

Rule 1: what an option may be stands in one place, the constructor's signature: its type, its bounds, its default.
Rule 2: an option that does not exist or does not fit is a ConfigError that names its path, the rule and what was found.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import Parameter, signature
from math import inf, isfinite
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from ..errors import ConfigError

PLAIN = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
"""The types that a file can spell, and what they are called in errors."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Where a number must lie: at least `least` (above it when `above`), at most `most`."""

    least: float = -inf
    most: float = inf
    above: bool = False

    def hold(self, value: float) -> bool:
        """Whether a number lies within."""
        return (value > self.least if self.above else value >= self.least) and value <= self.most

    def __str__(self) -> str:
        low = f"{'above' if self.above else 'at least'} {self.least:g}" if self.least > -inf else ""
        high = f"at most {self.most:g}" if self.most < inf else ""
        return " and ".join(part for part in (low, high) if part)


Count = Annotated[int, Bounds(1)]
Positive = Annotated[float, Bounds(0, above=True)]
NotNegative = Annotated[float, Bounds(0)]
Share = Annotated[float, Bounds(0, 1)]
AtLeastOne = Annotated[float, Bounds(1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """What one option may be."""

    kinds: tuple[type, ...]
    choices: tuple[object, ...]
    bounds: Bounds | None
    default: object

    @property
    def rule(self) -> str:
        """The rule in words, as an error tells it."""
        if self.choices:
            return f"one of {', '.join(str(choice) for choice in self.choices)}"
        words = " or ".join(PLAIN.get(kind, "null") for kind in self.kinds)
        return f"{words} {self.bounds}" if self.bounds and str(self.bounds) else words

    def allows(self, value: object) -> bool:
        """Whether a value follows the rule; a whole number is a number, true is neither."""
        if self.choices:
            return any(value == choice and type(value) is type(choice) for choice in self.choices)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return any(isinstance(value, kind) for kind in self.kinds if kind in {bool, str, NoneType})
        fits = float in self.kinds or (int in self.kinds and isinstance(value, int))
        return fits and isfinite(value) and (self.bounds is None or self.bounds.hold(value))


def options_of(make: Callable[..., object]) -> dict[str, Option]:
    """The options of a constructor by name: its parameters of plain types, in their order."""
    found = {name: _option(parameter) for name, parameter in signature(make).parameters.items()}
    return {name: option for name, option in found.items() if option is not None}


def check_options(name: str, make: Callable[..., object], options: Mapping[str, object], where: str) -> dict[str, Any]:
    """The options as keyword arguments; the first that is wrong is a ConfigError."""
    known = options_of(make)
    for key, value in options.items():
        option = known.get(key)
        if option is None:
            listed = f"known are {', '.join(sorted(known))}" if known else "it has none"
            raise ConfigError(f"{where}.options.{key}: {name} has no such option; {listed}")
        if not option.allows(value):
            raise ConfigError(f"{where}.options.{key}: expected {option.rule}, got {value!r}")
    return dict(options)


def _option(parameter: Parameter) -> Option | None:
    """None for what a file cannot spell, such as an object of ours."""
    kind, bounds = parameter.annotation, None
    if get_origin(kind) is Annotated:
        kind, *notes = get_args(kind)
        bounds = next((note for note in notes if isinstance(note, Bounds)), None)
    if get_origin(kind) is Literal:
        return Option(kinds=(), choices=get_args(kind), bounds=None, default=parameter.default)
    kinds = get_args(kind) if get_origin(kind) in {Union, UnionType} else (kind,)
    if not all(one in PLAIN or one is NoneType for one in kinds):
        return None
    return Option(kinds=kinds, choices=(), bounds=bounds, default=parameter.default)

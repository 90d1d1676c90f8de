"""Profiles as JSON: the ones that ship, and those of users.

Rule 1: a file says where its numbers come from, and what of it was inferred.
Rule 2: a key that is not known is an error, and each error names the file, the path in it and the rule.
Rule 3: numbers in the files that ship are as published; what is made of them is in code.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from homing.router.core.errors import ConfigError

from .decode import DecodeGrid, DecodeSteps, LinearDecode
from .prefill import LinearPrefill, PowerLawPrefill, PrefillCurve, QuadraticPrefill
from .profile import Profile

FOLDER = Path(__file__).parent / "profiles"

Seconds = Annotated[float, Meta(ge=0, le=1e9)]
Tokens = Annotated[int, Meta(ge=0, le=1 << 40)]
Count = Annotated[int, Meta(ge=1, le=1 << 20)]


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A part of the file; a key that it does not know is an error."""


class LinearPrefillSection(_Section, frozen=True, tag_field="kind", tag="linear"):
    """`a_s + b_s*(n-c) + q_s*(n^2-c^2)` for the tokens [c, n)."""

    a_s: Seconds
    b_s: Seconds
    q_s: Seconds = 0.0

    def curve(self) -> PrefillCurve:
        """The times that it describes; ValueError when they are none."""
        return LinearPrefill(a_s=self.a_s, b_s=self.b_s, q_s=self.q_s)


class TablePrefillSection(_Section, frozen=True, tag_field="kind", tag="table"):
    """Points (tokens, seconds) of whole prompts, and what is between them.

    `cached_points` (cached tokens, end tokens, seconds) were measured too; they are not used, they judge.
    """

    between: Literal["quadratic", "power law"]
    overhead_s: Seconds
    points: list[tuple[Tokens, Seconds]]
    cached_points: list[tuple[Tokens, Tokens, Seconds]] = []

    def curve(self) -> PrefillCurve:
        """The times that it describes; ValueError when they are none."""
        form = QuadraticPrefill if self.between == "quadratic" else PowerLawPrefill
        return form(self.points, overhead_s=self.overhead_s)


class LinearDecodeSection(_Section, frozen=True, tag_field="kind", tag="linear"):
    """`a_s + b_s*batch + c_s*context`, the context summed over the batch."""

    a_s: Seconds
    b_s: Seconds = 0.0
    c_s: Seconds = 0.0

    def steps(self) -> DecodeSteps:
        """The times that it describes; ValueError when they are none."""
        return LinearDecode(a_s=self.a_s, b_s=self.b_s, c_s=self.c_s)


class TableDecodeSection(_Section, frozen=True, tag_field="kind", tag="table"):
    """Points (sequences, context tokens of each, seconds) of a full grid."""

    points: list[tuple[Count, Tokens, Seconds]]

    def steps(self) -> DecodeSteps:
        """The times that it describes; ValueError when they are none."""
        return DecodeGrid(self.points)


class ProfileFile(_Section, frozen=True, kw_only=True):
    """A whole file. Without `decode` the profile is one for workers that only prefill."""

    name: Annotated[str, Meta(min_length=1, max_length=128)]
    model: str = ""
    gpus: Count = 1
    hardware: str = ""
    source: str = ""
    inferred: str = ""
    prefill: LinearPrefillSection | TablePrefillSection
    decode: LinearDecodeSection | TableDecodeSection | None = None

    def profile(self, where: str) -> Profile:
        """The profile that it describes; ConfigError that begins with `where`."""
        try:
            curve = self.prefill.curve()
        except ValueError as error:
            raise ConfigError(f"{where}: prefill: {error}") from error
        try:
            steps = None if self.decode is None else self.decode.steps()
        except ValueError as error:
            raise ConfigError(f"{where}: decode: {error}") from error
        facts = {"hardware": self.hardware, "source": self.source, "inferred": self.inferred}
        return Profile(curve, steps, name=self.name, model=self.model, gpus=self.gpus, **facts)


def profile_names() -> list[str]:
    """The profiles that ship, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def profile_path(name: str | Path) -> Path:
    """Where a profile lies: the path itself when it ends in .json, else the shipped one of that name."""
    if str(name).endswith(".json"):
        return Path(name)
    if str(name) not in profile_names():
        raise ConfigError(
            f"profile: no profile is named {str(name)!r}; there are {', '.join(profile_names())};"
            " for a file of your own give a path that ends in .json"
        )
    return FOLDER / f"{name}.json"


def load_profile(name: str | Path) -> Profile:
    """The shipped profile of that name, or the one in a file whose path ends in .json; ConfigError for a bad one."""
    path = profile_path(name)
    return read_file(path).profile(str(path))


def read_file(path: Path) -> ProfileFile:
    """What a file says, with the points that it holds; ConfigError when it is no profile."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=ProfileFile)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}") from error
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path}: is not JSON: {error}") from error


def parse_profile(fields: Mapping[str, Any], where: str) -> Profile:
    """A profile written in place, in a scenario file: the keys of a profile file. ConfigError begins with `where`."""
    try:
        file = msgspec.convert(dict(fields), type=ProfileFile)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}") from error
    return file.profile(where)


def write_file(file: ProfileFile, path: Path) -> None:
    """Write a profile so that `load_profile` reads the same; ConfigError where the path cannot be written."""
    if path.suffix != ".json":
        raise ConfigError(f"{path}: a profile's file ends in .json, which is how it is told from a shipped name")
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(file), indent=2) + b"\n")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error

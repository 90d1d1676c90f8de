"""From the name of a scenario and overrides to an experiment that can run: everything that can be checked is checked.

A scenario is a file, or one of those that ship with Homing, by its name. A file may have one section that is no part of
a scenario: `sweep`, a grid of overrides (see the module `grid`).

Rule 1: an error names the file and the path in it, before anything has run.
Rule 2: relative paths in a file are relative to it, wherever the command is given.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
from xxhash import xxh3_128

from homing.router.core.errors import ConfigError
from homing.router.core.policies import POLICIES, make_policy

from ..cluster.building import model_profiles, profile_of
from ..scenario import Scenario, WorkerSection, parse_scenario
from ..truth.files import profile_path
from ..workload.spec import Merge, Trace, WorkloadSpec, describe
from .document import override, read_document

FOLDER = Path(__file__).resolve().parent.parent / "scenarios"
SUFFIXES = (".yaml", ".yml")
SWEEP = "sweep"
TOLD = ("router.policy = ", "seed = ")
"""Every result names these itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """A checked scenario, and the folder that its relative paths begin at. It travels to other processes."""

    scenario: Scenario
    base: Path
    where: str
    """What its errors begin with: the file."""
    notes: tuple[str, ...] = ()
    """What a reader of its results should know: its workload, and what was changed in the file."""

    def digest(self) -> str:
        """Equal for experiments with equal results: the scenario, the files that it names, and Homing's version."""
        found = xxh3_128(msgspec.json.encode(self.scenario, order="sorted"))
        found.update(version("homing").encode())
        for path in self.files():
            found.update(path.read_bytes())
        return found.hexdigest()

    def files(self) -> list[Path]:
        """Traces and profiles that it reads, in the order of the scenario."""
        traces = [self.base / trace.path for trace in traces_of(self.scenario.workload)]
        names = [worker.profile for worker in self.scenario.workers if isinstance(worker.profile, str)]
        return traces + [profile_path(name) for name in names]


def scenario_names() -> list[str]:
    """The scenarios that ship, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def scenario_path(name: str) -> Path:
    """The file of a scenario: the path itself if it ends in .yaml, else the shipped one of that name."""
    if name.endswith(SUFFIXES):
        return Path(name)
    if name not in scenario_names():
        raise ConfigError(
            f"scenario: none that ships is named {name!r}; there are {', '.join(scenario_names())};"
            " for a file of your own give a path that ends in .yaml"
        )
    return FOLDER / f"{name}.yaml"


def read_scenario(name: str) -> tuple[Any, Mapping[str, Any]]:
    """A scenario's file as plain data, and its `sweep` section, empty if it has none."""
    document = read_document(scenario_path(name))
    sweep = document.pop(SWEEP, None) or {} if isinstance(document, dict) else {}
    if not isinstance(sweep, dict):
        raise ConfigError(f"{scenario_path(name)}: {SWEEP}: expected paths with lists of values, got {sweep!r:.60}")
    return document, sweep


def load(name: str, changes: Mapping[str, Any] | None = None) -> Experiment:
    """The experiment of a scenario with these overrides; ConfigError for whatever is wrong with it."""
    return prepare(read_scenario(name)[0], scenario_path(name), changes)


def prepare(document: Any, path: Path, changes: Mapping[str, Any] | None = None) -> Experiment:
    """The same of a file that was read before."""
    where = str(path)
    with _errors_begin_with(where):
        document = override(document, changes or {})
    scenario = parse_scenario(document, where=where)
    base = path.resolve().parent
    with _errors_begin_with(where):
        _check_policy(scenario)
        _check_workload(scenario.workload, base, "workload")
        if not _ends(scenario):
            raise ConfigError(
                "duration_s: the workload has no end of its own; give duration_s, workload.until_s or workload.limit"
            )
        workers = tuple(_placed(worker, base) for worker in scenario.workers)
        scenario = msgspec.structs.replace(scenario, workers=workers)
        _check_truth(scenario)
    changed = (f"{path} = {msgspec.json.encode(value).decode()}" for path, value in (changes or {}).items())
    notes = (f"workload: {describe(scenario.workload)}", *(note for note in changed if not note.startswith(TOLD)))
    return Experiment(scenario=scenario, base=base, where=where, notes=notes)


def traces_of(spec: WorkloadSpec) -> Iterator[Trace]:
    """The files that a workload reads."""
    if isinstance(spec, Merge):
        for part in spec.parts:
            yield from traces_of(part)
    elif isinstance(spec, Trace):
        yield spec


@contextmanager
def _errors_begin_with(where: str) -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _check_policy(scenario: Scenario) -> None:
    name = scenario.router.policy
    if name not in POLICIES:
        raise ConfigError(f"router.policy: unknown policy {name!r}; known are {', '.join(sorted(POLICIES))}")
    make_policy(name, scenario.router.options, where="router")


def _check_workload(spec: WorkloadSpec, base: Path, where: str) -> None:
    if isinstance(spec, Merge):
        for number, part in enumerate(spec.parts):
            here = f"{where}.parts[{number}]"
            if part.block_tokens != spec.block_tokens:
                raise ConfigError(
                    f"{here}.block_tokens: expected {spec.block_tokens}, that of the whole, got {part.block_tokens}"
                )
            _check_workload(part, base, here)
    elif isinstance(spec, Trace) and not (base / spec.path).is_file():
        raise ConfigError(f"{where}.path: expected a file, found none at {base / spec.path}")


def _ends(scenario: Scenario) -> bool:
    def ends(spec: WorkloadSpec) -> bool:
        if isinstance(spec, Trace) or spec.until_s is not None or spec.limit is not None:
            return True
        return isinstance(spec, Merge) and all(ends(part) for part in spec.parts)

    return scenario.duration_s is not None or ends(scenario.workload)


def _placed(worker: WorkerSection, base: Path) -> WorkerSection:
    """The worker with its profile's path as seen from here."""
    profile = worker.profile
    if not isinstance(profile, str) or not profile.endswith(".json"):
        return worker
    return msgspec.structs.replace(worker, profile=str(base / profile))


def _check_truth(scenario: Scenario) -> None:
    model_profiles(scenario)
    for number, worker in enumerate(scenario.workers):
        with _errors_begin_with(f"workers[{number}]"):
            if not profile_of(worker).decodes and worker.role != "prefill":
                raise ConfigError(
                    f"role: the profile {worker.profile} has no decode times; expected prefill, got {worker.role}"
                )

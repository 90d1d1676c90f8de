"""Workloads in a scenario file: one section per kind, told apart by `kind`, and how each becomes arrivals.

`WorkloadSpec` is the union to embed. A generator has no end of its own: `until_s`, `limit`, or whoever takes the
arrivals ends it. Relative paths are relative to the scenario file.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from homing.router.core.errors import ConfigError
from homing.sim.rng import Streams

from . import transform
from .arrival import Arrival
from .azure import read_azure
from .burstgpt import read_burstgpt
from .generate.families import Families
from .generate.fanout import Fanout
from .generate.prompts import Prfaas, Prompts
from .generate.sessions import Sessions
from .keys import KeySpace
from .mooncake import TRACE_BLOCK_TOKENS, read_mooncake
from .qwen import read_qwen
from .section import Tokens, Workload
from .tracefile import ReadCounts


class Trace(Workload, frozen=True, kw_only=True):
    """A file. Two traces of one namespace share their blocks; by default a namespace is the file's name.

    Without `strict`, bad lines are skipped and counted.
    """

    path: Annotated[str, Meta(min_length=1)]
    namespace: str = ""
    strict: bool = True


class Mooncake(Trace, frozen=True, kw_only=True, tag="mooncake"):
    """A trace in Mooncake's format. `trace_block_tokens` is for files that do not name their block size themselves."""

    trace_block_tokens: Tokens = TRACE_BLOCK_TOKENS


class Azure(Trace, frozen=True, kw_only=True, tag="azure"):
    """An Azure LLM inference trace of 2023 or 2024."""


class BurstGpt(Trace, frozen=True, kw_only=True, tag="burstgpt"):
    """A BurstGPT trace."""


class Qwen(Trace, frozen=True, kw_only=True, tag="qwen"):
    """A Qwen-Bailian trace."""


class Merge(Workload, frozen=True, kw_only=True, tag="merge"):
    """Several workloads at once; its transforms apply to the whole. `block_tokens` is that of the parts."""

    parts: Annotated[tuple["WorkloadSpec", ...], Meta(min_length=1)]


WorkloadSpec = Mooncake | Azure | BurstGpt | Qwen | Prompts | Prfaas | Families | Sessions | Fanout | Merge


def build(
    spec: WorkloadSpec, streams: Streams, base: Path, *, name: str = "workload", counts: ReadCounts | None = None
) -> Iterator[Arrival]:
    """The arrivals of a section, transforms included, sorted by time and made as they are wanted.

    `streams` gives streams named `<name>/...`, so two workloads of one run need two names. `base` is the folder of the
    scenario file. `counts` gathers what readers skip. ConfigError for a file that is missing, at once, or bad, when its
    line is read.
    """
    return _build(spec, streams, base, name, "", counts or ReadCounts())


def describe(spec: WorkloadSpec) -> str:
    """One line on what a section does to its workload, for reports: kind, source, and each transform that is on."""
    source = f" {Path(spec.path).name}" if isinstance(spec, Trace) else ""
    parts = f" of {len(spec.parts)} ({'; '.join(map(describe, spec.parts))})" if isinstance(spec, Merge) else ""
    default = Workload()
    changed = [
        f"{field} {getattr(spec, field)}"
        for field in Workload.__struct_fields__
        if field not in {"block_tokens", "origins", "spread_s"} and getattr(spec, field) != getattr(default, field)
    ]
    if spec.origins is not None:
        changed.append(f"origins {', '.join(spec.origins.sites)} by {spec.origins.by}")
    if isinstance(spec, Trace):
        changed.append(f"spread over cells of {spec.spread_s} s" if spec.spread_s else "times as in the trace")
    return f"{type(spec).__struct_config__.tag}{source}{parts}" + (": " + ", ".join(changed) if changed else "")


def _build(
    spec: WorkloadSpec, streams: Streams, base: Path, name: str, label: str, counts: ReadCounts
) -> Iterator[Arrival]:
    arrivals: Iterator[Arrival]
    if isinstance(spec, Merge):
        parts = [
            _build(part, streams, base, f"{name}/{number}", f"{label}{number}.", counts)
            for number, part in enumerate(spec.parts)
        ]
        arrivals = transform.merge(*parts)
    elif isinstance(spec, Trace):
        arrivals = _read(spec, base, label, counts)
    else:
        moments = spec.arrivals.moments(streams.stream(f"{name}/arrivals"))
        arrivals = spec.generate(moments, streams.stream(f"{name}/prompts"), KeySpace(name), label)
    return _transformed(arrivals, spec, streams, name)


def _read(spec: Mooncake | Azure | BurstGpt | Qwen, base: Path, label: str, counts: ReadCounts) -> Iterator[Arrival]:
    path = base / spec.path
    if not path.is_file():
        raise ConfigError(f"path: expected a file, found none at {path}; correct it or fetch the trace")
    namespace = spec.namespace or path.name
    if isinstance(spec, Mooncake):
        return read_mooncake(
            path,
            block_tokens=spec.block_tokens,
            trace_block_tokens=spec.trace_block_tokens,
            namespace=namespace,
            label=label,
            strict=spec.strict,
            counts=counts,
        )
    read = {Azure: read_azure, BurstGpt: read_burstgpt, Qwen: read_qwen}[type(spec)]
    return read(
        path, block_tokens=spec.block_tokens, namespace=namespace, label=label, strict=spec.strict, counts=counts
    )


def _transformed(arrivals: Iterator[Arrival], spec: Workload, streams: Streams, name: str) -> Iterator[Arrival]:
    """Each transform that is on, in the order of the fields of `Workload`."""
    if spec.session_after_tokens is not None:
        arrivals = transform.name_sessions(arrivals, spec.session_after_tokens)
    if spec.sample < 1:
        arrivals = transform.sample(arrivals, spec.sample, streams.stream(f"{name}/sample"), by=spec.sample_by)
    if spec.spread_s:
        arrivals = transform.spread(arrivals, spec.spread_s, streams.stream(f"{name}/spread"))
    if spec.time_scale != 1:
        arrivals = transform.scale_time(arrivals, spec.time_scale)
    if spec.rate_scale != 1:
        arrivals = transform.scale_rate(arrivals, spec.rate_scale, streams.stream(f"{name}/rate"))
    if spec.offset_s:
        arrivals = transform.offset(arrivals, spec.offset_s)
    if spec.until_s is not None or spec.limit is not None:
        arrivals = transform.limit(arrivals, spec.limit, spec.until_s)
    if spec.origins is not None:
        origins = streams.stream(f"{name}/origins")
        arrivals = transform.assign_origins(arrivals, spec.origins.sites, origins, by=spec.origins.by)
    return transform.relabel(arrivals, tenant=spec.tenant, priority=spec.priority)

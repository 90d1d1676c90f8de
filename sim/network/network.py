"""The network of a simulation: sites, directed links between them, and flows that share links and other resources.

Rule 1: a flow of two sites crosses the link between them and whatever it is sent `via`; there is no routing.
Rule 2: links change by their own profiles and by faults, whose factors multiply; capacity 0 stalls flows until it is
back, and ends none.
Rule 3: bytes on a link never exceed the integral of its capacity (I9); `check()` says so.
"""

from collections.abc import Callable, Iterable
from functools import partial
from math import inf, isfinite
from random import Random

from homing.router.core.errors import ConfigError

from ..kernel import Kernel
from . import audit
from .bundle import Key
from .flow import Flow
from .resource import Resource, Usage
from .sharing import Sharing
from .spec import LinkSpec, near_link

__all__ = ["Flow", "Network"]

LinkId = tuple[str, str]
"""(source site, target site)."""


class _Link:
    """A listed link: what it is, what faults left of it, and what flows share of it."""

    __slots__ = ("factor", "read_s", "resource", "spec")

    def __init__(self, spec: LinkSpec, resource: Resource, now: float) -> None:
        self.spec = spec
        self.resource = resource
        self.factor = 1.0
        self.read_s = now
        """When its profiles were looked at last."""


class Network:
    """Sites and links on a kernel's time. ConfigError for links listed twice. Jitter is drawn from `random` alone."""

    def __init__(self, kernel: Kernel, links: Iterable[LinkSpec], random: Random) -> None:
        self._kernel = kernel
        self._random = random
        self._sharing = Sharing(kernel)
        self._links: dict[LinkId, _Link] = {}
        self._resources: dict[str, Resource] = {}
        self._near: dict[str, LinkSpec] = {}
        for spec in links:
            self._list(spec)

    @property
    def rated(self) -> int:
        """How many rates of paths were computed since the start: the work done, and how far changes reached."""
        return self._sharing.rated

    def add_resource(self, name: str, bytes_per_s: float) -> None:
        """Something flows may be sent via: a NIC, a PCIe lane, a fabric. ConfigError for a name given twice."""
        if name in self._resources:
            raise ConfigError(f"resource {name!r}: it was added before; each needs a name of its own")
        if not bytes_per_s > 0:
            raise ConfigError(
                f"resource {name!r}: bytes_per_s: expected more than 0, found {bytes_per_s}; say its rate"
            )
        self._resources[name] = self._resource(name, bytes_per_s)

    def links(self) -> list[LinkSpec]:
        """The listed ones, in their order."""
        return [link.spec for link in self._links.values()]

    def has_link(self, source: str, target: str) -> bool:
        """Whether a flow can be opened: within a site always, else where a link is listed."""
        return source == target or (source, target) in self._links

    def link(self, source: str, target: str) -> LinkSpec:
        """The truth about a direction; ConfigError for two sites that no link joins.

        Within a site that lists no link to itself: a fifth of a millisecond, and no limit but the resources' own.
        """
        if source == target and (source, target) not in self._links:
            if source not in self._near:
                self._near[source] = near_link(source)
            return self._near[source]
        return self._listed(source, target).spec

    def rtt_s(self, source: str, target: str) -> float:
        """There and back, without jitter or queues."""
        return self.link(source, target).rtt_s

    def one_way_s(self, source: str, target: str) -> float:
        """Half the round trip and a drawn jitter, where the link has one."""
        spec = self.link(source, target)
        return spec.rtt_s / 2 + (self._random.expovariate(1 / spec.jitter_s) if spec.jitter_s else 0.0)

    def open(
        self,
        source: str,
        target: str,
        *,
        via: tuple[str, ...] = (),
        on_done: Callable[[], None],
        latency_s: float | None = None,
    ) -> Flow:
        """A flow that carries nothing until bytes are added, over the link and the resources `via`.

        It arrives `latency_s` after its last byte left; by default that is `one_way_s`, drawn here. A resource named
        twice counts once. ConfigError for two sites that no link joins, or a resource that was never added.
        """
        if latency_s is None:
            latency_s = self.one_way_s(source, target)
        elif not (isfinite(latency_s) and latency_s >= 0):
            raise ValueError(f"latency_s: expected a finite number of at least 0, got {latency_s}")
        key = (source, target, via)
        bundle = self._sharing.bundles.get(key)
        if bundle is None:
            bundle = self._sharing.join(key, self._path(key), self.link(source, target).flow_bytes_per_s)
        return Flow(self._sharing, bundle, latency_s, on_done)

    def set_factor(self, source: str, target: str, factor: float) -> None:
        """A fault: 0 cuts the link, less than 1 degrades it, 1 restores it. It multiplies the link's own profile."""
        if not (isfinite(factor) and factor >= 0):
            raise ValueError(f"factor: expected a finite number of at least 0, got {factor}")
        link = self._listed(source, target)
        link.factor = factor
        self._refresh(link)

    def usage(self, source: str, target: str) -> Usage:
        """The books of a listed link since the start; `Usage.since` makes those of a span."""
        link = self._listed(source, target)
        return link.resource.usage(self._kernel.now, link.spec.price_per_gb)

    def usage_of(self, resource: str) -> Usage:
        """The books of something that was added, since the start."""
        return self._added(resource).usage(self._kernel.now)

    def snapshot(self) -> dict[LinkId, Usage]:
        """The books of all listed links, for a timeline."""
        return {pair: self.usage(*pair) for pair in self._links}

    def check(self) -> None:
        """Assert what is true at every moment (I9, fairness, books), in O(flows x path)."""
        now = self._kernel.now
        audit.check(self._sharing, [*(link.resource for link in self._links.values()), *self._resources.values()])
        for link in self._links.values():
            expected = link.spec.capacity_bytes_per_s(link.read_s, link.factor)
            assert link.resource.capacity == expected, f"{link.resource.name}: not the capacity of its profile"
            assert link.spec.next_change_s(link.read_s) >= now, f"{link.resource.name}: a change was missed"

    def _list(self, spec: LinkSpec) -> None:
        pair = (spec.source, spec.target)
        if pair in self._links:
            raise ConfigError(f"link {spec.source} -> {spec.target}: listed twice; list each direction once")
        now = self._kernel.now
        resource = self._resource(f"{spec.source} -> {spec.target}", spec.capacity_bytes_per_s(now))
        link = self._links[pair] = _Link(spec, resource, now)
        self._await_change(link)

    def _resource(self, name: str, bytes_per_s: float) -> Resource:
        return Resource(name, len(self._links) + len(self._resources), bytes_per_s, self._kernel.now)

    def _listed(self, source: str, target: str) -> _Link:
        link = self._links.get((source, target))
        if link is None:
            raise ConfigError(f"link {source} -> {target}: no such link; list it, or ask has_link before")
        return link

    def _added(self, name: str) -> Resource:
        resource = self._resources.get(name)
        if resource is None:
            raise ConfigError(f"resource {name!r}: never added; add_resource comes before the flows that use it")
        return resource

    def _path(self, key: Key) -> tuple[Resource, ...]:
        source, target, via = key
        link = self._links.get((source, target))
        crossed = () if link is None else (link.resource,)
        return (*crossed, *map(self._added, dict.fromkeys(via)))

    def _refresh(self, link: _Link) -> None:
        link.read_s = self._kernel.now
        self._sharing.set_capacity(link.resource, link.spec.capacity_bytes_per_s(link.read_s, link.factor))

    def _await_change(self, link: _Link) -> None:
        """One pending callback per link with a profile, whatever its length."""
        next_s = link.spec.next_change_s(self._kernel.now)
        if next_s < inf:
            self._kernel.at(next_s, partial(self._change, link))

    def _change(self, link: _Link) -> None:
        self._refresh(link)
        self._await_change(link)

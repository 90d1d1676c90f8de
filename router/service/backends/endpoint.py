"""Where each worker that is an engine's cache is reached, and which names its models go by."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from homing.router.actuators.types import Actuator, Peer
from homing.router.core.types import BlockKey, ModelName, Site, WorkerId
from homing.router.engines.types import Adapter, Patch

from ..door.upstream import Upstream


@dataclass(slots=True, eq=False)
class Endpoint:
    """One worker: one rank of one engine."""

    worker: WorkerId
    backend: str
    url: str
    site: Site
    model: ModelName
    adapter: Adapter
    upstream: Upstream
    rank: int = 0
    patch: Patch = field(default_factory=Patch)
    """What sends a request to this rank."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """The engine's own credentials."""
    actuator: Actuator | None = None
    prepares_local: bool = False
    """Whether the actuator wants to see requests that move nothing, too."""
    kv: Mapping[str, str] = field(default_factory=dict)
    gives_usage: bool = False
    """Whether it tells what it found cached, in streams when it is asked to."""
    on_trouble: Callable[[], None] = lambda: None
    """Told when a request failed there: to look at once whether it lives."""
    on_sent: Callable[[Sequence[BlockKey]], None] | None = None
    """Told the keys of what is sent there, where the engine does not tell what it caches."""
    on_cached: Callable[[Sequence[BlockKey], int, float], None] | None = None
    """Told how many tokens of a prompt, dispatched at that time, the engine says it had cached."""

    @property
    def peer(self) -> Peer:
        """The worker as those see it who move its KV."""
        return Peer(worker=self.worker, url=self.url, rank=self.rank, site=self.site, kv=self.kv, headers=self.headers)


@dataclass(frozen=True, slots=True)
class Alias:
    """What a name that clients use stands for."""

    model: ModelName
    lora: str = ""
    among: frozenset[WorkerId] | None = None
    """The workers that have the adapter; None: it is all the same."""


class Endpoints:
    """All engines' workers, by id, and the names of what they serve."""

    def __init__(self) -> None:
        self._by_worker: dict[WorkerId, Endpoint] = {}
        self._aliases: dict[str, dict[str, Alias]] = {}
        self._known: set[str] = set()
        self._adapters: dict[str, Alias] = {}

    def __iter__(self) -> Iterator[Endpoint]:
        return iter(self._by_worker.values())

    def add(self, endpoint: Endpoint) -> None:
        """A worker joined."""
        self._adapters.clear()
        self._by_worker[endpoint.worker] = endpoint

    def remove(self, worker: WorkerId) -> Endpoint | None:
        """A worker is gone."""
        self._adapters.clear()
        return self._by_worker.pop(worker, None)

    def get(self, worker: WorkerId) -> Endpoint | None:
        """Where a worker is reached; None if it is gone or no engine of others."""
        return self._by_worker.get(worker)

    def url(self, worker: WorkerId) -> str:
        """A worker's URL; empty if it is gone or no engine of others."""
        endpoint = self._by_worker.get(worker)
        return "" if endpoint is None else endpoint.url

    def serves(self, model: str) -> bool:
        """Whether any of them serves a model."""
        return any(endpoint.model == model for endpoint in self._by_worker.values())

    def peers(self) -> dict[WorkerId, Peer]:
        """All of them, as those see them who move KV."""
        return {worker: endpoint.peer for worker, endpoint in self._by_worker.items()}

    def name(self, backend: str, aliases: Mapping[str, Alias]) -> None:
        """A backend serves these names."""
        for names in self._aliases.values():
            names.pop(backend, None)
        self._known.update(aliases)
        self._adapters.clear()
        for name, alias in aliases.items():
            self._aliases.setdefault(name, {})[backend] = alias
        self._aliases = {name: by for name, by in self._aliases.items() if by}

    def alias(self, name: str) -> Alias | None:
        """What a name stands for; None if nobody serves it. Backends that disagree are told apart by who came first."""
        by_backend = self._aliases.get(name)
        if not by_backend:
            return None
        alias = next(iter(by_backend.values()))
        if not alias.lora:
            return alias
        if name not in self._adapters:
            having = (endpoint.worker for endpoint in self if endpoint.backend in by_backend)
            self._adapters[name] = replace(alias, among=frozenset(having))
        return self._adapters[name]

    def knew(self, name: str) -> bool:
        """Whether anybody has ever served it."""
        return name in self._known

    def names(self) -> list[str]:
        """All names that can be asked for."""
        return sorted(self._aliases)

"""What the scheduler's half tells the worker's half with each step, and what comes back. They are sent between
processes.
"""

from dataclasses import dataclass

from homing.router.core.types import BlockKey

from .params import Source, Transfer


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveOrder:
    """After this step the request's blocks up to `keys` are whole: keep those from `first` on.

    keys: of the whole prefix, so that it stays together in the store.
    block_ids: where the blocks from `first` on lie in the paged cache.
    lease_s: how long they must not give way.
    """

    keys: tuple[BlockKey, ...]
    first: int
    block_ids: tuple[int, ...]
    lease_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOrder:
    """Bring a request's blocks from position `first` on into `block_ids` of the paged cache."""

    request_id: str
    ticket: str
    first: int
    keys: tuple[BlockKey, ...]
    block_ids: tuple[int, ...]
    sources: tuple[Source, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOrders:
    """Everything for one step."""

    saves: tuple[SaveOrder, ...] = ()
    loads: tuple[LoadOrder, ...] = ()
    cancelled: tuple[str, ...] = ()
    clear: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """What became of a load: its first `blocks` blocks are in the paged cache, the rest must be computed."""

    request_id: str
    blocks: int
    transfers: tuple[Transfer, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What changed in the worker since the last step. `dropped` was to be kept and found no room."""

    stored: tuple[BlockKey, ...] = ()
    removed: tuple[BlockKey, ...] = ()
    dropped: tuple[BlockKey, ...] = ()
    results: tuple[LoadResult, ...] = ()

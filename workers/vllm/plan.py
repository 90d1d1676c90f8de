"""Which blocks of a prompt are loaded, and from where: the longest unbroken run behind what the device has."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from homing.router.core.types import BlockKey

from .params import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Consecutive blocks of a prompt with one origin: a `source`, or the own store (None)."""

    first: int
    end: int
    source: Source | None = None


def plan_load(
    keys: Sequence[BlockKey],
    local_blocks: int,
    usable_blocks: int,
    held: Collection[BlockKey],
    sources: Sequence[Source] = (),
) -> tuple[Segment, ...]:
    """Segments that follow `local_blocks` without a gap and end at `usable_blocks` at the latest.

    The own store goes first, then the source that reaches furthest. Runtime complexity: O(blocks + sources²).

    >>> plan_load([7, 8, 9, 10], 1, 4, {8}, [Source(address="a:1", first=0, end=3)])
    ... # doctest: +NORMALIZE_WHITESPACE
    (Segment(first=1, end=2, source=None),
     Segment(first=2, end=3, source=Source(address='a:1', first=0, end=3, ships=False, timeout_s=inf)))
    """
    segments: list[Segment] = []
    at, usable_blocks = local_blocks, min(usable_blocks, len(keys))
    while at < usable_blocks:
        end = at
        while end < usable_blocks and keys[end] in held:
            end += 1
        source = None
        if end == at:
            source = max((s for s in sources if s.first <= at < s.end), key=lambda s: s.end, default=None)
            if source is None:
                break
            end = min(source.end, usable_blocks)
        segments.append(Segment(first=at, end=end, source=source))
        at = end
    return tuple(segments)

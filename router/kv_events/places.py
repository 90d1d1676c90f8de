"""Which tier an engine's words for a place mean, and which of its KV cache groups speak of prefixes.

Rule 1: a block that is out of the engine's own host is in a store, whatever it is made of.
Rule 2: with `merge_host` the host counts as the device, for engines that load from their own host memory by themselves.
Rule 3: only groups of full attention speak of prefixes; a sliding window or a recurrent state is no prefix. Where an
engine keeps several such groups, the first that is heard of stands for all. Without a kind, group 0 or no group is one.
"""

from ..core.types import Tier
from .events import EngineStored, Place

FULL_ATTENTION = frozenset({"full_attention", "mla_attention", "sink_full_attention"})
TIERS = {
    "gpu": Tier.DEVICE,
    "cpu": Tier.HOST,
    "cpu_pinned": Tier.HOST,
    "disk": Tier.DISK,
    "storage": Tier.DISK,
    "external": Tier.STORE,
    "store": Tier.STORE,
}
DEVICE = Place(medium="GPU")
PLACES_MAX = 16
GROUPS_MAX = 256


def natural_tier(place: Place) -> Tier | None:
    """What a place is by itself (rule 1); None if its medium is unknown.

    >>> natural_tier(Place(medium="CPU_PINNED")), natural_tier(Place(medium="STORAGE", is_remote=True))
    (<Tier.HOST: 'host'>, <Tier.STORE: 'store'>)
    """
    tier = Tier.DEVICE if place.medium is None else TIERS.get(place.medium.lower())
    return Tier.STORE if place.is_remote and tier not in {None, Tier.DEVICE} else tier


class Places:
    """Numbers the places of one engine, from 0, and knows the tier of each."""

    def __init__(self, *, merge_host: bool = False) -> None:
        self._merge_host = merge_host
        self._numbers: dict[Place, int] = {}
        self._tiers: list[Tier] = []

    def __len__(self) -> int:
        """How many places were heard of."""
        return len(self._tiers)

    def number(self, place: Place) -> int | None:
        """A place's number; None if its medium is unknown, or when there are too many."""
        place = DEVICE if place.medium is None else place
        number = self._numbers.get(place)
        if number is None:
            tier = natural_tier(place)
            if tier is None or len(self._tiers) == PLACES_MAX:
                return None
            number = self._numbers[place] = len(self._tiers)
            self._tiers.append(Tier.DEVICE if tier is Tier.HOST and self._merge_host else tier)
        return number

    def tier(self, number: int) -> Tier:
        """The tier that a numbered place counts as."""
        return self._tiers[number]


class Groups:
    """Learns what an engine's KV cache groups are from what it says when it stores; when it removes, it only numbers
    them.
    """

    def __init__(self) -> None:
        self._kinds: dict[int, str] = {}
        self._speaker: int | None = None

    def learn(self, event: EngineStored) -> None:
        """Take in the kind of a group."""
        if event.group is None or event.kind is None or len(self._kinds) == GROUPS_MAX:
            return
        self._kinds[event.group] = event.kind
        if self._speaker is None and event.kind in FULL_ATTENTION:
            self._speaker = event.group

    def speaks_of_prefixes(self, group: int | None, kind: str | None = None) -> bool:
        """Whether an event of this group counts."""
        if group is None:
            return kind is None or kind in FULL_ATTENTION
        if self._speaker is not None:
            return group == self._speaker
        known = kind or self._kinds.get(group)
        return group == 0 if known is None else known in FULL_ATTENTION

"""Which slot of which llama.cpp server holds which prompt: known of the slots that the router itself assigned.

Rule 1: a slot has one request at a time; one that is taken is not given again before it is returned.
Rule 2: what is remembered of a server is forgotten as soon as a request may have gone to a slot that was not assigned.
Rule 3: memory is bounded by the servers' slots, each with one prompt.
"""

from dataclasses import dataclass, field

from homing.router.core.types import WorkerId


@dataclass(slots=True)
class Slot:
    """One slot: the prompt that it had last, who has it, and the turn in which it was taken."""

    tokens: tuple[int, ...] = ()
    taken_by: str = ""
    turn: int = 0


@dataclass(slots=True)
class SlotBook:
    """The slots of all servers."""

    _slots: dict[WorkerId, list[Slot]] = field(default_factory=dict)
    _taken: dict[str, tuple[WorkerId, int]] = field(default_factory=dict)
    _turn: int = 0

    def take(self, worker: WorkerId, slots: int, request_id: str, tokens: tuple[int, ...]) -> int | None:
        """The free slot that shares most with a prompt, the longest unused one among equals; None if none is free."""
        book = self._slots.setdefault(worker, [])
        book += [Slot() for _ in range(slots - len(book))]
        free = [number for number, slot in enumerate(book) if not slot.taken_by]
        if not free or request_id in self._taken:
            return None
        number = max(free, key=lambda number: (shared_tokens(book[number].tokens, tokens), -book[number].turn))
        self._turn += 1
        book[number].tokens, book[number].taken_by, book[number].turn = tokens, request_id, self._turn
        self._taken[request_id] = (worker, number)
        return number

    def holder(self, worker: WorkerId, tokens: tuple[int, ...]) -> tuple[int, int]:
        """The free slot that shares most with a prompt, and how many tokens; 0 tokens if none shares any."""
        book = self._slots.get(worker, [])
        shared = [
            (shared_tokens(slot.tokens, tokens), -number) for number, slot in enumerate(book) if not slot.taken_by
        ]
        most, number = max(shared, default=(0, 0))
        return -number, most

    def give_back(self, request_id: str) -> None:
        """The request is over; its slot keeps its prompt."""
        worker, number = self._taken.pop(request_id, (None, 0))
        if worker is not None:
            self._slots[worker][number].taken_by = ""

    def forget(self, worker: WorkerId) -> None:
        """Nothing is known any more of what a server's slots hold."""
        for slot in self._slots.get(worker, []):
            slot.tokens = ()

    def check(self) -> None:
        """Both directions agree: what a request has taken, and who has taken a slot."""
        told = {
            slot.taken_by: (worker, number)
            for worker, book in self._slots.items()
            for number, slot in enumerate(book)
            if slot.taken_by
        }
        assert told == self._taken, (told, self._taken)


def shared_tokens(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """How many leading tokens two prompts share, by halving: prompts that share much are compared in few steps."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low

"""Session hash: a session stays with one worker as long as that worker is here (rendezvous hashing)."""

from collections.abc import Sequence
from random import Random

from xxhash import xxh3_64_intdigest

from ..fleet import WorkerState
from ..question import Question
from ..types import Plan
from .baseline import place


class SessionHash:
    """The worker whose name and the session hash highest together (Thaler and Ravishankar, 1998).

    When a worker goes, only its own sessions move. Requests without a session are spread by their id.
    """

    name = "session-hash"

    def choose(self, question: Question, random: Random) -> list[Plan]:
        """The session's worker, or its next best when that one may not take the request."""
        session = question.request.session or question.request.id

        def pick(workers: Sequence[WorkerState]) -> WorkerState:
            return max(workers, key=lambda w: (xxh3_64_intdigest(f"{w.worker.id}\0{session}".encode()), -w.bit))

        return place(question, pick)

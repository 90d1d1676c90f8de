"""What one publisher's numbered messages mean for trust: gaps, replays, restarts, late joining. Pure.

A publisher numbers its batches from 0 and keeps the last of them for replay. Nothing else tells that one was missed,
and there are no heartbeats: who is silent may have nothing to say, or not be heard. `check` asks.

Rule 1: batches are applied in order and none twice. What comes while something is missing waits, in bounded room.
Rule 2: a replay is asked for from the last batch that was applied, not from the one after it. That one has to come back
with the same time: otherwise another process answers (a restart that the numbers alone would hide), or the buffer no
longer reaches back. Publishers do not say that; they begin later.
Rule 3: a number that goes back is a restart: the engine's cache is empty, and what was known is cleared.
Rule 4: whatever cannot be brought back is cleared. What is stored from then on is true, but not all there is.
Rule 5: history is whole when it is known from an empty cache on: from batch 0, or from an event that cleared all.

Trust, from one to another:

* BLIND until a message, a replay or an empty buffer's end mark was heard; again after `lost`.
* EXACT while history is whole, the connection is up and nothing is missing.
* DEGRADED otherwise: while a replay runs, while the connection is down, and while history is not whole; and after a
  check that brought something, or was not answered, until the publisher is heard. Where a replay failed that might come
  yet, `retry` asks again for everything.
"""

from dataclasses import dataclass

from ..core.types import Trust
from .events import EngineBatch, EngineCleared

ASKED_MAX = 3
"""Replays in a row that brought nothing, before what is missing is given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Apply:
    """The next batch in order."""

    batch: EngineBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class AskReplay:
    """Send a replay request; it takes the place of one that still runs."""

    from_seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Clear:
    """Forget the publisher's cache."""

    reason: str


Action = Apply | AskReplay | Clear


@dataclass(slots=True)
class StreamCounts:
    """What happened to one stream; all only grow."""

    batches: int = 0
    gaps: int = 0
    restarts: int = 0
    clears: int = 0
    replays: int = 0
    replays_failed: int = 0
    unreadable: int = 0
    """Batches that could not be read, or not be used."""
    overflowed: int = 0
    """Batches that came while too many waited."""


@dataclass(slots=True)
class _Replay:
    """One request. `checks_s` is the time that the first batch has to have, where it was applied before."""

    start: int
    checks_s: float | None
    rebuilds: bool = False
    """Whether it asks for everything although something is known."""
    checks: bool = False
    """Whether nothing is known to be missing."""
    began: bool = False
    brought: int = 0
    over: str = ""
    """Why the rest of it is of no use: `restart`, `hole` or `short`."""


class EventStream:
    """The state of one publisher's stream. Every method returns what is to be done, in order."""

    def __init__(self, *, has_replay: bool, waiting_max: int = 10_000) -> None:
        self.counts = StreamCounts()
        self._has_replay = has_replay
        self._waiting_max = waiting_max
        self._is_connected = False
        self._broke = False
        self._blank()

    def _blank(self) -> None:
        """Nothing was ever heard."""
        self._is_heard = False
        self._is_whole = False
        self._lacks = "nothing was heard of it"
        self._next = 0
        self._last_s: float | None = None
        self._live_last: int | None = None
        self._waiting: dict[int, EngineBatch | None] = {}
        self._replay: _Replay | None = None
        self._asked = 0
        self._wants_all = False
        self._doubt = ""

    @property
    def trust(self) -> Trust:
        """How far what is known of this cache can be relied on."""
        if not self._is_heard:
            return Trust.BLIND
        return Trust.DEGRADED if self.reason else Trust.EXACT

    @property
    def reason(self) -> str:
        """Why trust is not exact; empty when it is."""
        if not self._is_heard:
            return self._lacks
        if not self._is_connected:
            return "its connection is down"
        if self._replay is not None and not self._replay.checks:
            return f"a replay from batch {self._replay.start} is running"
        return self._doubt if self._is_whole else self._lacks

    @property
    def may_retry(self) -> bool:
        """Whether asking for everything again could make trust exact."""
        return self._wants_all and self._is_connected and self._replay is None

    def connected(self) -> list[Action]:
        """The connection is up, or up again: whatever was published meanwhile is asked for."""
        broke, self._broke = self._broke, False
        self._is_connected = True
        self._doubt = ""
        if self._has_replay:
            self._asked = 0
            return self._ask_for_all() if self._wants_all else self._ask()
        if self._is_heard and broke:
            self._is_whole = False
            self._lacks = "its connection broke and it has no replay endpoint"
        return []

    def disconnected(self) -> list[Action]:
        """The connection is down; a running replay is given up. Who comes back may be another process, so what waited
        goes too where it can be had again.
        """
        self._is_connected = False
        self._broke = True
        self._replay = None
        if self._has_replay:
            self._waiting.clear()
            self._live_last = None
        return []

    def lost(self, reason: str) -> list[Action]:
        """Nobody expects this publisher any more."""
        was_heard = self._is_heard
        self._blank()
        self._lacks = reason
        return self._cleared(reason) if was_heard else []

    def received(self, seq: int, batch: EngineBatch | None) -> list[Action]:
        """A live message; None: it could not be read."""
        actions = self.connected() if self._broke else []
        self._is_connected = True
        self._doubt = ""
        if self._replay is not None and self._replay.checks:
            self._replay = None
        if self._has_gone_back(seq, batch):
            last = max(self._live_last or 0, self._next - 1)
            actions = self._restarted(f"it restarted: batch {seq} came after batch {last}")
        self._live_last = seq
        return [*actions, *self._place(seq, batch)]

    def replayed(self, seq: int, batch: EngineBatch | None) -> list[Action]:
        """One batch of a replay; None: it could not be read."""
        replay = self._replay
        if replay is None or replay.over:
            return []
        if not replay.began:
            replay.began = True
            return self._replay_begins(replay, seq, batch)
        if seq > self._next:
            replay.over = "hole"
        if seq != self._next:
            return []
        replay.brought += 1
        return self._take(seq, batch)

    def replay_ended(self) -> list[Action]:
        """The replay's end mark came."""
        replay, self._replay = self._replay, None
        if replay is None:
            return []
        if not replay.began:
            return self._nothing_replayed(replay)
        if replay.over == "restart":
            return self._ask()
        if replay.checks:
            self.counts.gaps += bool(replay.brought)
            self._doubt = "what it said last came by a replay alone" if replay.brought else ""
        if replay.brought:
            self._asked = 0
        if replay.over == "hole":
            return self._ask_again(f"a replay skipped batch {self._next}")
        return self._catch_up()

    def replay_failed(self, reason: str) -> list[Action]:
        """No end mark came in time."""
        replay, self._replay = self._replay, None
        if replay is None:
            return []
        self.counts.replays_failed += 1
        if replay.brought:
            self._asked = 0
            return self._ask()
        if replay.checks:
            self._asked = 0
            self._doubt = f"it was not heard and cannot be asked: {reason}"
            return []
        if replay.rebuilds:
            return self._catch_up()
        return self._give_up(reason)

    def retry(self) -> list[Action]:
        """Ask for everything, if that could help (`may_retry`)."""
        if not self.may_retry:
            return []
        return self._ask_for_all()

    def check(self) -> list[Action]:
        """Ask a publisher that is quiet whether it said anything that did not come. Meanwhile trust stays as it is, and
        whoever is heard need not be asked.
        """
        if not (self._has_replay and self._is_heard and self._is_connected) or self._replay is not None:
            return []
        return self._ask(checks=True)

    def refused(self, reason: str) -> list[Action]:
        """The batch that was applied last cannot be used."""
        self.counts.unreadable += 1
        self._is_whole = False
        self._lacks = reason
        return self._cleared(reason)

    def _has_gone_back(self, seq: int, batch: EngineBatch | None) -> bool:
        """Rule 3. A live copy of what a replay brought is older than the last batch; a restarted engine's is not."""
        if self._live_last is not None and seq <= self._live_last:
            return True
        is_newer = batch is not None and self._last_s is not None and batch.told_s > self._last_s
        return seq < self._next and is_newer

    def _restarted(self, reason: str) -> list[Action]:
        self._blank()
        self._is_heard = True
        self._lacks = reason
        self.counts.restarts += 1
        return self._cleared(reason)

    def _cleared(self, reason: str) -> list[Action]:
        self.counts.clears += 1
        return [Clear(reason=reason)]

    def _place(self, seq: int, batch: EngineBatch | None) -> list[Action]:
        """Apply a live batch if it is the next one, otherwise let it wait."""
        if seq < self._next:
            return []
        if seq == self._next and self._replay is None:
            return self._take(seq, batch)
        if len(self._waiting) >= self._waiting_max:
            self.counts.overflowed += 1
        else:
            self._waiting[seq] = batch
        if self._replay is not None:
            return []
        self.counts.gaps += 1
        if self._has_replay:
            return self._ask()
        first = "its first" if not self._is_heard else f"{self._next} to"
        return self._give_up(f"batches {first} {seq - 1} were missed and it has no replay endpoint")

    def _take(self, seq: int, batch: EngineBatch | None) -> list[Action]:
        self.counts.batches += 1
        self._next = seq + 1
        self._is_heard = True
        if batch is None:
            self.counts.unreadable += 1
            self._is_whole, self._last_s = False, None
            self._lacks = f"batch {seq} could not be read"
            return self._cleared(self._lacks)
        self._last_s = batch.told_s
        if seq == 0 or any(isinstance(event, EngineCleared) for event in batch.events):
            self._is_whole, self._wants_all = True, False
        return [Apply(batch=batch)]

    def _ask(self, *, checks: bool = False) -> list[Action]:
        """Ask from the last batch that was applied (rule 2), or for everything."""
        start = self._next - 1 if self._last_s is not None else self._next
        self._replay = _Replay(start=start, checks_s=self._last_s, checks=checks)
        return self._asking(start)

    def _ask_for_all(self) -> list[Action]:
        self._replay = _Replay(start=0, checks_s=None, rebuilds=self._is_heard)
        return self._asking(0)

    def _asking(self, start: int) -> list[Action]:
        self._asked += 1
        self.counts.replays += 1
        return [AskReplay(from_seq=start)]

    def _replay_begins(self, replay: _Replay, seq: int, batch: EngineBatch | None) -> list[Action]:
        """The first batch of a replay shows whose it is, and whether it reaches back far enough."""
        if seq != replay.start:
            return self._replay_is_short(replay, seq, batch)
        if replay.checks_s is not None:
            if batch is not None and batch.told_s == replay.checks_s:
                return []
            actions = self._restarted(f"it restarted: batch {seq} is another one now")
            self._replay = replay
            replay.over = "restart"
            return actions
        replay.brought += 1
        actions = self._cleared("its whole history comes again") if replay.rebuilds else []
        self._is_whole = False
        return [*actions, *self._take(seq, batch)]

    def _replay_is_short(self, replay: _Replay, seq: int, batch: EngineBatch | None) -> list[Action]:
        self._lacks = f"its replay buffer begins at batch {seq}, not at {replay.start}"
        self._wants_all = False
        if replay.rebuilds:
            replay.over = "short"
            return []
        actions = self._cleared(self._lacks) if self._is_heard else []
        self._is_whole = False
        replay.brought += 1
        return [*actions, *self._take(seq, batch)]

    def _nothing_replayed(self, replay: _Replay) -> list[Action]:
        """The buffer is empty, or ends before what was asked for."""
        if replay.checks_s is None and not replay.rebuilds:
            if replay.start == 0:
                self._is_heard = self._is_whole = True
            return self._catch_up()
        actions = self._restarted(f"it restarted: it no longer has batch {replay.start}")
        return [*actions, *self._ask()]

    def _catch_up(self) -> list[Action]:
        """Apply what waited for a replay; if something is still missing ask again, or give it up."""
        for seq in [seq for seq in self._waiting if seq < self._next]:
            del self._waiting[seq]
        actions: list[Action] = []
        while self._next in self._waiting:
            actions += self._take(self._next, self._waiting.pop(self._next))
        if not self._waiting and self._newest < self._next:
            self._asked = 0
            return actions
        return [*actions, *self._ask_again(f"batches from {self._next} on were not replayed")]

    def _ask_again(self, reason: str) -> list[Action]:
        if self._has_replay and self._asked < ASKED_MAX:
            return self._ask()
        return self._give_up(reason)

    @property
    def _newest(self) -> int:
        """The last batch that was published, as far as is known."""
        return -1 if self._live_last is None else self._live_last

    def _give_up(self, reason: str) -> list[Action]:
        """Rule 4: start over with the last unbroken run of what waited."""
        actions = self._cleared(reason) if self._is_heard else []
        self._is_whole, self._last_s = False, None
        self._wants_all = self._has_replay
        self._lacks = reason
        self._asked = 0
        start = self._newest + 1
        while start - 1 in self._waiting:
            start -= 1
        self._next = max(self._next, start)
        return [*actions, *self._catch_up()]

"""Journals of what a scheduler was told: recorded in a simulated world, and replayed against a scheduler made anew.

Rule 1: a replay feeds the same events at the same times, and looks at nothing but the commands that come out. They are
the same to the last bit, or it says where they first differ (I5).
Rule 2: a journal of the live router and one of a simulated one are one format (`router/core/journal.py`).
"""

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import IO, Any, BinaryIO, cast

import msgspec

from homing.router.core.commands import Command
from homing.router.core.errors import ConfigError
from homing.router.core.events import Event
from homing.router.core.journal import Header, Plain, digest, entry, event_of, from_plain, to_plain, told
from homing.router.core.scheduler import Scheduler
from homing.router.core.types import ModelProfile, Site

from ..cluster.building import links_believed
from ..cluster.world import World
from ..rng import Streams


class Recording:
    """Writes a simulated router's journal; hand `begin` to `run` as its `prepare`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._encoder = msgspec.json.Encoder()
        self._world: World | None = None
        self._scheduler: Scheduler | None = None

    def begin(self, world: World) -> None:
        """Write how the world's scheduler was made, and listen."""
        self._world, self._scheduler = world, world.router.scheduler
        router = world.scenario.router
        made = Header(
            models=tuple(world.models.values()),
            links=tuple(links_believed(world.scenario)),
            site=Site(world.router.site),
            policy=router.policy,
            options=router.options,
            limits=world.router.scheduler.limits,
            dollars_per_s=router.dollars_per_s,
            random_state=Streams(world.scenario.seed).stream("policy").getstate(),
        )
        self._write({"header": to_plain(made)})
        world.router.observers.append(self._note)

    def _note(self, event: Event, commands: list[Command], now: float) -> None:
        assert self._world is not None
        if self._world.router.scheduler is not self._scheduler:
            self._scheduler = self._world.router.scheduler
            self._write({"restart": True})
        self._write(entry(event, commands, now))

    def _write(self, line: Plain) -> None:
        self._file.write(self._encoder.encode(line) + b"\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The first line of a journal at which a replay answered something else."""

    line: int
    event: Plain
    recorded: list[str]
    replayed: list[str]

    def __str__(self) -> str:
        if self.recorded == self.replayed:
            answers = f"  both: {'; '.join(self.recorded)}, at other prices"
        else:
            recorded, replayed = ("; ".join(said) or "nothing" for said in (self.recorded, self.replayed))
            answers = f"  recorded: {recorded}\n  replayed: {replayed}"
        of = msgspec.json.encode(self.event["of"]).decode()
        return f"line {self.line}: {self.event['event']} at {self.event['at']} s {of:.200}\n{answers}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What came of a replay. It ends at the first difference."""

    events: int
    stopped: str = ""
    """Why the journal ends before its router did, if it does."""
    difference: Difference | None = None


def replay(path: Path) -> Replay:
    """Feed a journal (.gz is unpacked) to a scheduler made anew; ConfigError for a file that is none."""
    return _Player(path).play()


class _Player:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._number = 0
        self._random = Random()  # noqa: S311 - set to the recorded state before any use
        self._header: Header | None = None
        self._scheduler: Scheduler | None = None

    def play(self) -> Replay:
        events = 0
        for line in self._lines():
            try:
                if "event" in line:
                    events += 1
                    found = self._feed(line)
                    if found is not None:
                        return Replay(events=events, difference=found)
                elif "stopped" in line:
                    return Replay(events=events, stopped=line["stopped"])
                else:
                    self._make(line)
            except ValueError as error:
                raise ConfigError(f"{self._path}:{self._number}: {error}") from error
        if self._scheduler is None:
            raise ConfigError(f"{self._path}: is no journal: it is empty")
        return Replay(events=events)

    def _make(self, line: Plain) -> None:
        if "header" in line:
            self._header = from_plain(line["header"], Header)
            self._header.restore(self._random)
            self._scheduler = self._header.scheduler(self._random)
        elif self._header is None or self._scheduler is None:
            raise ValueError("is no journal: its first line is not a header")
        elif "model" in line:
            profile = from_plain(line["model"], ModelProfile)
            self._scheduler.models[profile.name] = profile
        elif "restart" in line:
            self._scheduler = self._header.scheduler(self._random)
        else:
            raise ValueError(f"expected a header, a model, an event or a restart, got {', '.join(line) or 'nothing'}")

    def _feed(self, line: Plain) -> Difference | None:
        if self._scheduler is None:
            raise ValueError("is no journal: its first line is not a header")
        at_s = line.get("at")
        if not isinstance(at_s, int | float):
            raise ValueError(f"at: expected seconds, got {at_s!r}")  # noqa: TRY004 - the value of a file
        commands = self._scheduler.handle(event_of(line), at_s)
        # Shells ask for the next timer after each event, and asking sets the time of the first sweep.
        self._scheduler.next_timer()
        if (digest(commands) if commands else None) == line.get("digest"):
            return None
        return Difference(
            line=self._number,
            event=line,
            recorded=line.get("out", []),
            replayed=[told(command) for command in commands],
        )

    def _lines(self) -> Iterator[dict[str, Any]]:
        decoder = msgspec.json.Decoder(dict[str, Any])
        try:
            with _open(self._path) as file:
                for self._number, text in enumerate(file, 1):
                    yield decoder.decode(text)
        except msgspec.DecodeError as error:
            raise ConfigError(f"{self._path}:{self._number}: is not a line of JSON: {error}") from error
        except (OSError, EOFError) as error:
            raise ConfigError(f"{self._path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _open(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path)) if path.suffix == ".gz" else path.open("rb")

"""Writes down what the core is told and what it answers, for `homing sim replay`. An observer of the driver.

One JSON object per line, as `router/core/journal.py` has it. A journal holds block keys, ids and times, and no prompts.

Rule 1: a journal is bounded. It ends at `bytes_max`, since only one that has its beginning can be replayed.
Rule 2: a journal that cannot be written does not stop the router: recording ends, with a line in the log.
"""

import logging
from pathlib import Path
from typing import BinaryIO

import msgspec

from homing.router.core.commands import Command
from homing.router.core.errors import ConfigError
from homing.router.core.events import Event, TimerFired, WorkerJoined
from homing.router.core.journal import Header, Plain, entry, to_plain
from homing.router.core.scheduler import Scheduler

log = logging.getLogger(__name__)

BYTES_MAX = 1 << 30
FULL = b'{"stopped":"it is full"}\n'


class Recorder:
    """Records from the very beginning: `scheduler` was just made, as `header` says. Close it when it is over."""

    def __init__(self, path: Path, header: Header, scheduler: Scheduler, *, bytes_max: int = BYTES_MAX) -> None:
        self._path = path
        self._scheduler = scheduler
        self._known = {profile.name for profile in header.models}
        self._bytes_left = bytes_max
        self._encoder = msgspec.json.Encoder()
        try:
            self._file: BinaryIO | None = path.open("wb")
        except OSError as error:
            raise ConfigError(f"router.journal: cannot write {path}: {error.strerror}") from error
        self._write({"header": to_plain(header)})

    def __call__(self, event: Event, commands: list[Command], now: float, took_s: float) -> None:
        """Record an event and what the core answered; on disk at the latest with the next timer."""
        if self._file is None:
            return
        if isinstance(event, WorkerJoined):
            self._note_models()
        self._write(entry(event, commands, now), flush=isinstance(event, TimerFired))

    def close(self) -> None:
        """Write what is left. Idempotent."""
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError as error:
                log.warning("the journal %s lacks its end: %s", self._path, error)

    def _note_models(self) -> None:
        """Workers tell of models beside the events."""
        for name, profile in self._scheduler.models.items():
            if name not in self._known:
                self._known.add(name)
                self._write({"model": to_plain(profile)})

    def _write(self, line: Plain, *, flush: bool = False) -> None:
        if self._file is None:
            return
        text = self._encoder.encode(line) + b"\n"
        self._bytes_left -= len(text)
        is_full = self._bytes_left < 0
        try:
            self._file.write(FULL if is_full else text)
            if flush:
                self._file.flush()
        except OSError as error:
            log.warning("the journal %s cannot be written: %s; nothing more is recorded", self._path, error)
            self.close()
        if is_full:
            log.warning("the journal %s is full: nothing more is recorded", self._path)
            self.close()

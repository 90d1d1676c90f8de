"""What all commands of the simulator do with a terminal: errors, interrupts, bars of progress, files that were written.

Rule 1: results go to stdout, everything else to stderr. Without a terminal there is no bar.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from homing.router.core.errors import ConfigError

WIDTH = 132
EXTRA = {"jinja2", "markupsafe", "matplotlib", "numpy", "pyarrow"}
INTERRUPTED = 130
REDRAWN_EVERY_S = 0.1

notes = Console(stderr=True, highlight=False, soft_wrap=True)


def out() -> Console:
    """Where results go; wide enough for the tables where it is no terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDTH)


@contextmanager
def needs_extra() -> Iterator[None]:
    """Turn the absence of a package of the extra `sim` into one line that says how to get it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        raise ConfigError(f"this needs {error.name}, which is not installed: pip install 'homing[sim]'") from error


@contextmanager
def interruptible(how_to_go_on: str) -> Iterator[None]:
    """Ctrl-C is one line and exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        notes.print(f"interrupted: {how_to_go_on}", markup=False)
        raise typer.Exit(INTERRUPTED) from None


class Bar:
    """One bar: how much is done, a text beside it, the time left."""

    def __init__(self, progress: Progress, task: TaskID, began_s: float) -> None:
        self._progress = progress
        self._task = task
        self._began_s = began_s
        self._drawn_s = 0.0

    @property
    def elapsed_s(self) -> float:
        """Since the bar began; never 0."""
        return max(1e-9, time.monotonic() - self._began_s)

    @property
    def is_due(self) -> bool:
        """Whether it is worth the time to draw it anew."""
        return time.monotonic() - self._drawn_s >= REDRAWN_EVERY_S

    def show(self, share: float | None, text: str) -> None:
        """Draw; without a share it only moves."""
        self._drawn_s = time.monotonic()
        self._progress.update(self._task, completed=share or 0.0, total=None if share is None else 1.0, text=text)


@contextmanager
def bar(what: str) -> Iterator[Bar]:
    """A bar on stderr that goes away when it is done."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=notes, transient=True, disable=not notes.is_terminal) as progress:
        yield Bar(progress, progress.add_task(what, total=1.0, text=""), time.monotonic())


def written(paths: Sequence[Path]) -> None:
    """Name the files that were written."""
    for path in paths:
        notes.print(f"wrote {path}", markup=False)


def folder(path: Path) -> Path:
    """The folder for results, made if it is not there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {path}: cannot be made: {error.strerror}") from error
    return path

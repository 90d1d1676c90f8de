"""Python's collection of garbage, less often: for processes that keep what they allocate."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

ALLOCATIONS: Final = 20_000
"""Net allocations between two collections. With Python's 700 they are a tenth of what a busy router or a simulation of
many workers does, since caches and indexes grow by objects that stay. It costs some megabytes: what refers to itself
is held for a little longer.
"""


@contextmanager
def rarely_collected() -> Iterator[None]:
    """Collect garbage less often; who switched it off, or asks for less still, knows better."""
    youngest, *elder = gc.get_threshold()
    if 0 < youngest < ALLOCATIONS:
        gc.set_threshold(ALLOCATIONS, *elder)
    try:
        yield
    finally:
        gc.set_threshold(youngest, *elder)

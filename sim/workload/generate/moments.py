"""A moment: when something begins, and at which site if the process knows. Processes give endless rows of them."""

from collections.abc import Iterator

Moment = tuple[float, str | None]
"""(seconds, site)"""
Moments = Iterator[Moment]

"""Bounds on what waits, how often it is tried and how long it may be out."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on everything that could grow or wait."""

    queue_max: int = 1024
    """Requests that wait for room."""
    retries_max: int = 3
    """Dispatches of one request after its first."""
    backfill_max: int = 16
    """Waiting requests that are tried when room appears and the first does not fit."""
    lost_after_s: float = 5.0
    """Silence after which a worker is given up."""
    lease_s: float = 900.0
    """How long a request may be out before its booking is taken back."""
    reject_early: bool = False
    """Whether a request whose best plan is foreseen to miss its deadline is told no before it takes anything."""
    retry_after_s: float = 1.0
    """What a sender who is told no is asked to wait."""

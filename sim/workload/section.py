"""What all workload sections of a scenario file have in common: strictness, bounds, and the transforms.

The transforms are applied in the order of their fields, after the workload itself was read or generated.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Positive = Annotated[float, Meta(gt=0, le=1e18)]
NotNegative = Annotated[float, Meta(ge=0, le=1e18)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=1, le=1 << 40)]
Tokens = Annotated[int, Meta(ge=1, le=1 << 32)]
NoTokens = Annotated[int, Meta(ge=0, le=1 << 32)]
Name = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$")]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind"):
    """A part of a scenario file; a key that it does not know is an error. Its `kind` says which one it is."""


class Origins(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where requests come from: sites and their weights.

    `by` says how: "session" hashes the conversation, in proportion to the weights; "round_robin" takes the sites in
    turn and leaves the weights aside. A conversation stays at one origin either way.
    """

    sites: Annotated[dict[Name, Positive], Meta(min_length=1)]
    by: Literal["session", "round_robin"] = "session"


class Workload(Section, frozen=True, kw_only=True):
    """A stream of requests. `block_tokens` is the block size of the engines that will serve it."""

    block_tokens: Tokens = 16
    session_after_tokens: NoTokens | None = None
    """Guess conversations by the first block after so many shared tokens, where the workload names none."""
    sample: Fraction = 1.0
    sample_by: Literal["session", "request"] = "session"
    spread_s: NotNegative = 0.0
    """Spread arrivals over the cells of a trace's time grid of so many seconds; 0 replays it literally."""
    time_scale: Positive = 1.0
    """Stretch time: 2 lasts twice as long, at half the rate."""
    rate_scale: Positive = 1.0
    """Below 1 thins by conversation; above 1 speeds up."""
    offset_s: Annotated[float, Meta(ge=-1e12, le=1e12)] = 0.0
    until_s: Positive | None = None
    limit: Count | None = None
    origins: Origins | None = None
    tenant: str | None = None
    priority: int | None = None

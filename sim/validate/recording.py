"""What `homing demo --out` wrote: the fleet, its workers' speed, and each request as it went.

Rule 1: these are facts of the live system, and what its router had been told before the first request; what it came to
believe is not read.
Rule 2: keys that are not read here are for others; one that is missing is an error which names its path.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from homing.router.core.errors import ConfigError

Count = Annotated[int, Meta(ge=1)]
Size = Annotated[int, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]


class _Part(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the file."""


class RecordedRequest(_Part, frozen=True, kw_only=True):
    """One request. Times are in seconds since the first one was sent; `blocks` go on over the answer."""

    request: str
    when: Literal["quiet", "streaming"]
    """What it waited for: all answers before it, or the first token of the one before it."""
    sent_s: NotNegative
    first_token_s: NotNegative
    ended_s: NotNegative
    plan: str
    prefill: str
    decode: str
    ttft_s: Positive
    """From dispatch."""
    prompt_tokens: Count
    max_output_tokens: Count
    tokens: Annotated[tuple[int, ...], Meta(min_length=1)]
    blocks: tuple[Size, ...]
    """Equal numbers, equal text from the beginning on."""


class RecordedRouter(_Part, frozen=True, kw_only=True):
    """The router, and how it decided."""

    site: str
    policy: str
    options: dict[str, Any]


class RecordedModel(_Part, frozen=True, kw_only=True):
    """Sizes of the model's KV."""

    block_tokens: Count
    bytes_per_token: Count
    layers: Count


class RecordedWorker(_Part, frozen=True, kw_only=True):
    """One worker."""

    id: str
    site: str
    role: Literal["prefill", "decode", "both"]
    kv_blocks: Count
    requests_max: Count
    step_tokens_max: Count
    told_prefill_abq_s: tuple[NotNegative, NotNegative, NotNegative]
    """What it had measured of itself when it joined: `a + b*(n-c) + q*(n^2-c^2)` seconds for the tokens [c, n)."""


class RecordedLink(_Part, frozen=True, kw_only=True):
    """A link, both ways: what was emulated, and what the router was told."""

    source: str
    target: str
    bytes_per_s: Positive
    rtt_s: NotNegative
    believed_bytes_per_s: Positive
    believed_rtt_s: NotNegative


class RecordedFleet(_Part, frozen=True, kw_only=True):
    """The demo's world."""

    router: RecordedRouter
    model: RecordedModel
    workers: Annotated[tuple[RecordedWorker, ...], Meta(min_length=1)]
    links: tuple[RecordedLink, ...]


class RecordedSpeed(_Part, frozen=True, kw_only=True):
    """Passes of one worker: (cached tokens, end tokens, seconds) and (sequences, their context tokens, seconds)."""

    prefill: tuple[tuple[Size, Count, Positive], ...]
    decode: tuple[tuple[Count, Size, Positive], ...]
    dispatch_s: NotNegative
    """From the router's dispatch to a first token, beside the pass that computes it, within one site."""
    move_bytes_per_s: Positive
    """Between two workers of one site."""


class Recording(_Part, frozen=True, kw_only=True):
    """The whole file, as far as it is read here; `about` says where and when it was made."""

    about: str = ""
    fleet: RecordedFleet
    speed: RecordedSpeed
    requests: Annotated[tuple[RecordedRequest, ...], Meta(min_length=1)]


def read_recording(path: Path) -> Recording:
    """Read and check a file; ConfigError when it is not what `homing demo --out` writes."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Recording)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; `homing demo --out` writes one") from error
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}; expected what `homing demo --out` writes") from error
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path}: is not JSON: {error}") from error

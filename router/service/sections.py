"""The sections of the configuration file, each with its keys, their rules and their defaults."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Positive = Annotated[float, Meta(gt=0, le=1e18)]
NotNegative = Annotated[float, Meta(ge=0, le=1e18)]
Count = Annotated[int, Meta(ge=1)]
Name = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$")]
Address = Annotated[str, Meta(pattern=r"^(\[[0-9A-Fa-f:.]+\]|[^:\s]+):[0-9]{1,5}$")]


BLOCK_TOKENS = 16
"""The block size of a model for which neither the file nor a worker names one."""


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of the file; a key that it does not know is an error."""


class RouterSection(Section, frozen=True):
    """The router process. Addresses bind to loopback unless told otherwise."""

    site: Name = "home"
    listen: Address = "127.0.0.1:7070"
    http: Address = "127.0.0.1:7071"
    queue_max: Count = 1024
    retries_max: Annotated[int, Meta(ge=0, le=20)] = 3
    lost_after_s: Positive = 5.0
    lease_s: Positive = 900.0
    reject_early: bool = False
    request_timeout_s: Positive = 600.0
    first_token_timeout_s: Positive = 300.0
    drain_s: NotNegative = 30.0
    decisions_kept: Count = 10_000
    door: Address | None = None
    ext_proc: Address | None = None
    body_bytes_max: Annotated[int, Meta(ge=1024, le=1 << 31)] = 32 * 1024 * 1024
    connections_max: Count = 20_000
    poll_s: Positive = 1.0
    traces: str | None = None
    journal: Annotated[str, Meta(min_length=1)] | None = None
    log: Literal["console", "json"] = "console"


class SiteSection(Section, frozen=True):
    """A place where workers stand: a cluster, a datacentre."""

    name: Name


class LinkSection(Section, frozen=True):
    """What is believed of the way from one site to another until it was measured."""

    source: Name
    target: Name
    bytes_per_s: Positive
    rtt_s: NotNegative
    price_per_gb: NotNegative = 0.0
    both_ways: bool = True


class ModelSection(Section, frozen=True):
    """A model that may be asked for.

    What workers can tell themselves (KV size, layers, context) may be left out: the first worker that joins tells it.
    With `bytes_per_token` the model is known before any worker joins. What is given here wins over what workers tell,
    but for `block_tokens`, in which they must agree. `tokenizer` names what `source` names of a worker, and is needed
    only for prompts that come as text.
    """

    name: Name
    block_tokens: Count | None = None
    bytes_per_token: Count | None = None
    state_bytes: Annotated[int, Meta(ge=0)] = 0
    layers: Count | None = None
    context_tokens: Count | None = None
    vocabulary_tokens: Count | None = None
    kv_group: str = ""
    tokenizer: str | None = None


class PolicySection(Section, frozen=True):
    """How plans are chosen; `options` are those of the named policy."""

    name: str = "homing"
    seed: int = 0
    dollars_per_s: NotNegative = 0.0
    options: dict[str, bool | int | float | str | None] = {}


class PriorSection(Section, frozen=True):
    """First guess of prefill_s(c, n) = a + b*(n-c) + q*(n^2-c^2)."""

    a_s: NotNegative
    b_s: Positive
    q_s: NotNegative


class WorkerSection(Section, frozen=True):
    """One worker process, as `homing worker --id` starts it."""

    id: Name
    site: Name
    model: Name
    source: str
    role: Literal["prefill", "decode", "both"] = "both"
    listen: Address = "127.0.0.1:0"
    advertise_host: str | None = None
    data_port: Annotated[int, Meta(ge=0, le=65535)] = 0
    routers: tuple[Address, ...] = ()
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "cpu"
    threads: Count = 1
    block_tokens: Count = BLOCK_TOKENS
    kv_blocks_max: Count = 1024
    requests_max: Count = 16
    step_tokens_max: Count = 256
    connections: Annotated[int, Meta(ge=1, le=16)] = 1
    congestion: str | None = None
    inline: bool = False
    calibrate: bool = True
    prior: PriorSection | None = None
    address_from: dict[Name, Address] = {}
    data_address_from: dict[Name, Address] = {}


class KvEventsSection(Section, frozen=True):
    """Where an engine publishes what it caches, for one that does not say so itself: ZeroMQ addresses.

    With `bind` the engine connects and the router listens at `endpoint`.
    """

    endpoint: Annotated[str, Meta(pattern=r"^(tcp|ipc)://.+$")]
    replay_endpoint: Annotated[str, Meta(pattern=r"^(tcp|ipc)://.+$")] | None = None
    topic: str = ""
    bind: bool = False
    rank: Annotated[int, Meta(ge=0)] = 0


class ConnectorSection(Section, frozen=True):
    """How an engine moves KV: the name of a connector, and its addresses on this engine (docs/operating.md)."""

    name: Name
    kv: dict[str, str] = {}
    options: dict[str, bool | int | float | str] = {}


class BackendSection(Section, frozen=True):
    """An engine behind an HTTP API, which the router finds, watches and sends requests to.

    What is left out is asked of the engine. A missing `id` is the URL's host and port.
    """

    url: Annotated[str, Meta(pattern=r"^https?://[^/\s?#]+[^\s?#]*$", max_length=2048)]
    id: Name | None = None
    site: Name | None = None
    role: Literal["prefill", "decode", "both"] = "both"
    engine: Literal["auto", "vllm", "sglang", "llama_cpp", "openai"] = "auto"
    api_key_env: str | None = None
    requests_max: Count | None = None
    kv_blocks_max: Count | None = None
    block_tokens: Count | None = None
    prior: PriorSection | None = None
    calibrate: bool | None = None
    kv_events: Literal["auto", "off"] | KvEventsSection | tuple[KvEventsSection, ...] = "auto"
    connector: ConnectorSection | None = None

    @property
    def name(self) -> str:
        """Its id, or what stands for one."""
        return self.id or self.url.partition("://")[2].strip("/").replace("[", "").replace("]", "").replace("@", "-")

    @property
    def role_problem(self) -> str:
        """Why it cannot have its role; empty if it can."""
        if self.role == "both" or self.connector is not None:
            return ""
        fix = "name one in connector, or let the engine do both"
        return f"role: {self.role!r} needs a connector that hands KV over; {fix}"

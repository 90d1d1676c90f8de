"""What the operator says in `kv_connector_extra_config`: where to listen, how much to keep, how long to wait."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

_GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectorSettings:
    """The connector's options, under the names they have in `kv_connector_extra_config`."""

    listen: str = "127.0.0.1:0"
    """Where others ask for blocks; loopback unless told otherwise, since the blocks are users' prompts."""
    advertise: str = ""
    """The address that others are told, where it is not the one listened on."""
    store_bytes: int = 2 * _GIB
    """Host memory for blocks; what the engine computes is kept there, the least recently used gives way."""
    weights: str = ""
    """Names the model's weights, where their files cannot tell: KV moves only between equal names."""
    connections: int = 1
    """TCP connections of one transfer; more than one helps where loss keeps windows small."""
    congestion: str | None = None
    """TCP congestion control, such as "bbr"; None leaves the kernel's default."""
    pull_timeout_s: float = 30.0
    """For one source's cached blocks, from asking to the last byte."""
    ship_timeout_s: float = 150.0
    """The same where the source is still computing them."""
    ship_idle_s: float = 30.0
    """How long a source that computes may make no progress."""
    idle_timeout_s: float = 10.0
    """How long no byte may come."""
    lease_max_s: float = 600.0
    """The longest time for which a request may ask to keep its blocks from being replaced."""

    def __post_init__(self) -> None:
        host_and_port(self.listen)
        if self.store_bytes < 1:
            raise ValueError(f"store_bytes={self.store_bytes}: must be >= 1; leave the connector out to keep nothing")
        times = ("pull_timeout_s", "ship_timeout_s", "ship_idle_s", "idle_timeout_s", "lease_max_s")
        for name in times:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be > 0 s")

    @classmethod
    def read(cls, extra: Mapping[str, Any]) -> "ConnectorSettings":
        """From vLLM's `kv_connector_extra_config`; raises ValueError naming the key, the rule and the fix."""
        known = {option.name: option for option in fields(cls)}
        values: dict[str, Any] = {}
        for name, value in extra.items():
            if name not in known:
                raise ValueError(
                    f"kv_connector_extra_config: {name!r} is no option of HomingConnector; "
                    f"it knows {', '.join(sorted(known))}"
                )
            values[name] = _converted(name, value, getattr(cls(), name))
        return cls(**values)


def host_and_port(address: str) -> tuple[str, int]:
    """The parts of "host:port" ("[::1]:80" for IPv6); raises ValueError.

    >>> host_and_port("[::1]:80")
    ('::1', 80)
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"address {address!r}: must be host:port with a port of 0 to 65535")
    return host.strip("[]"), int(port)


def joined(host: str, port: int) -> str:
    """The inverse of `host_and_port`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _converted(name: str, value: Any, default: Any) -> Any:
    """A value as its default's type; whole numbers are taken where seconds are meant."""
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    wanted = str if default is None else type(default)
    if value is None and default is None:
        return None
    if not isinstance(value, wanted) or isinstance(value, bool):
        raise ValueError(f"kv_connector_extra_config: {name} is {value!r}, must be of type {wanted.__name__}")  # noqa: TRY004 - one error type for bad options
    return value

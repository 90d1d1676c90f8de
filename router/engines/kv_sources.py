"""Where an engine's KV events are to be had, from what the engine says of its own sockets.

Rule 1: an address that the engine bound to a wildcard is dialled at the host of the engine's URL.
Rule 2: an engine that was given a concrete address connects to it; whoever wants its events has to listen there.
Rule 3: the replay socket is always the engine's own.
"""

from ipaddress import ip_address

from .types import EngineError, KvSource

_WILDCARDS = frozenset({"*", "0.0.0.0", "::", "[::]"})  # noqa: S104 - recognised, not bound


def vllm_binds(endpoint: str, url_host: str) -> bool:
    """Whether vLLM listens at the address that it tells (`ZmqEventPublisher._is_bind_endpoint`, vLLM 0.32).

    Of `tcp://*:0` it tells the address of its own node with the port that it got: one that is the host of its URL is
    taken for such, unless it is loopback, which is how a router on the same machine is addressed.
    """
    if "*" in endpoint or "::" in endpoint or endpoint.startswith("ipc://"):
        return True
    host, _ = _split(endpoint)
    return host.strip("[]") == url_host and not _is_loopback(url_host)


def sglang_binds(endpoint: str) -> bool:
    """Whether SGLang listens at the address that it tells (`ZmqEventPublisher._socket_setup`, SGLang 0.5.23)."""
    return any(wildcard in endpoint for wildcard in ("*", "::", "0.0.0.0"))  # noqa: S104


def kv_source(
    rank: int, *, endpoint: str, replay_endpoint: str | None, topic: str, binds: bool, url_host: str
) -> KvSource:
    """One rank's source as seen from outside of the engine. Raises EngineError for what is no address."""
    return KvSource(
        rank=rank,
        endpoint=_dialled(endpoint, url_host) if binds else _checked(endpoint),
        replay_endpoint=_dialled(replay_endpoint, url_host) if replay_endpoint else None,
        topic=topic,
        bind=not binds,
    )


def _dialled(endpoint: str, url_host: str) -> str:
    if endpoint.startswith("ipc://"):
        return endpoint
    host, port = _split(endpoint)
    if host in _WILDCARDS:
        host = f"[{url_host}]" if ":" in url_host else url_host
    return f"tcp://{host}:{port}"


def _checked(endpoint: str) -> str:
    host, port = _split(endpoint)
    return f"tcp://{host}:{port}"


def _split(endpoint: str) -> tuple[str, int]:
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    if not endpoint.startswith("tcp://") or not host or not port.isdecimal() or not 0 < int(port) <= 0xFFFF:
        raise EngineError(f"KV events address {endpoint!r}: is neither tcp://HOST:PORT nor ipc://PATH")
    return host, int(port)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

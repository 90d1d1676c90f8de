"""A bootstrap with which Envoy asks Homing where every request goes.

The picked endpoints are tried in their order: the cluster's load balancer is `override_host`, which takes the next of
them at every retry. It reads them from the dynamic metadata that only the external processor writes, not from the
header, which a client could send. Whoever answered is told back under `envoy.lb`.

Rule 1: Envoy fails closed. Without the picker there is no answer, for an endpoint by chance has no cache and no plan.
Rule 2: a request is tried again only while its response has not begun, and only on the endpoints that were picked.
Rule 3: response bodies pass the picker by; the access log tells it which of them came whole.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address
from typing import Any

from homing.router.core.errors import ConfigError

from .types import DESTINATION, METADATA, SERVED, SUBSET_METADATA

LOOPBACK = "127.0.0.1"
TYPES = "type.googleapis.com/envoy"
RETRIES = "connect-failure,refused-stream,reset,retriable-status-codes"
"""What leads to the next endpoint: whatever happens before a response begins, 503 included."""
RETRIES_MAX = 2
"""Where the picker does not say how many endpoints it picked, which it does."""
REQUESTS_MAX = 65_536
"""Open at once, in all circuit breakers: who may wait is the picker's to decide. By default Envoy makes 3 retries."""


class BodyMode(StrEnum):
    """How Envoy sends a request's body to the picker."""

    FULL_DUPLEX_STREAMED = "FULL_DUPLEX_STREAMED"
    """In pieces as they come; no limit but the picker's."""
    BUFFERED = "BUFFERED"
    """At once; a larger body than the connection's buffer is refused with 413."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """What differs between one Envoy and another. Addresses are `ip:port`, or `[ip6]:port`; port 0 is any free one.

    `endpoints` are all that may ever be picked, as the picker names them. Where they come and go they are in
    `endpoints_file` instead (`discovery`): it has to be there when Envoy starts and is read again when a rename puts a
    new one there. `ext_proc` may have a host name. `pick_timeout_s` is more than the picker needs for its own time-out.
    """

    ext_proc: str
    endpoints: tuple[str, ...] = ()
    endpoints_file: str = ""
    listen: str = f"{LOOPBACK}:8080"
    admin: str = f"{LOOPBACK}:9901"
    body_mode: BodyMode = BodyMode.FULL_DUPLEX_STREAMED
    buffer_bytes: int = 32 << 20
    connect_timeout_s: float = 1.0
    pick_timeout_s: float = 65.0
    response_timeout_s: float = 3600.0

    def __post_init__(self) -> None:
        if bool(self.endpoints) == bool(self.endpoints_file):
            raise ConfigError("endpoints: give either the ip:port of every engine or a file that holds them")


def bootstrap(gateway: Gateway) -> dict[str, Any]:
    """Envoy's bootstrap (envoy.config.bootstrap.v3) as JSON values. Raises ConfigError for an address that is none."""
    return {
        "node": {"id": "homing", "cluster": "homing"},
        "admin": {"address": _address("admin", gateway.admin)},
        "static_resources": {
            "listeners": [_listener(gateway)],
            "clusters": [_engines(gateway), _picker(gateway)],
        },
    }


def discovery(endpoints: Sequence[str]) -> dict[str, Any]:
    """What a gateway's `endpoints_file` holds, as JSON values (envoy.service.discovery.v3). Raises ConfigError."""
    load = {"@type": f"{TYPES}.config.endpoint.v3.ClusterLoadAssignment", **_assignment("engines", endpoints)}
    return {"resources": [load]}


def _listener(gateway: Gateway) -> dict[str, Any]:
    manager = {
        "@type": f"{TYPES}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "homing",
        "access_log": [{"name": "envoy.access_loggers.http_grpc", "typed_config": _access_log()}],
        "stream_idle_timeout": _seconds(gateway.response_timeout_s),
        "route_config": {"virtual_hosts": [{"name": "engines", "domains": ["*"], "routes": [_route(gateway)]}]},
        "http_filters": [
            {"name": "envoy.filters.http.ext_proc", "typed_config": _ext_proc(gateway)},
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{TYPES}.extensions.filters.http.router.v3.Router"},
            },
        ],
    }
    return {
        "name": "homing",
        "address": _address("listen", gateway.listen),
        "per_connection_buffer_limit_bytes": gateway.buffer_bytes,
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }


def _route(gateway: Gateway) -> dict[str, Any]:
    return {
        "match": {"prefix": "/"},
        "route": {
            "cluster": "engines",
            "timeout": _seconds(gateway.response_timeout_s),
            "retry_policy": {
                "retry_on": RETRIES,
                "retriable_status_codes": [503],
                "num_retries": RETRIES_MAX,
                "retry_back_off": {"base_interval": "0.01s", "max_interval": "0.1s"},
            },
        },
    }


def _ext_proc(gateway: Gateway) -> dict[str, Any]:
    return {
        "@type": f"{TYPES}.extensions.filters.http.ext_proc.v3.ExternalProcessor",
        "grpc_service": {"envoy_grpc": {"cluster_name": "homing"}},
        "failure_mode_allow": False,
        "mutation_rules": {"allow_envoy": True},
        "message_timeout": _seconds(gateway.pick_timeout_s),
        "processing_mode": {
            "request_header_mode": "SEND",
            "request_body_mode": gateway.body_mode.value,
            "request_trailer_mode": "SEND",
            "response_header_mode": "SEND",
            "response_body_mode": "NONE",
            "response_trailer_mode": "SEND",
        },
        "metadata_options": {
            "forwarding_namespaces": {"untyped": [METADATA, SUBSET_METADATA]},
            "receiving_namespaces": {"untyped": [METADATA]},
        },
    }


def _access_log() -> dict[str, Any]:
    """Sent entry by entry: the picker counts a request as running until it hears of its end."""
    return {
        "@type": f"{TYPES}.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
        "common_config": {
            "log_name": "homing",
            "transport_api_version": "V3",
            "grpc_service": {"envoy_grpc": {"cluster_name": "homing"}},
            "buffer_size_bytes": 0,
            "buffer_flush_interval": "0.1s",
        },
    }


def _engines(gateway: Gateway) -> dict[str, Any]:
    policies = f"{TYPES}.extensions.load_balancing_policies"
    fallback = {
        "name": "envoy.load_balancing_policies.round_robin",
        "typed_config": {"@type": f"{policies}.round_robin.v3.RoundRobin"},
    }
    policy = {
        "name": "envoy.load_balancing_policies.override_host",
        "typed_config": {
            "@type": f"{policies}.override_host.v3.OverrideHost",
            "override_host_sources": [{"metadata": _key(DESTINATION)}],
            "selected_host_key": _key(SERVED),
            "fallback_policy": {"policies": [{"typed_extension_config": fallback}]},
        },
    }
    return {
        "name": "engines",
        **_members(gateway),
        "connect_timeout": _seconds(gateway.connect_timeout_s),
        "circuit_breakers": _breakers(),
        "load_balancing_policy": {"policies": [{"typed_extension_config": policy}]},
    }


def _members(gateway: Gateway) -> dict[str, Any]:
    if gateway.endpoints:
        return {"type": "STATIC", "load_assignment": _assignment("engines", gateway.endpoints)}
    source = {"path_config_source": {"path": gateway.endpoints_file}, "resource_api_version": "V3"}
    return {"type": "EDS", "eds_cluster_config": {"eds_config": source}}


def _picker(gateway: Gateway) -> dict[str, Any]:
    http2 = {
        "@type": f"{TYPES}.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    return {
        "name": "homing",
        "type": "STRICT_DNS",
        "dns_lookup_family": "V4_PREFERRED",
        "connect_timeout": _seconds(gateway.connect_timeout_s),
        "per_connection_buffer_limit_bytes": gateway.buffer_bytes,
        "circuit_breakers": _breakers(),
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2},
        "load_assignment": _assignment("homing", [gateway.ext_proc], named=True),
    }


def _breakers() -> dict[str, Any]:
    names = ("max_connections", "max_pending_requests", "max_requests", "max_retries")
    return {"thresholds": [dict.fromkeys(names, REQUESTS_MAX)]}


def _assignment(cluster: str, endpoints: Sequence[str], *, named: bool = False) -> dict[str, Any]:
    hosts = [{"endpoint": {"address": _address(f"{cluster}: endpoint", one, named=named)}} for one in endpoints]
    return {"cluster_name": cluster, "endpoints": [{"lb_endpoints": hosts}]}


def _key(name: str) -> dict[str, Any]:
    return {"key": METADATA, "path": [{"key": name}]}


def _address(what: str, text: str, *, named: bool = False) -> Mapping[str, Any]:
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or int(port) > 65535 or not (named or _is_ip(host)):
        expected = "host:port" if named else "ip:port, or [ip6]:port"
        raise ConfigError(f"{what}: expected {expected}, found {text!r}")
    return {"socket_address": {"address": host, "port_value": int(port)}}


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _seconds(seconds: float) -> str:
    return f"{seconds:.3f}s"

"""`homing envoy-config`: a bootstrap with which Envoy asks a router where every request goes."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import yaml

from homing.router.core.errors import ConfigError
from homing.router.envoy.bootstrap import BodyMode, Gateway, bootstrap, discovery

MODES = {"streamed": BodyMode.FULL_DUPLEX_STREAMED, "buffered": BodyMode.BUFFERED}
FORMATS = ("yaml", "json")
PORT_MAX = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayFlags:
    """The command's flags as they were given."""

    ext_proc: str | None
    endpoints: Sequence[str]
    endpoints_file: str | None
    listen: str
    admin: str
    body_mode: str
    for_file: bool
    format: str


def print_gateway(flags: GatewayFlags) -> None:
    """Print a bootstrap, or what an endpoints file holds. Raises ConfigError."""
    if flags.format not in FORMATS:
        raise ConfigError(f"--format: expected {' or '.join(FORMATS)}, got {flags.format!r}")
    told = _endpoints_file(flags) if flags.for_file else _bootstrap(flags)
    text = json.dumps(told, indent=2) + "\n" if flags.format == "json" else yaml.safe_dump(told, sort_keys=False)
    sys.stdout.write(text)


def _bootstrap(flags: GatewayFlags) -> dict[str, Any]:
    if flags.ext_proc is None:
        raise ConfigError("--ext-proc: missing; give the HOST:PORT of the router's ext_proc (homing serve --ext-proc)")
    ext_proc = _checked("--ext-proc", flags.ext_proc, named=True)
    if flags.body_mode not in MODES:
        raise ConfigError(f"--body-mode: expected {' or '.join(MODES)}, got {flags.body_mode!r}")
    if bool(flags.endpoints) == (flags.endpoints_file is not None):
        found = "both" if flags.endpoints else "neither"
        raise ConfigError(
            "--endpoint, --endpoints-file: give the IP:PORT of every engine, or the one file that holds them (made "
            f"with --for-file), got {found}"
        )
    gateway = Gateway(
        ext_proc=ext_proc,
        endpoints=_endpoints(flags.endpoints),
        endpoints_file=flags.endpoints_file or "",
        listen=_checked("--listen", flags.listen, any_port=True),
        admin=_checked("--admin", flags.admin, any_port=True),
        body_mode=MODES[flags.body_mode],
    )
    return bootstrap(gateway)


def _endpoints_file(flags: GatewayFlags) -> dict[str, Any]:
    if flags.endpoints_file is not None:
        raise ConfigError("--for-file: prints what the file is to hold; leave out --endpoints-file, and redirect to it")
    return discovery(_endpoints(flags.endpoints))


def _endpoints(given: Sequence[str]) -> tuple[str, ...]:
    for place, endpoint in enumerate(given):
        if endpoint in given[:place]:
            raise ConfigError(f"--endpoint: {endpoint} is given twice; each engine is given once")
    return tuple(_checked("--endpoint", endpoint) for endpoint in given)


def _checked(flag: str, text: str, *, named: bool = False, any_port: bool = False) -> str:
    """The address, if it is one; ConfigError that says what to write instead."""
    host, colon, port = text.rpartition(":")
    expected = "HOST:PORT" if named else "IP:PORT or [IP6]:PORT"
    if "/" in text:
        raise ConfigError(f"{flag}: expected {expected}, got {text!r}; leave out the scheme and the path")
    least = 0 if any_port else 1
    if not colon or not (port.isascii() and port.isdecimal() and least <= int(port) <= PORT_MAX):
        raise ConfigError(f"{flag}: expected {expected}, got {text!r}; end it with a port of {least} to {PORT_MAX}")
    try:
        version = ip_address(host.removeprefix("[").removesuffix("]")).version
    except ValueError:
        if named and host and "[" not in host and ":" not in host:
            return text
        fix = "give a name or an address" if named else "Envoy takes no names there: look its address up"
        raise ConfigError(f"{flag}: expected {expected}, got {text!r}; {fix}") from None
    if (version == 6) != host.startswith("["):
        raise ConfigError(f"{flag}: expected {expected}, got {text!r}; brackets go around IPv6 addresses")
    return text

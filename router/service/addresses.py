"""The addresses of engines, as gateways want them: `ip:port`, or `[ip6]:port`.

Rule 1: of a name with several addresses it is always the same one, IPv4 before IPv6: another would be another cache.
Rule 2: a name that cannot be looked up keeps the address that it had.
Rule 3: one look-up per name at a time, with a time-out.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from math import inf
from typing import Final
from urllib.parse import urlsplit

log = logging.getLogger(__name__)

BELIEVED_S: Final = 30.0
"""How long an address is believed."""
LOOK_AGAIN_S: Final = 1.0
"""After a look-up that failed."""
LOOK_UP_S: Final = 2.0
"""How long a look-up may take."""
KEPT_MAX: Final = 8192
_PORTS: Final = {"http": 80, "https": 443}


@dataclass(slots=True)
class _Known:
    address: str | None = None
    until_s: float = -inf
    looking: asyncio.Lock = field(default_factory=asyncio.Lock)


class Addresses:
    """Looks addresses up by URL and remembers them. `now` is the caller's clock in seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._known: dict[str, _Known] = {}

    async def of(self, url: str) -> str | None:
        """The address behind a URL; None while its name has none."""
        known = self._known.get(url) or self._add(url)
        if self._now() < known.until_s or (known.address is not None and known.looking.locked()):
            return known.address
        async with known.looking:
            if self._now() >= known.until_s:
                await self._look_up(url, known)
            return known.address

    def _add(self, url: str) -> _Known:
        if len(self._known) >= KEPT_MAX:
            del self._known[next(iter(self._known))]
        known = self._known[url] = _Known()
        host, port = _host_port(url)
        try:
            known.address = _written(ip_address(host), port)
            known.until_s = inf
        except ValueError:
            pass
        return known

    async def _look_up(self, url: str, known: _Known) -> None:
        host, port = _host_port(url)
        try:
            async with asyncio.timeout(LOOK_UP_S):
                infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError, TimeoutError) as error:
            reason = str(error) or f"no answer within {LOOK_UP_S:g} s"
            kept = "it has no address" if known.address is None else f"it is taken to be still {known.address}"
            log.warning("%s: the name %s cannot be looked up: %s; %s", url, host, reason, kept)
            known.until_s = self._now() + LOOK_AGAIN_S
            return
        found = [ip_address(info[4][0]) for info in infos]
        known.address = _written(min(found, key=lambda ip: (ip.version, int(ip))), port)
        known.until_s = self._now() + BELIEVED_S


def _host_port(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 80)


def _written(ip: IPv4Address | IPv6Address, port: int) -> str:
    return f"[{ip}]:{port}" if ip.version == 6 else f"{ip}:{port}"

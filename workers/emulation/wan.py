"""An emulated wide-area network for sites that live on one machine.

An address in another site is a *gateway*: a loopback port whose connections are forwarded to the real
address over the two directed links between the sites. Rate and delay belong to a directed pair of sites and
are shared by all connections of all its gateways.

What differs from a real network: a connection is accepted at once, and the round trip of the handshake is
paid before its first byte is forwarded; there is no loss and no slow start; after a late timer the bytes that
were due arrive together. Nothing here authenticates or encrypts, and gateways listen on loopback alone.
"""

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Iterable
from dataclasses import replace
from typing import Self

from .gateway import Address, Gateway
from .link import EmulatedLink, Pacer

logger = logging.getLogger(__name__)

_PORT_MAX = 65535


class Wan:
    """Directed links between sites, and the gateways over them. Use it as an async context manager.

    All methods belong to one event loop. Every method that names a pair of sites raises LookupError if there
    is no link from the first to the second.
    """

    def __init__(self, links: Iterable[EmulatedLink]) -> None:
        self._pacers: dict[tuple[str, str], Pacer] = {}
        self._gateways: list[Gateway] = []
        self._closed = False
        for link in links:
            if (link.source, link.target) in self._pacers:
                raise ValueError(
                    f"link {link.source!r} -> {link.target!r} is given twice; a directed pair has one link"
                )
            self._pacers[link.source, link.target] = Pacer(link)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open_gateway(self, from_site: str, to_site: str, host: str, port: int) -> tuple[str, int]:
        """The loopback host and port at which clients in `from_site` reach `host`:`port` in `to_site`.

        Names are resolved once, here; their addresses are tried in the resolver's order for every connection.
        The target need not listen yet: a connection to a dead target is reset after a round trip.

        Raises:
            ValueError: the sites are the same, or `port` is no TCP port.
            LookupError: one of the two directed links is missing.
            OSError: `host` cannot be resolved, or no loopback port is free.
            RuntimeError: the network is closed.
        """
        if from_site == to_site:
            raise ValueError(f"gateway {from_site!r} -> {to_site!r}: same site, no link between; use the address")
        if not 0 < port <= _PORT_MAX:
            raise ValueError(f"gateway to {host!r}: port is {port}, must be 1 to {_PORT_MAX}")
        outbound, inbound = self._pacer(from_site, to_site), self._pacer(to_site, from_site)
        targets = await _resolve(host, port)
        if self._closed:
            raise RuntimeError("the emulated network is closed; open gateways before close()")
        name = f"gateway {from_site} -> {to_site} ({host}:{port})"
        gateway = Gateway(name=name, outbound=outbound, inbound=inbound, targets=targets)
        self._gateways.append(gateway)
        logger.info("%s listens on %s:%d", name, *gateway.address)
        return gateway.address

    def set_rate(self, source: str, target: str, bytes_per_s: float) -> None:
        """Change the rate of a link from its next chunk on.

        Raises ValueError for a rate that is not above 0.
        """
        pacer = self._pacer(source, target)
        pacer.configure(replace(pacer.link, bytes_per_s=bytes_per_s))

    def set_delay(self, source: str, target: str, delay_s: float) -> None:
        """Change the one-way delay from the next chunk on; bytes of a connection keep their order.

        Raises ValueError for a negative delay.
        """
        pacer = self._pacer(source, target)
        pacer.configure(replace(pacer.link, delay_s=delay_s))

    def cut(self, source: str, target: str) -> None:
        """Break one direction: reset every connection that uses it and refuse new ones until `restore`.

        A connection needs both directions, so those opened by clients in `target` break as well.
        """
        self._set_cut(source, target, is_cut=True)

    def restore(self, source: str, target: str) -> None:
        """Undo `cut`. Gateways listen again, at the same address, once both directions are up."""
        self._set_cut(source, target, is_cut=False)

    def bytes_carried(self, source: str, target: str) -> int:
        """Payload bytes that have entered a link; over any window at most rate x window + one chunk (I9)."""
        return self._pacer(source, target).bytes_carried()

    async def close(self) -> None:
        """Reset every connection and free all ports; a second call does nothing."""
        self._closed = True
        gateways, self._gateways = self._gateways, []
        await asyncio.gather(*(gateway.close() for gateway in gateways))
        for pacer in self._pacers.values():
            pacer.close()

    def _set_cut(self, source: str, target: str, *, is_cut: bool) -> None:
        pacer = self._pacer(source, target)
        pacer.is_cut = is_cut
        logger.info("link %s -> %s is %s", source, target, "cut" if is_cut else "restored")
        for gateway in self._gateways:
            if gateway.uses(pacer):
                gateway.refresh()

    def _pacer(self, source: str, target: str) -> Pacer:
        try:
            return self._pacers[source, target]
        except KeyError:
            known = ", ".join(f"{a} -> {b}" for a, b in self._pacers) or "none"
            raise LookupError(f"no link {source!r} -> {target!r}; add one, links are directed: {known}") from None


async def _resolve(host: str, port: int) -> list[Address]:
    """The addresses of `host`; literals need no resolver, which would cost a thread."""
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return [(family, address) for family, _, _, _, address in found]
    return [(socket.AF_INET if version == 4 else socket.AF_INET6, (host, port))]

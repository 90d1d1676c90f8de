"""Ports for processes that are told their addresses before they start.

Such a port is free for seconds before anybody listens on it. The kernel gives outgoing connections any free port of its
ephemeral range, so a port of that range may be gone by then; one below it stays free unless a program asks for it.
"""

import socket
from contextlib import ExitStack
from pathlib import Path
from random import SystemRandom

LOWEST = 15_000
_EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_EPHEMERAL_DEFAULT = 32_768


def free_ports(count: int) -> list[int]:
    """So many different ports of loopback that nobody uses, none of which the kernel gives away by itself."""
    candidates = list(range(LOWEST, _first_ephemeral()))
    SystemRandom().shuffle(candidates)
    found: list[int] = []
    with ExitStack() as held:
        for port in candidates:
            if len(found) == count:
                return found
            sock = held.enter_context(socket.socket())
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(port)
    raise OSError(f"fewer than {count} ports are free between {LOWEST} and {_first_ephemeral()}")


def _first_ephemeral() -> int:
    try:
        first = int(_EPHEMERAL_RANGE.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return _EPHEMERAL_DEFAULT
    return first if first > LOWEST + 1_000 else 65_536

import socket
from contextlib import ExitStack
from pathlib import Path

from homing.router.cli.demo.ports import free_ports


def test_ports_are_different_and_can_be_listened_on() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    with ExitStack() as held:
        for port in ports:
            held.enter_context(socket.socket()).bind(("127.0.0.1", port))


def test_no_port_is_one_that_an_outgoing_connection_could_be_given() -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    if first > 16_000:
        assert all(port < first for port in free_ports(200))


def test_a_port_in_use_is_not_given() -> None:
    with socket.socket() as taken:
        port = free_ports(1)[0]
        taken.bind(("127.0.0.1", port))
        assert port not in free_ports(2_000)

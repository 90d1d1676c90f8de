"""A network namespace at the end of an emulated line, for engines whose connectors open sockets of their own.

IP packets pass between this machine and the namespace at a rate and with a delay that may be changed at any time: real
TCP on both ends, no loss. Linux, root and /dev/net/tun are needed.
"""

import fcntl
import os
import random
import select
import shutil
import struct
import subprocess
import threading
import time
from ipaddress import IPv4Network
from queue import Empty, SimpleQueue

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_NETWORK = IPv4Network("198.18.0.0/15")
"""For tests of networks (RFC 2544): it is nobody's."""
_MTU = 65_000
_WAIT_S = 0.2


def is_possible() -> bool:
    """Whether this machine lets us make one."""
    return os.geteuid() == 0 and os.access("/dev/net/tun", os.R_OK | os.W_OK) and shutil.which("ip") is not None


class Tunnel:
    """The line. `here` and `there` are its two addresses, `device_here` and `device_there` its two devices."""

    def __init__(self, *, bits_per_s: float, delay_s: float) -> None:
        self.namespace = f"homing-{os.getpid()}"
        self.device_here, self.device_there = f"hm{os.getpid()}h", f"hm{os.getpid()}t"
        first = random.SystemRandom().randrange(_NETWORK.num_addresses // 4) * 4
        self.here, self.there = str(_NETWORK[first + 1]), str(_NETWORK[first + 2])
        self.shape(bits_per_s=bits_per_s, delay_s=delay_s)
        self._from_there_bytes = 0
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._files: list[int] = []

    def __enter__(self) -> "Tunnel":
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def shape(self, *, bits_per_s: float, delay_s: float) -> None:
        """Another rate, and another delay of each direction, from the next packet on."""
        self._bytes_per_s, self._delay_s = bits_per_s / 8, delay_s

    def bytes_carried(self) -> int:
        """What came from the namespace so far."""
        return self._from_there_bytes

    def close(self) -> None:
        """Take it down. Idempotent."""
        self._closing.set()
        for thread in self._threads:
            thread.join(5)
        for file in self._files:
            os.close(file)
        self._threads, self._files = [], []
        subprocess.run(["ip", "netns", "del", self.namespace], check=False, capture_output=True)

    def _open(self) -> None:
        here, there = self._device(self.device_here), self._device(self.device_there)
        inside = ["netns", "exec", self.namespace, "ip"]
        _ip("netns", "add", self.namespace)
        _ip("link", "set", self.device_there, "netns", self.namespace)
        for prefix, device, address in (([], self.device_here, self.here), (inside, self.device_there, self.there)):
            _ip(*prefix, "addr", "add", f"{address}/30", "dev", device)
            _ip(*prefix, "link", "set", device, "mtu", str(_MTU), "up")
        _ip(*inside, "link", "set", "lo", "up")
        for source, target, counts in ((here, there, False), (there, here, True)):
            queue: SimpleQueue[tuple[float, bytes]] = SimpleQueue()
            self._begin(self._read, source, queue, counts)
            self._begin(self._write, target, queue)

    def _device(self, name: str) -> int:
        file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        self._files.append(file)
        fcntl.ioctl(file, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TUN | _IFF_NO_PI))
        return file

    def _begin(self, work: object, *args: object) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _read(self, file: int, queue: "SimpleQueue[tuple[float, bytes]]", counts: bool) -> None:
        """Take packets as they come, and say when each has passed the line."""
        free_s = 0.0
        while not self._closing.is_set():
            ready, _, _ = select.select([file], [], [], _WAIT_S)
            if not ready:
                continue
            packet = os.read(file, _MTU + 64)
            free_s = max(time.monotonic(), free_s) + len(packet) / self._bytes_per_s
            queue.put((free_s + self._delay_s, packet))
            if counts:
                self._from_there_bytes += len(packet)

    def _write(self, file: int, queue: "SimpleQueue[tuple[float, bytes]]") -> None:
        """Give packets out when they are due."""
        while not self._closing.is_set():
            try:
                due_s, packet = queue.get(timeout=_WAIT_S)
            except Empty:
                continue
            time.sleep(max(0.0, due_s - time.monotonic()))
            try:
                os.write(file, packet)
            except OSError:  # the device is full or goes down: TCP sends it again
                continue


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"

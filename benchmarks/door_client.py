"""The two clients of the door's benchmark: one connection that times each answer, and wrk for many at once."""

import json
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from door_prompts import MARK

PATH = "/v1/chat/completions"
SOCKET_S = 30.0
READ_BYTES = 1 << 18
WRK_SCRIPT = """
local heads, tails, at, number = {}, {}, 0, 0
function init(args)
  number = tonumber(args[2])
  for body in io.lines(args[1]) do
    local headers = {["Content-Type"] = "application/json"}
    local whole = wrk.format("POST", "PATH", headers, body)
    local first, last = whole:find("MARK", 1, true)
    heads[#heads + 1] = whole:sub(1, first - 1)
    tails[#tails + 1] = whole:sub(last + 1)
  end
end
function request()
  at = at % #heads + 1
  number = number + 1
  return heads[at] .. string.format("%09d", number) .. tails[at]
end
function done(summary, latency)
  local e = summary.errors
  local failed = e.connect + e.read + e.write + e.status + e.timeout
  io.write(string.format('{"requests": %d, "seconds": %f, "failed": %d, "p50_ms": %f, "p99_ms": %f}\\n',
    summary.requests, summary.duration / 1e6, failed,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
""".replace("PATH", PATH).replace("MARK", MARK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """How long one answer took, to its first byte of body and to its end, and the headers that it came with."""

    first_s: float
    whole_s: float
    headers: dict[str, str]


class OneConnection:
    """Sends one request after another and reads each answer to its end."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None and parts.port is not None
        self._socket = socket.create_connection((parts.hostname, parts.port), timeout=SOCKET_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._head = f"POST {PATH} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"

    def ask(self, body: bytes) -> Timed:
        """Time one request; ValueError when the answer is no 200."""
        request = f"{self._head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        began_s = time.perf_counter()
        self._socket.sendall(request)
        got, first_s, end = b"", 0.0, -1
        while end < 0 or len(got) < end:
            data = self._socket.recv(READ_BYTES)
            if not data:
                raise ValueError(f"the connection was closed after {got[:200]!r}")
            got += data
            head_end = got.find(b"\r\n\r\n")
            if head_end < 0:
                continue
            if not first_s and len(got) > head_end + 4:
                first_s = time.perf_counter() - began_s
            end = _end_of(got, head_end)
        if not got.startswith(b"HTTP/1.1 200"):
            raise ValueError(f"expected 200, got {got[:300]!r}")
        whole_s = time.perf_counter() - began_s
        return Timed(first_s=first_s, whole_s=whole_s, headers=_headers(got[: got.find(b"\r\n\r\n")]))

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


def _headers(head: bytes) -> dict[str, str]:
    lines = head.decode().split("\r\n")[1:]
    return {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _end_of(got: bytes, head_end: int) -> int:
    """Where an answer ends; -1 while that is not known."""
    head = got[:head_end].lower()
    _, found, after = head.partition(b"content-length:")
    if found:
        return head_end + 4 + int(after.split(b"\r\n", 1)[0])
    body = got[head_end + 4 :]
    return len(got) if body.endswith(b"\r\n0\r\n\r\n") else -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """What wrk saw."""

    requests: int
    seconds: float
    failed: int
    p50_ms: float
    p99_ms: float


def many_connections(
    url: str, bodies: Path, script: Path, *, first_number: int, connections: int, seconds: float
) -> Throughput:
    """Ask on so many connections for so long, in a process of its own; `bodies` holds one a line, with marks."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "30s"]
    command += ["-s", str(script), url, "--", str(bodies), str(first_number)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 60)
    return Throughput(**json.loads(done.stdout.splitlines()[-1]))

"""Exchanging JSON with engines over HTTP: bounded in size and time, and every failure is an EngineError.

Rule 1: an error names the worker, the URL and what came, of which it quotes no more than a line.
Rule 2: redirects are not followed: KV and credentials go where the configuration says.
"""

from collections.abc import Mapping
from typing import Any

import aiohttp
import msgspec
from multidict import CIMultiDict

from homing.router.engines.types import EngineError

from .types import Peer

ANSWER_BYTES_MAX = 64 << 20
QUOTED_CHARS = 200


class HttpPost:
    """A `Post` on a client session, which stays its maker's to close."""

    def __init__(self, session: aiohttp.ClientSession, *, answer_bytes_max: int = ANSWER_BYTES_MAX) -> None:
        self._session = session
        self._answer_bytes_max = answer_bytes_max

    async def __call__(
        self, peer: Peer, path: str, body: Mapping[str, Any], headers: Mapping[str, str], timeout_s: float
    ) -> Mapping[str, Any]:
        """Send JSON and return the JSON object that is answered."""
        try:
            data = msgspec.json.encode(dict(body))
        except (TypeError, ValueError, OverflowError) as error:
            raise EngineError(f"{peer.worker}: the request to {path} cannot be written as JSON: {error}") from None
        return await self._exchange("POST", peer, path, data, headers, timeout_s)

    async def get(self, peer: Peer, path: str, timeout_s: float) -> Mapping[str, Any]:
        """Return the JSON object at a path."""
        return await self._exchange("GET", peer, path, None, {}, timeout_s)

    async def _exchange(
        self, method: str, peer: Peer, path: str, data: bytes | None, headers: Mapping[str, str], timeout_s: float
    ) -> Mapping[str, Any]:
        url = peer.url.rstrip("/") + path
        what = f"{peer.worker}: {method} {url}"
        sent = CIMultiDict(headers)
        sent.update(peer.headers)
        if data is not None:
            sent["Content-Type"] = "application/json"
        limit = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.request(
                method, url, data=data, headers=sent, timeout=limit, allow_redirects=False
            ) as response:
                return _object_in(what, response.status, await self._read(what, response))
        except TimeoutError:
            raise EngineError(f"{what}: no answer within {timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise EngineError(f"{what}: {str(error) or type(error).__name__}") from None

    async def _read(self, what: str, response: aiohttp.ClientResponse) -> bytes:
        read = bytearray()
        async for chunk in response.content.iter_any():
            read += chunk
            if len(read) > self._answer_bytes_max:
                raise EngineError(f"{what}: the answer is longer than {self._answer_bytes_max} bytes")
        return bytes(read)


def _object_in(what: str, status: int, data: bytes) -> Mapping[str, Any]:
    quoted = data[: 4 * QUOTED_CHARS].decode(errors="replace")[:QUOTED_CHARS]
    if not 200 <= status < 300:
        raise EngineError(f"{what}: answered {status}: {quoted!r}")
    try:
        answer = msgspec.json.decode(data)
    except msgspec.DecodeError:
        raise EngineError(f"{what}: answered {status} with what is not JSON: {quoted!r}") from None
    if not isinstance(answer, dict):
        raise EngineError(f"{what}: answered {status} with a JSON {type(answer).__name__}, expected an object")
    return answer

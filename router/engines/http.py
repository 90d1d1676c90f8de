"""Asking an engine over HTTP: bounded in time and size, and whatever fails is an EngineError.

Rule 1: an error names the method, the URL, the status and the first bytes of what came.
Rule 2: redirects are not followed: credentials go where the configuration says and nowhere else.
Rule 3: what an answer has to look like is a type; one that does not fit it is an error that names the field.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, TypeVar

import aiohttp
import msgspec
from yarl import URL

from .types import EngineError

ANSWER_BYTES_MAX = 16 << 20
"""A hundred thousand tokens as JSON are below one MiB; an engine's metrics are some tens of KiB."""
TIMEOUT_S = 5.0
_QUOTED_BYTES = 200

NO_HEADERS: Mapping[str, str] = MappingProxyType({})

Shape = TypeVar("Shape")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came for what was asked, whatever its status."""

    asked: str
    status: int
    data: bytes

    @property
    def is_ok(self) -> bool:
        """Whether the status is one of success."""
        return HTTPStatus.OK <= self.status < HTTPStatus.MULTIPLE_CHOICES

    def error(self, reason: str = "") -> EngineError:
        """The error that tells of this answer."""
        came = self.data[:_QUOTED_BYTES].decode(errors="replace")
        more = "..." if len(self.data) > _QUOTED_BYTES else ""
        said = f": {reason}" if reason else ""
        return EngineError(f"{self.asked}: answered {self.status}{said}: {came!r}{more}", status=self.status)

    def json(self, shape: type[Shape]) -> Shape:
        """The body as JSON of a shape. Raises EngineError, also when the status is not one of success."""
        if not self.is_ok:
            raise self.error()
        try:
            return msgspec.json.decode(self.data, type=shape)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self.error(str(error)) from None

    def text(self) -> str:
        """The body as text. Raises EngineError when the status is not one of success."""
        if not self.is_ok:
            raise self.error()
        return self.data.decode(errors="replace")


class EngineHttp:
    """One engine's URL, with the headers that every request to it bears. The session stays its maker's to close."""

    def __init__(
        self,
        url: str,
        session: aiohttp.ClientSession,
        *,
        headers: Mapping[str, str] = NO_HEADERS,
        timeout_s: float = TIMEOUT_S,
        answer_bytes_max: int = ANSWER_BYTES_MAX,
    ) -> None:
        self.url = url.rstrip("/")
        self.host = _host_of(url)
        self.timeout_s = timeout_s
        self._session = session
        self._headers = {"Accept-Encoding": "identity", **headers}
        self._answer_bytes_max = answer_bytes_max

    async def get(self, path: str, *, timeout_s: float | None = None) -> Answer:
        """Ask for a path. Raises EngineError where nothing, or too much, comes in time."""
        return await self._ask("GET", path, None, timeout_s)

    async def post(self, path: str, body: Mapping[str, Any], *, timeout_s: float | None = None) -> Answer:
        """Send JSON to a path. Raises EngineError as `get` does, and for a body that is no JSON."""
        try:
            data = msgspec.json.encode(dict(body))
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise EngineError(f"POST {self.url}{path}: the request cannot be written as JSON: {error}") from None
        return await self._ask("POST", path, data, timeout_s)

    async def _ask(self, method: str, path: str, data: bytes | None, timeout_s: float | None) -> Answer:
        asked = f"{method} {self.url}{path}"
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        headers = self._headers if data is None else {**self._headers, "Content-Type": "application/json"}
        try:
            async with self._session.request(
                method,
                self.url + path,
                data=data,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=limit_s),
                allow_redirects=False,
            ) as response:
                return Answer(asked=asked, status=response.status, data=await self._read(asked, response))
        except TimeoutError:
            raise EngineError(f"{asked}: no whole answer within {limit_s:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError, RuntimeError) as error:
            # A session that was closed meanwhile is a RuntimeError.
            raise EngineError(f"{asked}: {str(error) or type(error).__name__}") from None

    async def _read(self, asked: str, response: aiohttp.ClientResponse) -> bytes:
        data = bytearray()
        async for chunk in response.content.iter_any():
            data += chunk
            if len(data) > self._answer_bytes_max:
                reason = f"the answer is longer than {self._answer_bytes_max} bytes"
                raise EngineError(f"{asked}: answered {response.status}: {reason}", status=response.status)
        return bytes(data)


def _host_of(url: str) -> str:
    try:
        parsed = URL(url)
        _ = parsed.port
    except ValueError as error:
        raise EngineError(f"engine URL {url!r}: {error}; give http://HOST:PORT") from None
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise EngineError(f"engine URL {url!r}: is not http://HOST:PORT or https://HOST:PORT")
    return parsed.host

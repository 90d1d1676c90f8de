"""Exchanging JSON with the engines that take part in a move."""

from collections.abc import Mapping
from typing import Any

import aiohttp

from homing.router.engines.http import EngineHttp
from homing.router.engines.types import EngineError

from .types import Peer

ANSWER_BYTES_MAX = 64 << 20
"""A prefill worker may answer with the state of its KV, and with all token ids of a prompt."""


class HttpPost:
    """A `Post` on a session, which stays its maker's to close. A peer's credentials win over a call's headers."""

    def __init__(self, session: aiohttp.ClientSession, *, answer_bytes_max: int = ANSWER_BYTES_MAX) -> None:
        self._session = session
        self._answer_bytes_max = answer_bytes_max

    async def __call__(
        self, peer: Peer, path: str, body: Mapping[str, Any], headers: Mapping[str, str], timeout_s: float
    ) -> Mapping[str, Any]:
        """Send JSON and return the JSON object that is answered."""
        try:
            answer = await self._to(peer, headers, timeout_s).post(path, body)
            return answer.json(dict[str, Any])
        except EngineError as error:
            raise EngineError(f"{peer.worker}: {error}", status=error.status) from None

    async def get(self, peer: Peer, path: str, timeout_s: float) -> Mapping[str, Any]:
        """Return the JSON object at a path."""
        try:
            answer = await self._to(peer, {}, timeout_s).get(path)
            return answer.json(dict[str, Any])
        except EngineError as error:
            raise EngineError(f"{peer.worker}: {error}", status=error.status) from None

    def _to(self, peer: Peer, headers: Mapping[str, str], timeout_s: float) -> EngineHttp:
        given = {name.lower(): value for name, value in headers.items()}
        given |= {name.lower(): value for name, value in peer.headers.items()}
        return EngineHttp(
            peer.url, self._session, headers=given, timeout_s=timeout_s, answer_bytes_max=self._answer_bytes_max
        )

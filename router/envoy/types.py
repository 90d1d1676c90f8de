"""What an endpoint picker is asked and answers: the border between Envoy's protocol and the router.

Names are those of the Gateway API Inference Extension's Endpoint Picker Protocol (proposal 004, v1.0.0).

Rule 1: a pick that was handed out is ended once, on every path, also when it could not be used.
Rule 2: `served` comes at most once per pick, and before `ended`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

METADATA = "envoy.lb"
"""Namespace of the dynamic metadata in which proxy and picker tell each other of endpoints."""
DESTINATION = "x-gateway-destination-endpoint"
"""Header and metadata key of the picked endpoints: `ip:port,ip:port`, to be tried in this order."""
SERVED = "x-gateway-destination-endpoint-served"
"""Metadata key, of some proxies a response header, of the endpoint that answered."""
STREAM = "homing-stream"
"""Metadata key by which an access log names the picker's stream."""
SUBSET_METADATA = "envoy.lb.subset_hint"
"""Namespace of the metadata in which the proxy limits the choice."""
SUBSET = "x-gateway-destination-endpoint-subset"
"""Metadata key of the endpoints that may be picked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pick:
    """Where a request goes: `endpoints` as `ip:port` (`[ip6]:port`), first choice first.

    `headers` are set on the request, `body` replaces its body; None leaves it as it came.
    """

    request_id: str
    endpoints: tuple[str, ...]
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None


class PickRefusedError(Exception):
    """No endpoint: 503 when none could serve the request, 429 when it was shed, 400 when it cannot be read.

    `status` and `message` are what the client gets, with a Retry-After where `retry_after_s` is given.
    """

    def __init__(self, status: int, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message
        self.retry_after_s = retry_after_s


class Picker(Protocol):
    """Chooses endpoints. It is called on one event loop; `served` and `ended` must not block.

    They are told of a pick without its body, which nobody holds once it was sent on.
    """

    async def pick(self, path: str, headers: Mapping[str, str], body: bytes, subset: frozenset[str] | None) -> Pick:
        """Where a request goes.

        `path` is without its query; names of `headers` are in lower case, pseudo-headers (`:method`) among them;
        `body` is whole. With a `subset` only its endpoints may be chosen. What is no inference request, such as a
        GET of `/v1/models`, may go anywhere. The call is cancelled when the client leaves. Raises PickRefusedError.
        """
        ...

    def served(self, pick: Pick, endpoint: str, status: int) -> None:
        """`endpoint` answered with headers of this HTTP status. It is none of the pick's where the proxy chose."""
        ...

    def ended(self, pick: Pick, *, cancelled: bool) -> None:
        """The response is over: it came whole, or was `cancelled`, where it broke or nobody waits for it any longer.

        A gateway that shows neither response bodies nor its access log does not tell: there every response that began
        is taken to have come whole.
        """
        ...

"""A no, as OpenAI's clients understand it."""

from dataclasses import dataclass
from typing import Final

from homing.router.core.commands import Cancel, Reject
from homing.router.core.types import RejectReason

from .http import Responder, error_body

_REJECTED: Final = {
    RejectReason.UNKNOWN_MODEL: (404, "invalid_request_error", "model_not_found"),
    RejectReason.DUPLICATE_REQUEST: (409, "invalid_request_error", "duplicate_request"),
    RejectReason.PROMPT_TOO_LONG: (400, "invalid_request_error", "context_length_exceeded"),
    RejectReason.NO_WORKER: (503, "server_error", "no_worker"),
    RejectReason.QUEUE_FULL: (429, "rate_limit_error", "queue_full"),
    RejectReason.DEADLINE_PASSED: (504, "server_error", "deadline_passed"),
    RejectReason.TOO_LATE: (429, "rate_limit_error", "too_late"),
    RejectReason.RETRIES_SPENT: (502, "server_error", "retries_spent"),
}


@dataclass(slots=True)
class DoorError(Exception):
    """What a client is told instead of an answer."""

    status: int
    message: str
    kind: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    retry_after_s: float | None = None

    def __str__(self) -> str:
        return self.message

    @property
    def body(self) -> bytes:
        """As JSON."""
        return error_body(self.message, kind=self.kind, code=self.code, param=self.param)

    def tell(self, responder: Responder, headers: dict[str, str]) -> None:
        """Answer with it."""
        if self.retry_after_s is not None:
            headers = {**headers, "retry-after": str(max(1, round(self.retry_after_s)))}
        responder.send(self.status, self.body, headers)


def refused(command: Reject | Cancel) -> DoorError:
    """What a client is told when the core says no, or gives its request up."""
    if isinstance(command, Cancel):
        return DoorError(504, command.reason, "server_error", "cancelled")
    status, kind, code = _REJECTED[command.reason]
    message = f"{command.reason}: {command.detail}"
    return DoorError(status, message, kind, code, retry_after_s=command.retry_after_s)


def bad_request(message: str, param: str | None = None, code: str | None = None) -> DoorError:
    """The request itself is wrong."""
    return DoorError(400, message, param=param, code=code)

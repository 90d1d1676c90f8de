"""How responses ended, by the access log of a gateway that sends it (envoy.service.accesslog.v3).

Envoy ends a picker's stream in the same way whether the response came whole, the engine broke or the client left. Its
access log tells them apart, and names the stream by the metadata that the picker gave it.

Rule 1: a stream's end and its log entry come in any order: whichever is first waits for the other, for `WAIT_S`.
Rule 2: where no log is open, or no entry comes, a response is taken to be whole.
Rule 3: at most `EARLY_MAX` entries wait; the oldest is dropped for one more.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from typing import Any

from envoy.service.accesslog.v3 import als_pb2_grpc
from envoy.service.accesslog.v3.als_pb2 import StreamAccessLogsMessage, StreamAccessLogsResponse

from .types import METADATA, STREAM

WAIT_S = 2.0
EARLY_MAX = 4096

Settle = Callable[[bool], None]
"""Called once with whether the response was cut off."""


class Endings:
    """Brings the ends of streams and their log entries together, by the stream's name."""

    def __init__(self) -> None:
        self.open_logs = 0
        self._early: OrderedDict[str, bool] = OrderedDict()
        self._waiting: dict[str, tuple[Settle, asyncio.TimerHandle]] = {}

    def settle(self, stream: str, settle: Settle) -> None:
        """A stream has ended: say how once it is known."""
        if (cut_off := self._early.pop(stream, None)) is not None:
            settle(cut_off)
        elif self.open_logs:
            timer = asyncio.get_running_loop().call_later(WAIT_S, self.tell, stream, False)
            self._waiting[stream] = settle, timer
        else:
            settle(False)

    def tell(self, stream: str, cut_off: bool) -> None:
        """The log says how a stream's response ended."""
        if stream in self._waiting:
            settle, timer = self._waiting.pop(stream)
            timer.cancel()
            settle(cut_off)
            return
        self._early[stream] = cut_off
        if len(self._early) > EARLY_MAX:
            self._early.popitem(last=False)

    def close(self) -> None:
        """Nothing more will be told."""
        for stream in list(self._waiting):
            self.tell(stream, False)


class AccessLog(als_pb2_grpc.AccessLogServiceServicer):  # type: ignore[misc]
    """Reads gateways' access logs. An entry with any of Envoy's response flags is of a response that was cut off."""

    def __init__(self, endings: Endings) -> None:
        self._endings = endings

    async def StreamAccessLogs(  # noqa: N802
        self, messages: AsyncIterator[StreamAccessLogsMessage], _context: Any
    ) -> StreamAccessLogsResponse:
        """One gateway's log, as long as it runs."""
        self._endings.open_logs += 1
        try:
            async for message in messages:
                self._read(message)
        finally:
            self._endings.open_logs -= 1
        return StreamAccessLogsResponse()

    def _read(self, message: StreamAccessLogsMessage) -> None:
        for entry in message.http_logs.log_entry:
            common = entry.common_properties
            if METADATA not in common.metadata.filter_metadata:
                continue
            fields = common.metadata.filter_metadata[METADATA].fields
            if STREAM in fields:
                self._endings.tell(fields[STREAM].string_value, bool(common.response_flags.ListFields()))

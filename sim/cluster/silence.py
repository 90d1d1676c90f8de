"""A transfer that hears nothing for a while is given up, as live movers do: no cut link holds a request for good."""

from collections.abc import Callable

from ..kernel import Handle, Kernel
from ..network.network import Flow

IDLE_TIMEOUT_S = 10.0
"""The live data plane's own (`workers/transfer/client.py`)."""


class Silence:
    """Watches one flow. `on_silence` is called once when it had something to send and nothing of it came."""

    def __init__(self, kernel: Kernel, flow: Flow, on_silence: Callable[[], None]) -> None:
        self._kernel = kernel
        self._flow = flow
        self._on_silence = on_silence
        self._carried_bytes = -1.0
        self._timer: Handle = kernel.after(IDLE_TIMEOUT_S, self._look)

    def stop(self) -> None:
        """The transfer is over."""
        self._timer.cancel()

    def _look(self) -> None:
        carried = self._flow.carried_bytes
        if self._flow.is_flowing and carried == self._carried_bytes:
            self._on_silence()
            return
        self._carried_bytes = carried
        self._timer = self._kernel.after(IDLE_TIMEOUT_S, self._look)

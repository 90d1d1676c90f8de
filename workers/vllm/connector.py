"""The class that vLLM loads: `--kv-transfer-config '{"kv_connector": "HomingConnector", "kv_connector_module_path":
"homing.workers.vllm.connector", "kv_role": "kv_both", "kv_connector_extra_config": {...}}'`.

It only translates between vLLM's hooks and the two halves. Options that make no sense stop the engine at its start;
after that no hook raises: what fails is logged, and the engine computes.

Written for vLLM's connector interface V1 as of 0.32. One process per engine: with tensor or pipeline parallelism the
engine works as if it had no connector.
"""

import functools
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorWorkerMetadata,
)

from .events import kv_events
from .identity import weights_name
from .orders import StepOrders, StepReport
from .scheduler_side import SchedulerSide
from .settings import ConnectorSettings
from .worker_side import WorkerSide

log = logging.getLogger(__name__)

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass
class HomingMetadata(KVConnectorMetadata):  # type: ignore[misc]  # vLLM is not installed where types are checked
    """What the worker's half gets with a step."""

    orders: StepOrders


@dataclass
class HomingAddress(KVConnectorHandshakeMetadata):  # type: ignore[misc]
    """Where the worker's half listens."""

    address: str


@dataclass
class HomingReport(KVConnectorWorkerMetadata):  # type: ignore[misc]
    """What the scheduler's half gets after a step."""

    report: StepReport

    def aggregate(self, other: KVConnectorWorkerMetadata) -> KVConnectorWorkerMetadata:
        """There is one worker."""
        return self


def _guarded(default: Any) -> Callable[[_F], _F]:
    """A hook that logs what it raises and returns `default()` instead."""

    def wrap(hook: _F) -> _F:
        @functools.wraps(hook)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            try:
                return hook(*args, **kwargs)
            except Exception:
                log.exception("HomingConnector.%s failed; the engine goes on without it", hook.__name__)
                return default()

        return guarded  # type: ignore[return-value]

    return wrap


def _nothing() -> None:
    return None


class HomingConnector(KVConnectorBase_V1):  # type: ignore[misc]
    """Gives KV blocks to other engines and takes them, as `kv_transfer_params["homing"]` asks (`params`)."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        _share_log()
        settings = ConnectorSettings.read(self._kv_transfer_config.kv_connector_extra_config or {})
        block_tokens = vllm_config.cache_config.block_size
        self._scheduler: SchedulerSide | None = None
        self._worker: WorkerSide | None = None
        reason = _unsupported(vllm_config, kv_cache_config)
        if reason:
            log.error("HomingConnector moves no KV of this engine: %s", reason)
        elif role is KVConnectorRole.SCHEDULER:
            # vLLM would fail requests whose blocks did not come; here the answer is always to compute.
            self._kv_transfer_config.kv_load_failure_policy = "recompute"
            self._scheduler = SchedulerSide(block_tokens=block_tokens)
        else:
            weights = weights_name(vllm_config.model_config, settings.weights)
            self._worker = WorkerSide(settings, block_tokens=block_tokens, weights=weights)

    @property
    def requires_kv_delivery(self) -> bool:
        """No: a block that nobody took is computed where it is needed."""
        return False

    # -- in the process that computes ----------------------------------------------------------------------------

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Open the door. Raises what is wrong with the options."""
        if self._worker is not None:
            self._worker.register(kv_caches)

    def get_handshake_metadata(self) -> KVConnectorHandshakeMetadata | None:
        """Where this worker listens."""
        return HomingAddress(self._worker.address) if self._worker is not None and self._worker.address else None

    @_guarded(_nothing)
    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Begin the loads that came with this step."""
        if self._worker is not None:
            self._worker.begin_loads(self._orders())

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing: requests wait for their loads outside of steps."""

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing: blocks are kept when all of their layers are whole."""

    @_guarded(_nothing)
    def wait_for_save(self) -> None:
        """Keep the blocks that this step completed."""
        if self._worker is not None:
            self._worker.save(self._orders())

    @_guarded(lambda: (None, None))
    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """Loads that are over, well or not."""
        return None, (self._worker.finish_loads() or None) if self._worker is not None else None

    @_guarded(set)
    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks that must be computed after all."""
        return self._worker.take_failed_blocks() if self._worker is not None else set()

    @_guarded(_nothing)
    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        """What changed here."""
        report = self._worker.take_report() if self._worker is not None else None
        return None if report is None else HomingReport(report)

    # -- in the scheduler's process ------------------------------------------------------------------------------

    @_guarded(_nothing)
    def set_xfer_handshake_metadata(self, metadata: dict[int, KVConnectorHandshakeMetadata]) -> None:
        """Learn where the worker listens."""
        for told in metadata.values():
            if self._scheduler is not None and isinstance(told, HomingAddress):
                self._scheduler.address = told.address

    @_guarded(lambda: (0, False))
    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """How many tokens can be loaded, and that the request waits for them outside of steps."""
        count = self._scheduler.matched_tokens(request, num_computed_tokens) if self._scheduler is not None else 0
        return count, count > 0

    @_guarded(_nothing)
    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """The request has blocks."""
        if self._scheduler is None:
            return
        block_ids = blocks.get_block_ids()[0]
        try:
            self._scheduler.allocated(request, block_ids, num_external_tokens)
        except Exception:
            if num_external_tokens > 0:
                self._scheduler.give_up(request.request_id, block_ids)
            raise

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        """What the worker's half has to do with this step."""
        return HomingMetadata(self._step_orders(scheduler_output))

    @_guarded(_nothing)
    def update_connector_output(self, connector_output: Any) -> None:
        """Take in what the worker's half reports."""
        told = connector_output.kv_connector_worker_meta
        if self._scheduler is not None and isinstance(told, HomingReport):
            self._scheduler.reported(told.report)

    @_guarded(lambda: (False, None))
    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """Forget a request and tell what became of it; its blocks may be reused at once."""
        return False, self._scheduler.finished(request) if self._scheduler is not None else None

    @_guarded(tuple)
    def take_events(self) -> Iterable[Any]:
        """What the store holds, in vLLM's words."""
        return kv_events(*self._scheduler.take_events(), self._block_tokens()) if self._scheduler is not None else ()

    @_guarded(lambda: False)
    def reset_cache(self) -> bool:
        """Empty the store."""
        if self._scheduler is not None:
            self._scheduler.clear()
        return True

    @_guarded(_nothing)
    def shutdown(self) -> None:
        """Stop listening and moving."""
        if self._worker is not None:
            self._worker.close()

    @_guarded(StepOrders)
    def _step_orders(self, scheduler_output: Any) -> StepOrders:
        return self._scheduler.step_orders(scheduler_output) if self._scheduler is not None else StepOrders()

    def _orders(self) -> StepOrders:
        metadata = self._get_connector_metadata()
        return metadata.orders if isinstance(metadata, HomingMetadata) else StepOrders()

    def _block_tokens(self) -> int:
        return int(self._vllm_config.cache_config.block_size)


def _share_log() -> None:
    """Let vLLM show Homing's messages as well: it sets up loggers below its own name alone."""
    shown, own = logging.getLogger("vllm"), logging.getLogger("homing.workers")
    if not own.handlers:
        own.handlers = shown.handlers
        own.setLevel(logging.INFO)
        own.propagate = False


def _unsupported(vllm_config: Any, kv_cache_config: Any) -> str:
    """Why this engine's KV cannot be moved; empty when it can."""
    parallel = vllm_config.parallel_config
    if parallel.world_size != 1:
        return f"it is spread over {parallel.world_size} processes; one is supported"
    groups = len(kv_cache_config.kv_cache_groups)
    if groups != 1:
        return f"its model has {groups} groups of KV layers; one is supported"
    return ""

"""The fleet as it is told to people and dashboards."""

from homing.router.core.fleet import WorkerState
from homing.router.core.scheduler import Scheduler
from homing.router.core.types import Tier

from .wire import router_pb2
from .workers import Workers


def fleet_message(scheduler: Scheduler, workers: Workers, now: float) -> router_pb2.GetFleetReply:
    """All workers and links, and what is believed of them."""
    return router_pb2.GetFleetReply(
        policy=scheduler.policy.name,
        site=scheduler.world.site,
        workers=[
            _worker(state, scheduler, workers, now)
            for state in sorted(scheduler.fleet, key=lambda state: state.worker.id)
        ],
        links=_links(scheduler),
        requests_waiting=len(scheduler.admission),
        requests_in_flight=len(scheduler.in_flight),
    )


def _worker(state: WorkerState, scheduler: Scheduler, workers: Workers, now: float) -> router_pb2.WorkerView:
    worker = state.worker
    index = scheduler.index[Tier.DEVICE]
    a_s, b_s, q_s = state.rate.coefficients
    return router_pb2.WorkerView(
        id=worker.id,
        model=worker.model,
        role=worker.role,
        site=worker.site,
        address=workers.address(worker.id),
        draining=state.draining,
        running_requests=scheduler.fleet.running(state),
        queue_s=scheduler.fleet.queue_s(state, now),
        cached_blocks=index.blocks_of(state.bit),
        torn_blocks=index.torn_blocks_of(state.bit),
        kv_blocks_used=0 if state.report is None else state.report.kv_blocks_used,
        kv_blocks_max=worker.kv_blocks_max,
        prefill_a_s=a_s,
        prefill_b_s=b_s,
        prefill_q_s=q_s,
        prefill_samples=state.rate.samples,
        decode_step_s=state.decode_step_s.value,
        kv_bytes_per_token=scheduler.models[worker.model].bytes_per_token,
        silent_s=now - state.last_seen_s,
    )


def _links(scheduler: Scheduler) -> list[router_pb2.LinkView]:
    views = []
    for source, target in scheduler.topology.known():
        rate = scheduler.topology.rate(source, target)
        views.append(
            router_pb2.LinkView(
                source=source,
                target=target,
                rtt_s=rate.rtt_s,
                bytes_per_s=rate.bytes_per_s,
                samples=rate.samples,
                flows=scheduler.fleet.ledger.flows((source, target)),
            )
        )
    return views

"""One dispatch of one request: its jobs on one or two workers, the blocks that move, and what the router hears of it.

It does what the live router's attempt and the workers' services do together, with virtual time in between.
"""

from typing import TYPE_CHECKING, Any

from homing.router.core.events import DecodeMeasured, FirstToken, PrefillFinished, RequestFinished
from homing.router.core.types import Decision, MoveKind, Outcome, PlanKind, RequestId, Tier, WorkerId
from homing.workers.engine.sequence import Sequence, Waiting

from .handover import Handover
from .job import Expected, Job
from .transfers import Fetch, Meet
from .worker import SimulatedWorker

if TYPE_CHECKING:
    from .flight import Flight
    from .world import World


class Attempt:
    """Carries one decision out. `is_over` once nobody wants to hear of it any more."""

    def __init__(self, world: "World", flight: "Flight", decision: Decision) -> None:
        self.decision = decision
        self.is_over = False
        self._world = world
        self._flight = flight
        self._name = f"{decision.request.id}#{decision.attempt}"
        self._jobs: list[tuple[SimulatedWorker, Job]] = []
        self._fetch: Fetch | None = None
        self._handover: Handover | None = None
        self._decode: Job | None = None
        self._dispatched_s = world.kernel.now

    @property
    def request_id(self) -> RequestId:
        """The request's id, without the attempt."""
        return self.decision.request.id

    @property
    def generated(self) -> int:
        """Tokens that it has generated; up to the last pass, once it is over."""
        return 0 if self._decode is None else self._decode.sequence.generated

    def start(self) -> None:
        """Send the request to its workers; each has it after half a round trip and what any dispatch costs."""
        plan, world = self.decision.plan, self._world
        for name in plan.workers:
            worker = world.workers[name]
            delay_s = world.one_way_s(self._entry, worker.facts.site) + world.dispatch_s
            world.kernel.after(delay_s, lambda worker=worker: self._submit(worker))  # type: ignore[misc]

    def cancel(self) -> None:
        """Stop everything; harmless when it is over."""
        if self.is_over:
            return
        self.is_over = True
        for worker, job in self._jobs:
            worker.cancel(job)
        self._stop_moving()

    # -- jobs ----------------------------------------------------------------------------------------------------

    @property
    def _entry(self) -> str:
        return self.decision.request.origin or self._world.router.site

    def _submit(self, worker: SimulatedWorker) -> None:
        if self.is_over:
            return
        if not worker.is_up:
            self._no_answer(worker)
            return
        plan = self.decision.plan
        if plan.kind is not PlanKind.REMOTE:
            job = self._decode_job(worker, shipped=False)
        elif worker.facts.id == plan.prefill:
            job = self._prefill_job(worker)
        else:
            job = self._decode_job(worker, shipped=True)
        self._jobs.append((worker, job))
        worker.submit(job)

    def _no_answer(self, worker: SimulatedWorker) -> None:
        back_s = self._world.one_way_s(worker.facts.site, self._world.router.site)
        self._world.broke(self, worker.facts.id, f"worker {worker.facts.id} does not answer", heard_after_s=back_s)

    def _stop_moving(self) -> None:
        for transfer in (self._fetch, self._handover):
            if transfer is not None:
                transfer.broke()

    def _sequence(self, worker: SimulatedWorker, prompt_tokens: int, max_output_tokens: int) -> Sequence:
        return Sequence(
            self._name,
            prompt_tokens,
            keys=self.decision.request.block_keys,
            block_tokens=worker.facts.block_tokens,
            max_output_tokens=max_output_tokens,
        )

    def _prefill_job(self, worker: SimulatedWorker) -> Job:
        """It ends with the last block that is shipped, which is the last one whose key is known."""
        shipped_tokens = self.decision.plan.moves[-1].block_end * worker.facts.block_tokens
        sequence = self._sequence(worker, shipped_tokens + 1, 0)
        job = Job(sequence, self, self._world.kernel.now, outgoing=self._the_handover())
        job.expected = self._fetched(worker)
        return job

    def _decode_job(self, worker: SimulatedWorker, *, shipped: bool) -> Job:
        request, arrival = self.decision.request, self._flight.arrival
        sequence = self._sequence(worker, request.prompt_tokens, request.max_output_tokens)
        sequence.answer_tokens = min(self._flight.tokens_left, request.max_output_tokens)
        sequence.keys += (arrival.keys + arrival.answer_keys)[len(request.block_keys) :]
        job = self._decode = Job(sequence, self, self._world.kernel.now)
        if shipped:
            move, handover = self.decision.plan.moves[-1], self._the_handover()
            job.expected = Expected(move.block_first, move.block_end, Waiting.FOR_ALL, handover.begin)
        else:
            job.expected = self._fetched(worker)
        return job

    def _fetched(self, worker: SimulatedWorker) -> Expected | None:
        """What the plan moves out of a cache before or while `worker` computes."""
        move = next((move for move in self.decision.plan.moves if move.kind is not MoveKind.SHIP), None)
        if move is None:
            return None
        meets = move.kind is MoveKind.MEET
        world = self._world
        self._fetch = (Meet if meets else Fetch)(
            world.kernel,
            world.network,
            world.workers[move.source],
            worker,
            self.request_id,
            block_bytes=world.block_bytes(self.decision.request.model),
            state_bytes=world.state_bytes(self.decision.request.model),
        )
        waiting = Waiting.TO_MEET if meets else Waiting.FOR_ALL
        return Expected(move.block_first, move.block_end, waiting, self._fetch.begin)

    def _the_handover(self) -> Handover:
        if self._handover is None:
            plan, world, model = self.decision.plan, self._world, self.decision.request.model
            move = plan.moves[-1]
            self._handover = Handover(
                world.kernel,
                world.network,
                world.workers[plan.prefill],
                world.workers[plan.decode],
                self.request_id,
                blocks=range(move.block_first, move.block_end),
                block_bytes=world.block_bytes(model),
                state_bytes=world.state_bytes(model),
                layers=world.layers(model),
            )
        return self._handover

    # -- what workers tell ---------------------------------------------------------------------------------------

    def prefilled(self, job: Job) -> None:
        """The prefill worker is done computing."""
        self._prefill_worker.tell(PrefillFinished(request_id=self.request_id), self)

    def first_token(self, job: Job) -> None:
        """The answer begins."""
        world = self._world
        back_s = world.one_way_s(self._decode_worker.facts.site, self._entry)
        at_s = world.kernel.now + back_s
        self._flight.note_first_token(at_s)
        event = FirstToken(request_id=self.request_id, ttft_s=at_s - self._dispatched_s)
        self._decode_worker.tell(event, self)

    def finished(self, job: Job) -> None:
        """The answer is complete. What is still moved or computed for it, nobody waits for."""
        world, worker = self._world, self._decode_worker
        now, generated = world.kernel.now, job.sequence.generated
        self._stop_moving()
        if any(not job.ended for _, job in self._jobs):
            world.kernel.after(0.0, self._give_up_rest)
        assert job.first_token_s is not None
        if generated > 1:
            seconds = now - job.first_token_s
            worker.tell(DecodeMeasured(worker_id=worker.facts.id, tokens=generated - 1, seconds=seconds), self)
        ended = RequestFinished(request_id=self.request_id, outcome=Outcome.FINISHED, output_tokens=generated)
        worker.tell(ended, self)
        world.landed(self._flight, now + world.one_way_s(worker.facts.site, self._entry))

    def _give_up_rest(self) -> None:
        for worker, job in self._jobs:
            worker.cancel(job)

    # -- what is measured ----------------------------------------------------------------------------------------

    @property
    def _prefill_worker(self) -> SimulatedWorker:
        return self._world.workers[self.decision.plan.prefill]

    @property
    def _decode_worker(self) -> SimulatedWorker:
        return self._world.workers[self.decision.plan.decode]

    def facts(self) -> dict[str, Any]:
        """The part of a record that its jobs know."""
        plan, fetch, handover = self.decision.plan, self._fetch, self._handover
        size = self._world.models[self.decision.request.model].block_tokens
        return {
            "plan": plan.kind.value,
            "prefill": plan.prefill,
            "decode": plan.decode,
            "prefill_site": self._site(plan.prefill),
            "decode_site": self._site(plan.decode),
            "attempts": self.decision.attempt,
            **self._computing(),
            "moved_tokens": 0 if fetch is None else fetch.arrived_blocks * size,
            "computed_tokens": sum(job.computed_tokens for _, job in self._jobs),
            "shipped_bytes": 0 if handover is None else int(handover.shipped_bytes),
            "moved_bytes": 0 if fetch is None else fetch.moved_bytes,
            "worst_itl_s": self._worst_itl_s(),
        }

    def _computing(self) -> dict[str, Any]:
        """Of the job that computes the prompt: what it found, and how long it waited for its first pass."""
        prefill = self.decision.plan.prefill
        job = next((job for worker, job in self._jobs if worker.facts.id == prefill), None)
        if job is None:
            return {}
        return {
            "device_hit_tokens": job.sequence.hit_tokens,
            "host_hit_tokens": job.tier_hit_tokens.get(Tier.HOST, 0),
            "disk_hit_tokens": job.tier_hit_tokens.get(Tier.DISK, 0),
            "queued_s": 0.0 if job.began_s is None else job.began_s - job.submitted_s,
        }

    def _worst_itl_s(self) -> float | None:
        decode = self._decode
        if decode is None or decode.first_token_s is None or decode.sequence.generated < 2:
            return None
        return self._decode_worker.worst_itl_s(decode.first_token_s)

    def _site(self, worker: WorkerId) -> str:
        return self._world.workers[worker].facts.site

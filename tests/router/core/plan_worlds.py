"""Random fleets in random states, and the price of every plan that they allow: what the planner is held against."""

from collections.abc import Iterator
from dataclasses import replace
from random import Random
from typing import NamedTuple

from homing.router.core.events import TrustChanged, WorkerDraining
from homing.router.core.ledger import Charge, Flow
from homing.router.core.preparation import Preparation, Source
from homing.router.core.question import Question
from homing.router.core.scheduler import Scheduler
from homing.router.core.tolls import Tolls
from homing.router.core.types import Link, Plan, PlanKind, PrefillPrior, Request, RequestId, Role, Site, Trust, Worker

from .fleets import BLOCK, HERE, PROFILE, busy, chain, link, load, request, scheduler, stored, worker


class World(NamedTuple):
    """A scheduler with a past, and a request that has just come."""

    scheduler: Scheduler
    request: Request

    def question(self) -> Question:
        return self.scheduler.question(self.request)


def random_world(seed: int, *, sites: int, per_site: int, spread: float) -> World:
    """Up to so many sites and workers; within one site the slowest worker takes up to `spread` times the quickest."""
    random = Random(seed)
    names = [Site(f"s{i}") for i in range(random.randint(1, sites))]
    workers = [one for site in names for one in _workers(random, site, per_site, spread)]
    profile = replace(
        PROFILE,
        bytes_per_token=random.choice([1000, 20_000, 160_000]),
        state_bytes=random.choice([0, 0, 0, 10_000_000]),
        layers=random.choice([1, 4, 32]),
    )
    made = scheduler(*workers, links=_links(random, names), profiles=[profile], tolls=_tolls(random, names, workers))
    keys = chain(("doc", random.choice([0, 3, 20, 100, 400])))
    for one in workers:
        _give_a_past(random, made, one, keys)
    for number in range(random.choice([0, 0, 1, 4])):
        source, target = random.choice(workers), random.choice(workers)
        flow = Flow(source=source.id, target=target.id, link=(source.site, target.site), bytes=1)
        made.fleet.charge(RequestId(f"flow {number}"), Charge(flows=(flow,)), 0.0)
    return World(made, request("r", keys, len(keys) * BLOCK + random.randint(1, 40)))


def limited_world(seed: int, *, sites: int, per_site: int, spread: float) -> World:
    """A random world of engines that move KV in different ways, or not at all, and of which not all is known."""
    world = random_world(seed, sites=sites, per_site=per_site, spread=spread)
    random = Random(seed)
    for state in world.scheduler.fleet:
        plans = frozenset(kind for kind in PlanKind if random.random() < 0.7)
        transport = random.choice(["homing", "homing", "nixl", ""])
        state.worker = replace(state.worker, transport=transport, plans=plans, ships_whole=transport == "nixl")
        trust = random.choice([Trust.EXACT, Trust.EXACT, Trust.DEGRADED, Trust.BLIND])
        world.scheduler.handle(TrustChanged(worker_id=state.worker.id, trust=trust), 0.0)
    return world


def may_move(kind: PlanKind, source: Worker, target: Worker, trust: Trust) -> bool:
    """What the router's rule says, in other words."""
    if kind not in target.plans or not source.transport or source.transport != target.transport:
        return False
    return kind is PlanKind.REMOTE or trust is Trust.EXACT


def _workers(random: Random, site: Site, per_site: int, spread: float) -> Iterator[Worker]:
    mixed = random.random() < 0.6
    token_s = 10 ** random.uniform(-5, -3)
    for number in range(random.randint(1, per_site)):
        slower = random.uniform(1.0, spread)
        prior = PrefillPrior(a_s=0.01 * slower, b_s=token_s * slower, q_s=token_s * 5e-5 * slower)
        role = random.choice([Role.BOTH, Role.PREFILL, Role.DECODE]) if mixed else Role.BOTH
        yield worker(f"{site}-{number}", site, role, prior=prior, requests_max=random.choice([2, 64]))


def _links(random: Random, names: list[Site]) -> Iterator[Link]:
    for source in [*names, HERE]:
        for target in [*names, HERE]:
            near = source == target
            rtt_s = random.choice([1e-4, 5e-4]) if near else 10 ** random.uniform(-3, -0.7)
            yield link(source, target, rtt_s, 10 ** random.uniform(*((8, 10) if near else (6, 9.5))))


def _tolls(random: Random, names: list[Site], workers: list[Worker]) -> Tolls:
    tolls = Tolls()
    for site in names:
        price = random.uniform(0, 2) if random.random() < 0.3 else 0.0
        for one in workers:
            if one.site == site:
                tolls.set_worker(one.id, price)
        for other in names:
            if random.random() < 0.2:
                tolls.set_link(site, other, random.uniform(0, 1))
    return tolls


def _give_a_past(random: Random, made: Scheduler, one: Worker, keys: tuple) -> None:
    """What it caches, what it was promised, what it reported, whether it leaves."""
    if keys and random.random() < 0.6:
        held = random.choice([len(keys), random.randint(1, len(keys)), random.randint(1, len(keys))])
        made.handle(stored(one.id, keys[:held]), 0.0)
    if one.role.can_prefill and random.random() < 0.4:
        busy(made, one.id, 10 ** random.uniform(-2, 0.7))
    if random.random() < 0.1:
        made.handle(WorkerDraining(worker_id=one.id), 0.0)
    if random.random() < 0.2:
        queued = random.randrange(3000) if one.role.can_prefill else 0
        made.handle(load(one.id, queued=queued, running=random.randrange(4)), 0.0)


def every_plan(question: Question) -> Iterator[Plan]:
    """All workers, all sources, all decode workers, without any pruning."""
    pricer = question.pricer
    for one in question.prefillers():
        if one.worker.role.can_decode:
            for prepared in _every_preparation(question, one, question.request.prompt_tokens):
                yield pricer.plan(prepared)
    for one in question.decoders():
        if not one.worker.role.can_prefill:
            yield from _every_plan_without_prefill(question, one)
    if pricer.reusable:
        yield from _every_remote_plan(question)


def _every_remote_plan(question: Question) -> Iterator[Plan]:
    wanting = [one for one in question.decoders() if not question.needs_no_prefill(one)]
    for one in question.prefillers():
        for prepared in _every_preparation(question, one, question.pricer.reusable * BLOCK):
            for decode in wanting if prepared.computed_tokens else ():
                if decode is not one and may_move(PlanKind.REMOTE, one.worker, decode.worker, one.trust):
                    yield question.pricer.remote(prepared, decode, question.held(decode))


def _every_source(question: Question) -> list[Source]:
    return [Source(state, question.held(state)) for pool in question.source_pools() for state in pool.by_bit.values()]


def _every_preparation(question: Question, one, end_tokens: int) -> Iterator[Preparation]:
    held = question.held(one)
    yield question.pricer.compute(one, held, end_tokens)
    for source in _every_source(question):
        if source.state is one or source.blocks <= held:
            continue
        given = (source.state.worker, one.worker, source.state.trust)
        if may_move(PlanKind.FETCH, *given):
            yield question.pricer.fetch(one, held, source, end_tokens)
        split = question.pricer.split(one, held, source, end_tokens)
        if split is not None and may_move(PlanKind.SPLIT, *given) and may_move(PlanKind.FETCH, *given):
            yield split


def _every_plan_without_prefill(question: Question, one) -> Iterator[Plan]:
    if question.needs_no_prefill(one):
        yield question.local(one)
        return
    for source in _every_source(question):
        if source.state is one or source.blocks < question.pricer.reusable:
            continue
        if may_move(PlanKind.DIRECT, source.state.worker, one.worker, source.state.trust):
            yield question.direct(one, source)

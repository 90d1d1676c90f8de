"""Results to draw: next to nothing, and a bit of everything."""

from math import exp
from random import Random

from homing.sim.measure.records import (
    LinkUse,
    Mark,
    RequestLog,
    RequestRecord,
    RunResult,
    Timeline,
    WeightedHistogram,
    WorkerUse,
)

SITES = ("frankfurt", "tokyo", "virginia")


def finished(number, at_s=1.0, ttft_s=0.5, tpot_s=0.02, **more):
    """A request that was answered."""
    values = {"origin": "tokyo", "tenant": "t", "output_tokens": 10, "prompt_tokens": 100, "e2e_s": ttft_s + 0.2}
    values |= {"finished_at_s": at_s + ttft_s + 0.2, **more}
    return RequestRecord(id=f"r{number}", at_s=at_s, outcome="finished", ttft_s=ttft_s, tpot_s=tpot_s, **values)


def result(records=(), **more):
    """A run of ten seconds, all of them measured."""
    log = RequestLog()
    for record in records:
        log.add(record)
    values = {"scenario": "little", "policy": "homing", "seed": 1, "from_s": 0.0, "to_s": 10.0}
    return RunResult(log=log, **(values | more))


def busy_run(policy="homing", seed=1, slowness=1.0, requests=120):
    """A run with a bit of everything: all outcomes, links, workers, a timeline, marks."""
    arrivals, rest = Random(seed), Random(f"{policy}/{seed}")
    log, itl, at_s = RequestLog(), WeightedHistogram(), 0.0
    for number in range(requests):
        at_s += arrivals.expovariate(requests / 60)
        prompt, hit = arrivals.randrange(100, 4000), 64 * rest.randrange(1, 30)
        origin = arrivals.choice(SITES)
        if number % 17 == 16:
            reason = RequestRecord(
                id=f"r{number}", at_s=at_s, outcome="rejected", reason="queue_full", origin=origin, finished_at_s=at_s
            )
            log.add(reason)
            continue
        ttft_s = slowness * (0.05 + 1e-4 * prompt) * exp(rest.gauss(0, 0.4))
        itl.add(0.02, 50)
        log.add(
            finished(
                number,
                at_s=at_s,
                ttft_s=ttft_s,
                tpot_s=0.02,
                origin=origin,
                tenant=f"t{number % 3}",
                plan=rest.choice(["local", "local", "remote", "fetch"]),
                prompt_tokens=prompt + 2000,
                device_hit_tokens=hit,
                computed_tokens=prompt + 2000 - hit,
                predicted_ttft_s=ttft_s * exp(rest.gauss(0, 0.1)),
            )
        )
    timeline = Timeline(every_s=5.0)
    for step in range(12):
        row = {f"queued_requests/{site}": float(rest.randrange(9)) for site in SITES}
        timeline.sample(5.0 * step, row | {"link_utilisation/tokyo>virginia": rest.random(), "hit_ratio": 0.5})
    links = [(a, b) for a in SITES for b in SITES if a != b]
    return RunResult(
        scenario="busy <little> run",
        policy=policy,
        seed=seed,
        from_s=0.0,
        to_s=60.0,
        log=log,
        itl=itl,
        links=tuple(LinkUse(source=a, target=b, bytes=rest.randrange(10**9), utilisation=0.3) for a, b in links),
        workers=tuple(
            WorkerUse(id=f"{site}-{n}", site=site, roles=((0.0, "both"),), utilisation=0.5, dollars=1.0)
            for site in SITES
            for n in range(2)
        ),
        timeline=timeline,
        plans={"local": 60, "remote": 30, "fetch": 22},
        commands={"copy": 3},
        marks=(Mark(at_s=30.0, text="a link slows"),),
        notes=("made up",),
    )

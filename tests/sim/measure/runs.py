"""Little results, small enough to check by hand or random ones to compare."""

from math import exp
from random import Random

from homing.sim.measure.records import RequestLog, RequestRecord, RunResult


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


def noisy_run(policy, seed, slowness, requests=150):
    """Requests of the same times and sites under every policy of a seed, with latencies of its own."""
    arrivals, rest = Random(seed), Random(f"{policy}/{seed}")
    at_s = sorted(arrivals.uniform(0.0, 9.9) for _ in range(requests))
    origins = [arrivals.choice(("frankfurt", "tokyo")) for _ in at_s]
    records = [
        finished(number, at_s=when_s, ttft_s=slowness * exp(rest.gauss(-1, 0.5)), origin=origin)
        for number, (when_s, origin) in enumerate(zip(at_s, origins, strict=True))
    ]
    return result(records, policy=policy, seed=seed)

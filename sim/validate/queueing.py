"""Closed formulas of queueing theory against the simulated world: router, admission queue, workers, network and kernel.

Each of `c` workers takes one request at a time and answers with one token, so that its service time is that of the
prompt, which is proportional to its length. Whoever finds all workers taken waits in the router's admission queue,
first come first served, and is given the worker that comes free: M/M/1, M/M/c and M/D/1 of the textbooks.

Mean waits, with S the mean service time and rho the load of each worker:

    M/G/1   S * rho * (1 + cv^2) / (2 * (1 - rho))           Pollaczek and Khinchine; cv is 1 for M, 0 for D
    M/M/c   S * C(c, c*rho) / (c * (1 - rho))                Erlang; C is his formula of delay

A service is seconds long and a message 0.1 ms, so that the delay of messages adds about 1e-5 of a service to a wait.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import log, sqrt
from random import Random

from ..cluster.world import World
from ..rng import Streams
from ..scenario import Scenario, parse_scenario
from ..workload.arrival import Arrival
from .check import Check, close

SERVICE_S = 10.0
MEAN_TOKENS = 10_000
"""Of a prompt: a whole number of tokens is off by 1e-4 of a mean service at the most."""
BLOCK_TOKENS = 1 << 18
"""No prompt fills a block: there is nothing to reuse."""
SILENT_S = 1e9
"""Reports, timeline and keep-alives would be most of the events, and nobody reads them here."""
FULL = 1_000_000
QUICK = 10_000
BATCHES = 50
WARM_UP = 0.02
TOLERANCE = 0.03
QUICK_ERRORS = 4.0
"""A quick run is held to so many standard errors where those are more than the tolerance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """Kendall's letters: exponential (M) or deterministic (D) service, and how many workers."""

    service: str
    workers: int
    load: float

    @property
    def name(self) -> str:
        """Such as `M/D/1 at 0.8`."""
        return f"M/{self.service}/{self.workers} at {self.load:g}"

    def wait_s(self) -> float:
        """The mean time in the queue, of all requests, those that do not wait included."""
        if self.workers == 1:
            cv = 1.0 if self.service == "M" else 0.0
            return SERVICE_S * self.load * (1 + cv**2) / (2 * (1 - self.load))
        assert self.service == "M", "there is no closed form of M/D/c"
        return SERVICE_S * erlang_c(self.workers, self.workers * self.load) / (self.workers * (1 - self.load))


QUEUES = tuple(
    Queue(service=service, workers=workers, load=load)
    for service, workers in (("M", 1), ("D", 1), ("M", 4))
    for load in (0.5, 0.8)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The mean wait of a run and its standard error, from the means of batches behind each other."""

    wait_s: float
    error_s: float


def erlang_c(servers: int, offered: float) -> float:
    """The probability of having to wait, for an offered load of so many busy servers (Erlang, 1917).

    >>> erlang_c(1, 0.8)
    0.8
    """
    blocked = 1.0
    for server in range(1, servers + 1):
        blocked = offered * blocked / (server + offered * blocked)
    load = offered / servers
    return blocked / (1 - load + load * blocked)


def measure(queue: Queue, requests: int, seed: int = 0) -> Measured:
    """Run the world with so many arrivals. The first requests, which find it empty, do not count."""
    streams = Streams(seed)
    arrivals = _arrivals(queue, requests, streams.stream("arrivals"), streams.stream("services"))
    waited = list(World(_scenario(queue, seed), arrivals, streams).run().log.column("waited_s"))
    assert len(waited) == requests, "everybody is served"
    return _batch_means(waited[int(WARM_UP * requests) :])


def check_queues(*, quick: bool, progress: Callable[[str], None]) -> Iterator[Check]:
    """Each queue once."""
    requests = QUICK if quick else FULL
    for queue in QUEUES:
        progress(f"{queue.name}, {requests:,} arrivals")
        yield _compare(queue, measure(queue, requests), quick=quick)


def _compare(queue: Queue, found: Measured, *, quick: bool) -> Check:
    expected_s = queue.wait_s()
    error = found.error_s / expected_s
    return close(
        f"queueing: mean wait in {queue.name}",
        source="Pollaczek-Khinchine" if queue.workers == 1 else "Erlang C",
        expected=expected_s,
        measured=found.wait_s,
        tolerance=max(TOLERANCE, QUICK_ERRORS * error) if quick else TOLERANCE,
        unit=" s",
        note=f"standard error {error:.1%}",
    )


def _arrivals(queue: Queue, requests: int, gaps: Random, services: Random) -> Iterator[Arrival]:
    rate_per_s = queue.load * queue.workers / SERVICE_S
    at_s = 0.0
    for number in range(requests):
        at_s += gaps.expovariate(rate_per_s)
        share = 1.0 if queue.service == "D" else -log(1.0 - services.random())
        yield Arrival(
            id=str(number),
            at_s=at_s,
            prompt_tokens=max(1, round(MEAN_TOKENS * share)),
            output_tokens=1,
            block_tokens=BLOCK_TOKENS,
        )


def _scenario(queue: Queue, seed: int) -> Scenario:
    worker = {
        "name": "w",
        "site": "home",
        "count": queue.workers,
        "profile": {"b_s": SERVICE_S / MEAN_TOKENS},
        "kv_tokens": 4 * BLOCK_TOKENS,
        "requests_max": 1,
        "step_tokens_max": BLOCK_TOKENS,
    }
    router = {
        "policy": "least-loaded",
        "dispatch_s": 0.0,
        "lost_after_s": SILENT_S,
        "report_every_s": SILENT_S,
        "lease_s": SILENT_S,
        "max_output_tokens": 1,
    }
    return parse_scenario(
        {
            "name": "queue",
            "seed": seed,
            "models": [{"bytes_per_token": 1, "context_tokens": 2 * BLOCK_TOKENS}],
            "sites": [{"name": "home"}],
            "workers": [worker],
            "router": router,
            "workload": {"kind": "prompts", "block_tokens": BLOCK_TOKENS},
            "sample_every_s": SILENT_S,
            "drain_s": SILENT_S,
        }
    )


def _batch_means(values: Sequence[float]) -> Measured:
    """Batches are long against the memory of the queue, so that their means are nearly independent."""
    size = len(values) // BATCHES
    means = [sum(values[i * size : (i + 1) * size]) / size for i in range(BATCHES)]
    mean = sum(means) / BATCHES
    variance = sum((value - mean) ** 2 for value in means) / (BATCHES - 1)
    return Measured(wait_s=mean, error_s=sqrt(variance / BATCHES))

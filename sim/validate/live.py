"""The live system: the demo's fleet, profiled and simulated with the same requests, against what was measured there.

The profile is fitted to passes that a worker of the demo timed in its own process after it had played, with as many
threads and neighbours as before; the router's policy, the engines' sizes, the links and the prompts are the demo's. The
simulated router is told of each worker's speed what the live one was told, which the truth then corrects in both.

The demo is a script: a request is sent when those before it have been answered, or begin to be. Simulated requests wait
for the same, and then for as long as the sender took: arrivals at recorded times would meet answers that live ended a
moment earlier. As equal seeds give equal runs (I5), the time of each arrival is found by running all before it.

Not modelled: processes that compete for cores, and for whatever else computes on the machine; workers that differ; the
first connection between two processes; the emulation's own CPU time.
"""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from math import inf
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from homing.router.core.events import PrefillMeasured
from homing.router.core.types import WorkerId

from ..cluster.world import World
from ..measure.records import RequestRecord
from ..rng import Streams
from ..scenario import Scenario, parse_scenario
from ..truth.fit import FitReport, fit
from ..truth.points import DECODE, PREFILL
from ..workload.arrival import Arrival
from ..workload.keys import KeyTable
from .check import Check, holds
from .recording import RecordedRequest, Recording, read_recording

SHIPPED = Path(str(files("homing.sim") / "validate" / "demo.json"))
"""A run of the demo, as recorded."""
CALIBRATED = ((0, 64), (0, 256), (256, 512), (512, 1024))
"""Prefills that the demo's workers time before they join: (cached, end) tokens."""
TTFT_ERROR_MAX = 0.25
SAME_PLAN_MIN = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One request, live and simulated. TTFT is from dispatch."""

    live: RecordedRequest
    plan: str
    prefill: str
    decode: str
    ttft_s: float

    @property
    def error(self) -> float:
        """How far the simulated TTFT is off the live one."""
        return self.ttft_s / self.live.ttft_s - 1.0

    @property
    def same_plan(self) -> bool:
        """Whether the plan is of the same kind."""
        return self.plan == self.live.plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All requests, and the fit that the simulated workers were made of."""

    pairs: tuple[Pair, ...]
    speed: FitReport

    @property
    def ttft_error_median(self) -> float:
        """Of the errors without their signs."""
        return median(abs(pair.error) for pair in self.pairs)

    @property
    def same_plans(self) -> float:
        """The share of requests with plans of the same kind."""
        return sum(pair.same_plan for pair in self.pairs) / len(self.pairs)

    @property
    def passed(self) -> bool:
        """Whether both are good enough."""
        return self.ttft_error_median < TTFT_ERROR_MAX and self.same_plans >= SAME_PLAN_MIN


def check_live(*, quick: bool, progress: Callable[[str], None], path: Path = SHIPPED) -> Iterator[Check]:
    """A recorded run of the demo; quick or not, it takes a moment."""
    progress(f"the demo as recorded in {path.name}")
    recording = read_recording(path)
    found = compare(recording)
    yield holds(
        "live: median error of TTFT",
        source=f"the demo, measured: {recording.about or path.name}",
        expected=f"below {TTFT_ERROR_MAX:.0%}",
        measured=f"{found.ttft_error_median:.1%}, largest {max(abs(pair.error) for pair in found.pairs):.0%}",
        passed=found.ttft_error_median < TTFT_ERROR_MAX,
        note=f"the profile's mean error at its own points is {found.speed.mean_error:.1%}",
    )
    others = [
        f"{pair.live.request} {pair.plan} instead of {pair.live.plan}" for pair in found.pairs if not pair.same_plan
    ]
    yield holds(
        "live: plans of the same kind",
        source="the demo, measured",
        expected=f"at least {SAME_PLAN_MIN:.0%} of {len(found.pairs)} requests",
        measured=f"{found.same_plans:.0%}",
        passed=found.same_plans >= SAME_PLAN_MIN,
        note="; ".join(others),
    )


def compare(recording: Recording) -> Comparison:
    """Simulate the recorded requests in the recorded fleet. ConfigError for points that tell no profile."""
    speed = _fitted(recording)
    scenario = scenario_of(recording, speed)
    records = {record.id: record for record in play(recording, scenario)}
    return Comparison(pairs=tuple(_pair(live, records[live.request]) for live in recording.requests), speed=speed)


def scenario_of(recording: Recording, speed: FitReport) -> Scenario:
    """The recorded fleet; its workload names the block size alone, because arrivals are made as they fall due."""
    fleet = recording.fleet
    profile = _coefficients(speed)
    return parse_scenario(
        {
            "name": "demo",
            "models": [{"bytes_per_token": fleet.model.bytes_per_token, "layers": fleet.model.layers}],
            "sites": [{"name": site} for site in sorted({worker.site for worker in fleet.workers})],
            "links": [{name: getattr(link, name) for name in link.__struct_fields__} for link in fleet.links],
            "workers": [
                {
                    "name": worker.id,
                    "site": worker.site,
                    "role": worker.role,
                    "profile": profile,
                    "kv_tokens": worker.kv_blocks * fleet.model.block_tokens,
                    "requests_max": worker.requests_max,
                    "step_tokens_max": worker.step_tokens_max,
                    "nic_bytes_per_s": recording.speed.move_bytes_per_s,
                }
                for worker in fleet.workers
            ],
            "router": {
                "site": fleet.router.site,
                "policy": fleet.router.policy,
                "options": fleet.router.options,
                "dispatch_s": recording.speed.dispatch_s,
                "max_output_tokens": max(live.max_output_tokens for live in recording.requests),
                "reject_early": False,
                "calibrate": False,
            },
            "workload": {"kind": "prompts", "block_tokens": fleet.model.block_tokens},
        },
        where="the recorded fleet",
    )


def _fitted(recording: Recording) -> FitReport:
    """The profile of the recorded passes."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "demo.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow((*PREFILL, *DECODE, "seconds"))
            rows.writerows((cached, end, "", "", seconds) for cached, end, seconds in recording.speed.prefill)
            rows.writerows(("", "", batch, context, seconds) for batch, context, seconds in recording.speed.decode)
        return fit(path)


def _coefficients(speed: FitReport) -> dict[str, Any]:
    prefill, decode = speed.file.prefill, speed.file.decode
    given = {name: getattr(prefill, name) for name in ("a_s", "b_s", "q_s")}
    return given | {f"decode_{name}": getattr(decode, name) for name in ("a_s", "b_s", "c_s")}


def play(recording: Recording, scenario: Scenario) -> list[RequestRecord]:
    """Records of all requests in their order, each sent when what it waits for has happened."""
    keys = KeyTable("demo")
    told = list(_told(recording))
    arrivals: list[Arrival] = []
    records: list[RequestRecord] = []
    for live in recording.requests:
        arrivals.append(_arrival(live, _due_s(live, recording.requests, records), recording, keys))
        world = World(scenario, iter(arrivals), Streams(scenario.seed))
        world.begin()
        world.router.tell(told)
        world.kernel.run_until(inf)
        ended = {record.id: record for record in world.log}
        records = [ended[arrival.id] for arrival in arrivals]
    return records


def _told(recording: Recording) -> Iterator[PrefillMeasured]:
    """What each worker says of its speed when it joins."""
    for worker in recording.fleet.workers:
        a_s, b_s, q_s = worker.told_prefill_abq_s
        for cached, end in CALIBRATED:
            seconds = a_s + b_s * (end - cached) + q_s * (end**2 - cached**2)
            yield PrefillMeasured(
                worker_id=WorkerId(f"{worker.id}-1"), cached_tokens=cached, end_tokens=end, seconds=seconds
            )


def _due_s(live: RecordedRequest, recorded: Sequence[RecordedRequest], before: Sequence[RequestRecord]) -> float:
    """When a request is sent: its sender takes as long as it took live, after what it waited for."""
    if not before:
        return 0.0
    if live.when == "streaming":
        last = before[-1]
        assert last.ttft_s is not None, f"{last.id} has no first token"
        return last.at_s + last.ttft_s + max(0.0, live.sent_s - recorded[len(before) - 1].first_token_s)
    quiet_since_s = max(one.ended_s for one in recorded[: len(before)])
    return max(one.finished_at_s for one in before) + max(0.0, live.sent_s - quiet_since_s)


def _arrival(live: RecordedRequest, at_s: float, recording: Recording, table: KeyTable) -> Arrival:
    size = recording.fleet.model.block_tokens
    keys, asked = table.keys(live.blocks, len(live.blocks)), live.prompt_tokens // size
    return Arrival(
        id=live.request,
        at_s=at_s,
        prompt_tokens=live.prompt_tokens,
        output_tokens=len(live.tokens),
        block_tokens=size,
        keys=keys[:asked],
        answer_keys=keys[asked:],
    )


def _pair(live: RecordedRequest, record: RequestRecord) -> Pair:
    assert record.ttft_s is not None, f"{record.id} has no first token: {record.outcome} {record.reason}"
    return Pair(
        live=live,
        plan=record.plan,
        prefill=record.prefill.removesuffix("-1"),
        decode=record.decode.removesuffix("-1"),
        ttft_s=record.ttft_s - record.waited_s,
    )

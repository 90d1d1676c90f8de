"""The two observers of the driver: what was decided, and what is counted, from real events through a real scheduler."""

from random import Random

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from homing.router.core.events import (
    BlocksStored,
    DispatchFailed,
    FirstToken,
    RequestArrived,
    RequestCancelled,
    RequestFinished,
    TimerFired,
    TransferFinished,
    WorkerJoined,
)
from homing.router.core.limits import Limits
from homing.router.core.policies.homing import Homing
from homing.router.core.scheduler import Scheduler
from homing.router.core.topology import Topology
from homing.router.core.types import (
    BlockKey,
    Link,
    ModelName,
    ModelProfile,
    Outcome,
    Request,
    RequestId,
    Role,
    Site,
    Worker,
    WorkerId,
)
from homing.router.service.journal import DecisionJournal
from homing.router.service.metrics import Metrics

MODEL = ModelName("m")
HERE = Site("here")
TOOK_S = 0.0002


class Router:
    """A scheduler with both observers, fed as the driver feeds it."""

    def __init__(self, *roles, kept_max=100, **limits):
        profile = ModelProfile(name=MODEL, block_tokens=16, bytes_per_token=1000)
        link = Link(source=HERE, target=HERE, rtt_s=1e-3, bytes_per_s=1e8)
        self.scheduler = Scheduler(
            models=[profile],
            topology=Topology([link]),
            policy=Homing(),
            random=Random(0),
            site=HERE,
            limits=Limits(**limits),
        )
        self.journal = DecisionJournal(kept_max)
        self.metrics = Metrics(self.scheduler)
        for number, role in enumerate(roles):
            self.join(f"w{number}", role)

    def join(self, name, role):
        known = Worker(
            id=WorkerId(name), model=MODEL, role=role, site=HERE, block_tokens=16, kv_blocks_max=1000, requests_max=2
        )
        self.feed(WorkerJoined(worker=known), 0.0)

    def feed(self, event, now=0.0):
        commands = self.scheduler.handle(event, now)
        for observer in (self.journal, self.metrics):
            observer(event, commands, now, TOOK_S)
        return commands

    def arrive(self, name, now=0.0, **facts):
        return self.feed(RequestArrived(request=request(name, **facts)), now)

    def finish(self, name, outcome=Outcome.FINISHED, now=0.0):
        return self.feed(RequestFinished(request_id=RequestId(name), outcome=outcome, output_tokens=1), now)

    def scrape(self):
        """Every sample by its name and labels, read as Prometheus reads it."""
        text = generate_latest(self.metrics.registry).decode()
        families = list(text_string_to_metric_families(text))
        return {(one.name, *sorted(one.labels.values())): one.value for family in families for one in family.samples}

    def value(self, *key):
        return self.scrape().get(key, 0.0)

    def ends(self):
        """How requests ended, as counted."""
        prefix = "homing_requests_total"
        return {key[1]: value for key, value in self.scrape().items() if key[0] == prefix and value}


def request(name, *, tokens=100, keys=(), **facts):
    known = {"model": MODEL, "max_output_tokens": 8, "arrived_s": 0.0, **facts}
    return Request(id=RequestId(name), block_keys=keys, prompt_tokens=tokens, **known)


def broke(name, resume_as=None):
    return DispatchFailed(request_id=RequestId(name), worker_id=None, reason="it broke", resume_as=resume_as)


# -- the journal -------------------------------------------------------------------------------------------------------


def test_a_decision_is_kept_with_the_time_that_it_took():
    router = Router(Role.BOTH)
    (sent,) = router.arrive("r")
    assert router.journal.decisions(RequestId("r")) == [(sent.decision, TOOK_S)]
    router.finish("r")
    assert router.journal.decisions(RequestId("r")), "also when the request has ended: then people ask why"


def test_every_attempt_is_kept_oldest_first():
    router = Router(Role.BOTH, Role.BOTH)
    router.arrive("r")
    router.feed(broke("r", request("r")))
    assert [decision.attempt for decision, _ in router.journal.decisions(RequestId("r"))] == [1, 2]


def test_an_id_that_is_used_again_begins_anew():
    router = Router(Role.BOTH)
    router.arrive("r", tokens=100)
    router.finish("r")
    router.arrive("r", tokens=200)
    assert [d.request.prompt_tokens for d, _ in router.journal.decisions(RequestId("r"))] == [200]


def test_of_more_than_it_keeps_the_oldest_are_forgotten():
    router = Router(Role.BOTH, kept_max=3)
    for number in range(5):
        router.arrive(f"r{number}")
        router.finish(f"r{number}")
    kept = [bool(router.journal.decisions(RequestId(f"r{number}"))) for number in range(5)]
    assert kept == [False, False, True, True, True]


def test_a_request_that_is_tried_again_is_recent():
    router = Router(Role.BOTH, Role.BOTH, kept_max=2)
    router.arrive("first")
    router.arrive("second")
    router.feed(broke("first", request("first")))
    router.arrive("third")
    assert len(router.journal.decisions(RequestId("first"))) == 2
    assert router.journal.decisions(RequestId("second")) == []


@pytest.mark.parametrize("name", ["never heard of", "rejected", "waits"])
def test_what_was_never_decided_is_not_there(name):
    router = Router(Role.BOTH)
    for filler in ("a", "b"):
        router.arrive(filler)
    router.arrive("rejected", model=ModelName("unknown"))
    assert router.arrive("waits") == []
    assert router.journal.decisions(RequestId(name)) == []


# -- how requests end --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", list(Outcome))
def test_an_end_is_counted_by_its_outcome(outcome):
    router = Router(Role.BOTH)
    router.arrive("r")
    router.finish("r", outcome)
    assert router.ends() == {outcome: 1.0}
    assert router.value("homing_arrivals_total", MODEL) == 1.0


def test_a_rejection_is_an_end_with_a_reason():
    router = Router()
    router.arrive("r")
    assert router.ends() == {"rejected": 1.0}
    assert router.value("homing_rejects_total", "no_worker") == 1.0


def test_a_sender_who_goes_away_is_counted_whether_it_waited_or_was_served():
    router = Router(Role.BOTH)
    for name in ("a", "b", "waits"):
        router.arrive(name)
    for name in ("waits", "a"):
        router.feed(RequestCancelled(request_id=RequestId(name)))
    assert router.ends() == {"cancelled": 2.0}


def test_a_dispatch_that_breaks_for_good_is_a_failure_and_one_that_is_tried_again_is_not_an_end():
    router = Router(Role.BOTH, Role.BOTH)
    router.arrive("r")
    router.feed(broke("r", request("r")))
    assert router.ends() == {}
    router.feed(broke("r"))
    assert router.ends() == {"failed": 1.0}
    assert router.value("homing_dispatch_failures_total") == 2.0
    assert router.value("homing_plans_total", "local") == 2.0


def test_a_request_whose_lease_ran_out_failed():
    router = Router(Role.BOTH, lease_s=10.0, lost_after_s=1e9)
    router.arrive("r", now=0.0)
    router.feed(TimerFired(), 10.0)
    assert router.ends() == {"failed": 1.0}


def test_an_end_is_counted_once():
    """I1: what is told of a request that ended before is late, and of one that never was is wrong."""
    router = Router(Role.BOTH, lease_s=10.0, lost_after_s=1e9)
    router.arrive("r", now=0.0)
    router.feed(TimerFired(), 10.0)
    router.finish("r", now=11.0)
    router.feed(RequestCancelled(request_id=RequestId("r")), 11.0)
    router.feed(broke("r"), 11.0)
    router.finish("never was", now=11.0)
    assert router.ends() == {"failed": 1.0}


def test_a_second_request_of_the_same_id_does_not_end_the_first():
    router = Router(Role.BOTH)
    router.arrive("r")
    router.arrive("r")
    assert router.ends() == {"rejected": 1.0}
    router.feed(FirstToken(request_id=RequestId("r"), ttft_s=0.2))
    assert router.value("homing_ttft_seconds_count", "local") == 1.0
    router.finish("r")
    assert router.ends() == {"rejected": 1.0, "finished": 1.0}


def test_nothing_is_remembered_of_requests_that_ended():
    router = Router(Role.BOTH)
    for number in range(50):
        router.arrive(f"r{number}")
        router.finish(f"r{number}")
    router.arrive("unknown", model=ModelName("unknown"))
    assert not router.metrics._open


# -- what is measured --------------------------------------------------------------------------------------------------


def test_the_error_of_the_price_is_measured_minus_predicted():
    router = Router(Role.BOTH)
    (sent,) = router.arrive("r")
    router.feed(FirstToken(request_id=RequestId("r"), ttft_s=0.5))
    assert router.value("homing_ttft_seconds_sum", "local") == pytest.approx(0.5)
    error_s = 0.5 - sent.decision.plan.estimate.ttft_s
    assert 0.3 < error_s < 1.0, "or this test says nothing"
    scraped = router.scrape()
    assert scraped["homing_ttft_error_seconds_bucket", "0.3", "local"] == 0.0
    assert scraped["homing_ttft_error_seconds_bucket", "1.0", "local"] == 1.0


def test_an_answer_that_came_sooner_than_predicted_is_a_negative_error():
    router = Router(Role.BOTH)
    router.arrive("r", tokens=3000)
    router.feed(FirstToken(request_id=RequestId("r"), ttft_s=0.0))
    assert router.value("homing_ttft_error_seconds_bucket", "-0.1", "local") == 1.0


def test_tokens_are_counted_by_where_they_come_from():
    router = Router(Role.BOTH)
    keys = tuple(BlockKey(number) for number in range(1, 7))
    router.feed(BlocksStored(worker_id=WorkerId("w0"), keys=keys[:4]))
    router.arrive("r", keys=keys)
    assert router.value("homing_prompt_tokens_total", "cached") == 64.0
    assert router.value("homing_prompt_tokens_total", "computed") == 36.0
    assert router.value("homing_index_blocks", "device", "w0") == 4.0


def test_a_transfer_counts_what_arrived_and_whether_it_broke():
    router = Router(Role.BOTH, Role.BOTH)
    for complete in (True, False):
        done = TransferFinished(
            request_id=RequestId("r"),
            source=WorkerId("w0"),
            target=WorkerId("w1"),
            bytes=1000,
            seconds=0.01,
            complete=complete,
        )
        router.feed(done)
    assert router.value("homing_moved_bytes_total", "w0", "w1") == 2000.0
    assert router.value("homing_transfer_failures_total") == 1.0


def test_every_decision_is_timed():
    router = Router(Role.BOTH)
    for number in range(3):
        router.arrive(f"r{number}")
    assert router.value("homing_decision_seconds_count") == 3.0
    assert router.value("homing_decision_seconds_sum") == pytest.approx(3 * TOOK_S)


def test_gauges_show_the_moment_of_the_scrape():
    router = Router(Role.BOTH)
    for name in ("a", "b", "c"):
        router.arrive(name)
    assert router.value("homing_requests_in_flight") == 2.0
    assert router.value("homing_requests_waiting") == 1.0
    assert router.value("homing_worker_requests", "w0") == 2.0
    assert router.value("homing_link_bytes_per_second", HERE, HERE) == pytest.approx(1e8)
    assert router.value("homing_link_rtt_seconds", HERE, HERE) == pytest.approx(1e-3)
    for name in ("a", "b", "c"):
        router.finish(name)
    assert router.value("homing_requests_in_flight") == router.value("homing_requests_waiting") == 0.0


def test_names_have_a_prefix_and_counters_their_ending():
    router = Router(Role.BOTH)
    router.arrive("r")
    router.finish("r")
    families = list(text_string_to_metric_families(generate_latest(router.metrics.registry).decode()))
    assert all(family.name.startswith("homing_") for family in families)
    assert all(family.documentation.endswith(".") for family in families)
    counters = [sample.name for f in families if f.type == "counter" for sample in f.samples]
    assert all(name.endswith(("_total", "_created")) for name in counters)

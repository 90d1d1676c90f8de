"""Whatever goes wrong, every request ends once and nothing is left of it; and what goes wrong does what it says."""

from collections import Counter

import pytest

from homing.router.core.types import Outcome

from .storms import storm
from .worlds import arrival, document, link, run, worker, world


@pytest.mark.parametrize("seed", range(12))
def test_everything_ends_once_in_any_storm(seed):
    """I1, I3, I4 and I9 hold after every message, and when all is over nobody holds, moves or computes anything."""
    made, records = run(storm(seed))
    assert Counter(record.outcome for record in records.values()).keys() <= {str(outcome) for outcome in Outcome}
    for record in records.values():
        assert (record.reason == "") == (record.outcome == "finished")
        assert record.ttft_s is None or 0 < record.ttft_s <= record.e2e_s + 1e-9
        assert record.finished_at_s >= record.at_s
        if record.outcome == "finished":
            assert record.output_tokens >= 1 and record.attempts >= 1
    made.log.check()


def two(**keys) -> dict:
    return document(worker(count=2), **keys)


def crash(at_s: float, name: str = "w-1", **keys) -> dict:
    return {"kind": "crash", "at_s": at_s, "worker": name} | keys


@pytest.mark.parametrize("exact", [False, True])
def test_what_was_sent_is_not_decoded_again(exact):
    """A worker dies in the middle of an answer: another reads prompt and answer so far, and says the rest."""
    scenario = two(faults=[crash(2.0)], exact=exact)
    made, records = run(scenario, [arrival(tokens=1000, output=200, answers=200)])
    record = records["r"]
    assert (record.outcome, record.attempts, record.output_tokens) == ("finished", 2, 200)
    sent = sum(worker.counters.decode_tokens for worker in made.workers.values())
    assert sent == 200 - 2, "each attempt has one token of its prefill, the others take a pass each"
    again = made.workers["w-2"].counters
    assert again.prefill_tokens == 1000 + (200 - 1 - again.decode_tokens)
    assert record.ttft_s == pytest.approx(0.1122, abs=1e-9), "the first token came from the first attempt"


def test_a_crash_is_the_same_pass_by_pass():
    """Passes that were run through at once end where the crash cuts them."""
    for at_s in (1.0, 1.0132, 2.5):
        ends = []
        for exact in (False, True):
            _, records = run(
                two(faults=[crash(at_s)], exact=exact), [arrival(output=200), arrival("s", 0.3, output=90)]
            )
            ends.append({name: (r.output_tokens, r.attempts, round(r.e2e_s, 6)) for name, r in records.items()})
        assert ends[0] == ends[1]


def test_a_worker_that_came_back_is_empty_and_used_again():
    scenario = document(worker(), faults=[crash(1.0, for_s=1.0)])
    made, records = run(
        scenario, [arrival("a", shared=800), arrival("b", 1.5, shared=800), arrival("c", 3.0, shared=800)]
    )
    assert (records["a"].outcome, records["b"].reason) == ("finished", "no_worker")
    assert (records["c"].outcome, records["c"].device_hit_tokens) == ("finished", 0)
    assert [mark.text for mark in made.marks] == ["w-1 is gone", "w-1 is back"]


def test_crashes_that_overlap():
    """A worker is back when none of its faults lasts any more."""
    scenario = document(worker(), faults=[crash(1.0, for_s=1.0), crash(1.5, for_s=2.0), crash(1.6, for_s=0.1)])
    asked = [arrival(f"r{number}", 0.6 + number / 2) for number in range(8)]
    made, records = run(scenario, asked)
    answered = [record.at_s for record in records.values() if record.outcome == "finished"]
    assert sorted(answered) == pytest.approx([0.6, 3.6, 4.1]), "w-1 is gone from 1.0 to 3.5"
    assert made.workers["w-1"].lives == 2


def test_a_worker_that_is_back_before_the_news_of_its_end():
    """Both pieces of news take the same way, and come in order."""
    workers = worker("w", "home"), worker("v", "away", requests_max=1)
    scenario = document(
        *workers,
        links=[link("home", "away", rtt_s=0.4)],
        router={"site": "home"},
        faults=[crash(1.0, "v-1", for_s=0.01), crash(1.0, "w-1")],
    )
    _, records = run(scenario, [arrival("a", 2.0), arrival("b", 3.0)])
    assert [(r.outcome, r.decode) for r in records.values()] == [("finished", "v-1")] * 2


def test_a_slow_worker_is_slow_from_the_next_pass_on():
    """Also in the middle of passes that are run through at once."""
    slow = {"kind": "slow", "at_s": 1.0, "worker": "w-1", "factor": 3.0, "for_s": 2.0}
    ends = []
    for exact in (False, True):
        _, records = run(document(faults=[slow], exact=exact), [arrival(output=300)])
        ends.append(records["r"].e2e_s)
    _, usual = run(document(), [arrival(output=300)])
    assert ends[0] == pytest.approx(ends[1], abs=1e-6)
    assert ends[0] - usual["r"].e2e_s == pytest.approx(2.0 * 2 / 3, abs=0.05)


def test_slowness_multiplies_and_ends():
    faults = [
        {"kind": "slow", "at_s": 0.5, "worker": "w-1", "factor": 2.0, "for_s": 10.0},
        {"kind": "slow", "at_s": 0.6, "worker": "w-1", "factor": 5.0, "for_s": 5.0},
    ]
    coming = [arrival(f"r{number}", at_s) for number, at_s in enumerate([0.0, 2.0, 8.0, 12.0])]
    _, records = run(document(faults=faults), coming)
    ttft_s = [record.ttft_s - 0.0022 for record in sorted(records.values(), key=lambda r: r.at_s)]
    assert ttft_s == pytest.approx([0.11, 1.1, 0.22, 0.11], abs=1e-9)


def moving(kind: str, *, faults: list, **keys) -> dict:
    """A request `r` at 3 s for which blocks travel for more than a second, from 3.01 s on."""
    if kind == "ship":
        workers = worker("w", "home", role="prefill", count=2), worker("v", "away", role="decode", count=2)
    else:
        role = {"direct": "decode"}.get(kind, "both")
        workers = worker("w", "home", requests_max=1), worker("v", "away", role=role, count=2)
    links = [link("home", "away", bytes_per_s=1e7 if kind == "split" else 5e6, rtt_s=0.005)]
    return document(*workers, links=links, router={"site": "home"}, faults=faults, **keys)


ASKED = [arrival("first", tokens=16_000, shared=16_000, output=2000), arrival("r", 3.0, tokens=16_016, shared=16_000)]


@pytest.mark.parametrize("kind", ["split", "direct", "ship"])
@pytest.mark.parametrize("end", ["source", "target"])
@pytest.mark.parametrize("for_s", [0.2, None])
def test_blocks_travel_when_an_end_dies(kind, end, for_s):
    """The target computes, or another worker answers; pins, flows and rooms are given back (`check_over`)."""
    _, calm = run(moving(kind, faults=[]), ASKED, check_every=0)
    record = calm["r"]
    assert record.plan == {"ship": "remote"}.get(kind, kind)
    assert record.ttft_s > 0.6, "the fault strikes while blocks travel"
    dies = {"source": record.prefill if kind == "ship" else "w-1", "target": record.decode}[end]
    after = {} if for_s is None else {"for_s": for_s}
    _, records = run(moving(kind, faults=[crash(3.4, dies, **after)]), ASKED, check_every=3)
    first, struck = records["first"], records["r"]
    assert {first.outcome, struck.outcome} <= {"finished", "rejected"}
    if end == "target" or kind == "ship":
        assert (struck.outcome, struck.attempts) == ("finished", 2)
    if kind == "split" and end == "source":
        assert (struck.outcome, struck.attempts) == ("finished", 1), "it computes what does not come any more"
        assert struck.computed_tokens + struck.moved_tokens == 16_016


def test_a_cut_link_stalls_what_it_carries():
    cut = {"kind": "link", "at_s": 3.2, "source": "away", "target": "home", "factor": 0.0, "for_s": 5.0}
    _, calm = run(moving("direct", faults=[]), ASKED, check_every=0)
    _, records = run(moving("direct", faults=[cut]), ASKED)
    assert records["r"].ttft_s - calm["r"].ttft_s == pytest.approx(5.0, abs=1e-6)


def test_two_faults_of_one_link_multiply():
    faults = [
        {"kind": "link", "at_s": 3.0, "source": "away", "target": "home", "factor": 0.5, "for_s": 60.0},
        {"kind": "link", "at_s": 3.0, "source": "home", "target": "away", "factor": 0.5, "for_s": 1.0},
    ]
    _, calm = run(moving("direct", faults=[]), ASKED, check_every=0)
    _, records = run(moving("direct", faults=faults), ASKED)
    sending_s = 16_000 * 1000 / 5e6
    quarter_s = 1.0 - 0.0145
    expected_s = quarter_s + (sending_s - quarter_s / 4) * 2
    assert records["r"].ttft_s - calm["r"].ttft_s == pytest.approx(expected_s - sending_s, abs=0.02)


def test_a_router_that_begins_anew():
    """What is out or waits fails, with a reason; what comes later is answered from the caches that there are."""
    scenario = document(worker(requests_max=2), faults=[{"kind": "router", "at_s": 1.0}])
    coming = [arrival(f"r{number}", number / 100, output=500, shared=800) for number in range(4)]
    made, records = run(scenario, [*coming, arrival("late", 2.0, shared=800)])
    failed = [record for record in records.values() if record.outcome == "failed"]
    assert sorted(record.id for record in failed) == ["r0", "r1", "r2", "r3"]
    assert {record.reason for record in failed} == {"the router began anew"}
    assert sorted(record.output_tokens > 0 for record in failed) == [False, False, True, True]
    assert records["late"].device_hit_tokens == 800
    assert made.plans["local"] == 3
    running, late, prefilled = 2, 9, 2
    decoded = made.workers["w-1"].counters.decode_tokens - running - late
    assert sum(record.output_tokens for record in failed) == decoded + prefilled


def test_reports_that_are_late_hide_no_worker():
    _, records = run(two(router={"report_lag_s": 4.5}), [arrival(f"r{n}", n * 3.0) for n in range(8)])
    assert all(record.outcome == "finished" for record in records.values())


def test_a_lease_that_is_over_ends_a_request_with_what_it_had():
    made, records = run(document(router={"lease_s": 1.0}), [arrival(output=500)])
    record = records["r"]
    assert (record.outcome, made.commands["cancel"]) == ("failed", 1)
    assert record.output_tokens == pytest.approx(1 + (1.0 - 0.11) / 0.0201, abs=1.5)


def test_nobody_decodes_any_more():
    """Requests that no worker will ever take are unfinished when the run has waited long enough for them."""
    workers = worker("p", role="prefill"), worker("d", role="decode")
    faults = [crash(1.0, "d-1")]
    made = world(document(*workers, faults=faults, drain_s=50.0), [arrival("a"), arrival("b", 2.0)])
    result = made.run()
    assert (len(made.log), result.unfinished) == (1, 1)
    assert made.kernel.now == pytest.approx(52.0)


def test_a_reader_that_leaves_makes_room():
    """Blocks that are read by somebody cannot be evicted: who waited for them goes on when they are let go."""
    holder = worker("w", "home", kv_tokens=16_400, requests_max=3)
    scenario = document(
        holder,
        worker("v", "away", kv_tokens=40_000),
        links=[link("home", "away", bytes_per_s=5e6, rtt_s=0.005)],
        router={"site": "home", "max_output_tokens": 16},
    )
    coming = [
        arrival("first", tokens=16_000, shared=16_000, output=1),
        *[arrival(f"r{n}", 3.0 + n / 100, tokens=16_016, shared=16_000, output=16) for n in range(3)],
        *[arrival(f"s{n}", 3.1 + n / 100, tokens=15_000, output=16) for n in range(3)],
    ]
    _, records = run(scenario, coming)
    assert all(record.outcome == "finished" for record in records.values())


def test_what_was_sent_before_the_last_failure_is_counted_once():
    scenario = two(faults=[crash(2.0)], router={"retries_max": 0})
    made, records = run(scenario, [arrival(output=200, answers=200)])
    record = records["r"]
    assert (record.outcome, record.reason, record.attempts) == ("rejected", "retries_spent", 1)
    assert record.output_tokens == 1 + made.workers["w-1"].counters.decode_tokens
    assert record.tpot_s == pytest.approx((record.e2e_s - record.ttft_s) / (record.output_tokens - 1))


def test_a_resumed_request_has_been_in_time():
    """Its deadline was that of a first token, which the sender has."""
    scenario = document(
        worker(count=2, requests_max=1),
        faults=[crash(2.0)],
        router={"ttft_deadline_s": 1.0, "policy": "round-robin"},
    )
    _, records = run(scenario, [arrival(output=200), arrival("other", 0.1, output=300)])
    assert {(r.outcome, r.output_tokens) for r in records.values()} == {("finished", 200), ("finished", 300)}


@pytest.mark.parametrize("dies_s", [0.05, 0.6])
def test_a_prefill_worker_dies_when_all_is_done(dies_s):
    """The router gives a request up whose end is still on its way to it: that changes nothing."""
    workers = worker("p", "home", role="prefill"), worker("d", "away", role="decode")
    links = [link("home", "away", rtt_s=0.2)]
    calm = {"router": {"site": "home", "report_lag_s": 1.0}, "links": links}
    ended_s = run(document(*workers, **calm), [arrival()])[1]["r"].finished_at_s - 0.1
    made, records = run(document(*workers, faults=[crash(ended_s + dies_s, "p-1")], **calm), [arrival()])
    assert (records["r"].outcome, records["r"].attempts, len(made.log)) == ("finished", 1, 1)


def test_books_are_up_to_date_in_the_middle_of_a_run():
    """A worker that decodes all the time is busy all the time, whenever one looks."""
    made = world(document(warmup_s=3.0, duration_s=7.0), [arrival(output=600), arrival("end", 7.5)])
    result = made.run()
    (use,) = result.workers
    assert use.busy_s == pytest.approx(result.span_s, rel=1e-9)
    assert use.utilisation == pytest.approx(1.0)
    assert use.decode_tokens == pytest.approx(result.span_s / 0.0201, abs=2)


def test_what_is_shipped_stays_at_its_source_until_it_is_there():
    """The prefill is done after half a second, its blocks travel for four: nobody else gets their place."""
    workers = worker("p", "home", role="prefill"), worker("d", "away", role="decode")
    links = [link("home", "away", bytes_per_s=1e6)]
    made = world(document(*workers, links=links, router={"site": "home"}), [arrival(tokens=4000), arrival("s", 90.0)])
    made.begin()
    made.kernel.run_until(3.0)
    source = made.workers["p-1"]
    assert (len(source), source.cache.used, len(source.transfers)) == (0, 249, 1)
    made.kernel.run_until(50.0)
    assert (len(source), source.cache.used, len(source.transfers)) == (0, 0, 0)


def test_what_is_given_up_moves_no_further():
    """Pins and bandwidth are given back with the request, not when all its bytes have come."""
    scenario = moving("direct", faults=[])
    scenario["router"]["lease_s"] = 1.0
    made = world(scenario, [arrival("first", tokens=16_000, shared=16_000, output=1), ASKED[1], arrival("s", 90.0)])
    made.begin()
    made.kernel.run_until(3.5)
    assert made.flights and made.workers["w-1"].cache.used
    made.kernel.run_until(4.01)
    assert not made.flights and not made.workers["w-1"].cache.used
    assert made.network.usage_of("w-1/out").flows == 0


def test_a_router_that_begins_anew_while_a_worker_comes_back():
    """It hears of the worker once, whichever news comes first, and of its end only when it was there."""
    workers = worker("w", "home"), worker("v", "away")
    links = [link("home", "away", rtt_s=0.4)]
    for at_s in (0.9, 1.0, 1.15, 1.25, 1.35):
        faults = [crash(1.0, "v-1", for_s=0.1), {"kind": "router", "at_s": at_s}]
        made = world(document(*workers, links=links, faults=faults, router={"site": "home"}), [arrival("s", 5.0)])
        made.begin()
        made.kernel.run_until(3.0)
        assert {state.worker.id for state in made.router.scheduler.fleet} == {"w-1", "v-1"}
        made.kernel.run_until(1e6)
        made.check_over()

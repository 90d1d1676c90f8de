from dataclasses import fields, is_dataclass, replace
from random import Random
from types import UnionType
from typing import NewType, get_args, get_origin, get_type_hints

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from homing.router.core.commands import ChangeRole, Dispatch, Forget, Reject
from homing.router.core.errors import ConfigError
from homing.router.core.events import Event, RequestArrived, RequestFinished, WorkerJoined
from homing.router.core.journal import EVENTS, Header, digest, entry, event_of, from_plain, to_plain, told
from homing.router.core.limits import Limits
from homing.router.core.types import (
    BlockKey,
    Link,
    ModelName,
    ModelProfile,
    RejectReason,
    Request,
    RequestId,
    Role,
    Site,
    Worker,
    WorkerId,
)

MODEL = ModelProfile(name=ModelName("m"), block_tokens=16, bytes_per_token=1000)
counts = st.integers(1, 1 << 40)
texts = st.text(max_size=4)


def anything(kind):
    """Values of a field's type; numbers fit into JSON as engines write it."""
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return st.builds(kind, **{each.name: anything(hints[each.name]) for each in fields(kind)})
    if isinstance(kind, NewType):
        return st.integers(0, (1 << 64) - 1) if kind is BlockKey else anything(kind.__supertype__)
    if get_origin(kind) is tuple:
        return st.lists(anything(get_args(kind)[0]), max_size=3).map(tuple)
    if get_origin(kind) is UnionType:
        return st.one_of([anything(each) for each in get_args(kind)])
    known = {int: counts, str: texts, float: st.floats(1e-9, 1e300) | st.just(float("inf")) | counts}
    return known[kind] if kind in known else st.from_type(kind)


events = st.one_of([anything(kind) for kind in get_args(Event)])


def same(one, other):
    """Equal to the last bit and type; a set may show its members in any order."""
    return type(one) is type(other) and repr(to_plain(one)) == repr(to_plain(other))


@given(event=events, now=st.floats(0, 1e9))
def test_every_event_comes_back_through_json(event, now):
    line = msgspec.json.decode(msgspec.json.encode(entry(event, [], now)))
    assert same(event_of(line), event) and line["at"] == now


def test_every_event_has_a_name():
    assert set(EVENTS.values()) == set(get_args(Event))


def test_defaults_are_left_out_and_types_are_kept():
    request = Request(
        id=RequestId("r"),
        model=ModelName("m"),
        block_keys=(),
        prompt_tokens=1,
        max_output_tokens=1,
        arrived_s=0,
        priority=0,
    )
    assert to_plain(request) == {
        "id": "r",
        "model": "m",
        "block_keys": [],
        "prompt_tokens": 1,
        "max_output_tokens": 1,
        "arrived_s": 0,
    }
    link = Link(source=Site("a"), target=Site("b"), rtt_s=0.1, bytes_per_s=1, price_per_gb=0)
    assert same(from_plain(to_plain(link), Link), link), "0 is not 0.0"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"event": "RequestArived", "of": {}}, "event: expected one of RequestArrived, .*, got 'RequestArived'"),
        ({"of": {}}, "event: expected one of .*, got None"),
        ({"event": "WorkerLost", "of": {"worker_id": "w", "reason": "x", "y": 1}}, "WorkerLost: expected fields of"),
        ({"event": "WorkerLost", "of": {"worker_id": "w"}}, "WorkerLost: is no WorkerLost: .*reason"),
        ({"event": "WorkerLost", "of": {"worker_id": 7, "reason": "x"}}, "worker_id: expected str, got 7"),
        ({"event": "BlocksStored", "of": {"worker_id": "w", "keys": 3}}, "keys: expected a list, got 3"),
        ({"event": "BlocksStored", "of": {"worker_id": "w", "keys": [1, "x"]}}, r"keys\[1\]: expected int, got 'x'"),
        (
            {"event": "BlocksStored", "of": {"worker_id": "w", "keys": [], "tier": "moon"}},
            "tier: 'moon' is not a valid Tier",
        ),
        ({"event": "RequestArrived", "of": {"request": {"id": "r"}}}, "request: is no Request"),
        ({"event": "FirstToken", "of": {"request_id": "r", "ttft_s": True}}, "ttft_s: expected float, got True"),
        ({"event": "TimerFired", "of": None}, "TimerFired: expected fields of TimerFired, got None"),
    ],
)
def test_a_line_that_is_none_names_the_field(line, message):
    with pytest.raises(ValueError, match=message):
        event_of(line)


def header(**more):
    values = {
        "models": (MODEL,),
        "links": (),
        "site": Site("home"),
        "policy": "power-of-two",
        "random_state": Random(5).getstate(),
    }
    return Header(**(values | more))


def dispatched(made, random):
    """The decisions of a scheduler that is told of four workers and ten requests."""
    scheduler = made.scheduler(random)
    for number in range(4):
        worker = Worker(
            id=WorkerId(f"w{number}"),
            model=MODEL.name,
            role=Role.BOTH,
            site=Site("home"),
            block_tokens=16,
            kv_blocks_max=900,
        )
        scheduler.handle(WorkerJoined(worker=worker), 0.0)
    found = []
    for number in range(10):
        request = Request(
            id=RequestId(f"r{number}"),
            model=MODEL.name,
            block_keys=(),
            prompt_tokens=100 + number,
            max_output_tokens=5,
            arrived_s=1.0,
        )
        found += scheduler.handle(RequestArrived(request=request), 1.0 + number)
    return found


def test_a_scheduler_made_from_a_header_that_was_written_decides_the_same():
    made = header(
        links=(Link(source=Site("a"), target=Site("b"), rtt_s=0.1, bytes_per_s=1e6),), limits=Limits(queue_max=7)
    )
    again = from_plain(msgspec.json.decode(msgspec.json.encode(to_plain(made))), Header)
    assert to_plain(again) == msgspec.json.decode(msgspec.json.encode(to_plain(made)))
    random = Random(99)
    again.restore(random)
    first, second = dispatched(made, Random(5)), dispatched(again, random)
    assert first == second and digest(first) == digest(second)
    assert len({command.decision.plan.decode for command in first}) > 1, "dice were thrown"
    assert digest(dispatched(made, Random(6))) != digest(first)


def test_a_header_for_a_policy_that_is_not_here_is_refused():
    with pytest.raises(ConfigError, match="unknown policy 'gone'"):
        header(policy="gone").scheduler(Random(0))


def test_a_digest_is_of_every_price():
    (first, *_) = dispatched(header(policy="homing"), Random(5))
    decision = first.decision
    dearer = replace(decision.plan, estimate=replace(decision.plan.estimate, queue_s=1e-12))
    assert digest([first]) == digest([Dispatch(decision=replace(decision))])
    assert digest([first]) != digest([Dispatch(decision=replace(decision, plan=dearer))])
    assert digest([first]) != digest([first, first])


def test_commands_are_told_in_a_few_words():
    (first, *_) = dispatched(header(policy="homing"), Random(5))
    assert told(first) == f"dispatch r0: local {first.decision.plan.decode}"
    refused = Reject(request_id=RequestId("r"), reason=RejectReason.QUEUE_FULL, detail="x")
    assert told(refused) == "reject r: queue_full"
    assert told(Forget(worker_id=WorkerId("w"), reason="x")) == "forget w"
    assert told(ChangeRole(worker_id=WorkerId("w"), role=Role.PREFILL, reason="x")) == "change role of w: prefill"


def test_an_entry_names_what_came_of_it():
    event = RequestFinished(request_id=RequestId("r"), outcome="finished", output_tokens=3)
    assert "out" not in entry(event, [], 1.0)
    commands = dispatched(header(policy="homing"), Random(5))[:1]
    line = entry(event, commands, 1.0)
    assert (line["out"], line["digest"]) == ([told(commands[0])], digest(commands))

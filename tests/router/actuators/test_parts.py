"""The parts: options and addresses, the prefill request, the slot book, reports and the HTTP exchange."""

import asyncio
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homing.router.actuators.homing import TransferReport, report_of
from homing.router.actuators.prefill import prefill_body, prompts_of
from homing.router.actuators.registry import ACTUATORS, check_kv, make_actuator
from homing.router.actuators.slots import SlotBook, shared_tokens
from homing.router.actuators.way import elsewhere
from homing.router.core.errors import ConfigError
from homing.router.core.types import Role, WorkerId
from homing.router.engines.types import EngineError

from .engines import CHAT, CHAT_BODY, CHAT_PREFILL, TEXT, TEXT_BODY, TEXT_PREFILL, peer, wires

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)


def test_names():
    known = "homing llama_cpp llm_d lmcache lmcache_pd mooncake nixl offloading_p2p sglang trtllm"
    assert " ".join(ACTUATORS) == known
    assert all(make_actuator(name, {}, Random(0)).name == name for name in ACTUATORS)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nccl", {}, "transport: unknown connector 'nccl'; known are homing, llama_cpp"),
        ("nixl", {"time": 3}, "transport.options.time: nixl has no such option; known are timeout_s"),
        ("nixl", {"timeout_s": 0}, "transport.options.timeout_s: expected a number above 0, got 0"),
        ("sglang", {"random": 3}, "transport.options.random: sglang has no such option"),
        ("homing", {"lease_s": "long"}, "transport.options.lease_s: expected a number above 0, got 'long'"),
        ("llm_d", {"timeout_s": 3}, "transport.options.timeout_s: llm_d has no such option; it has none"),
    ],
)
def test_a_wrong_name_or_option_is_told(name, options, message):
    with pytest.raises(ConfigError) as error:
        make_actuator(name, options, Random(0), where="transport")
    assert str(error.value).startswith(message)


def test_addresses_are_checked_by_role():
    mooncake, pushed = make_actuator("mooncake", {}, Random(0)), make_actuator("lmcache_pd", {}, Random(0))
    check_kv(mooncake, Role.DECODE, {}, "w")
    check_kv(mooncake, Role.BOTH, {"bootstrap": "x", "bootstrap_from:far": "y"}, "w")
    check_kv(pushed, Role.PREFILL, {}, "w")
    with pytest.raises(ConfigError, match=r"w\.kv\.bootstrap: missing; mooncake needs it of this worker"):
        check_kv(mooncake, Role.BOTH, {}, "w")
    with pytest.raises(ConfigError, match=r"w\.kv\.receiver_alloc_port: missing"):
        check_kv(pushed, Role.DECODE, {}, "w")
    with pytest.raises(ConfigError, match=r"w\.kv\.port: nixl knows no such address; it knows none"):
        check_kv(make_actuator("nixl", {}, Random(0)), Role.BOTH, {"port": "1"}, "w")
    with pytest.raises(ConfigError, match=r"w\.kv\.bootsrap: mooncake knows no such address; known are bootstrap"):
        check_kv(mooncake, Role.DECODE, {"bootsrap": "1"}, "w")


def test_the_prefill_request():
    assert prefill_body(CHAT_BODY, CHAT) == CHAT_PREFILL
    assert prefill_body(TEXT_BODY, TEXT) == TEXT_PREFILL
    assert [prompts_of({"prompt": prompt}) for prompt in ("a", [1, 2], ["a", "b"], [[1], [2], [3]], [])] == [
        1,
        1,
        2,
        3,
        1,
    ]


@given(st.dictionaries(st.text(max_size=9) | st.sampled_from(["n", "stream", "max_tokens", "messages"]), JSON))
def test_a_prefill_request_asks_for_one_token_of_the_same_prompt(body):
    before = dict(body)
    asked = prefill_body(body, CHAT)
    assert asked["max_tokens"] == asked["max_completion_tokens"] == 1 and asked["stream"] is False and "n" not in asked
    assert all(repr(asked[key]) == repr(body[key]) for key in asked.keys() & body.keys() - {"max_tokens", "stream"})
    assert repr(before) == repr(body)


@given(st.lists(st.integers(0, 2), max_size=12).map(tuple), st.lists(st.integers(0, 2), max_size=12).map(tuple))
def test_shared_tokens_equal_a_count(one, other):
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    assert shared_tokens(one, other) == count


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["take", "take", "end", "forget"]),
            st.sampled_from("ab"),
            st.integers(0, 7),
            st.lists(st.integers(0, 1), min_size=1, max_size=6).map(tuple),
        ),
        max_size=40,
    )
)
def test_a_slot_is_never_given_twice(steps):
    book, running, prompts = SlotBook(), {}, {}
    for action, worker, number, tokens in steps:
        request = f"{worker}{number}"
        if action == "take":
            slot = book.take(WorkerId(worker), 3, request, tokens)
            free = {0, 1, 2} - {taken for owner, taken in running.values() if owner == worker}
            assert (slot is None) == (not free or request in running)
            if slot is not None:
                assert slot in free
                shared = {one: shared_tokens(prompts.get((worker, one), ()), tokens) for one in free}
                assert shared[slot] == max(shared.values()), "another free slot shares more"
                running[request], prompts[worker, slot] = (worker, slot), tokens
        elif action == "end":
            book.give_back(request)
            running.pop(request, None)
        else:
            book.forget(WorkerId(worker))
            prompts = {key: value for key, value in prompts.items() if key[0] != worker}
        book.check()
        slot, most = book.holder(WorkerId(worker), tokens)
        idle = {one for one in range(3) if (worker, one) not in running.values()}
        assert most == max((shared_tokens(prompts.get((worker, one), ()), tokens) for one in idle), default=0)
        assert most == 0 or slot in idle


def told(*transfers):
    return {"kv_transfer_params": {"homing": {"loaded_blocks": 3, "transfers": list(transfers)}}}


def test_reports_teach():
    good = {"address": "a:1", "bytes": 10, "seconds": 0.5, "complete": True}
    report = TransferReport(address="a:1", bytes=10, seconds=0.5, complete=True)
    assert report_of(told(good, good | {"seconds": 2, "complete": False})) == [
        report,
        TransferReport(address="a:1", bytes=10, seconds=2.0, complete=False),
    ]
    (shipped,) = report_of(told(good | {"flowing_s": 0.25, "rtt_s": 0.1}))
    assert shipped.flowing_s == 0.25
    wrong = [good | {"bytes": -1}, good | {"seconds": float("nan")}, good | {"bytes": True}, good | {"address": 3}, 7]
    assert report_of(told(*wrong, good)) == [report]


@given(JSON)
def test_no_report_breaks_the_parser(answer):
    assert report_of(answer if isinstance(answer, dict) else {"kv_transfer_params": {"homing": answer}}) == []
    assert report_of({"kv_transfer_params": {"homing": {"transfers": answer}}}) == []


def test_an_engine_gets_its_own_key_and_its_neighbours_do_not():
    async def go():
        async with wires(2) as (post, one, other):
            one.answers["/a"] = other.answers["/a"] = {}
            engine = peer("w", one.url, headers={"Authorization": "Bearer engine"})
            await post(engine, "/a", {}, {"authorization": "Bearer client"}, 1)
            await post.get(elsewhere(engine, other.url), "/a", 1)
            assert one.calls[0].headers["authorization"] == "Bearer engine"
            assert "authorization" not in other.calls[0].headers

    asyncio.run(go())


def test_an_answer_is_bounded_and_a_redirect_is_not_followed():
    async def go():
        async with wires(1) as (post, one):
            one.answers |= {"/long": b"x" * 3000, "/moved": 302, "/ok": {"big": 2**63 + 1}}
            post._answer_bytes_max = 2000
            assert await post.get(peer("w", one.url + "/"), "/ok", 1) == {"big": 2**63 + 1}
            with pytest.raises(EngineError, match=r"^w: .*: the answer is longer than 2000 bytes"):
                await post.get(peer("w", one.url), "/long", 1)
            with pytest.raises(EngineError, match="answered 302"):
                await post(peer("w", one.url), "/moved", {}, {}, 1)
            with pytest.raises(EngineError, match="cannot be written as JSON"):
                await post(peer("w", one.url), "/ok", {"a": object()}, {}, 1)
            with pytest.raises(EngineError, match=r"^w: "):
                await post.get(peer("w", "no url"), "/ok", 1)

    asyncio.run(go())

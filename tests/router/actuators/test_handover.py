"""Hand-over from a prefill worker: the exact JSON that each engine gets, answered as the engine answers."""

import asyncio
from random import Random

import pytest

from homing.router.actuators.registry import make_actuator
from homing.router.engines.types import EngineError

from .engines import (
    CHAT,
    CHAT_BODY,
    CHAT_PREFILL,
    TEXT,
    TEXT_BODY,
    TEXT_PREFILL,
    move,
    order,
    peer,
    remote,
    wires,
)

NIXL_ANSWER = {
    "do_remote_prefill": True,
    "do_remote_decode": False,
    "remote_block_ids": [[4, 5, 6]],
    "remote_engine_id": "e-1",
    "remote_request_id": "chatcmpl-r-1",
    "remote_host": "10.0.0.1",
    "remote_port": 5600,
    "tp_size": 1,
    "dcp_size": 1,
    "pp_size": 1,
    "remote_num_tokens": 42,
    "remote_blocks_expiry_time": None,
    "transfer_mode": "pull",
}
TRT_ANSWER = {
    "request_type": "context_only",
    "first_gen_tokens": [15043],
    "ctx_request_id": 9007199254740993,
    "encoded_opaque_state": "AQID/+==",
    "draft_tokens": None,
    "ctx_dp_rank": 0,
    "ctx_info_endpoint": "tcp://10.0.0.1:1",
}


def test_nixl_hands_the_answered_parameters_on_unchanged():
    async def go():
        async with wires(1) as (post, p):
            p.answers[CHAT] = {"id": "x", "choices": [], "kv_transfer_params": NIXL_ANSWER}
            asked = order(
                remote(), peer("p", p.url, rank=2), peer("d"), headers={"Authorization": "Bearer k", "Cookie": "c"}
            )
            prepared = await make_actuator("nixl", {}, Random(1)).prepare(asked, post)
            (call,) = p.calls
            assert (call.method, call.path) == ("POST", CHAT)
            assert call.json == CHAT_PREFILL | {
                "kv_transfer_params": {
                    "do_remote_decode": True,
                    "do_remote_prefill": False,
                    "remote_engine_id": None,
                    "remote_block_ids": None,
                    "remote_host": None,
                    "remote_port": None,
                }
            }
            assert call.headers["x-request-id"] == "r-1"
            assert call.headers["x-data-parallel-rank"] == "2"
            assert call.headers["authorization"] == "Bearer k"
            assert "cookie" not in call.headers
            assert prepared.failed == ""
            assert prepared.patch.body == {"kv_transfer_params": NIXL_ANSWER}
            assert prepared.patch.headers == {"x-request-id": "r-1"}
            assert prepared.prefill_s is not None and 0 < prepared.prefill_s < 5
            assert dict(asked.body) == CHAT_BODY, "the client's JSON stays as it is"

    asyncio.run(go())


def test_trtllm_relays_the_opaque_state_untouched():
    async def go():
        async with wires(1) as (post, p):
            choice = {"index": 0, "finish_reason": "length", "disaggregated_params": TRT_ANSWER}
            p.answers[TEXT] = p.answers[CHAT] = {"choices": [choice], "prompt_token_ids": [7, 8, 9]}
            way = make_actuator("trtllm", {}, Random(1))
            text = await way.prepare(order(remote(), peer("p", p.url), peer("d"), body=TEXT_BODY, path=TEXT), post)
            chat = await way.prepare(order(remote(), peer("p", p.url), peer("d")), post)
            first, second = p.calls
            request_id = first.json["disaggregated_params"]["disagg_request_id"]
            assert 1 << 42 <= request_id < 1 << 63
            assert first.json == TEXT_PREFILL | {
                "disaggregated_params": {"request_type": "context_only", "disagg_request_id": request_id}
            }
            assert "max_completion_tokens" not in second.json and second.json["max_tokens"] == 1
            taken = TRT_ANSWER | {"request_type": "generation_only", "disagg_request_id": request_id}
            assert text.patch.body == {"disaggregated_params": taken, "prompt": [7, 8, 9]}
            assert chat.patch.body["prompt_token_ids"] == [7, 8, 9] and "prompt" not in chat.patch.body

    asyncio.run(go())


@pytest.mark.parametrize("finish", ["stop", "tool_calls", None])
def test_trtllm_does_not_hand_over_an_answer_that_is_complete(finish):
    async def go():
        async with wires(1) as (post, p):
            p.answers[CHAT] = {"choices": [{"finish_reason": finish, "disaggregated_params": TRT_ANSWER}]}
            prepared = await make_actuator("trtllm", {}, Random(1)).prepare(
                order(remote(), peer("p", p.url), peer("d")), post
            )
            assert "ended with its first token" in prepared.failed and not prepared.patch

    asyncio.run(go())


def test_lmcache_pushes_to_the_receiver():
    async def go():
        async with wires(1) as (post, p):
            p.answers[TEXT] = {"kv_transfer_params": {"first_tok": 11}}
            decode = peer(
                "d", receiver_host="10.0.0.2", receiver_init_port="7300,7301", receiver_alloc_port="7400,7401"
            )
            asked = order(remote(), peer("p", p.url), decode, body=TEXT_BODY, path=TEXT)
            prepared = await make_actuator("lmcache_pd", {}, Random(1)).prepare(asked, post)
            (call,) = p.calls
            name = call.json["kv_transfer_params"]["disagg_spec"]["req_id"]
            assert name.startswith("r-1-")
            assert call.json == TEXT_PREFILL | {
                "kv_transfer_params": {
                    "ret_first_tok": True,
                    "disagg_spec": {
                        "req_id": name,
                        "receiver_host": "10.0.0.2",
                        "receiver_init_port": [7300, 7301],
                        "receiver_alloc_port": [7400, 7401],
                    },
                }
            }
            assert prepared.failed == "" and prepared.patch.body == {} and prepared.prefill_s is not None

    asyncio.run(go())


def test_mooncake_names_the_engine_of_the_rank_and_asks_once():
    async def go():
        async with wires(2) as (post, p, bootstrap):
            bootstrap.answers["/query"] = {
                "0": {"engine_id": "e-0", "worker_addr": {"0": {"0": "10.0.0.1:9"}}},
                "1": {"engine_id": "e-1", "worker_addr": {"0": {"0": "10.0.0.1:9"}}},
            }
            p.answers[CHAT] = {"choices": []}
            way = make_actuator("mooncake", {}, Random(1))
            prefill = peer("p", p.url, rank=1, bootstrap=bootstrap.url, **{"bootstrap_from:there": "http://wan:8998"})
            near = await way.prepare(order(remote(), prefill, peer("d")), post)
            far = await way.prepare(order(remote(), prefill, peer("d", site="there")), post)
            assert await near.beside > 0 and await far.beside > 0
            assert [(call.method, call.path) for call in bootstrap.calls] == [("GET", "/query")]
            call = p.calls[0]
            transfer = call.json["kv_transfer_params"]["transfer_id"]
            assert call.json == CHAT_PREFILL | {
                "kv_transfer_params": {
                    "do_remote_decode": True,
                    "do_remote_prefill": False,
                    "transfer_id": transfer,
                }
            }
            assert call.headers["x-data-parallel-rank"] == "1"
            assert near.patch.body["kv_transfer_params"] == {
                "do_remote_prefill": True,
                "do_remote_decode": False,
                "transfer_id": transfer,
                "remote_bootstrap_addr": bootstrap.url,
                "remote_engine_id": "e-1",
            }
            assert far.patch.body["kv_transfer_params"]["remote_bootstrap_addr"] == "http://wan:8998"
            assert far.patch.body["kv_transfer_params"]["transfer_id"] != transfer
            await way.close()

    asyncio.run(go())


def test_mooncake_asks_again_after_a_failure_and_names_the_ranks_it_knows():
    async def go():
        async with wires(2) as (post, p, bootstrap):
            bootstrap.answers["/query"] = [
                {"0": {"engine_id": "old"}},
                {"0": {"engine_id": "new"}},
                {"0": {"engine_id": "new"}, "nonsense": 3},
            ]
            p.answers[CHAT] = [500, {"choices": []}]
            way = make_actuator("mooncake", {"head_start_s": 2}, Random(1))
            prefill = peer("p", p.url, bootstrap=bootstrap.url)
            failed = await way.prepare(order(remote(), prefill, peer("d")), post)
            again = await way.prepare(order(remote(), prefill, peer("d")), post)
            assert "answered 500" in failed.failed and not failed.patch
            assert again.patch.body["kv_transfer_params"]["remote_engine_id"] == "new"
            lost = peer("p", p.url, rank=3, bootstrap=bootstrap.url)
            unknown = await way.prepare(order(remote(), lost, peer("d")), post)
            assert "does not know rank 3; it knows 0" in unknown.failed
            await way.close()

    asyncio.run(go())


def test_offloading_tells_both_sides_one_name():
    async def go():
        async with wires(1) as (post, p):
            p.answers[CHAT] = {"choices": []}
            way = make_actuator("offloading_p2p", {}, Random(1))
            prefill = peer("p", p.url, rank=2, p2p_host="10.0.0.1")
            prepared = await way.prepare(order(remote(), prefill, peer("d", p2p_host="10.0.0.2")), post)
            await prepared.beside
            (call,) = p.calls
            name = call.json["kv_transfer_params"]["remote_decoder"]["kv_request_id"]
            assert call.json == CHAT_PREFILL | {"kv_transfer_params": {"remote_decoder": {"kv_request_id": name}}}
            assert prepared.patch.body == {
                "kv_transfer_params": {
                    "remote_prefiller": {"kv_request_id": name, "remote_host": "10.0.0.1", "remote_port": 5712}
                }
            }
            await way.close()

    asyncio.run(go())


def test_offloading_does_not_try_what_the_decode_worker_will_not_wait_for():
    async def go():
        async with wires(1) as (post, p):
            way = make_actuator("offloading_p2p", {}, Random(1))
            peers = (peer("p", p.url, p2p_host="10.0.0.1"), peer("d", p2p_host="10.0.0.2"))
            prepared = await way.prepare(order(remote(queue_s=20, prefill_s=11), *peers), post)
            assert "gives up at 30 s" in prepared.failed and not p.calls

    asyncio.run(go())


def test_sglang_sends_both_to_one_room():
    async def go():
        async with wires(1) as (post, p):
            p.answers[CHAT] = {"choices": []}
            way = make_actuator("sglang", {}, Random(1))
            prepared = await way.prepare(order(remote(), peer("p", p.url, bootstrap_host="10.0.0.1"), peer("d")), post)
            await prepared.beside
            (call,) = p.calls
            room = call.json["bootstrap_room"]
            assert 0 <= room < 1 << 63
            meeting = {"bootstrap_host": "10.0.0.1", "bootstrap_port": 8998, "bootstrap_room": room}
            same = {key: value for key, value in CHAT_BODY.items() if key != "stream_options"}
            assert call.json == same | {"stream": False} | meeting
            assert prepared.patch.body == meeting
            await way.close()

    asyncio.run(go())


def test_sglang_names_ranks_and_gives_each_prompt_a_room():
    async def go():
        async with wires(1) as (post, p):
            p.answers[TEXT] = {"choices": []}
            way = make_actuator("sglang", {}, Random(1))
            prefill = peer("p", p.url, rank=3, bootstrap_host="10.0.0.1", bootstrap_port="9", dp_size="4")
            body = {"model": "m", "prompt": ["one", "two"]}
            asked = order(remote(), prefill, peer("d", rank=1, dp_size="2"), body=body, path=TEXT)
            prepared = await way.prepare(asked, post)
            await prepared.beside
            sent, patch = p.calls[0].json, prepared.patch.body
            rooms = sent["bootstrap_room"]
            assert len(set(rooms)) == 2 and all(room % 4 == 3 for room in rooms)
            assert sent["bootstrap_host"] == ["10.0.0.1"] * 2 and sent["bootstrap_port"] == [9, 9]
            assert sent["routed_dp_rank"] == 3 and "disagg_prefill_dp_rank" not in sent
            assert patch["routed_dp_rank"] == 1 and patch["disagg_prefill_dp_rank"] == 3
            assert patch["bootstrap_room"] == rooms
            await way.close()

    asyncio.run(go())


def test_homing_publishes_at_the_source_and_waits_at_the_target():
    async def go():
        async with wires(1) as (post, p):
            p.answers[CHAT] = {"choices": []}
            way = make_actuator("homing", {"lease_s": 5}, Random(1))
            prefill = peer("p", p.url, address="10.0.0.1:7", **{"address_from:there": "wan:7"})
            source, decode = peer("s", address="10.0.0.3:7"), peer("d", site="there", address="10.1.0.1:7")
            asked = order(remote(move("fetch", "s", "p", 0, 1)), prefill, source, decode)
            prepared = await way.prepare(asked, post)
            await prepared.beside
            fetched = {"address": "10.0.0.3:7", "block_first": 0, "block_end": 1, "kind": "fetch"}
            shipped = {"address": "wan:7", "block_first": 1, "block_end": 4, "kind": "ship"}
            assert p.calls[0].json == CHAT_PREFILL | {
                "kv_transfer_params": {"homing": {"sources": [fetched], "publish": {"lease_s": 5}}}
            }
            assert prepared.patch.body == {"kv_transfer_params": {"homing": {"sources": [shipped], "ticket": "r-1"}}}
            await way.close()

    asyncio.run(go())


def test_both_run_at_once_and_a_late_failure_is_told_by_the_task():
    async def go():
        async with wires(1) as (post, p):
            p.answers[CHAT] = "hang"
            way = make_actuator("homing", {"timeout_s": 0.2}, Random(1))
            prepared = await way.prepare(
                order(remote(), peer("p", p.url, address="a:1"), peer("d", address="b:1")), post
            )
            assert prepared.patch and not prepared.beside.done()
            with pytest.raises(EngineError, match=r"no whole answer within 0\.2 s"):
                await prepared.beside

    asyncio.run(go())


@pytest.mark.parametrize(
    ("body", "path", "reason"),
    [
        (CHAT_BODY | {"n": 2}, CHAT, "n is 2"),
        ({"model": "m", "prompt": ["a", "b"]}, TEXT, "2 prompts"),
        ({"model": "m", "input": "a"}, "/v1/embeddings", "only completions and chat completions"),
    ],
)
@pytest.mark.parametrize("name", ["nixl", "trtllm", "homing"])
def test_what_cannot_be_handed_over_is_computed_where_it_lands(name, body, path, reason):
    async def go():
        async with wires(1) as (post, p):
            peers = (peer("p", p.url, address="a:1"), peer("d", address="b:1"))
            prepared = await make_actuator(name, {}, Random(1)).prepare(
                order(remote(), *peers, body=body, path=path), post
            )
            assert reason in prepared.failed and not prepared.patch and prepared.beside is None and not p.calls

    asyncio.run(go())

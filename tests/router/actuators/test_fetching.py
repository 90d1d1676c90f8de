"""Fetching before or with the request: coordinators, slots, headers and sources, with the exact JSON of each."""

import asyncio
from random import Random

import pytest

from homing.router.actuators.homing import HomingKv
from homing.router.actuators.registry import make_actuator
from homing.router.engines.types import EngineError
from homing.workers.vllm.asking import MAGIC, Answer, decode_ask, decode_length, encode_answer

from .engines import CHAT_BODY, TEXT, TEXT_BODY, fetch, local, move, order, peer, plan, remote, wires


@pytest.mark.parametrize("kind", ["fetch", "direct"])
def test_offloading_names_the_source(kind):
    async def go():
        async with wires(0) as (post,):
            source = peer("s", rank=1, p2p_host="10.0.0.3", p2p_port="6000", **{"p2p_host_from:here": "wan"})
            prepared = await make_actuator("offloading_p2p", {}, Random(1)).prepare(
                order(fetch(kind), source, peer("d", p2p_host="10.0.0.2")), post
            )
            told = prepared.patch.body["kv_transfer_params"]["remote_kv_source"]
            assert told == {"kv_request_id": told["kv_request_id"], "remote_host": "wan", "remote_port": 6001}
            assert prepared.failed == "" and prepared.beside is None

    asyncio.run(go())


def test_offloading_does_not_fetch_for_longer_than_the_engine_waits():
    async def go():
        async with wires(0) as (post,):
            prepared = await make_actuator("offloading_p2p", {"load_timeout_s": 3}, Random(1)).prepare(
                order(fetch(fetch_s=4.0), peer("s", p2p_host="a"), peer("d", p2p_host="b")), post
            )
            assert prepared.failed == "the KV is foreseen after 4.0 s; the decode worker gives up at 3 s"

    asyncio.run(go())


def test_homing_names_every_source_from_the_front_on():
    async def go():
        async with wires(0) as (post,):
            moves = [move("fetch", "t", "d", 2, 5), move("fetch", "s", "d", 0, 2), move("fetch", "s", "t", 0, 2)]
            prepared = await make_actuator("homing", {}, Random(1)).prepare(
                order(plan("fetch", moves), peer("s", address="s:1"), peer("t", address="t:1"), peer("d")), post
            )
            assert prepared.patch.body["kv_transfer_params"] == {
                "homing": {
                    "sources": [
                        {"address": "s:1", "block_first": 0, "block_end": 2, "kind": "fetch"},
                        {"address": "t:1", "block_first": 2, "block_end": 5, "kind": "fetch"},
                    ],
                    "ticket": "r-1",
                }
            }

    asyncio.run(go())


def test_llm_d_says_it_in_headers():
    async def go():
        async with wires(0) as (post,):
            way = make_actuator("llm_d", {}, Random(1))
            s, p = peer("s", "http://10.0.0.3:8000"), peer("p", "http://10.0.0.1:8000", endpoint="10.0.0.1:8200")
            d = peer("d", "http://10.0.0.2:8000", data_parallel="10.0.0.2:8001")
            told = {"x-data-parallel-host-port": "10.0.0.2:8001"}
            assert (await way.prepare(order(local(), d), post)).patch.headers == told
            fetched = await way.prepare(order(fetch(), s, d), post)
            assert fetched.patch.headers == told | {"x-kv-cache-source-host-port": "10.0.0.3:8000"}
            handed = await way.prepare(order(remote(move("fetch", "s", "p", 0, 1)), s, p, d), post)
            assert handed.patch.headers == told | {
                "x-prefiller-host-port": "10.0.0.1:8200",
                "x-kv-cache-source-host-port": "10.0.0.3:8000",
            }
            assert handed.patch.body == {}
            nowhere = await way.prepare(order(fetch(), peer("s", "not a url"), d), post)
            assert "names a host and port" in nowhere.failed and not nowhere.patch

    asyncio.run(go())


def lmcache_order(coordinator, tokens=range(100, 120), body=TEXT_BODY):
    decode = peer("d", coordinator=coordinator, instance="node 1", world_size="2")
    return order(fetch(), peer("s"), decode, tokens=tokens, body=body, path=TEXT)


def test_lmcache_prefetches_and_waits():
    async def go():
        async with wires(1) as (post, coordinator):
            coordinator.answers |= {
                "/cache/prefetches": {"instance_id": "node 1", "request_id": "abc", "chunks": 2, "status": "submitted"},
                "/cache/prefetches/node%201/abc": [
                    {"request_id": "abc", "status": "pending"},
                    {"request_id": "abc", "status": "completed", "found_keys": 2, "total_keys": 2},
                ],
            }
            prepared = await make_actuator("lmcache", {"poll_s": 0.001}, Random(1)).prepare(
                lmcache_order(coordinator.url), post
            )
            assert prepared.failed == "" and not prepared.patch
            submitted, *polls = coordinator.calls
            assert submitted.json == {
                "instance_id": "node 1",
                "model_name": "m",
                "world_size": 2,
                "token_ids": list(range(100, 108)),
                "cache_salt": "t",
            }
            assert [call.method for call in polls] == ["GET", "GET"]

    asyncio.run(go())


@pytest.mark.parametrize(
    ("submitted", "status", "reason"),
    [
        ({"chunks": 0, "status": "noop"}, None, "nothing to prefetch (noop)"),
        (404, None, "answered 404"),
        ({"request_id": "a"}, 502, "answered 502"),
        ({"request_id": "a"}, {"status": "lost"}, "the prefetch is 'lost'"),
        ({"request_id": "a"}, {"status": "completed", "found_keys": 0, "total_keys": 4}, "found none of 4 keys"),
        ({"request_id": "a"}, {"status": "pending"}, "took more than 0.1 s"),
        ({"request_id": "a"}, "hang", "took more than 0.1 s"),
    ],
)
def test_lmcache_goes_on_without(submitted, status, reason):
    async def go():
        async with wires(1) as (post, coordinator):
            coordinator.answers |= {"/cache/prefetches": submitted, "/cache/prefetches/node%201/a": status}
            prepared = await make_actuator("lmcache", {"timeout_s": 0.1, "poll_s": 0.001}, Random(1)).prepare(
                lmcache_order(coordinator.url), post
            )
            assert reason in prepared.failed and not prepared.patch

    asyncio.run(go())


def test_lmcache_needs_tokens():
    async def go():
        async with wires(1) as (post, coordinator):
            prepared = await make_actuator("lmcache", {}, Random(1)).prepare(
                lmcache_order(coordinator.url, tokens=()), post
            )
            assert "token ids are not known" in prepared.failed and not coordinator.calls

    asyncio.run(go())


def llama(name, url, folder="/kv", slots="2"):
    return peer(name, url, slot_folder=folder, slots=slots)


async def used_slot(way, post, wire, tokens, request_id="first"):
    """A request that was answered by `s`, whose slot keeps its prompt."""
    prepared = await way.prepare(
        order(plan("local", prefill="s", decode="s"), llama("s", wire.url), tokens=tokens, request_id=request_id), post
    )
    way.ended(request_id)
    return prepared.patch.body


def test_llama_cpp_saves_there_and_restores_here():
    async def go():
        async with wires(2) as (post, s, d):
            way = make_actuator("llama_cpp", {}, Random(1))
            assert await used_slot(way, post, s, range(50), "other") == {"id_slot": 0, "cache_prompt": True}
            assert await used_slot(way, post, s, range(100, 120)) == {"id_slot": 1, "cache_prompt": True}
            s.answers["/slots/1?action=save"] = {"id_slot": 1, "n_saved": 20, "n_written": 9}
            d.answers["/slots/0?action=restore"] = {"id_slot": 0, "n_restored": 20, "n_read": 9}
            asked = order(fetch(), llama("s", s.url), llama("d", d.url), tokens=range(100, 130))
            prepared = await way.prepare(asked, post)
            assert prepared.failed == "" and prepared.patch.body == {"id_slot": 0, "cache_prompt": True}
            (save,), (restore,) = s.calls, d.calls
            assert save.method == restore.method == "POST"
            assert save.json == restore.json == {"filename": save.json["filename"]}
            assert save.json["filename"].startswith("homing-") and "/" not in save.json["filename"]

    asyncio.run(go())


@pytest.mark.parametrize(
    ("saved", "restored", "reason"),
    [
        (500, {"n_restored": 20}, "answered 500"),
        ({"n_saved": 20}, 500, "answered 500"),
        ({"n_saved": 0}, {"n_restored": 20}, "save of slot 0 told of no tokens"),
        ({}, {"n_restored": 20}, "save of slot 0 told of no tokens"),
        ({"n_saved": 20}, {"n_restored": "all"}, "restore of slot 0 told of no tokens"),
        ("hang", {"n_restored": 20}, "0.1 s"),
        ({"n_saved": 20}, "hang", "0.1 s"),
    ],
)
def test_llama_cpp_goes_on_without(saved, restored, reason):
    async def go():
        async with wires(2) as (post, s, d):
            way = make_actuator("llama_cpp", {"timeout_s": 0.1}, Random(1))
            await used_slot(way, post, s, range(20))
            s.answers["/slots/0?action=save"], d.answers["/slots/0?action=restore"] = saved, restored
            asked = order(fetch(), llama("s", s.url), llama("d", d.url, slots="1"), tokens=range(20))
            prepared = await way.prepare(asked, post)
            assert reason in prepared.failed and not prepared.patch
            again = order(plan("local"), llama("d", d.url, slots="1"), tokens=range(20), request_id="next")
            assert (await way.prepare(again, post)).patch, "the slot was given back"

    asyncio.run(go())


def test_llama_cpp_moves_only_what_it_knows():
    async def go():
        async with wires(1) as (post, s):
            way = make_actuator("llama_cpp", {}, Random(1))
            peers = (llama("s", s.url), llama("d", s.url))
            unknown = await way.prepare(order(fetch(), *peers, tokens=range(20)), post)
            assert "no free slot is known to hold this prompt" in unknown.failed
            await used_slot(way, post, s, range(20))
            apart = await way.prepare(
                order(fetch(), llama("s", s.url), llama("d", s.url, folder="/other"), tokens=range(20)), post
            )
            assert "share no slot_folder" in apart.failed
            taken = order(
                plan("local", prefill="s", decode="s"), llama("s", s.url), tokens=range(20), request_id="runs"
            )
            await way.prepare(taken, post)
            busy = await way.prepare(order(fetch(), *peers, tokens=range(20)), post)
            assert "no free slot is known to hold this prompt" in busy.failed
            assert not s.calls

    asyncio.run(go())


def test_llama_cpp_leaves_the_choice_to_the_server_when_it_must():
    async def go():
        async with wires(1) as (post, s):
            way = make_actuator("llama_cpp", {}, Random(1))
            where = plan("local", prefill="s", decode="s")
            one = llama("s", s.url, slots="1")
            assert (await way.prepare(order(where, one, tokens=range(9), request_id="a"), post)).patch
            full = await way.prepare(order(where, one, tokens=range(9), request_id="b"), post)
            assert not full.patch and full.failed == ""
            way.ended("a")
            assert not (await way.prepare(order(where, one, request_id="c"), post)).patch, "no tokens"
            own = order(where, one, tokens=range(9), body=CHAT_BODY | {"id_slot": 0})
            assert not (await way.prepare(own, post)).patch, "the client has chosen"
            again = order(where, one, tokens=range(9), request_id="d")
            assert (await way.prepare(again, post)).patch and (await way.prepare(again, post)).patch, "sent twice"

    asyncio.run(go())


def test_a_stream_does_not_tell_of_its_transfers_so_the_block_server_is_asked():
    """With the connector's own server on the other side (`workers/vllm`)."""
    report = {"loaded_blocks": 2, "transfers": [{"address": "s:1", "bytes": 64, "seconds": 0.5, "complete": True}]}

    async def serve(reader, writer):
        assert await reader.readexactly(len(MAGIC)) == MAGIC
        ask = decode_ask(await reader.readexactly(decode_length(await reader.readexactly(4))))
        writer.write(encode_answer(Answer(report=report if ask.ticket == "r-1" else None)))
        await writer.drain()
        writer.close()

    async def go():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        way = HomingKv()
        decode = peer("d", address=f"127.0.0.1:{port}")
        (told,) = await way.transfers(decode, "r-1", "home")
        assert (told.address, told.bytes, told.seconds, told.complete) == ("s:1", 64, 0.5, True)
        assert await way.transfers(decode, "another", "home") == []
        server.close()
        with pytest.raises(EngineError, match="did not tell of its transfers"):
            await way.transfers(decode, "r-1", "home")

    asyncio.run(go())

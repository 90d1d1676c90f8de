"""Two unmodified vLLM engines with Homing's connector: what one computed another continues, to the same text.

float32 and greedy, so that equal KV means equal text; the log probabilities are compared as well. `A` computes and
gives, `B` takes; the network between them is emulated.
"""

import asyncio
import json
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from homing.router.core.blocks import reusable_blocks
from homing.workers.transfer.sockets import connect_tcp
from homing.workers.vllm.asking import AskReport
from homing.workers.vllm.pulling import question
from homing.workers.vllm.settings import host_and_port

from .environment import BLOCK_TOKENS
from .prompts import english
from .vllm_engine import EngineOptions, VllmEngine, homing_kv
from .wan import wan_thread

CASES = 50
TOKENS = 8
LINKS = {
    "100 Mbit/s 5 ms": (100e6, 0.005),
    "1 Gbit/s 10 ms": (1e9, 0.010),
    "2.5 Gbit/s 20 ms": (2.5e9, 0.020),
    "10 Gbit/s 40 ms": (10e9, 0.040),
}
LOGPROB_EPSILON = 2e-3
"""Kernels add in another order when a prompt is cut elsewhere."""
DEVICE_BLOCKS = 160
"""Little enough that a few long prompts push others out of B."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="module")
def pair(folder):
    giver = VllmEngine(folder, "A", EngineOptions(kv=homing_kv(store_bytes=3 << 30)))
    taker = VllmEngine(
        folder,
        "B",
        EngineOptions(
            kv=homing_kv(store_bytes=2 << 30, idle_timeout_s=2.0),
            more=("--num-gpu-blocks-override", str(DEVICE_BLOCKS)),
        ),
    )
    with giver, taker:
        yield giver, taker


@pytest.fixture(scope="module")
def wan():
    with wan_thread() as thread:
        yield thread


@pytest.fixture(scope="module")
def addresses(pair, wan):
    """A's door as B sees it, over each link."""
    address = own(pair[0].complete("hello", tokens=1, **asking()))["address"]
    return {name: wan.behind(address, bits_per_s=bits, delay_s=delay) for name, (bits, delay) in LINKS.items()}


def asking(*sources, **more):
    return {"kv_transfer_params": {"homing": {"sources": list(sources), **more}}}


def source(address, first, end, **more):
    return {"address": address, "block_first": first, "block_end": end, **more}


def own(answer):
    return answer["kv_transfer_params"]["homing"]


def told(answer):
    """What an answer says, to compare: its text and how sure the model was."""
    choice = answer["choices"][0]
    return choice["text"], choice["logprobs"]["token_logprobs"]


def same(one, other):
    (text, sure), (other_text, other_sure) = told(one), told(other)
    assert text == other_text
    assert max(abs(a - b) for a, b in zip(sure, other_sure, strict=True)) < LOGPROB_EPSILON


def blocks_of(answer):
    return reusable_blocks(answer["usage"]["prompt_tokens"], BLOCK_TOKENS)


def case(name, index):
    """A prompt that nobody has seen, and a link."""
    seed = 10_000 * (1 + sum(map(ord, name))) + index
    words = 40 + (index * 37) % 260
    return english(seed, words), list(LINKS)[index % len(LINKS)]


@pytest.mark.parametrize("index", range(CASES))
def test_fetch(pair, addresses, index):
    """Part of the prefix comes from A, the rest is computed."""
    giver, taker = pair
    prompt, link = case("fetch", index)
    there = giver.complete(prompt, tokens=TOKENS, logprobs=1, **asking(publish={"lease_s": 60}))
    whole = blocks_of(there)
    assert own(there)["held_blocks"] >= whole
    end = max(1, whole * (1 + index % 3) // 3)
    here = taker.complete(prompt, tokens=TOKENS, logprobs=1, **asking(source(addresses[link], 0, end)))
    same(here, there)
    assert own(here)["loaded_blocks"] == end
    assert own(here)["computed_from_tokens"] == end * BLOCK_TOKENS
    (transfer,) = own(here)["transfers"]
    assert transfer["complete"]
    assert transfer["blocks"] == end


@pytest.mark.parametrize("index", range(CASES))
def test_direct(pair, addresses, index):
    """All that can come comes; only the last, incomplete block is computed."""
    giver, taker = pair
    prompt, link = case("direct", index)
    there = giver.complete(prompt, tokens=TOKENS, logprobs=1, **asking(publish={"lease_s": 60}))
    whole = blocks_of(there)
    here = taker.complete(prompt, tokens=TOKENS, logprobs=1, **asking(source(addresses[link], 0, whole + 3)))
    same(here, there)
    assert own(here)["computed_from_tokens"] == whole * BLOCK_TOKENS


@pytest.mark.parametrize("index", range(CASES))
def test_remote(pair, addresses, index):
    """B asks at once for what A is computing."""
    giver, taker = pair
    prompt, link = case("remote", index)
    ships = source(addresses[link], 0, 100, kind="ship")
    tokens = giver.post("/tokenize", {"model": "smollm2", "prompt": prompt})["count"]
    ships["block_end"] = max(1, reusable_blocks(tokens, BLOCK_TOKENS))
    with ThreadPoolExecutor(2) as both:
        answers = both.submit(taker.complete, prompt, tokens=TOKENS, logprobs=1, **asking(ships))
        prefill = both.submit(giver.complete, prompt, tokens=1, **asking(publish={"lease_s": 60}))
        here, _ = answers.result(), prefill.result()
    same(here, giver.complete(prompt, tokens=TOKENS, logprobs=1))
    assert own(here)["loaded_blocks"] == ships["block_end"]
    assert own(here)["transfers"][0]["complete"]


def test_what_the_device_evicted_comes_back_from_the_store(pair):
    giver, taker = pair
    prompt = english(1, 400)
    first = taker.complete(prompt, tokens=TOKENS, logprobs=1, **asking())
    assert own(first)["loaded_blocks"] == 0
    for seed in range(2, 8):
        taker.complete(english(seed, 900), tokens=1)
    again = taker.complete(prompt, tokens=TOKENS, logprobs=1, **asking())
    same(again, first)
    assert own(again)["loaded_blocks"] == blocks_of(again)
    assert own(again)["transfers"] == []
    same(again, giver.complete(prompt, tokens=TOKENS, logprobs=1))


@pytest.mark.parametrize("end", ["SIGKILL", "SIGSTOP"])
def test_a_holder_that_dies_or_hangs_in_mid_transfer(pair, wan, folder, end):
    giver, taker = pair
    prompt = english({"SIGKILL": 200, "SIGSTOP": 201}[end], 1100)
    expected = giver.complete(prompt, tokens=TOKENS, logprobs=1)
    with VllmEngine(folder, f"C-{end}", EngineOptions(kv=homing_kv(store_bytes=1 << 30))) as victim:
        published = own(victim.complete(prompt, tokens=1, **asking(publish={"lease_s": 60})))
        far = wan.behind(published["address"], bits_per_s=100e6, delay_s=0.02)
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(taker.complete, prompt, tokens=TOKENS, logprobs=1, **asking(source(far, 0, 200)))
            time.sleep(1.5)
            os.killpg(victim._process.pid, getattr(signal, end))
            here = answer.result()
    same(here, expected)
    (transfer,) = own(here)["transfers"]
    assert not transfer["complete"]
    assert transfer["reason"]
    assert own(here)["loaded_blocks"] < blocks_of(here)


@contextmanager
def mute_holder():
    """Takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def lying_holder(address):
    """Passes everything on, with one bit of each later packet turned."""
    host, port = host_and_port(address)

    def serve(near):
        with near, socket.create_connection((host, port)) as far:
            threading.Thread(target=_relay, args=(near, far, 1 << 62), daemon=True).start()
            _relay(far, near, 4096)

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept():
            while True:
                try:
                    near, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(near,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def _relay(one, other, honest_bytes):
    seen = 0
    try:
        while data := one.recv(65536):
            seen += len(data)
            if seen > honest_bytes:
                data = data[:-1] + bytes([data[-1] ^ 1])
            other.sendall(data)
    except OSError:
        return


def test_a_holder_that_says_nothing(pair):
    giver, taker = pair
    prompt = english(300, 200)
    with mute_holder() as address:
        here = taker.complete(prompt, tokens=TOKENS, logprobs=1, **asking(source(address, 0, 9, timeout_s=0.5)))
    same(here, giver.complete(prompt, tokens=TOKENS, logprobs=1))
    assert own(here)["loaded_blocks"] == 0
    assert own(here)["transfers"][0]["seconds"] < 3


def test_bytes_that_do_not_match_their_checksum(pair):
    giver, taker = pair
    prompt = english(301, 300)
    there = giver.complete(prompt, tokens=TOKENS, logprobs=1, **asking())
    with lying_holder(own(there)["address"]) as address:
        here = taker.complete(prompt, tokens=TOKENS, logprobs=1, **asking(source(address, 0, 99)))
    same(here, there)
    assert "checksum" in own(here)["transfers"][0]["reason"]
    assert own(here)["loaded_blocks"] < blocks_of(here)


def test_kv_of_other_weights_is_refused(pair, folder):
    giver, taker = pair
    prompt = english(302, 200)
    options = EngineOptions(kv=homing_kv(store_bytes=1 << 30), dtype="bfloat16")
    with VllmEngine(folder, "bfloat16", options) as other:
        address = own(other.complete(prompt, tokens=1, **asking()))["address"]
        here = taker.complete(prompt, tokens=TOKENS, logprobs=1, **asking(source(address, 0, 99)))
    same(here, giver.complete(prompt, tokens=TOKENS, logprobs=1))
    assert "equal weights" in own(here)["transfers"][0]["reason"]
    assert own(here)["loaded_blocks"] == 0


@pytest.mark.parametrize("words", [1, 5, 20])
def test_prompts_shorter_than_a_block(pair, addresses, words):
    giver, taker = pair
    prompt = " ".join(f"word{i}" for i in range(words))[: 4 * words]
    link = next(iter(addresses.values()))
    here = taker.complete(
        prompt, tokens=TOKENS, logprobs=1, **asking(source(link, 0, 9), source(link, 0, 9, kind="ship"))
    )
    same(here, giver.complete(prompt, tokens=TOKENS, logprobs=1))


@pytest.mark.parametrize(
    "params",
    [
        {"homing": 3},
        {"homing": {"sources": "x"}},
        {"homing": {"sources": [{}]}},
        {"homing": {"sources": [source("127.0.0.1:1", 5, 2)]}},
        {"homing": {"sources": [source("127.0.0.1:1", 3, 9)]}},
        {"homing": {"sources": [source("nobody.invalid:1", 0, 9)]}},
        {"other": {}},
    ],
)
def test_params_that_make_no_sense(pair, params):
    giver, taker = pair
    prompt = english(400 + len(json.dumps(params)), 100)
    here = taker.complete(prompt, tokens=TOKENS, logprobs=1, kv_transfer_params=params)
    same(here, giver.complete(prompt, tokens=TOKENS, logprobs=1))


def test_many_at_once_want_the_same_prefix(pair, addresses):
    giver, taker = pair
    prefix = english(500, 300)
    prompts = [f"{prefix} {english(501 + i, 20)}" for i in range(6)]
    shared = own(giver.complete(prefix, tokens=1, **asking(publish={"lease_s": 60})))["held_blocks"] - 1
    sources = asking(source(addresses["1 Gbit/s 10 ms"], 0, shared))
    with ThreadPoolExecutor(len(prompts)) as pool:
        here = list(pool.map(lambda p: taker.complete(p, tokens=TOKENS, logprobs=1, **sources), prompts))
    for prompt, answer in zip(prompts, here, strict=True):
        same(answer, giver.complete(prompt, tokens=TOKENS, logprobs=1))
    assert sum(transfer["blocks"] for answer in here for transfer in own(answer)["transfers"]) == shared


def test_who_leaves_during_a_transfer_leaves_nothing(pair):
    _, taker = pair
    with mute_holder() as address:
        with pytest.raises(AssertionError):
            taker.post(
                "/v1/completions",
                {"model": "smollm2", "prompt": english(600, 200), "max_tokens": 4, **asking(source(address, 0, 9))},
                timeout_s=0.5,
            )
        until_s = time.monotonic() + 10
        while taker.metric("vllm:kv_cache_usage_perc") and time.monotonic() < until_s:
            time.sleep(0.2)
        assert taker.metric("vllm:kv_cache_usage_perc") == 0
        assert taker.metric("vllm:num_requests_waiting") == 0


def test_salts_do_not_meet(pair, addresses):
    """The same prompt under another salt has other keys: A's blocks are not found."""
    giver, taker = pair
    prompt = english(700, 150)
    there = giver.complete(prompt, tokens=TOKENS, logprobs=1, cache_salt="one", **asking())
    link = addresses["1 Gbit/s 10 ms"]
    other = taker.complete(prompt, tokens=TOKENS, logprobs=1, cache_salt="two", **asking(source(link, 0, 99)))
    same_salt = taker.complete(prompt, tokens=TOKENS, logprobs=1, cache_salt="one", **asking(source(link, 0, 99)))
    assert own(other)["loaded_blocks"] == 0
    assert own(same_salt)["loaded_blocks"] == blocks_of(there)
    same(same_salt, there)


def test_a_streams_report_is_asked_for_by_its_ticket(pair, addresses):
    """vLLM does not pass the connector's word on in streams."""
    giver, taker = pair
    prompt = english(800, 150)
    there = giver.complete(prompt, tokens=TOKENS, **asking())
    sources = asking(source(addresses["1 Gbit/s 10 ms"], 0, 99), ticket="stream-1")
    chunks = list(taker.stream(prompt, tokens=TOKENS, **sources))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == there["choices"][0]["text"]
    assert not any(chunk.get("kv_transfer_params") for chunk in chunks)
    address = own(taker.complete("hello", tokens=1, **asking()))["address"]

    async def report():
        with await connect_tcp(*host_and_port(address)) as sock:
            return (await question(sock, AskReport(ticket="stream-1"))).report

    told_later = asyncio.run(report())
    assert told_later["loaded_blocks"] == blocks_of(there)
    assert told_later["transfers"][0]["complete"]


def test_chat_is_served_as_completions_are(pair, addresses):
    giver, taker = pair
    messages = [{"role": "user", "content": english(900, 200)}]
    body = {"model": "smollm2", "messages": messages, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    there = giver.post("/v1/chat/completions", {**body, **asking()})
    link = addresses["2.5 Gbit/s 20 ms"]
    here = taker.post("/v1/chat/completions", {**body, **asking(source(link, 0, 99))})
    assert here["choices"][0]["message"]["content"] == there["choices"][0]["message"]["content"]
    assert own(here)["loaded_blocks"] == blocks_of(there)


def test_more_requests_than_the_device_has_room_for(pair, addresses):
    """Requests are preempted, lose their blocks and get them back from the store, while others fetch."""
    giver, taker = pair
    prompts = [english(1000 + i, 450) for i in range(12)]
    there = [giver.complete(prompt, tokens=100, **asking(publish={"lease_s": 300})) for prompt in prompts[:4]]
    link = addresses["1 Gbit/s 10 ms"]
    before = taker.metric("vllm:num_preemptions_total")
    with ThreadPoolExecutor(len(prompts)) as pool:
        here = list(pool.map(lambda p: taker.complete(p, tokens=100, **asking(source(link, 0, 99))), prompts))
    assert taker.metric("vllm:num_preemptions_total") > before
    there += [giver.complete(prompt, tokens=100) for prompt in prompts[4:]]
    assert [a["choices"][0]["text"] for a in here] == [a["choices"][0]["text"] for a in there]


def test_both_engines_are_alive_at_the_end(pair):
    """The last test: nothing above has ended an engine, and no hook has failed."""
    for engine in pair:
        assert engine.is_alive()
        log = engine.log.read_text(encoding="utf-8", errors="replace")
        assert "the engine goes on without it" not in log
        assert "Traceback" not in log

"""Real KV between stock vLLM engines, moved because Homing's prices say so: to the same text as without.

float32 and greedy, so that equal KV means equal text. Each world makes one kind of plan the cheapest by what its
engines are, hold and do at the moment; nobody tells the router what to choose, and the text is compared with what an
engine computes by itself.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import pytest

from .environment import BLOCK_TOKENS
from .front import together, until
from .priced import BYTES_PER_TOKEN, LINKS, FarEngine, MovingEngine, Place, PricedRouter, blocks_in
from .prompts import english
from .tunnel import Tunnel, is_possible
from .vllm_engine import free_port, homing_kv
from .wan import wan_thread

TOKENS = 12
CASES = 13
"""Of each world; each kind has four."""
PREFIX_WORDS = 600


@dataclass(frozen=True, kw_only=True)
class World:
    """What makes a kind of plan the cheapest over a link: roles at both sites, who is busy, how long prompts are."""

    kind: str
    link: str
    roles: tuple[str, str]
    busy: str = ""
    words: tuple[int, int] = (100, 1_000)

    def __str__(self):
        return f"{self.kind} over {self.link}"

    def prompt(self, index):
        """A prompt that nobody has seen; lengths are spread evenly."""
        first, last = self.words
        words = first + (index * 5 % CASES) * (last - first) // (CASES - 1)
        return english(100_000 * (1 + WORLDS.index(self)) + index, words)


HOLDER, BUSY_HOLDER = ("prefill", "both"), ("both", "decode")
WORLDS = [
    # A connection so slow that computing is quicker: unless one has to wait anyway, and the blocks come meanwhile.
    World(kind="fetch", link="100 Mbit/s 5 ms", roles=HOLDER, busy="B", words=(80, 400)),
    World(kind="fetch", link="1 Gbit/s 10 ms", roles=HOLDER),
    World(kind="fetch", link="2.5 Gbit/s 20 ms", roles=HOLDER, words=(200, 1_000)),
    World(kind="fetch", link="10 Gbit/s 40 ms", roles=HOLDER, words=(350, 1_000)),
    # The holder could answer as soon as it has time; the other one does not compute at all.
    World(kind="direct", link="100 Mbit/s 5 ms", roles=BUSY_HOLDER, busy="A", words=(80, 250)),
    *(World(kind="direct", link=link, roles=BUSY_HOLDER, busy="A") for link in list(LINKS)[1:]),
    # Whoever answers is busy; meanwhile the other one computes.
    World(kind="remote", link="100 Mbit/s 5 ms", roles=HOLDER, busy="B", words=(80, 400)),
    *(World(kind="remote", link=link, roles=HOLDER, busy="B") for link in list(LINKS)[1:]),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("priced")


@pytest.fixture(scope="module")
def wan():
    with wan_thread() as thread:
        yield thread


@pytest.fixture(scope="module")
def pair(folder):
    """A at site `a`, B at site `b`, with a long prefix for each that the other has not seen."""
    engines = [MovingEngine(folder, name, homing_kv(store_bytes=3 << 30)) for name in "AB"]
    with together(*engines):
        for engine in engines:
            engine.complete(prefix_of(engine), tokens=1)
        yield engines


def prefix_of(engine):
    return english(7 + ord(engine.name[0]), PREFIX_WORDS)


def homing(engine, wan, link, seen_from):
    """The connector's entry of an engine, whose block server the other site sees across a link."""
    bits_per_s, delay_s = LINKS[link]
    own = engine.data_address()
    far = wan.behind(own, bits_per_s=bits_per_s, delay_s=delay_s)
    return {"name": "homing", "kv": {"address": own, f"address_from:{seen_from}": far}}


@dataclass
class Stage:
    """A world that stands: engines, the router, and the world's description."""

    world: World
    giver: MovingEngine
    taker: MovingEngine
    router: PricedRouter
    carried: Callable[[], int]
    """Bytes that came from the giver's site so far."""

    def busy(self):
        if not self.world.busy:
            return nullcontext()
        engine = self.giver if self.world.busy == "A" else self.taker
        return self.router.busy(engine.name, prefix_of(engine))

    def prepared(self, prompt, index):
        """Bring about what the plan needs of the caches; what the answer has to be."""
        if self.world.kind != "remote":
            expected = self.giver.complete(prompt, tokens=TOKENS)["choices"][0]["text"]
        else:
            expected = self.giver.locally(prompt, TOKENS)
            if index % 2:  # half of it is known to who computes
                self.giver.complete(prompt[: len(prompt) // 2], tokens=1)
        self.router.settle(self.giver.name)
        return expected


@pytest.fixture(scope="module", params=WORLDS, ids=str)
def stage(request, pair, wan, folder):
    world, (giver, taker) = request.param, pair
    places = [
        Place(engine=engine, site=site, role=role, connector=homing(engine, wan, world.link, other))
        for engine, site, role, other in zip(pair, "ab", world.roles, "ba", strict=True)
    ]
    with PricedRouter(folder, places, LINKS[world.link]) as router:
        yield Stage(world, giver, taker, router, wan.bytes_carried)
        link = router.link()
        print(f"{world}: the link is believed to be {link}")
        assert link["samples"], "the router learned nothing of the link"


@pytest.mark.parametrize("index", range(CASES))
def test_the_cheapest_plan_moves_kv_to_the_same_text(stage, index):
    prompt = stage.world.prompt(index)
    expected = stage.prepared(prompt, index)
    reply = moved(stage, prompt, streams=index % 4 == 3)
    assert reply.text == expected
    if reply.own:
        (transfer,) = reply.own["transfers"]
        assert transfer["complete"], transfer
        assert transfer["blocks"] == reply.own["loaded_blocks"] == blocks_in(stage.taker, prompt)


def moved(stage, prompt, *, streams):
    """The router's answer, which went as its world wants it, with all bytes that could come across the link."""
    kind, router = stage.world.kind, stage.router
    tokens = blocks_in(stage.taker, prompt) * BLOCK_TOKENS
    with stage.busy():
        plans = router.until_priced(kind, prompt, TOKENS)
        before = stage.carried()
        reply = (router.stream if streams else router.ask)(prompt, TOKENS)
        came = stage.carried() - before
    print(f"{stage.world}: {tokens} tokens in {reply.ttft_s:.2f} s; {costs(plans)}")
    assert (reply.plan, reply.worker) == (kind, stage.taker.name)
    assert came >= tokens * BYTES_PER_TOKEN
    return reply


def costs(plans):
    """What the plans would cost, in seconds."""
    return ", ".join(f"{plan['kind']} {plan['estimate']['score_s']:.3f}" for plan in plans)


# -- holders that die ---------------------------------------------------------------------------------------------

LONG_WORDS = 2_700
MID_TRANSFER_BYTES = 10_000_000
"""Of more than a hundred million."""


@pytest.mark.parametrize(("kind", "streams"), [("fetch", False), ("fetch", True), ("remote", False)])
def test_a_holder_killed_in_mid_transfer(pair, wan, folder, kind, streams):
    taker, link = pair[1], "1 Gbit/s 10 ms"
    with MovingEngine(folder, f"V-{kind}-{streams}", homing_kv(store_bytes=1 << 30)) as victim:
        world = World(kind=kind, link=link, roles=HOLDER, busy="B" if kind == "remote" else "")
        places = [
            Place(engine=engine, site=site, role=role, connector=homing(engine, wan, link, other))
            for engine, site, role, other in zip((victim, taker), "ab", HOLDER, "ba", strict=True)
        ]
        prompt = english({"fetch": 9_000, "remote": 9_001}[kind] + 2 * streams, LONG_WORDS)
        expected = taker.locally(prompt, TOKENS)
        with PricedRouter(folder, places, LINKS[link]) as router:
            stage = Stage(world, victim, taker, router, wan.bytes_carried)
            if kind == "fetch":
                victim.complete(prompt, tokens=1)
                router.settle(victim.name)
            reply = interrupted(stage, prompt, streams=streams)
    assert reply.text == expected
    assert reply.worker == taker.name
    if reply.own:
        assert not all(transfer["complete"] for transfer in reply.own["transfers"])


def interrupted(stage, prompt, *, streams):
    """The router's answer when a holder is killed while its bytes come."""
    router = stage.router
    with stage.busy(), ThreadPoolExecutor(1) as pool:
        router.until_priced(stage.world.kind, prompt, TOKENS)
        before = stage.carried()
        asking = pool.submit(router.stream if streams else router.ask, prompt, TOKENS)
        until(lambda: stage.carried() - before > MID_TRANSFER_BYTES, "bytes come", 60, router.tail)
        stage.giver.kill()
        came = stage.carried() - before
        reply = asking.result()
    print(f"{stage.world}, killed after {came} bytes: {reply.plan}, {reply.ttft_s:.2f} s, {reply.own}")
    assert came < blocks_in(stage.taker, prompt) * BLOCK_TOKENS * BYTES_PER_TOKEN
    return reply


# -- vLLM's NixlConnector -----------------------------------------------------------------------------------------


NIXL_LOST_AFTER_S = 30.0
"""The first hand-over between two engines takes its time, and their health waits for it."""


def nixl_kv():
    return {
        "kv_connector": "NixlConnector",
        "kv_role": "kv_both",
        "kv_buffer_device": "cpu",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"num_threads": 0},
    }


def nixl_environment(host, device):
    return {
        "VLLM_HOST_IP": host,
        "VLLM_NIXL_SIDE_CHANNEL_HOST": host,
        "VLLM_NIXL_SIDE_CHANNEL_PORT": str(free_port()),
        "UCX_TLS": "tcp,self",
        "UCX_NET_DEVICES": device,
    }


@pytest.fixture(scope="module")
def line():
    if not is_possible():
        pytest.skip("a network namespace needs root and /dev/net/tun")
    bits_per_s, delay_s = LINKS["1 Gbit/s 10 ms"]
    with Tunnel(bits_per_s=bits_per_s, delay_s=delay_s) as tunnel:
        yield tunnel


@pytest.fixture(scope="module")
def nixl_pair(folder, line):
    """The first at the far end of the line, the second here; all that they send each other passes the line."""
    there = nixl_environment(line.there, line.device_there)
    here = nixl_environment(line.here, line.device_here)
    engines = FarEngine(folder, "P", nixl_kv(), line, **there), MovingEngine(folder, "D", nixl_kv(), **here)
    with together(*engines):
        engines[1].complete(prefix_of(engines[1]), tokens=1)
        yield engines


@contextmanager
def nixl_standing(pair, line, folder, link):
    """The router before both, which is told of a link that the line is made to be."""
    bits_per_s, delay_s = LINKS[link]
    line.shape(bits_per_s=bits_per_s, delay_s=delay_s)
    places = [
        Place(engine=engine, site=site, role=role, connector={"name": "nixl"})
        for engine, site, role in zip(pair, "ab", HOLDER, strict=True)
    ]
    with PricedRouter(folder, places, LINKS[link], site="b", lost_after_s=NIXL_LOST_AFTER_S) as router:
        yield Stage(World(kind="remote", link=link, roles=HOLDER, busy="B"), *pair, router, line.bytes_carried)


@pytest.fixture(scope="module", params=LINKS)
def nixl_stage(request, nixl_pair, line, folder):
    with nixl_standing(nixl_pair, line, folder, request.param) as stage:
        yield stage


@pytest.mark.parametrize("index", range(CASES))
def test_the_cheapest_plan_moves_kv_through_nixl(nixl_stage, index):
    prompt = english(5_000_000 + 100 * list(LINKS).index(nixl_stage.world.link) + index, 80 + index * 5 % CASES * 35)
    expected = nixl_stage.prepared(prompt, index)
    assert moved(nixl_stage, prompt, streams=index % 4 == 3).text == expected


def test_a_prefill_worker_of_nixl_killed_in_mid_transfer(nixl_pair, line, folder):
    """The last test of these engines."""
    prompt = english(9_100, LONG_WORDS)
    with nixl_standing(nixl_pair, line, folder, "1 Gbit/s 10 ms") as stage:
        expected = stage.taker.locally(prompt, TOKENS)
        reply = interrupted(stage, prompt, streams=False)
    assert reply.text == expected
    assert reply.worker == stage.taker.name

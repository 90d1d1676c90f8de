"""What real engines tell of their caches, over wires that break, and what the router then knows.

Whatever happens, the router has to end with what the engine itself says of every prompt: the tokens foretold by a dry
run equal those that the engine finds cached. `A` binds its socket and the router connects to it, and `B`
connects to that of the router; a relay stands between.
"""

import contextlib
import signal
from dataclasses import dataclass

import pytest

from homing.router.cli.demo.ports import free_ports

from .front import PublishingEngine, Router, binding, connecting, together, until
from .prompts import english
from .relay import Relay

DEVICE_BLOCKS = 96
"""Little enough that a few prompts push others out."""
GAPS, RESTARTS = (f"homing_kv_event_{name}_total" for name in ("stream_gaps", "restarts"))


@dataclass
class Wired:
    """An engine, its relay, and the port at which a router hears it."""

    engine: PublishingEngine
    relay: Relay
    port: int

    def backend(self, *, replays=True):
        return self.engine.backend | {"kv_events": self.engine.publishing.section(self.port, replays=replays)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("events")


@pytest.fixture(scope="module")
def wired(folder):
    bound, bound_port = binding("kv-A")
    (routers_port,) = free_ports(1)
    relays = Relay(bound_port, publisher_dials=False), Relay(routers_port, publisher_dials=True)
    both = bound, connecting("kv-B", relays[1].port)
    engines = [PublishingEngine(folder, n, p, device_blocks=DEVICE_BLOCKS) for n, p in zip("AB", both, strict=True)]
    try:
        with together(*engines) as (a, b):
            yield {"A": Wired(a, relays[0], relays[0].port), "B": Wired(b, relays[1], routers_port)}
    finally:
        for relay in relays:
            relay.close()


@pytest.fixture(params=["A", "B"], ids=["the engine binds", "the engine connects"])
def one(request, wired):
    return wired[request.param]


@pytest.fixture
def router(folder, one):
    """Before this engine alone, so that every dry run tells of it."""
    with Router(folder, [one.backend()]) as router:
        router.becomes(one.engine.name, "exact")
        yield router


class Seeds:
    """Prompts that nobody has seen."""

    def __init__(self):
        self._next = 100_000

    def fresh(self, count, words):
        first, self._next = self._next, self._next + count
        return [english(number, words) for number in range(first, self._next)]


@pytest.fixture(scope="module")
def seeds():
    return Seeds()


def compute(engine, prompts):
    for prompt in prompts:
        engine.complete(prompt, tokens=1)


def probes(seeds, *known):
    """What the router and the engine are asked about: what they may know, parts and continuations of it, and news."""
    known = list(known)
    parts = [prompt[: len(prompt) // 2] for prompt in known[::3]]
    longer = [f"{prompt} {english(1, 40)}" for prompt in known[1::3]]
    return [*known, *parts, *longer, *seeds.fresh(2, 50)]


def agree(router, engine, prompts, *, hits=True):
    pairs = router.compare(engine, prompts)
    print(f"{engine.name}: {pairs}")
    assert all(foretold == found for foretold, found in pairs), pairs
    assert any(found for _, found in pairs) or not hits, pairs


def blocks(router, one):
    return router.worker(one.engine.name)["cached_blocks"]["device"]


def test_what_is_stored_and_evicted_is_known(router, one, seeds):
    old = seeds.fresh(6, 120)
    compute(one.engine, old)
    compute(one.engine, seeds.fresh(6, 350))
    young = seeds.fresh(6, 120)
    compute(one.engine, young)
    agree(router, one.engine, probes(seeds, *young, *old))


def test_a_cache_that_was_reset_is_forgotten(router, one, seeds):
    known = seeds.fresh(6, 100)
    compute(one.engine, known)
    agree(router, one.engine, known)
    held = blocks(router, one)
    one.engine.forget()
    compute(one.engine, seeds.fresh(1, 40))  # the engine tells of a reset with its next step
    told_s = until(lambda: blocks(router, one) < 10, "the blocks are forgotten", 10, lambda: blocks(router, one))
    print(f"{held} blocks, then {blocks(router, one)} within {told_s:.2f} s")
    assert held > 10
    agree(router, one.engine, probes(seeds, *known))


def test_a_connection_is_cut_and_mended(router, one, seeds):
    known, meanwhile = seeds.fresh(4, 100), seeds.fresh(5, 200)
    compute(one.engine, known)
    agree(router, one.engine, known)
    one.relay.cut()
    noticed_s = router.becomes(one.engine.name, "degraded", 20)
    compute(one.engine, meanwhile)
    one.relay.mend()
    repaired_s = router.becomes(one.engine.name, "exact", 20)
    print(f"noticed after {noticed_s:.2f} s, repaired {repaired_s:.2f} s after it was mended")
    agree(router, one.engine, probes(seeds, *meanwhile, *known))


def test_messages_are_lost_on_a_connection_that_stays(router, one, seeds):
    known, meanwhile = seeds.fresh(4, 100), seeds.fresh(5, 200)
    compute(one.engine, known)
    agree(router, one.engine, known)
    gaps, lost = router.metric(GAPS, one.engine.name), one.relay.lost
    with one.relay.losing():
        compute(one.engine, meanwhile)
    assert one.relay.lost > lost
    compute(one.engine, seeds.fresh(1, 40))  # nothing tells of a loss but the next number
    router.becomes(one.engine.name, "exact", 20)
    agree(router, one.engine, probes(seeds, *meanwhile, *known))
    assert router.metric(GAPS, one.engine.name) == gaps + 1


def test_what_cannot_be_had_again_is_forgotten(folder, wired, one, seeds):
    """Without a replay endpoint: nothing is foretold that is not there, and a reset makes all of it known."""
    with Router(folder, [one.backend(replays=False)]) as router:
        name = one.engine.name
        one.engine.forget()
        compute(one.engine, seeds.fresh(2, 50))
        known, meanwhile, after = seeds.fresh(4, 100), seeds.fresh(5, 200), seeds.fresh(3, 100)
        router.becomes(name, "exact")
        compute(one.engine, known)
        agree(router, one.engine, known)
        with one.relay.losing():
            compute(one.engine, meanwhile)
        compute(one.engine, after)
        assert router.becomes(name, "degraded") < 1
        pairs = router.compare(one.engine, [*after, *meanwhile, *known])
        assert all(foretold <= found for foretold, found in pairs), pairs
        assert all(foretold == found for foretold, found in pairs[: len(after)]), pairs
        assert router.trust(name)[1]
        one.engine.forget()
        compute(one.engine, seeds.fresh(1, 40))
        router.becomes(name, "exact", 5)
        agree(router, one.engine, probes(seeds, *known, *after))


def test_an_engine_that_stands_still_is_left_and_heard_again(router, one, seeds):
    name = one.engine.name
    known = seeds.fresh(4, 100)
    compute(one.engine, known)
    agree(router, one.engine, known)
    one.engine.signal(signal.SIGSTOP)
    try:
        lost_s = until(lambda: router.worker(name) is None, "it is lost", 40)
    finally:
        one.engine.signal(signal.SIGCONT)
    back_s = until(lambda: router.worker(name) is not None, "it is back", 30)
    router.becomes(name, "exact", 20)
    print(f"lost after {lost_s:.2f} s, back after {back_s:.2f} s")
    agree(router, one.engine, probes(seeds, *known))


def test_publishers_that_begin_anew_are_noticed_by_their_numbers(folder, wired, seeds):
    """Nobody looks whether the engines live: what was known of them goes because of what they tell."""
    known = seeds.fresh(6, 100)
    engines = [each.engine for each in wired.values()]
    with contextlib.ExitStack() as stack:
        blind = [Router(folder, [each.backend()], poll_s=3600, lost_after_s=3600) for each in wired.values()]
        routers = [stack.enter_context(router) for router in blind]
        for router, engine in zip(routers, engines, strict=True):
            router.becomes(engine.name, "exact")
            compute(engine, known)
            agree(router, engine, known)
        for engine in engines:
            engine.kill()
        with together(*engines):
            for router, engine in zip(routers, engines, strict=True):
                compute(engine, known[:2])
                router.becomes(engine.name, "exact", 40)
                agree(router, engine, probes(seeds, *known))
                assert router.metric(RESTARTS, engine.name) >= 1

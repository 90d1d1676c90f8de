"""The endpoint picker on a real driver and scheduler: where requests are sent, and that nothing stays booked."""

import asyncio
import contextlib
import functools
import json
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homing.router.actuators.registry import make_actuator
from homing.router.core.events import PrefillFinished, TimerFired, WorkerDraining, WorkerJoined, WorkerLost
from homing.router.core.limits import Limits
from homing.router.core.types import PlanKind, Role, WorkerId
from homing.router.engines.types import Patch
from homing.router.envoy.types import PickRefusedError
from homing.router.service.addresses import Addresses
from homing.router.service.backends.endpoint import Alias, Endpoint, Endpoints
from homing.router.service.door.calls import CallReader
from homing.router.service.driver import Driver
from homing.router.service.picker import EndpointPicker
from homing.router.tokens.text import TextReader

from ..actuators.engines import wires
from ..core.fleets import HERE, MODEL, THERE, both_ways, link, scheduler, worker

CHAT = "/v1/chat/completions"
WAYS = frozenset({PlanKind.LOCAL, PlanKind.REMOTE})


class World:
    """Engines that nobody runs, known to the router, and a gateway that asks for them."""

    def __init__(self, post=None, **limits):
        known = Limits(**{"lost_after_s": 1000.0, **limits})
        self.scheduler = scheduler(links=both_ways(link(HERE, THERE, 0.05, 1e9)), limits=known)
        self.driver = Driver(self.scheduler)
        self.endpoints = Endpoints()
        self.picker = EndpointPicker(
            self.driver, self.endpoints, CallReader(lambda model: TextReader(), self.driver.is_open), post
        )
        self.troubles = []
        self.events = []
        self.driver.observe(lambda event, commands, now, took_s: self.events.append(event))

    def add(self, name, url=None, *, model=MODEL, known=None, **facts):
        """An engine joins; `facts` are those of its endpoint, `known` those of its worker."""
        one = worker(name, **{"transport": "", "plans": frozenset(), **(known or {})})
        endpoint = Endpoint(
            worker=one.id,
            backend=name,
            url=url or f"http://10.0.0.{len(self.scheduler.fleet) + 1}:8000",
            site=one.site,
            model=model,
            adapter=None,
            upstream=None,
            on_trouble=lambda: self.troubles.append(name),
            **facts,
        )
        self.endpoints.add(endpoint)
        self.driver.feed(WorkerJoined(worker=one))
        self.endpoints.name(name, {MODEL: Alias(MODEL)})
        return endpoint

    def lose(self, name):
        self.endpoints.name(name, {})
        self.endpoints.remove(WorkerId(name))
        self.driver.feed(WorkerLost(worker_id=WorkerId(name), reason="a test"))

    async def pick(self, text="hello", *, request_id="r", subset=None, path=CHAT, method="POST", **more):
        body = {"model": MODEL, "messages": [{"role": "user", "content": text}], **more}
        headers = {":method": method, ":path": path, "x-request-id": request_id}
        data = json.dumps(body).encode() if method == "POST" else b""
        return await self.picker.pick(path, headers, data, subset)

    def of(self, pick):
        """The worker that was decided on."""
        return pick.headers["x-homing-worker"]

    def running(self, name):
        return self.scheduler.fleet.get(WorkerId(name)).account.running

    def computing(self, name):
        return len(self.scheduler.fleet.get(WorkerId(name)).account.jobs)

    def assert_idle(self):
        assert not self.scheduler.in_flight
        assert len(self.scheduler.fleet.ledger) == len(self.scheduler.admission) == 0
        assert not self.driver._mailboxes
        assert not self.scheduler._attempts
        assert not self.picker._held
        self.scheduler.check()


def on_a_loop(test):
    """With a world at whose end nothing is booked; a test that hangs, or leaves a task behind, fails."""

    @functools.wraps(test)
    def run(**given_values):
        async def whole():
            world = World()
            await asyncio.wait_for(test(world, **given_values), 20)
            world.assert_idle()
            world.driver.stop()
            await asyncio.sleep(0)
            assert asyncio.all_tasks() == {asyncio.current_task()}

        asyncio.run(whole())

    del run.__wrapped__
    return run


# -- where requests go -------------------------------------------------------------------------------------------------


@on_a_loop
async def test_a_pick_is_booked_until_its_end(world):
    world.add("a")
    world.add("b")
    pick = await world.pick()
    name = world.of(pick)
    assert world.running(name) == world.computing(name) == 1
    assert pick.endpoints[0] == world.endpoints.get(name).url.removeprefix("http://")
    assert sorted(pick.endpoints) == ["10.0.0.1:8000", "10.0.0.2:8000"]
    assert pick.body is None
    world.picker.served(pick, pick.endpoints[0], 200)
    assert (world.running(name), world.computing(name)) == (1, 0)
    world.picker.ended(pick, cancelled=False)
    world.picker.ended(pick, cancelled=False)
    assert not world.troubles


@on_a_loop
async def test_headers_of_a_stream_are_no_first_token(world):
    world.add("a")
    pick = await world.pick("x" * 100, stream=True)
    foreseen_s = world.scheduler.in_flight["r"].decision.plan.estimate.ttft_s
    world.picker.served(pick, pick.endpoints[0], 200)
    assert world.computing("a") == 1, "it begins to compute"
    await asyncio.sleep(foreseen_s + 0.05)
    assert (world.running("a"), world.computing("a")) == (1, 0)
    assert sum(isinstance(event, PrefillFinished) for event in world.events) == 1
    world.picker.ended(pick, cancelled=True)
    assert not world.troubles, "an engine began to answer: the client has left"


@on_a_loop
async def test_who_answered_in_anothers_place_is_told_from_the_chosen_one(world):
    world.add("a")
    world.add("b")
    pick = await world.pick(stream=True)
    name = world.of(pick)
    world.picker.served(pick, pick.endpoints[1], 200)
    assert world.troubles == [name]
    assert world.computing(name) == 0
    world.picker.ended(pick, cancelled=False)

    for status, cancelled in ((503, False), (0, True)):
        world.troubles.clear()
        pick = await world.pick()
        if status:
            world.picker.served(pick, pick.endpoints[0], status)
        world.picker.ended(pick, cancelled=cancelled)
        assert world.troubles == [world.of(pick)]


@on_a_loop
async def test_only_an_engine_that_may_get_the_same_bytes_stands_in(world):
    world.add("a", headers={"authorization": "Bearer a"})
    world.add("same", headers={"authorization": "Bearer a"})
    world.add("far", headers={"authorization": "Bearer a"}, known={"site": THERE})
    world.add("no key", known={"requests_max": 1})
    ranked = Patch(headers={"x-rank": "1"})
    world.add("ranked", headers={"authorization": "Bearer a"}, patch=ranked, known={"requests_max": 1})
    world.add("prefill", headers={"authorization": "Bearer a"}, known={"role": Role.PREFILL})
    world.add("leaving", headers={"authorization": "Bearer a"})
    world.driver.feed(WorkerDraining(worker_id=WorkerId("leaving")))
    addresses = {each.url.removeprefix("http://"): str(each.worker) for each in world.endpoints}
    held = []
    for address, name in addresses.items():
        if name in {"no key", "ranked"}:
            held.append(await world.pick(request_id=name, subset=frozenset({address})))
            assert held[-1].endpoints == (address,), "no other is allowed"
    pick = await world.pick()
    assert pick.headers["authorization"] == "Bearer a"
    others = [addresses[each] for each in pick.endpoints[1:]]
    assert sorted([world.of(pick), *others]) == ["a", "far", "same"]
    assert others[-1] == "far"
    for each in (*held, pick):
        world.picker.ended(each, cancelled=False)


@on_a_loop
async def test_engines_without_room_stand_in_last_and_few_are_named(world):
    for number in range(8):
        world.add(f"e{number}", known={"requests_max": 1 if number % 2 else 3})
    picks = [await world.pick(f"{number} {'x' * 50}", request_id=f"r{number}") for number in range(8)]
    assert all(len(set(pick.endpoints)) == 5 for pick in picks)
    for pick in picks:
        world.picker.ended(pick, cancelled=False)


@on_a_loop
async def test_workers_that_no_gateway_reaches_are_not_picked(world):
    world.driver.feed(WorkerJoined(worker=worker("native", requests_max=1000, kv_blocks_max=10**6)))
    with pytest.raises(PickRefusedError, match="no engine serves m at the moment") as refused:
        await world.pick()
    assert (refused.value.status, refused.value.retry_after_s) == (503, 1.0)
    world.add("a", known={"kv_blocks_max": 100})
    for _ in range(5):
        pick = await world.pick()
        assert (world.of(pick), pick.endpoints) == ("a", ("10.0.0.2:8000",))
        world.picker.ended(pick, cancelled=False)


@on_a_loop
async def test_refusals_say_why(world):
    async def status_of(**asked):
        with pytest.raises(PickRefusedError) as refused:
            await world.pick(**asked)
        return refused.value.status, str(refused.value)

    assert (await status_of())[0] == 503, "no engine has ever been there"
    world.add("a")
    assert await status_of(model="other") == (404, "404: model: no model 'other'; known are m")
    assert (await status_of(subset=frozenset({"10.9.9.9:1"})))[0] == 503
    assert (await status_of(subset=frozenset({"10.9.9.9:1"}), path="/v1/models", method="GET"))[0] == 503
    assert (await status_of(text="x" * 400_000, max_tokens=0))[0] == 400
    world.picker.draining = True
    assert await status_of() == (503, "503: the router is draining")
    world.picker.draining = False
    world.lose("a")
    assert await status_of() == (503, "503: no engine serves m at the moment")


@on_a_loop
async def test_what_is_no_inference_goes_anywhere_and_books_nothing(world):
    for name in "abcdefg":
        world.add(name)
    pick = await world.pick(request_id="same")
    plain = await world.pick(request_id="same", path="/v1/models", method="GET")
    assert len(plain.endpoints) == 5
    assert await world.pick(path=CHAT, method="OPTIONS") == plain
    world.picker.served(plain, plain.endpoints[0], 200)
    world.picker.ended(plain, cancelled=True)
    assert world.running(world.of(pick)) == 1, "it was not the other's end"
    world.picker.ended(pick, cancelled=False)


# -- ids ---------------------------------------------------------------------------------------------------------------


@on_a_loop
async def test_two_requests_of_one_id_are_two(world):
    world.add("a")
    picks = await asyncio.gather(*(world.pick(str(number), request_id="same") for number in range(5)))
    assert len({pick.request_id for pick in picks}) == world.running("a") == 5
    assert {pick.headers["x-request-id"] for pick in picks} == {pick.request_id for pick in picks}
    for left, pick in zip((4, 3, 2, 1, 0), picks, strict=True):
        world.picker.ended(pick, cancelled=False)
        assert world.running("a") == left
    again = await world.pick(request_id="same")
    assert again.request_id == "same"
    world.picker.ended(again, cancelled=False)


@on_a_loop
async def test_an_id_whose_booking_ran_out_is_another_until_the_end(world):
    world.add("a")
    world.scheduler.limits = replace(world.scheduler.limits, lease_s=0.01)
    first = await world.pick(request_id="same")
    await asyncio.sleep(0.02)
    world.driver.feed(TimerFired())
    assert not world.scheduler.in_flight
    world.scheduler.limits = replace(world.scheduler.limits, lease_s=900.0)
    second = await world.pick(request_id="same")
    world.picker.served(first, first.endpoints[0], 200)
    world.picker.ended(first, cancelled=False)
    assert world.running("a") == 1, "it was not the other's end"
    world.picker.ended(second, cancelled=False)


# -- who leaves --------------------------------------------------------------------------------------------------------


@on_a_loop
async def test_an_engine_that_left_is_not_picked_although_the_fleet_has_it_still(world):
    world.add("a", known={"requests_max": 100})
    world.add("b", known={"site": THERE, "requests_max": 100})
    world.endpoints.remove(WorkerId("a"))
    pick = await world.pick()
    assert (world.of(pick), pick.endpoints) == ("b", ("10.0.0.2:8000",))
    world.picker.ended(pick, cancelled=False)


@on_a_loop
async def test_an_engine_that_leaves_while_its_address_is_looked_up_is_not_picked(world):
    world.add("a", "http://localhost:8000")
    world.add("b", known={"site": THERE})
    picking = asyncio.create_task(world.pick())
    await asyncio.sleep(0)
    assert world.running("a") == 1
    world.lose("a")
    pick = await picking
    assert (world.of(pick), pick.endpoints) == ("b", ("10.0.0.2:8000",))
    world.picker.ended(pick, cancelled=False)


@on_a_loop
async def test_an_engine_that_leaves_while_it_is_picked_gives_its_booking_back(world):
    world.add("a")
    world.add("b")
    pick = await world.pick()
    world.lose(world.of(pick))
    world.scheduler.check()
    assert len(world.scheduler.in_flight) == 1
    world.picker.served(pick, pick.endpoints[1], 200)
    world.picker.ended(pick, cancelled=False)


@on_a_loop
async def test_who_leaves_the_queue_leaves_nothing(world):
    world.add("a", known={"requests_max": 1})
    first = await world.pick()
    waiting = [asyncio.create_task(world.pick(str(number), request_id=str(number))) for number in range(3)]
    await asyncio.sleep(0.01)
    assert len(world.scheduler.admission) == 3
    waiting[0].cancel()
    await asyncio.sleep(0.01)
    assert len(world.scheduler.admission) == 2
    ending = first
    for task in waiting[1:]:
        world.picker.ended(ending, cancelled=False)
        ending = await task
        assert world.running("a") == 1
    world.picker.ended(ending, cancelled=False)


@pytest.mark.parametrize("hosts", [("localhost", "127.0.0.1"), ("localhost", "nowhere.invalid"), ("127.0.0.1",)])
def test_who_leaves_at_any_moment_of_a_pick_leaves_nothing(hosts):
    """With a prefill worker that hangs, so that there are many moments."""

    async def leave_after(steps, post, prefill_url):
        world = World(post)
        way = make_actuator("sglang", {"head_start_s": 0.002}, Random(1))
        roles = {"transport": "sglang", "plans": WAYS}
        kv = {"bootstrap_host": "10.0.0.9"}
        world.add("p", prefill_url, actuator=way, kv=kv, known={"role": Role.PREFILL, **roles})
        for number, host in enumerate(hosts):
            facts = {"role": Role.DECODE, **roles}
            world.add(f"d{number}", f"http://{host}:80{number}", actuator=way, known=facts)
        both = {"site": THERE, **roles}
        world.add("b", f"http://{hosts[0]}:8009", actuator=way, known=both)
        picking = asyncio.create_task(world.pick("x" * 3000))
        for _ in range(steps):
            await asyncio.sleep(0)
        await asyncio.sleep(steps * 0.0002)
        picking.cancel()
        await asyncio.wait([picking])
        was_picked = not picking.cancelled()
        if was_picked:
            world.picker.ended(picking.result(), cancelled=True)
        world.assert_idle()
        world.driver.stop()
        await until(lambda: not way._running)
        return was_picked

    async def scenario():
        async with wires(1) as (post, p):
            p.answers[CHAT] = "hang"
            picked = [await leave_after(steps, post, p.url) for steps in (*range(40), 200)]
            assert not picked[0]
            assert picked[-1]
            async with asyncio.timeout(5):
                while p.hanging:
                    await asyncio.sleep(0.01)

    asyncio.run(scenario())


# -- prefill beside ----------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def handing_over(answer):
    """A prefill and a decode worker of SGLang; the prefill worker answers so."""
    async with wires(1) as (post, p):
        p.answers[CHAT] = answer
        world = World(post)
        way = make_actuator("sglang", {"head_start_s": 0.0}, Random(1))
        roles = {"transport": "sglang", "plans": WAYS}
        kv = {"bootstrap_host": "10.0.0.9"}
        world.add("p", p.url, actuator=way, kv=kv, known={"role": Role.PREFILL, **roles})
        world.add("d", actuator=way, known={"role": Role.DECODE, **roles})
        try:
            yield world, p
            world.assert_idle()
        finally:
            world.driver.stop()
            await way.close()


async def until(holds):
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize(("answer", "troubles"), [({"id": "x"}, []), (500, ["p"])])
def test_the_end_of_a_prefill_beside_is_told_and_its_failure_looked_into(answer, troubles):
    async def scenario():
        async with handing_over(answer) as (world, p):
            pick = await world.pick("x" * 3000)
            assert (world.of(pick), pick.headers["x-homing-plan"]) == ("d", "remote")
            assert "bootstrap_room" in json.loads(pick.body)
            await until(lambda: not world.computing("p"))
            assert p.calls[0].headers["x-request-id"] == pick.request_id
            assert world.troubles == troubles
            assert (world.running("d"), len(world.scheduler.in_flight)) == (1, 1)
            world.picker.served(pick, pick.endpoints[0], 200)
            world.picker.ended(pick, cancelled=False)

    asyncio.run(scenario())


def test_only_who_has_the_same_connector_stands_in_where_kv_moves():
    async def scenario():
        async with handing_over({"id": "x"}) as (world, _):
            way = world.endpoints.get(WorkerId("d")).actuator
            world.add("plain", known={"site": THERE})
            world.add("alike", actuator=way, known={"site": THERE, "transport": "sglang", "plans": WAYS})
            alike = world.endpoints.get(WorkerId("alike")).url.removeprefix("http://")
            pick = await world.pick("x" * 3000)
            assert (pick.headers["x-homing-plan"], pick.endpoints[1:]) == ("remote", (alike,))
            world.picker.ended(pick, cancelled=False)

    asyncio.run(scenario())


def test_the_end_of_a_request_ends_the_prefill_beside_it():
    async def scenario():
        async with handing_over("hang") as (world, p):
            pick = await world.pick("x" * 3000)
            await until(lambda: p.hanging)
            assert world.computing("p") == 1
            world.picker.ended(pick, cancelled=True)
            await until(lambda: not p.hanging)
            assert world.troubles == ["d"]

    asyncio.run(scenario())


# -- names -------------------------------------------------------------------------------------------------------------


@on_a_loop
async def test_engines_are_named_by_address(world):
    world.add("a", "http://localhost:8000/")
    pick = await world.pick()
    assert pick.endpoints == ("127.0.0.1:8000",)
    assert (await world.pick(path="/v1/models", method="GET")).endpoints == pick.endpoints
    world.picker.ended(pick, cancelled=False)
    only = await world.pick(subset=frozenset({"127.0.0.1:8000"}))
    world.picker.ended(only, cancelled=False)


@on_a_loop
async def test_a_name_without_an_address_is_nobodys_but_its_engines_problem(world):
    world.add("lost", "http://nowhere.invalid:8000")
    with pytest.raises(PickRefusedError) as refused:
        await world.pick()
    assert refused.value.status == 502
    world.add("b", known={"site": THERE})
    for number in range(3):
        pick = await world.pick(request_id=str(number))
        assert (world.of(pick), pick.endpoints) == ("b", ("10.0.0.2:8000",))
        assert (await world.pick(path="/health", method="GET")).endpoints == ("10.0.0.2:8000",)
        world.picker.ended(pick, cancelled=False)


def test_addresses_are_looked_up_once_and_kept_when_they_cannot_be():
    async def scenario():
        now, asked = [0.0], []
        answers = {"two": ["10.0.0.2", "10.0.0.1", "fd00::1"], "six": ["fd00::2"]}

        async def getaddrinfo(host, port, **_):
            asked.append(host)
            await asyncio.sleep(0.001)
            if host not in answers:
                raise OSError("no such name")
            return [(0, 0, 0, "", (ip, port)) for ip in answers[host]]

        asyncio.get_running_loop().getaddrinfo = getaddrinfo
        addresses = Addresses(lambda: now[0])
        cases = {
            "http://two": "10.0.0.1:80",
            "https://six/x": "[fd00::2]:443",
            "http://[fd00::3]:8": "[fd00::3]:8",
            "http://10.1.1.1:7": "10.1.1.1:7",
            "http://none": None,
        }
        for url, address in cases.items():
            assert set(await asyncio.gather(*(addresses.of(url) for _ in range(20)))) == {address}
        assert asked == ["two", "six", "none"]
        now[0] = 29.0
        answers["none"] = ["10.0.0.5"]
        answers["two"] = ["10.0.0.3"]
        assert await addresses.of("http://none") == "10.0.0.5:80"
        assert await addresses.of("http://two") == "10.0.0.1:80"
        now[0] = 31.0
        first, *others = await asyncio.gather(*(addresses.of("http://two") for _ in range(5)))
        assert (first, set(others)) == ("10.0.0.3:80", {"10.0.0.1:80"}), "nobody waits who has an address"
        now[0] = 99.0
        del answers["two"]
        assert await addresses.of("http://two") == "10.0.0.3:80"

    asyncio.run(scenario())


# -- any order of things -----------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["pick", "pick", "pick", "leave", "served", "ended", "ended", "lose", "join", "wait"]),
        st.integers(0, 7),
    ),
    max_size=40,
)


class Gateway:
    """Picks that are waited for, and those that it got; engines come and go."""

    def __init__(self, world):
        self.world = world
        self.waiting, self.got, self.there = [], [], set()

    def pick(self, number):
        self.waiting.append(asyncio.create_task(self.world.pick(str(number), request_id=f"r{number % 2}")))

    def leave(self, number):
        if self.waiting:
            self.waiting[number % len(self.waiting)].cancel()

    def served(self, number):
        if self.got:
            pick = self.got[number % len(self.got)]
            self.world.picker.served(pick, pick.endpoints[number % len(pick.endpoints)], (200, 500)[number % 2])

    def ended(self, number):
        if self.got:
            self.world.picker.ended(self.got.pop(number % len(self.got)), cancelled=bool(number % 2))

    def lose(self, number):
        if number % 3 in self.there:
            self.there.discard(number % 3)
            self.world.lose(f"e{number % 3}")

    def join(self, number):
        if number % 3 not in self.there:
            self.there.add(number % 3)
            self.world.add(f"e{number % 3}", known={"requests_max": 2})

    async def settle(self):
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        done = [task for task in self.waiting if task.done()]
        self.waiting = [task for task in self.waiting if task not in done]
        self.got += [task.result() for task in done if not task.cancelled() and task.exception() is None]


@settings(max_examples=60, deadline=None)
@given(steps=STEPS)
@on_a_loop
async def test_whatever_happens_what_is_booked_is_what_is_open(world, steps):
    gateway = Gateway(world)
    for step, number in steps:
        if step == "wait":
            await gateway.settle()
        else:
            getattr(gateway, step)(number)
        world.scheduler.check()
    await gateway.settle()
    assert {pick.request_id for pick in gateway.got} == set(world.scheduler.in_flight) == set(world.picker._held)
    for task in gateway.waiting:
        task.cancel()
    await asyncio.gather(*gateway.waiting, return_exceptions=True)
    for pick in gateway.got:
        world.picker.ended(pick, cancelled=False)

"""Sources against real ZeroMQ publishers on loopback: what goes wrong on a wire, goes wrong here."""

import asyncio
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import wraps

import pytest
import zmq.asyncio

from homing.router.core.errors import ConfigError
from homing.router.core.types import Tier, Trust
from homing.router.engines.types import KvSource
from homing.router.kv_events.book import CacheBook
from homing.router.kv_events.hub import KvEventHub
from homing.router.kv_events.sockets import KvEventLimits
from homing.router.kv_events.source import KvEventSource

from .engines import BLOCK, CLEARED, WORKER, Mirror, keys_of, payload, wire_removed, wire_stored
from .publisher import ANY_PORT, Publisher, publishing

LIMITS = KvEventLimits(reply_s=2.0, replay_s=10.0, retry_s=0.2, lost_after_s=0.6, heartbeat_s=1.0)
OFTEN = replace(LIMITS, check_s=0.3)


def timed(test):
    @wraps(test)
    def run(*args, **kwargs):
        return asyncio.run(asyncio.wait_for(test(*args, **kwargs), 60))

    return run


class Ear:
    """A source with what it told."""

    def __init__(self, context, kv_source, *, limits=LIMITS, **options):
        self.mirror = Mirror()
        self.trusts = []
        self.source = KvEventSource(
            kv_source,
            CacheBook(WORKER, BLOCK),
            on_events=self.mirror.hear,
            on_trust=lambda trust, reason: self.trusts.append((trust, reason)),
            context=context,
            limits=limits,
            **options,
        )

    async def until(self, trust=None, *, holds=None):
        """Wait for a trust, and for exactly these paths' blocks on the device."""
        keys = None if holds is None else {key for path in holds for key in keys_of(path)}
        while (trust is not None and self.trust is not trust) or (keys is not None and self.mirror.held() != keys):
            await asyncio.sleep(0.005)

    @property
    def trust(self):
        return self.trusts[-1][0] if self.trusts else None

    @property
    def counts(self):
        return self.source.stats().stream


@contextmanager
def shared_context():
    """Gone whatever happens: one that is left to the garbage collector waits for its sockets for ever."""
    context = zmq.asyncio.Context()
    try:
        yield context
    finally:
        context.destroy(0)


@asynccontextmanager
async def hearing(kv_source, **options):
    context = zmq.asyncio.Context()
    ear = Ear(context, kv_source, **options)
    task = asyncio.create_task(ear.source.run())
    try:
        yield ear
    finally:
        task.cancel()
        results = await asyncio.gather(task, return_exceptions=True)
        context.destroy(0)
        assert isinstance(results[0], asyncio.CancelledError), results


def of(publisher, *, has_replay=True, **fields):
    told = {"rank": 0, "endpoint": publisher.endpoint, "topic": publisher.topic.decode()}
    return KvSource(**(told | fields), replay_endpoint=publisher.replay_endpoint if has_replay else None)


@timed
async def test_from_the_beginning_all_is_exact():
    async with publishing() as engine, hearing(of(engine)) as ear:
        await ear.until(Trust.EXACT)
        await engine.publish(wire_stored((1, 2)))
        await engine.publish(wire_stored((1, 2, 3), 2), wire_removed((1, 2)))
        while ear.counts.batches < 2:
            await asyncio.sleep(0.005)
        assert ear.mirror.held() == {*keys_of((1,)), keys_of((1, 2, 3))[2]}
        assert [trust for trust, _ in ear.trusts] == [Trust.BLIND, Trust.EXACT]
        stats = ear.source.stats()
        assert (stats.blocks, stats.orphans, stats.foreign, stats.stream.gaps) == (2, 0, 0, 0)
        assert stats.lag_s > 1000, "by the wall clock, which is far from a test's"


@pytest.mark.parametrize("is_old", [False, True])
@timed
async def test_a_late_joiner_hears_all_that_was_said(is_old):
    async with publishing(is_old=is_old) as engine:
        await engine.publish(wire_stored((1, 2)))
        await engine.publish(wire_removed((1, 2)))
        async with hearing(of(engine)) as ear:
            await ear.until(Trust.EXACT, holds=[(1,)])
            assert engine.asked == [0]


@timed
async def test_a_late_joiner_to_a_short_buffer_is_degraded_until_a_clear():
    async with publishing(buffer=2) as engine:
        for number in range(5):
            await engine.publish(wire_stored((number,)))
        async with hearing(of(engine)) as ear:
            await ear.until(Trust.DEGRADED, holds=[(3,), (4,)])
            assert "begins at batch 3" in ear.source.stats().reason
            await engine.publish(CLEARED, wire_stored((9,)))
            await ear.until(Trust.EXACT, holds=[(9,)])


@timed
async def test_dropped_messages_are_fetched():
    async with publishing() as engine, hearing(of(engine)) as ear:
        await ear.until(Trust.EXACT)
        await engine.publish(wire_stored((1,)))
        engine.drop(wire_stored((1, 2), 1))
        engine.drop(wire_stored((3,)))
        await engine.publish(wire_stored((1, 2, 4), 2))
        await ear.until(Trust.EXACT, holds=[(1, 2, 4), (3,)])
        assert (ear.counts.gaps, ear.counts.clears, engine.asked[-1]) == (1, 0, 0)


@timed
async def test_dropped_messages_that_the_buffer_has_no_more_clear():
    async with publishing(buffer=2) as engine, hearing(of(engine)) as ear:
        await ear.until(Trust.EXACT)
        await engine.publish(wire_stored((1,)))
        await ear.until(holds=[(1,)])
        for number in range(2, 6):
            engine.drop(wire_stored((number,)))
        await engine.publish(wire_stored((6,)))
        await ear.until(Trust.DEGRADED, holds=[(5,), (6,)])
        assert ear.counts.clears == 1


@timed
async def test_without_replay_a_gap_clears():
    async with publishing() as engine, hearing(of(engine, has_replay=False)) as ear:
        while not ear.mirror.held():
            await engine.publish(wire_stored((1,)))
            await asyncio.sleep(0.01)
        engine.drop(wire_stored((2,)))
        await engine.publish(wire_stored((3,)))
        await ear.until(Trust.DEGRADED, holds=[(3,)])


@timed
async def test_a_restart_forgets_and_learns_anew():
    """The new process takes the same ports and has said more than the old one before we are back."""
    async with publishing() as engine, hearing(of(engine)) as ear:
        await ear.until(Trust.EXACT)
        await engine.publish(wire_stored((1,)))
        await ear.until(holds=[(1,)])
        await engine.close()
        await ear.until(Trust.DEGRADED)
        async with publishing(started_s=500.0, at=(engine.endpoint, engine.replay_endpoint)) as again:
            for number in (7, 8, 9):
                await again.publish(wire_stored((number,)))
            await ear.until(Trust.EXACT, holds=[(7,), (8,), (9,)])
            assert ear.counts.restarts == 1


@pytest.mark.parametrize("has_replay", [True, False])
@timed
async def test_a_listener_whose_picture_broke_hears_all_again(has_replay):
    async with publishing() as engine, hearing(of(engine, has_replay=has_replay)) as ear:
        while not ear.mirror.held():
            await engine.publish(wire_stored((1,)))
            await asyncio.sleep(0.01)
        await ear.until(Trust.EXACT if has_replay else None)
        ear.source.begin_anew("it contradicts itself")
        assert not ear.mirror.held()
        await engine.publish(wire_stored((2,)))
        if has_replay:
            await ear.until(Trust.EXACT, holds=[(1,), (2,)])
        else:
            await ear.until(Trust.DEGRADED, holds=[(2,)])


@timed
async def test_an_engine_that_stays_away_is_forgotten():
    engine = Publisher()
    async with hearing(of(engine)) as ear:
        await ear.until(Trust.EXACT)
        await engine.publish(wire_stored((1,)))
        await ear.until(holds=[(1,)])
        await engine.close()
        await ear.until(Trust.DEGRADED)
        assert ear.mirror.held(), "for a while it may come back as it was"
        await ear.until(Trust.BLIND, holds=[])
        assert [trust for trust, _ in ear.trusts] == [Trust.BLIND, Trust.EXACT, Trust.DEGRADED, Trust.BLIND]


@timed
async def test_a_replay_that_is_not_answered_is_tried_again():
    async with publishing() as engine:
        engine.is_mute = True
        engine.drop(wire_stored((1,)))
        async with hearing(of(engine)) as ear:
            while not ear.counts.replays_failed:
                await asyncio.sleep(0.005)
            assert (ear.trust, ear.source.stats().reason) == (
                Trust.BLIND,
                f"{engine.replay_endpoint} did not answer a replay request in time",
            )
            engine.is_mute = False
            await ear.until(Trust.EXACT, holds=[(1,)])


@timed
async def test_garbage_costs_only_what_was_known():
    async with publishing() as engine, hearing(of(engine)) as ear:
        await ear.until(Trust.EXACT)
        await engine.publish(wire_stored((1,)))
        await ear.until(holds=[(1,)])
        await engine.pub.send_multipart([engine.topic, b"short", b""])
        await engine.pub.send_multipart([engine.topic])
        await engine.pub.send_multipart([engine.topic + b"0", bytes(8), payload(1.0, CLEARED)])
        await engine.send_raw(b"\xc1 is not msgpack")
        await ear.until(Trust.DEGRADED, holds=[])
        await engine.publish(wire_stored((2,)))
        await ear.until(holds=[(2,)])
        assert (ear.source.stats().foreign, ear.counts.unreadable, ear.counts.clears) == (3, 1, 1)


@timed
async def test_blocks_of_another_size_are_refused_with_the_fix():
    async with publishing() as engine, hearing(of(engine)) as ear:
        await ear.until(Trust.EXACT)
        await engine.publish({**wire_stored((1, 2)), "block_size": 8, "block_hashes": [5]})
        await ear.until(Trust.DEGRADED)
        assert "give the worker block_tokens: 8" in ear.source.stats().reason


@timed
async def test_the_old_encoding_and_the_host_tier():
    async with publishing() as engine, hearing(of(engine)) as ear:
        await ear.until(Trust.EXACT)
        new = wire_stored((1, 2))
        await engine.publish(["BlockStored", new["block_hashes"], None, new["token_ids"], BLOCK, None, "GPU"])
        await engine.publish(["BlockStored", new["block_hashes"], None, [], 0, None, "CPU"])
        await engine.publish(["BlockRemoved", new["block_hashes"], "GPU"])
        while ear.counts.batches < 3:
            await asyncio.sleep(0.005)
        assert (ear.mirror.held(), ear.mirror.held(Tier.HOST)) == (set(), set(keys_of((1, 2))))


@timed
async def test_a_thousand_batches_are_replayed_in_order():
    async with publishing(buffer=2000) as engine:
        path = tuple(range(1000))
        for end in range(1, 1001):
            engine.drop(wire_stored(path[:end], end - 1))
        async with hearing(of(engine)) as ear:
            await ear.until(Trust.EXACT)
            assert ear.mirror.depth(keys_of(path)) == 1000


@timed
async def test_engines_that_connect_share_an_address_and_are_told_apart():
    """By topic, and two ranks of one topic by the rank in their batches."""
    with shared_context() as context:
        hub = KvEventHub(context, LIMITS)
        shared = {"rank": 0, "endpoint": ANY_PORT, "bind": True}
        async with hearing(KvSource(**shared, topic="kv@a"), hub=hub) as a:
            await a.until(Trust.BLIND)
            address = hub.endpoint(a.source.source)
            async with (
                publishing(topic="kv@a", connect=address) as first,
                publishing(topic="kv@b", connect=address) as second,
            ):
                source = of(second, endpoint=ANY_PORT, bind=True)
                async with hearing(source, hub=hub) as b, publishing(topic="kv@b", connect=address) as third:
                    other = of(third, endpoint=ANY_PORT, bind=True, rank=1)
                    async with hearing(other, hub=hub) as c:
                        await b.until(Trust.EXACT)
                        await c.until(Trust.EXACT)
                        while not a.mirror.held():
                            await first.publish(wire_stored((1,)))
                            await asyncio.sleep(0.01)
                        await second.publish(wire_stored((2,)))
                        await third.publish(wire_stored((3,)), rank=1)
                        await b.until(holds=[(2,)])
                        await c.until(holds=[(3,)])
                        await a.until(holds=[(1,)])
                        with pytest.raises(ConfigError, match="two engines publish topic 'kv@b', rank 1"):
                            await Ear(context, other, hub=hub).source.run()
        with pytest.raises(KeyError):
            hub.endpoint(a.source.source)


@timed
async def test_one_engines_broken_connection_leaves_the_others_exact():
    with shared_context() as context:
        hub = KvEventHub(context, LIMITS)
        async with (
            publishing(topic="x") as nobody,
            hearing(of(nobody, endpoint=ANY_PORT, bind=True), hub=hub) as keeper,
        ):
            await keeper.until(Trust.EXACT)
            address = hub.endpoint(keeper.source.source)
            stays, leaves = Publisher(topic="stays", connect=address), Publisher(topic="leaves", connect=address)
            async with (
                hearing(of(stays, endpoint=ANY_PORT, bind=True), hub=hub) as one,
                hearing(of(leaves, endpoint=ANY_PORT, bind=True), hub=hub) as other,
            ):
                await stays.publish(wire_stored((1,)))
                await leaves.publish(wire_stored((2,)))
                await one.until(Trust.EXACT, holds=[(1,)])
                await other.until(Trust.EXACT, holds=[(2,)])
                await leaves.close()
                await other.until(Trust.DEGRADED, holds=[])
                await one.until(Trust.EXACT, holds=[(1,)])
                assert one.counts.clears == 0
            await stays.close()


@timed
async def test_the_last_message_before_a_silence_is_missed_too():
    """No later number shows that it is missing: a quiet publisher is asked."""
    async with publishing() as engine, hearing(of(engine), limits=OFTEN) as ear:
        await ear.until(Trust.EXACT)
        await engine.publish(wire_stored((1,)))
        await ear.until(holds=[(1,)])
        engine.drop(wire_stored((1, 2), first=1))
        await ear.until(holds=[(1,), (1, 2)])
        assert Trust.DEGRADED in [trust for trust, _ in ear.trusts]
        await ear.until(Trust.EXACT)
        assert ear.counts.gaps == 1


@timed
async def test_an_engine_that_never_connects_to_a_shared_address_is_not_believed_to_be_heard():
    with shared_context() as context:
        hub = KvEventHub(context, LIMITS)
        async with (
            publishing() as engine,
            hearing(of(engine, endpoint=ANY_PORT, bind=True), hub=hub, limits=OFTEN) as ear,
        ):
            for number in range(1, 4):
                await ear.until(Trust.EXACT)
                await engine.publish(wire_stored((number,)))
                await ear.until(Trust.DEGRADED, holds=[(each,) for each in range(1, number + 1)])


@timed
async def test_an_address_that_cannot_be_used_is_a_clear_error():
    with shared_context() as context:
        with pytest.raises(ConfigError, match="'nonsense' cannot be used"):
            await Ear(context, KvSource(rank=0, endpoint="nonsense")).source.run()
        with pytest.raises(ConfigError, match="needs a hub"):
            Ear(context, KvSource(rank=0, endpoint=ANY_PORT, bind=True))
        async with publishing() as engine:
            taken = KvSource(rank=0, endpoint=engine.endpoint, bind=True)
            with pytest.raises(ConfigError, match=r"cannot be used: .*an address of this host that is free"):
                await Ear(context, taken, hub=KvEventHub(context)).source.run()

"""The echo worker's KV events, read off real ZeroMQ sockets, against what its cache holds and vLLM's own hashes."""

import msgspec
import pytest
import zmq
import zmq.asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from homing.router.core.blocks import block_keys, pack_tokens
from homing.workers.echo.engine import EchoEngine
from homing.workers.echo.hashes import block_digest, on_the_wire
from homing.workers.echo.kv_events import END_OF_REPLAY, EventWriter
from homing.workers.echo.settings import EchoSettings, KvEventSettings, StepTimes

from .serving import chat, on_a_loop, serving

INSTANT = StepTimes(prefill_a_s=0, prefill_b_s=0, decode_s=0)


async def listening(server, context):
    socket = context.socket(zmq.SUB)
    socket.setsockopt(zmq.RCVTIMEO, 10_000)
    socket.subscribe(b"")
    socket.connect(server.publisher.endpoint)
    await first_message(server, socket)
    return socket


async def first_message(server, socket):
    """A subscription takes a moment to reach its publisher: empty messages are sent until one comes through."""
    for _ in range(200):
        server.publisher.publish([])
        if await socket.poll(25):
            while await socket.poll(25):
                await socket.recv_multipart()
            return
    raise AssertionError("nothing was heard for five seconds")


def events_in(payload):
    _, events, rank = msgspec.msgpack.decode(payload)
    assert rank == 0
    return events


async def replay(server, context, start):
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.RCVTIMEO, 10_000)
    socket.connect(server.publisher.replay_endpoint)
    await socket.send_multipart((b"", start.to_bytes(8, "big")))
    messages = []
    while True:
        empty, topic, number, payload = await socket.recv_multipart()
        assert empty == b""
        if number == END_OF_REPLAY:
            assert (topic, payload) == (b"", b"")
            return messages
        messages.append((topic, int.from_bytes(number, "big"), payload))


@pytest.mark.parametrize("salt", ["", "tenant-a"])
@on_a_loop
async def test_stored_blocks_are_told_live_and_replayed(salt):
    context = zmq.asyncio.Context()
    try:
        async with serving(kv_events=KvEventSettings(topic="kv@echo")) as (server, client):
            socket = await listening(server, context)
            more = {"cache_salt": salt} if salt else {}
            await (await client.post("/v1/chat/completions", json=chat("x" * 40, max_tokens=1, **more))).json()
            topic, number, payload = await socket.recv_multipart()
            assert topic == b"kv@echo"
            (event,) = events_in(payload)
            tokens = list(b"user: " + b"x" * 40 + b"\nassistant: ")
            assert event["type"] == "BlockStored"
            assert (event["block_size"], event["medium"], event["parent_block_hash"]) == (16, "GPU", None)
            assert event["token_ids"] == tokens[: len(tokens) // 16 * 16]
            assert event["extra_keys"] == [[salt] if salt else None, None, None]
            first = block_digest(None, tokens[:16], (("cache_salt", salt),) if salt else ())
            assert event["block_hashes"][:2] == [
                on_the_wire(first),
                on_the_wire(block_digest(first, tokens[16:32])),
            ]
            again = await replay(server, context, int.from_bytes(number, "big"))
            assert again == [(topic, int.from_bytes(number, "big"), payload)]
            await client.post("/reset_prefix_cache")
            assert events_in((await socket.recv_multipart())[2]) == [{"type": "AllBlocksCleared"}]
            source = (await (await client.get("/kv_event_sources")).json())["0"]
            assert source["topic"] == "kv@echo"
            assert source["endpoint"].rpartition(":")[2] == server.publisher.endpoint.rpartition(":")[2]
    finally:
        context.destroy(linger=0)


@on_a_loop
async def test_a_replay_that_lost_its_begin_starts_later():
    context = zmq.asyncio.Context()
    try:
        async with serving(kv_events=KvEventSettings(buffer_steps=3)) as (server, _):
            for _ in range(5):
                server.publisher.publish([])
            assert [number for _, number, _ in await replay(server, context, 0)] == [2, 3, 4]
            assert await replay(server, context, 5) == []
    finally:
        context.destroy(linger=0)


class Listener:
    """What a router could know from the events alone."""

    def __init__(self):
        self.tokens = {}
        """Of the whole prefix that ends with a block, by the block's hash."""

    def hear(self, events):
        for event in events:
            if event["type"] == "AllBlocksCleared":
                self.tokens.clear()
            elif event["type"] == "BlockRemoved":
                for name in event["block_hashes"]:
                    del self.tokens[name]
            else:
                parent, size = event["parent_block_hash"], event["block_size"]
                before = () if parent is None else self.tokens.get(parent)
                for at, name in enumerate(event["block_hashes"]):
                    assert name not in self.tokens, "told twice"
                    part = tuple(event["token_ids"][at * size : (at + 1) * size])
                    # A block whose parent was evicted before it was full is known by its own tokens alone.
                    before = None if before is None else before + part
                    self.tokens[name] = before

    def keys(self):
        return {block_keys(pack_tokens(tokens), 4)[-1] for tokens in self.tokens.values() if tokens is not None}


prompts = st.lists(st.integers(0, 2), min_size=1, max_size=24)
orders = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), prompts, st.integers(1, 12)),
        st.tuples(st.just("clear"), st.none(), st.none()),
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=60)
@given(orders)
def test_events_say_what_the_cache_holds(orders):
    """Whatever is asked, cleared and evicted, in a cache that is too small."""

    @on_a_loop
    async def check():
        engine = EchoEngine(EchoSettings(block_tokens=4, kv_blocks=10, times=INSTANT, requests_max=3))
        writer, listener = EventWriter(4), Listener()
        engine.on_changes = lambda changes: listener.hear(writer.events(changes))
        engine.start()
        jobs = []
        for number, (what, prompt, output) in enumerate(orders):
            if what == "clear":
                engine.clear_cache()
            else:
                jobs.append(engine.submit(str(number), prompt, echo=prompt, max_output_tokens=output, repeats=True))
        for job in jobs:
            while (await job.outputs.get()).finish_reason is None:
                pass
        held = {entry.key for entry in engine.cache.entries()}
        assert len(listener.tokens) == len(held) == len(writer._digests)
        assert listener.keys() <= held
        engine.batcher.check()
        await engine.close()

    check()

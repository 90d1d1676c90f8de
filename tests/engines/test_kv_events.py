"""The connector's store in the engine's own event stream: what it holds is told beside what the device holds."""

import time

import msgspec
import pytest

from homing.router.core.blocks import reusable_blocks

from .environment import BLOCK_TOKENS
from .prompts import english
from .vllm_engine import EngineOptions, VllmEngine, homing_kv

zmq = pytest.importorskip("zmq")

STORE_BLOCKS = 24
BLOCK_BYTES = 2 * 30 * 3 * 64 * 4 * BLOCK_TOKENS


@pytest.fixture
def listening():
    with zmq.Context() as context, context.socket(zmq.SUB) as sock:
        port = sock.bind_to_random_port("tcp://127.0.0.1")
        sock.setsockopt(zmq.SUBSCRIBE, b"")
        yield sock, port


def events_of(sock, quiet_s=1.0):
    """Everything that comes until nothing came for `quiet_s`."""
    found = []
    while sock.poll(int(quiet_s * 1000)):
        _, _, payload = sock.recv_multipart()
        found += msgspec.msgpack.decode(payload)[1]
    return found


def test_the_store_tells_what_it_holds_and_what_gave_way(listening, tmp_path):
    sock, port = listening
    events = f'{{"enable_kv_cache_events": true, "publisher": "zmq", "endpoint": "tcp://127.0.0.1:{port}"}}'
    options = EngineOptions(kv=homing_kv(store_bytes=STORE_BLOCKS * BLOCK_BYTES), more=("--kv-events-config", events))
    with VllmEngine(tmp_path, "events", options) as engine:
        # A publisher drops what it sends before it has heard of its subscriber.
        until_s, seed = time.monotonic() + 60, 100
        while not events_of(sock, 0.3) and time.monotonic() < until_s:
            seed += 1
            engine.complete(english(seed, 60), tokens=1)
        answer = engine.complete(english(1, 300), tokens=1, kv_transfer_params={"homing": {}})
        seen = events_of(sock)
        blocks = reusable_blocks(answer["usage"]["prompt_tokens"], BLOCK_TOKENS)
        assert answer["kv_transfer_params"]["homing"]["held_blocks"] == blocks
        on_device, in_store = (stored(seen, medium) for medium in ("GPU", "CPU"))
        assert len(in_store) == blocks
        for block, event in in_store.items():
            assert on_device[block] == event, "the same tokens below the same parent, under the same hash"
        engine.complete(english(2, 600), tokens=1)
        gone = [h for event in events_of(sock) if event["type"] == "BlockRemoved" for h in event["block_hashes"]]
        assert set(gone) & set(in_store), "the store holds less than both prompts"


def stored(events, medium):
    """Tokens and parent of each block that was stored on a medium, by its hash."""
    found = {}
    for event in events:
        if event["type"] != "BlockStored" or event["medium"] != medium:
            continue
        parent = event.get("parent_block_hash")
        size = event["block_size"]
        for i, block in enumerate(event["block_hashes"]):
            found[block] = (tuple(event["token_ids"][i * size : (i + 1) * size]), parent)
            parent = block
    return found

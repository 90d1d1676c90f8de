"""A real ZeroMQ publisher that speaks vLLM's format: PUB for live batches, ROUTER for replay, numbers from 0."""

import asyncio
from collections import deque
from contextlib import asynccontextmanager

import zmq
import zmq.asyncio

from .engines import payload

END = b"\xff" * 8
ANY_PORT = "tcp://127.0.0.1:0"


class Publisher:
    """One engine process. `connect` is an address to publish to; without it the engine listens, as with `tcp://*`.

    `is_old` answers replays without the topic, as older builds do. `told_s` of a batch is its number plus `started_s`.
    """

    def __init__(
        self, *, topic="kv@w0", connect=None, buffer=1000, is_old=False, started_s=100.0, at=(ANY_PORT, ANY_PORT)
    ):
        self.topic = topic.encode()
        self.is_old = is_old
        self.started_s = started_s
        self.buffer = deque(maxlen=buffer)
        self.asked = []
        self.is_mute = False
        self.seq = 0
        self.context = zmq.asyncio.Context()
        self.pub = self.context.socket(zmq.PUB)
        self.router = self.context.socket(zmq.ROUTER)
        if connect is None:
            self.pub.bind(at[0])
            self.endpoint = self.pub.getsockopt_string(zmq.LAST_ENDPOINT)
        else:
            self.pub.connect(connect)
            self.endpoint = connect
        self.router.bind(at[1])
        self.replay_endpoint = self.router.getsockopt_string(zmq.LAST_ENDPOINT)
        self.task = asyncio.create_task(self._answer())

    async def publish(self, *events, rank=0):
        """Send and remember a batch."""
        await self.send_raw(payload(self.started_s + self.seq, *events, rank=rank))

    async def send_raw(self, data):
        await self.pub.send_multipart([self.topic, self.seq.to_bytes(8, "big"), data])
        self.buffer.append((self.seq, data))
        self.seq += 1

    def drop(self, *events):
        """What a queue that is full does: the batch is numbered and buffered, and never sent."""
        self.buffer.append((self.seq, payload(self.started_s + self.seq, *events)))
        self.seq += 1

    async def _answer(self):
        while True:
            peer, _, raw = await self.router.recv_multipart()
            start = int.from_bytes(raw, "big")
            self.asked.append(start)
            if self.is_mute:
                continue
            topic = [] if self.is_old else [self.topic]
            for seq, data in list(self.buffer):
                if seq >= start:
                    await self.router.send_multipart([peer, b"", *topic, seq.to_bytes(8, "big"), data])
            await self.router.send_multipart([peer, b"", *([] if self.is_old else [b""]), END, b""])

    async def close(self):
        if self.context.closed:
            return
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.pub.close(0)
        self.router.close(0)
        self.context.term()


@asynccontextmanager
async def publishing(**options):
    publisher = Publisher(**options)
    try:
        yield publisher
    finally:
        await publisher.close()

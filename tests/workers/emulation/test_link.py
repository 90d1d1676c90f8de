"""The pacer in virtual time: the clock stands still while code runs, so nothing here depends on the machine."""

import asyncio
import math
import selectors
from collections.abc import Coroutine, Mapping
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homing.workers.emulation import EmulatedLink
from homing.workers.emulation.link import Flow, Pacer


class _SkippingSelector(selectors.BaseSelector):
    """Instead of waiting, moves the clock of its loop on by the time-out, in whole milliseconds as epoll."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._real = selectors.DefaultSelector()

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "the test waits for something that nobody will do"
        self.now_s += math.ceil(max(timeout, 0.0) * 1000) / 1000
        return self._real.select(0)

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._skipping = _SkippingSelector()
        super().__init__(self._skipping)

    def time(self) -> float:
        return self._skipping.now_s

    def stall(self, seconds: float) -> None:
        """Let time pass as if the thread had been busy elsewhere."""
        self._skipping.now_s += seconds


def run_virtually(main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=_VirtualLoop) as runner:
        runner.run(main)


def make_pacer(*, bytes_per_s: float = 1e6, delay_s: float = 0.0) -> Pacer:
    return Pacer(EmulatedLink(source="a", target="b", bytes_per_s=bytes_per_s, delay_s=delay_s))


def now_s() -> float:
    return asyncio.get_running_loop().time()


async def receive_all(flow: Flow) -> list[tuple[float, bytes]]:
    """Chunks with the times of their arrival, to the end of the flow."""
    chunks = []
    while chunk := await flow.receive():
        chunks.append((now_s(), bytes(chunk)))
        flow.delivered(len(chunk))
    return chunks


async def send_all(flow: Flow, data: bytes) -> None:
    for start in range(0, len(data), flow.chunk_bytes):
        await flow.send(data[start : start + flow.chunk_bytes])
    await flow.send(b"")


@settings(deadline=None, max_examples=60)
@given(
    bytes_per_s=st.floats(1e5, 1e9),
    delay_s=st.sampled_from([0.0, 0.003, 0.08]),
    flows=st.lists(
        st.tuples(st.floats(0, 0.05), st.binary(min_size=1, max_size=64), st.integers(1, 20_000)),
        min_size=1,
        max_size=5,
    ),
    samples_s=st.lists(st.floats(0, 0.2), min_size=2, max_size=20),
)
def test_every_byte_arrives_in_order_never_early_and_never_above_the_rate(
    bytes_per_s: float,
    delay_s: float,
    flows: list[tuple[float, bytes, int]],
    samples_s: list[float],
) -> None:
    """I9, for any flows at any times: over every window at most rate x window + one chunk is carried."""
    carried: list[tuple[float, int]] = []

    async def sample(pacer: Pacer, at_s: float) -> None:
        await asyncio.sleep(at_s)
        carried.append((now_s(), pacer.bytes_carried()))

    async def transfer(pacer: Pacer, starts_s: float, data: bytes) -> None:
        flow = Flow(pacer)
        await asyncio.sleep(starts_s)
        began_s = now_s()
        received = asyncio.ensure_future(receive_all(flow))
        await send_all(flow, data)
        chunks = await received
        assert b"".join(chunk for _, chunk in chunks) == data
        arrived_bytes = 0
        for at_s, chunk in chunks:
            arrived_bytes += len(chunk)
            assert at_s >= began_s + delay_s + arrived_bytes / bytes_per_s - 1e-6

    async def main() -> None:
        pacer = make_pacer(bytes_per_s=bytes_per_s, delay_s=delay_s)
        async with asyncio.TaskGroup() as group:
            for starts_s, pattern, repeats in flows:
                group.create_task(transfer(pacer, starts_s, pattern * repeats))
            for at_s in samples_s:
                group.create_task(sample(pacer, at_s))
        assert pacer.bytes_carried() == sum(len(pattern) * repeats for _, pattern, repeats in flows)
        for (first_s, before), (last_s, after) in combinations(sorted(carried), 2):
            assert after - before <= (last_s - first_s) * bytes_per_s + pacer.chunk_bytes + 1

    run_virtually(main())


def test_a_busy_link_loses_no_rate_to_late_timers() -> None:
    """Each poll is up to a millisecond late; a link that restarted its chunks there would lose a third."""

    async def main() -> None:
        pacer = make_pacer(bytes_per_s=1e6)
        flow = Flow(pacer)
        received = asyncio.ensure_future(receive_all(flow))
        await send_all(flow, bytes(500_000))
        assert (await received)[-1][0] == pytest.approx(0.5, abs=0.002)

    run_virtually(main())


def test_a_message_after_a_stalled_loop_takes_nothing_from_the_backlog() -> None:
    """The chunks that were due during the stall went before the message that came at its end."""

    async def main() -> None:
        pacer = make_pacer(bytes_per_s=1e6)
        bulk, message = Flow(pacer), Flow(pacer)
        tasks = [asyncio.ensure_future(send_all(bulk, bytes(300_000))), asyncio.ensure_future(receive_all(bulk))]
        loop = asyncio.get_running_loop()
        assert isinstance(loop, _VirtualLoop)
        for _ in range(15):
            await asyncio.sleep(0.01)
            loop.stall(0.006)
            await message.send(b"ping")
            message.delivered(len(await message.receive()))
        await asyncio.gather(*tasks)
        assert now_s() == pytest.approx(0.3, abs=0.003)

    run_virtually(main())


def test_a_flow_that_was_idle_has_saved_up_nothing() -> None:
    async def main() -> None:
        pacer = make_pacer(bytes_per_s=1e6)
        early, late = Flow(pacer), Flow(pacer)
        both = asyncio.gather(send_all(early, bytes(400_000)), receive_all(early))
        await asyncio.sleep(0.3)
        _, chunks = await asyncio.gather(send_all(late, bytes(50_000)), receive_all(late))
        began_s = 0.3
        assert chunks[-1][0] - began_s == pytest.approx(0.1, rel=0.1)
        await both

    run_virtually(main())


@pytest.mark.parametrize("busy_flows", [1, 4])
def test_a_message_waits_for_one_chunk_of_each_busy_flow_at_most(busy_flows: int) -> None:
    async def main() -> None:
        pacer = make_pacer(bytes_per_s=1e6)
        group = [Flow(pacer) for _ in range(busy_flows)]
        tasks = [asyncio.ensure_future(send_all(flow, bytes(400_000))) for flow in group]
        tasks += [asyncio.ensure_future(receive_all(flow)) for flow in group]
        message = Flow(pacer)
        for _ in range(20):
            await asyncio.sleep(0.0107)
            sent_s = now_s()
            await message.send(b"ping")
            await message.receive()
            message.delivered(4)
            chunk_s = pacer.chunk_bytes / 1e6
            assert now_s() - sent_s <= (busy_flows + 1) * chunk_s + 0.002
        assert all(flow.backlog for flow in group), "the link was not busy throughout"
        await asyncio.gather(*tasks)

    run_virtually(main())


def test_flows_share_bytes_and_not_chunks() -> None:
    """A flow that hands in small pieces gets as much as one that hands in large ones."""

    async def feed(flow: Flow, piece_bytes: int) -> None:
        while True:
            await flow.send(bytes(piece_bytes))

    async def main() -> None:
        pacer = make_pacer(bytes_per_s=1e6)
        arrived = {}
        tasks = []
        for piece_bytes in (100, 2000):
            flow = Flow(pacer)
            arrived[piece_bytes] = 0
            tasks.append(asyncio.ensure_future(feed(flow, piece_bytes)))

            async def drain(flow: Flow = flow, key: int = piece_bytes) -> None:
                while True:
                    chunk = await flow.receive()
                    arrived[key] += len(chunk)
                    flow.delivered(len(chunk))

            tasks.append(asyncio.ensure_future(drain()))
        await asyncio.sleep(0.5)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert arrived[100] == pytest.approx(arrived[2000], rel=0.05)
        assert sum(arrived.values()) == pytest.approx(500_000, rel=0.02)

    run_virtually(main())


def test_a_flow_that_nobody_receives_stops_at_its_window() -> None:
    async def main() -> None:
        pacer = make_pacer(bytes_per_s=1e6, delay_s=0.05)
        flow = Flow(pacer)
        sent_bytes = 0

        async def feed() -> None:
            nonlocal sent_bytes
            while True:
                sent_bytes += 1000
                await flow.send(bytes(1000))

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(feed(), timeout=10)
        bandwidth_delay_bytes = 50_000
        assert bandwidth_delay_bytes <= sent_bytes <= bandwidth_delay_bytes + 7 * pacer.chunk_bytes

    run_virtually(main())


def test_a_new_rate_and_delay_hold_from_the_next_chunk_on() -> None:
    async def main() -> None:
        pacer = make_pacer(bytes_per_s=1e6, delay_s=0.1)
        flow = Flow(pacer)
        await flow.send(bytes(8000))
        pacer.configure(EmulatedLink(source="a", target="b", bytes_per_s=1e5, delay_s=0.3))
        await flow.send(b"")
        arrivals_s = [at_s for at_s, _ in await receive_all(flow)]
        # One chunk of 2,048 bytes had started; the other 5,952 bytes go at the new rate.
        assert arrivals_s[0] == pytest.approx(0.102, abs=0.002)
        assert arrivals_s[-1] == pytest.approx(0.002 + 0.0595 + 0.3, abs=0.003)

    run_virtually(main())


def test_a_forgotten_flow_leaves_the_link_to_the_others() -> None:
    async def main() -> None:
        pacer = make_pacer(bytes_per_s=1e6)
        gone, stays = Flow(pacer), Flow(pacer)
        await gone.send(bytes(7000))
        await stays.send(bytes(7000))
        gone.discard()
        await stays.send(b"")
        assert sum(len(chunk) for _, chunk in await receive_all(stays)) == 7000
        assert now_s() < 0.0125

    run_virtually(main())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("source", ""),
        ("target", "a"),
        ("bytes_per_s", 0.0),
        ("bytes_per_s", math.inf),
        ("bytes_per_s", math.nan),
        ("delay_s", -0.001),
        ("delay_s", math.nan),
    ],
)
def test_a_link_refuses_values_without_meaning(field: str, value: object) -> None:
    values: dict[str, Any] = {"source": "a", "target": "b", "bytes_per_s": 1e6, "delay_s": 0.01} | {field: value}
    with pytest.raises(ValueError, match=r"^link '.*' -> '.*': "):
        EmulatedLink(**values)

"""The meter of the link: what it counts and what it leaves out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homing.workers.transfer import Status, TransferReport
from homing.workers.transfer.report import FlowMeter, Train, union_s


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 10)), max_size=10))
def test_union_counts_each_moment_once(spans: list[tuple[int, int]]) -> None:
    moments = {t for start, length in spans for t in range(start, start + length)}
    assert union_s([(float(s), float(s + n)) for s, n in spans]) == len(moments)


def test_a_train_counts_from_its_first_header_less_what_was_there() -> None:
    meter = FlowMeter()
    train = Train(meter)
    train.start(10.0, 100)
    train.frame_done(11.0, 1000)
    train.frame_done(12.5, 1000)
    assert (meter.flow_bytes, meter.receiving_s, meter.first_byte_at_s) == (1900, 2.5, 10.0)


def test_the_wait_for_compute_is_not_the_links_fault() -> None:
    meter = FlowMeter()
    train = Train(meter)
    for start_s in (0.0, 50.0):
        train.pause()
        train.start(start_s, 0)
        train.frame_done(start_s + 1.0, 1000)
    assert (meter.flow_bytes, meter.receiving_s) == (2000, 2.0)


def test_a_frame_that_was_all_there_tells_nothing() -> None:
    meter = FlowMeter()
    train = Train(meter)
    train.start(0.0, 5000)
    train.frame_done(0.001, 1000)
    assert not train.rolling
    assert (meter.flow_bytes, meter.receiving_s) == (0, 0.0)


def test_connections_that_overlap_add_bytes_and_not_time() -> None:
    meter = FlowMeter()
    for start_s in (0.0, 0.5):
        train = Train(meter)
        train.start(start_s, 0)
        train.frame_done(start_s + 1.0, 1000)
    assert (meter.flow_bytes, meter.receiving_s) == (2000, 1.5)


@pytest.mark.parametrize(("flow_bytes", "speed"), [(1000, None), (1_000_000, 2_000_000.0)])
def test_too_little_flow_gives_no_speed(flow_bytes: int, speed: float | None) -> None:
    report = TransferReport(status=Status.COMPLETE, receiving_s=0.5, flow_bytes=flow_bytes)
    assert report.link_bytes_per_s == speed

"""A log gives back what was put in, in little memory."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homing.sim.measure.log import COUNTS, NAMES, OPTIONAL, OUTCOMES, SECONDS, RequestLog, RequestRecord

BYTES_PER_REQUEST = 200

seconds = st.floats(0, 1e9, allow_nan=False)
names = st.text(max_size=12)
counts = st.integers(0, 2**32 - 1)


@st.composite
def records(draw):
    outcome = draw(st.sampled_from(sorted(OUTCOMES)))
    return RequestRecord(
        id=draw(st.text(max_size=20)),
        session=draw(names),
        outcome=outcome,
        ttft_s=draw(seconds if outcome == "finished" else st.none() | seconds),
        **{name: draw(st.none() | seconds) for name in OPTIONAL if name != "ttft_s"},
        **{name: draw(seconds) for name in SECONDS},
        **{name: draw(counts) for name in COUNTS},
        **{name: draw(names) for name in NAMES if name != "outcome"},
        shipped_bytes=draw(st.integers(0, 2**64 - 1)),
        moved_bytes=draw(st.integers(0, 2**64 - 1)),
    )


@settings(max_examples=40)
@given(st.lists(records(), max_size=8))
def test_records_come_back_as_they_were(put_in):
    log = RequestLog()
    for record in put_in:
        log.add(record)
    log.check()
    assert list(log) == put_in
    assert len(log) == len(put_in)


@settings(max_examples=40)
@given(st.lists(records(), max_size=8))
def test_columns_hold_what_records_hold(put_in):
    log = RequestLog()
    for record in put_in:
        log.add(record)
    for name in (*SECONDS, *COUNTS, "moved_bytes"):
        assert log.column(name).tolist() == [getattr(record, name) for record in put_in]
    expected = [np.nan if record.ttft_s is None else record.ttft_s for record in put_in]
    np.testing.assert_array_equal(log.column("ttft_s"), np.array(expected, dtype=float))
    for name in NAMES:
        codes, table = log.codes(name)
        assert [table[code] for code in codes] == [getattr(record, name) for record in put_in]
    assert log.texts("id") == [record.id for record in put_in]


def test_a_column_is_a_copy_so_that_the_log_may_grow():
    log = RequestLog()
    log.add(RequestRecord(id="a", at_s=1.0, outcome="rejected"))
    column = log.column("at_s")
    log.add(RequestRecord(id="b", at_s=2.0, outcome="rejected"))
    assert column.tolist() == [1.0]


def test_a_request_takes_few_bytes():
    log = RequestLog()
    for number in range(5000):
        log.add(
            RequestRecord(
                id=f"request-{number:08}",
                session=f"s{number}",
                at_s=float(number),
                outcome="finished",
                ttft_s=1.0,
                decode=f"w{number % 50}",
                origin="tokyo",
            )
        )
    assert log.nbytes() / len(log) < BYTES_PER_REQUEST


def test_a_record_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"outcome: expected one of cancelled, failed, finished, rejected, got 'lost'"):
        RequestRecord(id="a", at_s=0.0, outcome="lost")
    with pytest.raises(ValueError, match="request 'a' finished"):
        RequestRecord(id="a", at_s=0.0, outcome="finished")


@pytest.mark.parametrize(
    "wrong", [{"prompt_tokens": -1}, {"moved_bytes": -1}, {"prompt_tokens": 2**32}, {"id": "x" * 2**16}]
)
def test_a_number_that_does_not_fit_leaves_the_log_whole(wrong):
    log, record = RequestLog(), RequestRecord(id="a", at_s=0.0, outcome="rejected")
    log.add(record)
    with pytest.raises(OverflowError):
        log.add(replace(record, **wrong))
    log.check()
    assert list(log) == [record]

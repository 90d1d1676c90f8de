"""Virtual time and named randomness: what every simulated result stands on."""

import subprocess
import sys
from math import inf, nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homing.sim.kernel import COMPACT_ABOVE, Kernel
from homing.sim.rng import Streams


def test_things_happen_in_the_order_of_time_then_of_asking():
    kernel, seen = Kernel(), []
    for due_s, name in [(2.0, "c"), (1.0, "a"), (2.0, "d"), (1.0, "b")]:
        kernel.at(due_s, lambda name=name: seen.append((kernel.now, name)))
    kernel.run_until(2.0)
    assert seen == [(1.0, "a"), (1.0, "b"), (2.0, "c"), (2.0, "d")]
    assert kernel.happened == 4


@given(st.lists(st.tuples(st.floats(0, 100), st.booleans()), max_size=60), st.floats(0, 100))
def test_exactly_what_is_due_and_not_cancelled_happens(entries, end_s):
    kernel, seen = Kernel(), []
    handles = [kernel.at(due_s, lambda i=i: seen.append(i)) for i, (due_s, _) in enumerate(entries)]
    for handle, (_, cancelled) in zip(handles, entries, strict=True):
        if cancelled:
            handle.cancel()
            handle.cancel()
    kernel.run_until(end_s)
    due = [i for i, (due_s, cancelled) in enumerate(entries) if due_s <= end_s and not cancelled]
    assert seen == sorted(due, key=lambda i: (entries[i][0], i))
    assert kernel.now == end_s
    assert len(kernel) == sum(not cancelled for _, cancelled in entries) - len(due)
    assert [i for i, handle in enumerate(handles) if handle.is_pending] == [
        i for i, (due_s, cancelled) in enumerate(entries) if due_s > end_s and not cancelled
    ]


def test_what_is_asked_for_meanwhile_happens_too():
    """Also at the same moment, behind what was there before."""
    kernel, seen = Kernel(), []

    def first():
        seen.append("first")
        kernel.after(0.0, lambda: seen.append("at once"))
        kernel.after(1.0, lambda: seen.append("later"))

    kernel.at(1.0, first)
    kernel.at(1.0, lambda: seen.append("second"))
    kernel.run_until(2.0)
    assert seen == ["first", "second", "at once", "later"]


def test_one_callback_may_cancel_another_of_the_same_moment():
    kernel, seen, victims = Kernel(), [], []
    kernel.at(1.0, lambda: [victim.cancel() for victim in victims])
    victims.append(kernel.at(1.0, lambda: seen.append("victim")))
    kernel.run_until(inf)
    assert seen == []
    assert not victims[0].is_pending


def test_a_handle_cancelled_after_it_happened_disturbs_nothing():
    kernel = Kernel()
    handle = kernel.at(1.0, lambda: None)
    kernel.at(2.0, lambda: None)
    kernel.run_until(1.0)
    handle.cancel()
    assert len(kernel) == 1


@pytest.mark.parametrize("due_s", [4.9, -inf, nan])
def test_the_past_cannot_be_asked_for(due_s):
    """I2."""
    kernel = Kernel(5.0)
    with pytest.raises(ValueError, match=r"at least 5.0 \(now\)"):
        kernel.at(due_s, lambda: None)
    with pytest.raises(ValueError, match="time never goes back"):
        kernel.after(-1.0, lambda: None)
    kernel.run_until(4.0)
    assert kernel.now == 5.0


def test_until_infinity_means_until_nothing_is_pending():
    kernel = Kernel()
    kernel.at(3.0, lambda: None)
    assert kernel.next_s() == 3.0
    kernel.run_until(inf)
    assert (kernel.now, kernel.next_s(), len(kernel)) == (3.0, inf, 0)


def test_an_error_reaches_the_caller_and_the_rest_is_not_lost():
    kernel, seen = Kernel(), []
    kernel.at(1.0, lambda: 1 / 0)
    kernel.at(2.0, lambda: seen.append("next"))
    with pytest.raises(ZeroDivisionError):
        kernel.run_until(5.0)
    assert kernel.now == 1.0
    kernel.run_until(5.0)
    assert seen == ["next"]


def test_cancelled_entries_do_not_pile_up():
    """A timer that is set anew with every event is the usual case: a million of them must not stay in memory."""
    kernel = Kernel()
    for _ in range(50 * COMPACT_ABOVE):
        kernel.at(1e9, lambda: None).cancel()
    assert len(kernel) == 0
    assert len(kernel._heap) <= COMPACT_ABOVE + 1


@settings(max_examples=50)
@given(st.integers(), st.text(), st.text())
def test_a_stream_depends_on_seed_and_name_alone(seed, name, other):
    one, two = Streams(seed), Streams(seed)
    if other != name:
        one.stream(other).random()
        assert Streams(seed).stream(other).random() != Streams(seed).stream(name).random()
    assert [one.stream(name).random()] == [two.stream(name).random()]
    assert Streams(seed + 1).stream(name).random() != Streams(seed).stream(name).random()


def test_a_name_is_given_out_once():
    streams = Streams(0)
    streams.stream("links")
    with pytest.raises(ValueError, match="'links' was given out before"):
        streams.stream("links")


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_streams_are_the_same_in_every_process(hash_seed):
    """Golden values: a seed in a published result means the same run for whoever repeats it."""
    code = "from homing.sim.rng import Streams; print(Streams(42).stream('arrivals').randrange(2**32))"
    env = {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)}
    found = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=True
    )
    assert int(found.stdout) == 3046702160

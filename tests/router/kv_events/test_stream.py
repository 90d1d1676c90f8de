"""One publisher's numbers: gaps, replays, restarts, late joining, and what may be believed meanwhile."""

from collections import deque
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homing.router.core.types import Trust
from homing.router.kv_events.events import EngineBatch, EngineCleared
from homing.router.kv_events.stream import Apply, AskReplay, Clear, EventStream


def at(told_s, *events):
    return EngineBatch(told_s=told_s, events=events)


class Listener:
    """Carries out what the stream says; `applied` are the times of the batches since the last clear."""

    def __init__(self, **options):
        self.stream = EventStream(**({"has_replay": True} | options))
        self.applied = []
        self.asked = None
        self.cleared = []

    def do(self, actions):
        for action in actions:
            match action:
                case Apply(batch=batch):
                    self.applied.append(batch.told_s)
                case Clear(reason=reason):
                    self.applied.clear()
                    self.cleared.append(reason)
                case AskReplay(from_seq=from_seq):
                    self.asked = from_seq

    def hear(self, *seqs, process=0):
        for seq in seqs:
            self.do(self.stream.received(seq, at(1000 * process + seq)))

    def answer(self, *seqs, process=0, ends=True):
        self.asked = None
        for seq in seqs:
            self.do(self.stream.replayed(seq, at(1000 * process + seq)))
        if ends:
            self.do(self.stream.replay_ended())

    @property
    def trust(self):
        return self.stream.trust


def joined(*seqs, **options):
    """A listener that was there from the beginning."""
    one = Listener(**options)
    one.do(one.stream.connected())
    if one.asked is not None:
        one.answer()
    one.hear(*seqs)
    return one


def test_nothing_heard_is_blind_and_an_empty_buffer_is_exact():
    one = Listener()
    assert (one.trust, one.stream.reason) == (Trust.BLIND, "nothing was heard of it")
    one.do(one.stream.connected())
    assert (one.trust, one.asked) == (Trust.BLIND, 0)
    one.answer()
    assert (one.trust, one.stream.reason) == (Trust.EXACT, "")


def test_a_late_joiner_asks_from_0_and_what_comes_meanwhile_waits():
    one = Listener()
    one.do(one.stream.connected())
    one.hear(5, 6)
    assert (one.applied, one.trust) == ([], Trust.BLIND)
    one.answer(*range(6))
    assert (one.applied, one.trust, one.asked) == (list(range(7)), Trust.EXACT, None)
    one.hear(4, 5)
    assert one.stream.counts.restarts == 1, "live numbers that go back are a restart"


def test_live_copies_of_what_was_replayed_are_no_restart():
    one = Listener()
    one.do(one.stream.connected())
    one.answer(*range(4))
    one.hear(2, 3, 4)
    assert (one.applied, one.trust, one.stream.counts.restarts) == (list(range(5)), Trust.EXACT, 0)


def test_a_restart_during_the_first_replay_is_seen_by_its_time():
    one = Listener()
    one.do(one.stream.connected())
    one.answer(*range(4))
    one.hear(0, 1, process=1)
    assert (one.applied, one.trust, one.stream.counts.restarts) == ([1000, 1001], Trust.EXACT, 1)


def test_a_late_joiner_whose_publisher_no_longer_has_0_is_degraded_until_all_is_cleared():
    one = Listener()
    one.do(one.stream.connected())
    one.answer(7, 8)
    one.hear(9)
    assert (one.applied, one.trust) == ([7, 8, 9], Trust.DEGRADED)
    assert one.stream.reason == "its replay buffer begins at batch 7, not at 0"
    assert not one.stream.may_retry, "asking again would not help"
    one.do(one.stream.received(10, at(10, EngineCleared())))
    assert one.trust is Trust.EXACT


def test_a_gap_is_replayed_from_the_last_batch_that_is_known():
    one = joined(0, 1, 2)
    one.hear(5)
    assert (one.asked, one.trust) == (2, Trust.DEGRADED)
    one.hear(6)
    one.answer(2, 3, 4, 5)
    assert (one.applied, one.trust, one.cleared) == (list(range(7)), Trust.EXACT, [])
    assert (one.stream.counts.gaps, one.stream.counts.replays) == (1, 2)


def test_a_buffer_that_is_too_short_clears():
    one = joined(0, 1, 2)
    one.hear(9)
    one.answer(6, 7, 8, 9)
    assert (one.applied, one.trust) == ([6, 7, 8, 9], Trust.DEGRADED)
    assert one.cleared == ["its replay buffer begins at batch 6, not at 2"]


def test_a_restart_that_numbers_hide_is_seen_in_the_replay():
    """The engine came back and published more than before: its numbers go on as if nothing had happened."""
    one = joined(0, 1, 2)
    one.do(one.stream.disconnected())
    assert (one.trust, one.stream.reason) == (Trust.DEGRADED, "its connection is down")
    one.do(one.stream.connected())
    one.hear(3, process=1)
    one.answer(2, 3, process=1)
    assert (one.cleared, one.asked) == (["it restarted: batch 2 is another one now"], 0)
    one.answer(*range(4), process=1)
    assert (one.applied, one.trust) == ([1000, 1001, 1002, 1003], Trust.EXACT)


def test_a_restarted_publisher_that_has_said_less_is_seen_too():
    one = joined(0, 1, 2)
    one.do(one.stream.disconnected())
    one.do(one.stream.connected())
    one.answer()
    assert (one.cleared, one.asked) == (["it restarted: it no longer has batch 2"], 0)
    one.answer(0, process=1)
    assert (one.applied, one.trust) == ([1000], Trust.EXACT)


def test_a_connection_that_broke_and_lost_nothing_is_exact_again():
    one = joined(0, 1, 2)
    one.do(one.stream.disconnected())
    one.do(one.stream.connected())
    one.answer(2)
    assert (one.applied, one.trust, one.cleared) == ([0, 1, 2], Trust.EXACT, [])


@pytest.mark.parametrize("has_replay", [True, False])
def test_numbers_that_go_back_are_a_restart(has_replay):
    one = joined(0, 1, 2, has_replay=has_replay)
    one.hear(0, 1, process=1)
    assert (one.applied, one.trust) == ([1000, 1001], Trust.EXACT)
    assert one.cleared == ["it restarted: batch 0 came after batch 2"]


def test_without_a_replay_endpoint_a_gap_clears():
    one = joined(0, 1, has_replay=False)
    assert one.trust is Trust.EXACT
    one.hear(3, 4)
    assert (one.applied, one.trust) == ([3, 4], Trust.DEGRADED)
    assert one.cleared == ["batches 2 to 2 were missed and it has no replay endpoint"]


def test_without_a_replay_endpoint_a_late_joiner_is_degraded_and_a_break_cannot_be_checked():
    one = Listener(has_replay=False)
    one.do(one.stream.connected())
    one.hear(3)
    assert (one.applied, one.trust, one.cleared) == ([3], Trust.DEGRADED, [])
    one = joined(0, has_replay=False)
    one.do(one.stream.disconnected())
    one.do(one.stream.connected())
    one.hear(1)
    assert (one.applied, one.trust) == ([0, 1], Trust.DEGRADED)


def test_the_message_may_come_before_the_news_of_the_connection():
    one = Listener(has_replay=False)
    one.hear(0)
    one.do(one.stream.connected())
    assert one.trust is Trust.EXACT
    one = joined(0, 1)
    one.do(one.stream.disconnected())
    one.hear(2)
    assert one.asked == 1
    one.answer(1, 2)
    assert (one.applied, one.trust) == ([0, 1, 2], Trust.EXACT)


def test_a_replay_that_fails_clears_and_is_tried_again_for_everything():
    one = joined(0, 1)
    one.hear(5, 6)
    one.do(one.stream.replay_failed("no answer"))
    assert (one.applied, one.trust, one.stream.reason) == ([5, 6], Trust.DEGRADED, "no answer")
    assert one.stream.may_retry
    one.do(one.stream.retry())
    assert one.asked == 0
    one.hear(7)
    one.answer(*range(7))
    assert (one.applied, one.trust) == (list(range(8)), Trust.EXACT)
    assert not one.stream.may_retry


def test_a_replay_that_breaks_off_goes_on_where_it_was():
    one = joined(0, 1)
    one.hear(6)
    one.answer(1, 2, 3, ends=False)
    one.do(one.stream.replay_failed("no answer"))
    assert (one.asked, one.cleared) == (3, [])
    one.answer(3, 4, 5, 6)
    assert (one.applied, one.trust) == (list(range(7)), Trust.EXACT)


def test_a_replay_with_a_hole_is_asked_for_again():
    """A ROUTER drops what its peer does not take in time."""
    one = joined(0)
    one.do(one.stream.connected())
    one.answer(0, 1, 2, 5, 6)
    assert (one.applied, one.asked) == ([0, 1, 2], 2)
    one.answer(2, 3, 4, 5, 6)
    assert (one.applied, one.trust) == (list(range(7)), Trust.EXACT)


def test_replays_that_bring_nothing_are_given_up():
    one = joined(0)
    one.hear(4)
    asked = 0
    while one.asked is not None:
        asked += 1
        one.answer(0)
    assert (asked, one.applied, one.trust) == (3, [4], Trust.DEGRADED)


def test_a_batch_that_cannot_be_read_clears():
    one = joined(0)
    one.do(one.stream.received(1, None))
    assert (one.applied, one.trust, one.stream.reason) == ([], Trust.DEGRADED, "batch 1 could not be read")
    one.hear(2)
    assert one.applied == [2]
    assert one.stream.counts.unreadable == 1
    one.do(one.stream.refused("blocks of another size"))
    assert (one.applied, one.stream.reason) == ([], "blocks of another size")


def test_what_waits_is_bounded_and_what_overflows_is_asked_for():
    one = joined(0, waiting_max=2)
    one.hear(2, 3, 4, 5)
    one.answer(0, 1)
    assert (one.applied, one.asked, one.stream.counts.overflowed) == ([0, 1, 2, 3], 3, 2)
    one.answer(3, 4, 5)
    assert (one.applied, one.trust) == (list(range(6)), Trust.EXACT)


def test_a_lost_publisher_is_blind_and_may_come_back():
    one = joined(0, 1)
    one.do(one.stream.disconnected())
    one.do(one.stream.lost("it was down for 30 s"))
    assert (one.applied, one.trust, one.stream.reason) == ([], Trust.BLIND, "it was down for 30 s")
    one.do(one.stream.connected())
    one.answer(0, process=1)
    assert (one.applied, one.trust) == ([1000], Trust.EXACT)


def test_a_quiet_publisher_that_said_nothing_stays_exact():
    one = joined(0, 1)
    for _ in range(5):
        one.do(one.stream.check())
        assert (one.asked, one.trust) == (1, Trust.EXACT)
        one.answer(1)
        assert (one.applied, one.trust, one.stream.counts.gaps) == ([0, 1], Trust.EXACT, 0)
    silent = joined()
    silent.do(silent.stream.check())
    silent.answer()
    assert (silent.applied, silent.trust) == ([], Trust.EXACT)


def test_what_a_quiet_publisher_said_is_fetched_and_it_is_doubted_until_it_is_heard():
    """The last messages before a silence have no successor that could show a gap."""
    one = joined(0, 1)
    one.do(one.stream.check())
    one.answer(1, 2, 3)
    assert (one.applied, one.trust) == ([0, 1, 2, 3], Trust.DEGRADED)
    assert one.stream.reason == "what it said last came by a replay alone"
    assert one.stream.counts.gaps == 1
    one.do(one.stream.check())
    assert one.trust is Trust.DEGRADED, "the next check has brought nothing yet"
    one.hear(4)
    assert (one.applied, one.trust) == ([0, 1, 2, 3, 4], Trust.EXACT)


def test_a_doubt_goes_when_nothing_was_said_since():
    one = joined(0)
    one.do(one.stream.check())
    one.answer(0, 1)
    one.do(one.stream.check())
    one.answer(1)
    assert (one.applied, one.trust) == ([0, 1], Trust.EXACT)


def test_a_check_that_is_not_answered_is_a_doubt():
    one = joined(0, 1)
    for _ in range(5):
        one.do(one.stream.check())
        one.do(one.stream.replay_failed("time-out"))
        assert (one.trust, one.stream.reason) == (Trust.DEGRADED, "it was not heard and cannot be asked: time-out")
    one.hear(3)
    one.answer(1, 2, 3)
    assert (one.applied, one.trust, one.cleared) == ([0, 1, 2, 3], Trust.EXACT, [])


def test_who_is_heard_need_not_be_asked():
    one = joined(0, 1)
    one.do(one.stream.check())
    one.hear(2)
    assert (one.applied, one.trust) == ([0, 1, 2], Trust.EXACT)
    one.answer(1, 2, 3)
    assert one.applied == [0, 1, 2], "the answer to a question that was taken back"
    one.do(one.stream.check())
    one.hear(5)
    assert (one.asked, one.trust) == (2, Trust.DEGRADED)
    one.answer(2, 3, 4, 5)
    assert (one.applied, one.trust) == ([0, 1, 2, 3, 4, 5], Trust.EXACT)


def test_a_check_shows_a_restart():
    one = joined(0, 1)
    one.do(one.stream.check())
    one.answer(1, process=1)
    assert (one.applied, one.asked, one.stream.counts.restarts) == ([], 0, 1)
    one.answer(0, 1, process=1)
    assert (one.applied, one.trust) == ([1000, 1001], Trust.EXACT)


@pytest.mark.parametrize("has_replay", [True, False])
def test_who_cannot_answer_is_not_asked(has_replay):
    one = Listener(has_replay=has_replay)
    assert one.stream.check() == [], "it was never heard"
    one = joined(0, has_replay=has_replay)
    one.do(one.stream.disconnected())
    assert one.stream.check() == []


class Publisher:
    """A model of one: a bounded buffer and numbers from 0, anew with every process."""

    def __init__(self, buffer):
        self.process = 0
        self.buffer = deque(maxlen=buffer)
        self.next = 0

    def publish(self):
        self.next += 1
        self.buffer.append(self.next - 1)
        return self.next - 1, 1000.0 * self.process + self.next - 1

    def restart(self):
        self.process += 1
        self.buffer.clear()
        self.next = 0

    def replay(self, from_seq):
        return [(seq, 1000.0 * self.process + seq) for seq in self.buffer if seq >= from_seq]


class LossyRun:
    """Publishes, loses, breaks and restarts at random."""

    def __init__(self, random, buffer):
        self.random, self.publisher, self.on_air = random, Publisher(buffer), deque()
        self.one = Listener(waiting_max=5)
        self.one.do(self.one.stream.connected())

    def steps(self, count):
        """Yields the listener after each step, and then until nothing is under way."""
        for _ in range(count):
            self.step(self.random.random())
            yield self.one
        while self.on_air or self.one.asked is not None:
            if self.on_air:
                self.deliver()
            if self.one.asked is not None:
                answer(None, self.publisher, self.one)
            yield self.one

    def step(self, draw):
        if draw < 0.45:
            message = self.publisher.publish()
            if self.random.random() < 0.8:
                self.on_air.append(message)
        elif draw < 0.75 and self.on_air:
            self.deliver()
        elif draw < 0.9 and self.one.asked is not None:
            answer(self.random, self.publisher, self.one)
        elif draw < 0.93:
            self.one.do(self.one.stream.check())
        elif draw < 0.97:
            self.reconnect(restarts=self.random.random() < 0.5)
        else:
            self.one.do(self.one.stream.retry())

    def deliver(self):
        seq, told_s = self.on_air.popleft()
        self.one.do(self.one.stream.received(seq, at(told_s)))

    def reconnect(self, *, restarts=False):
        self.one.do(self.one.stream.disconnected())
        self.on_air.clear()
        if restarts:
            self.publisher.restart()
        self.one.do(self.one.stream.connected())


def answer(random, publisher, one):
    """Answer the replay that was asked for, with holes or breaking off if there is a `random`."""
    replies = publisher.replay(one.asked)
    one.asked = None
    for index, (seq, told_s) in enumerate(replies):
        if random is not None and index and random.random() < 0.05:
            continue
        one.do(one.stream.replayed(seq, at(told_s)))
    if random is not None and random.random() < 0.2:
        one.do(one.stream.replay_failed("time-out"))
    else:
        one.do(one.stream.replay_ended())


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 80), st.sampled_from([3, 1000]))
def test_exact_means_exact(seed, steps, buffer):
    """While trust is exact, what was applied is all that one process published up to some point. And always what was
    applied is an unbroken run of one process's batches.
    """
    run = LossyRun(Random(seed), buffer)
    for one in run.steps(steps):
        applied = one.applied
        if not applied:
            continue
        assert applied == [applied[0] + i for i in range(len(applied))]
        assert applied[0] // 1000 == applied[-1] // 1000 <= run.publisher.process
        if one.trust is Trust.EXACT:
            assert applied[0] % 1000 == 0, "it does not know the beginning"


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 80))
def test_in_the_end_all_is_known(seed, steps):
    """With a long buffer, an undisturbed answer makes everything exact again."""
    run = LossyRun(Random(seed), 1000)
    for _ in run.steps(steps):
        pass
    run.reconnect()
    while run.one.asked is not None:
        answer(None, run.publisher, run.one)
        run.one.do(run.one.stream.retry())
    assert run.one.trust is Trust.EXACT
    assert run.one.applied == [1000 * run.publisher.process + seq for seq in range(run.publisher.next)]

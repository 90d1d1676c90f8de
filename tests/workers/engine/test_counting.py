"""Tokens that are only counted against tokens that are known: the same engine, pass by pass and many at once."""

from hypothesis import given, settings
from hypothesis import strategies as st

from homing.router.core.types import BlockKey
from homing.workers.engine.batcher import Batcher
from homing.workers.engine.kvcache import KvCache
from homing.workers.engine.sequence import MEET_CHUNK_TOKENS, MEET_PART, Sequence, Waiting
from homing.workers.engine.tokens import TokenSequence

BLOCK = 16


def answer(name: str, place: int) -> int:
    return (place * 31 + len(name) * 7 + ord(name[-1])) % 97


def known(name: str, tokens: int, output: int) -> TokenSequence:
    row = [(p * 5 + ord(name[-1])) % 97 for p in range(tokens)]
    return TokenSequence(name, row, block_tokens=BLOCK, key_seed=3, max_output_tokens=output)


def counted(name: str, tokens: int, output: int) -> Sequence:
    """The same request where the keys of its answer are known from the start."""
    whole = known(name, tokens, output)
    for place in range(output):
        whole.tokens.append(answer(name, place))
    whole.present = tokens + output
    whole.newly_full()
    return Sequence(name, tokens, keys=whole.keys, block_tokens=BLOCK, max_output_tokens=output)


def state(engine: Batcher) -> tuple:
    """All that can be seen of an engine. Between two sequences, which block became whole first is nothing to go by."""
    groups = (engine._waiting, engine._prefilling, engine._decoding)
    running = [
        (s.request_id, s.present, s.computing, s.generated, s.committed, s.hit_tokens, tuple(s.blocks))
        for group in groups
        for s in group.values()
    ]
    cache = engine.cache
    return running, (cache.used, cache.cached, cache.free), set(cache.entries()), engine.load()


requests = st.lists(st.tuples(st.integers(1, 150), st.integers(0, 40)), min_size=1, max_size=5)
bounds = st.tuples(st.sampled_from([7, 64, 500]), st.integers(1, 5), st.integers(14, 60))


def engines(asked: list, bound: tuple, *makes) -> list[Batcher]:
    step_tokens, seats, blocks = bound
    found = []
    for make in makes:
        engine = Batcher(KvCache(blocks), step_tokens_max=step_tokens, sequences_max=seats)
        for number, (tokens, output) in enumerate(asked):
            engine.submit(make(f"r{number}", tokens, output))
        engine.admit()
        found.append(engine)
    return found


def settled(engine: Batcher) -> None:
    while engine.finished_without_step():
        engine.admit()
    engine.admit()
    engine.check()


@settings(deadline=None, max_examples=150)
@given(requests, bounds)
def test_counting_is_completing(asked, bound):
    """Every pass has the same chunks, the same progress, and leaves the same books and the same cache."""
    real, counting = engines(asked, bound, known, counted)
    for engine in (real, counting):
        settled(engine)
    while len(real):
        batch, other = real.next_step(), counting.next_step()
        spans = [[(c.sequence.request_id, c.start, c.stop, c.samples) for c in b.chunks] for b in (batch, other)]
        assert spans[0] == spans[1]
        assert [s.request_id for s in batch.decoding] == [s.request_id for s in other.decoding]
        sampling = [*batch.decoding, *(chunk.sequence for chunk in batch.chunks if chunk.samples)]
        done = real.complete(batch, {s.request_id: answer(s.request_id, s.generated) for s in sampling})
        noted = counting.count(other)
        finished = [[p.sequence.request_id for p in progress if p.finished] for progress in (done, noted)]
        assert finished[0] == finished[1]
        for engine in (real, counting):
            settled(engine)
        assert state(real) == state(counting)
        assert real.cache.take_events() == counting.cache.take_events()
    assert not len(counting)


@settings(deadline=None, max_examples=150)
@given(requests, bounds, st.data())
def test_many_passes_at_once(asked, bound, data):
    """k passes that only decode are k times one, and the same answers end; a run is as long as its shortest answer."""
    single, many = engines(asked, bound, counted, counted)
    for engine in (single, many):
        settled(engine)
    while len(many):
        batch = many.next_step()
        passes = 1
        if not batch.chunks:
            left = min(s.answer_tokens - s.generated for s in batch.decoding)
            passes = data.draw(st.integers(1, left))
        ended = [p.sequence.request_id for p in many.count(batch, passes) if p.finished]
        for number in range(passes):
            finished = [p.sequence.request_id for p in single.count(single.next_step()) if p.finished]
            assert finished == (ended if number == passes - 1 else [])
        for engine in (single, many):
            settled(engine)
        assert state(single) == state(many)
        assert sorted(map(repr, single.cache.take_events())) == sorted(map(repr, many.cache.take_events()))


def test_an_answer_ends_where_somebody_knows_the_future():
    """It holds room for its longest answer, and gives it back when it ends sooner."""
    engine = Batcher(KvCache(40), step_tokens_max=500, sequences_max=4)
    sequence = Sequence("r", 100, keys=[], block_tokens=BLOCK, max_output_tokens=300)
    sequence.answer_tokens = 3
    engine.submit(sequence)
    engine.admit()
    assert engine.cache.used == 25
    for generated in (1, 2, 3):
        progress = engine.count(engine.next_step())
        assert sequence.generated == generated
        assert [p.finished for p in progress] == ([] if generated == 2 else [generated == 3])
    assert sequence.finish_reason == "length"
    assert (len(engine), engine.cache.used) == (0, 0)


def test_a_worker_that_begins_again():
    engine = Batcher(KvCache(40), step_tokens_max=20, sequences_max=1)
    engine.submit(Sequence("r", 100, keys=[], block_tokens=BLOCK, max_output_tokens=3))
    engine.admit()
    other = engine.anew(KvCache(50))
    assert (len(engine), len(other), other.cache.total) == (1, 0, 50)
    for name in "ab":
        other.submit(Sequence(name, 30, keys=[], block_tokens=BLOCK, max_output_tokens=3))
    other.admit()
    assert [(c.sequence.request_id, c.stop) for c in other.next_step().chunks] == [("a", 20)]


def test_seats_go_to_those_who_decode():
    """At most so many take part in a pass; the first that decode come first, and a prompt waits for a seat."""
    engine = Batcher(KvCache(100), step_tokens_max=500, sequences_max=2)
    for name in "abc":
        engine.submit(Sequence(name, 20, keys=[], block_tokens=BLOCK, max_output_tokens=3))
    engine.admit()
    seen = []
    while len(engine):
        batch = engine.next_step()
        seen.append(
            ("".join(s.request_id for s in batch.decoding), "".join(c.sequence.request_id for c in batch.chunks))
        )
        engine.count(batch)
    assert seen == [("", "ab"), ("ab", ""), ("ab", ""), ("", "c"), ("c", ""), ("c", "")]


def test_a_meeting_takes_a_quarter_of_the_way():
    """Far apart few passes, close together small ones, never into what is claimed, and all the rest when it is over."""
    sequence = Sequence("r", 8200, keys=[BlockKey(p) for p in range(512)], block_tokens=BLOCK, max_output_tokens=1)
    engine = Batcher(KvCache(600), step_tokens_max=8192, sequences_max=2)
    engine.submit(sequence)
    engine.admit()
    assert sequence.expect(0, 500, Waiting.TO_MEET) == range(500)
    first = engine.next_step()
    assert (first.chunks[0].start, first.chunks[0].stop) == (0, 8000 // MEET_PART)
    for position in range(499, 199, -1):
        assert sequence.claim(range(position, position + 1))
        sequence.arrived(position)
    assert not sequence.claim(range(120, 121)), "it is being computed"
    engine.count(first)
    start, stop = sequence.next_range()
    assert (start, stop) == (2000, 2000 + (3200 - 2000) // MEET_PART)
    engine.count(engine.next_step())
    start, stop = sequence.next_range()
    assert stop - start == max(MEET_CHUNK_TOKENS, (3200 - 2300) // MEET_PART)
    sequence.arrivals_ended()
    assert sequence.next_range() == (2300, 3200), "what arrived is not computed again"
    engine.count(engine.next_step())
    assert (sequence.present, sequence.next_range()) == (8000, (8000, 8200))

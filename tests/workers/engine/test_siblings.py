"""Prompts that share a prefix and come together: nobody computes what somebody else computes in the same pass."""

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from homing.router.core.types import BlockKey
from homing.workers.engine.batcher import Batcher
from homing.workers.engine.kvcache import KvCache
from homing.workers.engine.sequence import Sequence, Waiting
from homing.workers.engine.tokens import TokenSequence

BLOCK = 16


def batcher(blocks: int = 4000, step_tokens: int = 512, seats: int = 64) -> Batcher:
    return Batcher(KvCache(blocks), step_tokens_max=step_tokens, sequences_max=seats)


def counted(name: str, shared: int, tokens: int, *, output: int = 2) -> Sequence:
    """A prompt that is only counted, whose first `shared` blocks are those of all others."""
    row = [BlockKey(p if p < shared else hash_of(name) + p) for p in range(tokens // BLOCK)]
    return Sequence(name, tokens, keys=row, block_tokens=BLOCK, max_output_tokens=output)


def hash_of(name: str) -> int:
    return 1_000_000 * (1 + int.from_bytes(name.encode(), "big"))


def real(name: str, shared: int, tokens: int, *, output: int = 2) -> TokenSequence:
    """The same with tokens, as on a live worker."""
    row = [p % 91 if p < shared * BLOCK else (p * 7 + hash_of(name)) % 91 for p in range(tokens)]
    return TokenSequence(name, row, block_tokens=BLOCK, key_seed=7, max_output_tokens=output)


def pass_of(engine: Batcher) -> list[tuple[str, int, int]]:
    """One pass, begun and completed; what it computed of prompts."""
    batch = engine.next_step()
    if batch is None:
        return []
    spans = [(chunk.sequence.request_id, chunk.start, chunk.stop) for chunk in batch.chunks]
    sampling = [*batch.decoding, *(chunk.sequence for chunk in batch.chunks if chunk.samples)]
    if any(isinstance(sequence, TokenSequence) for sequence in [*sampling, *(c.sequence for c in batch.chunks)]):
        engine.complete(batch, {sequence.request_id: 5 for sequence in sampling})
    else:
        engine.count(batch)
    engine.admit()
    engine.finished_without_step()
    engine.check()
    return spans


def computed(engine: Batcher) -> dict[str, int]:
    """Tokens of each prompt that were computed until nothing is left to do."""
    found: dict[str, int] = {}
    while len(engine):
        for name, start, stop in pass_of(engine):
            found[name] = found.get(name, 0) + stop - start
    assert engine.cache.used == 0
    return found


def submit(engine: Batcher, *sequences: Sequence) -> None:
    for sequence in sequences:
        engine.submit(sequence)
    engine.admit()


def test_the_first_computes_and_the_others_find():
    """Also where the whole prefix fits into one pass beside its siblings."""
    for make in (counted, real):
        for step_tokens in (64, 100, 512, 8192):
            engine = batcher(step_tokens=step_tokens)
            submit(engine, *(make(name, 20, 336) for name in "abcd"))
            assert computed(engine) == {"a": 336, "b": 16, "c": 16, "d": 16}


def test_a_stranger_is_not_held_up_by_siblings():
    engine = batcher(step_tokens=1000)
    submit(engine, counted("a", 20, 336), counted("b", 20, 336), counted("x", 0, 336))
    assert pass_of(engine) == [("a", 0, 336), ("x", 0, 336)]
    assert pass_of(engine) == [("b", 320, 336)]


def test_a_sibling_of_a_shorter_prefix_begins_when_its_own_part_comes():
    """It shares 4 blocks with one who needs three passes."""
    engine = batcher(step_tokens=256)
    longer, shorter = counted("a", 40, 700), counted("b", 4, 300)
    submit(engine, longer, shorter)
    assert pass_of(engine) == [("a", 0, 256)]
    assert pass_of(engine) == [("a", 256, 512)]
    assert pass_of(engine) == [("a", 512, 700), ("b", 64, 132)]
    assert shorter.hit_tokens == 64


def test_who_is_cancelled_leaves_the_prefix_to_the_next():
    engine = batcher(step_tokens=128)
    submit(engine, *(counted(name, 20, 336) for name in "abc"))
    assert pass_of(engine) == [("a", 0, 128)]
    assert engine.cancel("a")
    assert pass_of(engine) == [("b", 128, 256)], "what was whole is found"
    batch = engine.next_step()
    assert engine.cancel("b"), "while its pass runs"
    engine.count(batch)
    assert pass_of(engine) == [("c", 256, 336)]


def test_a_prompt_whose_blocks_are_fixed_computes_beside_its_sibling():
    """Somebody reads or writes its blocks (a handover, arrivals): none may be exchanged, so it need not wait."""
    for make in (counted, real):
        engine = batcher(step_tokens=2000)
        first, fixed = make("a", 20, 336), make("b", 20, 336)
        submit(engine, first, fixed)
        fixed.has_fixed_blocks = True
        assert pass_of(engine) == [("a", 0, 336), ("b", 0, 336)]
        assert fixed.hit_tokens == 0


def test_a_prompt_that_expects_blocks_is_not_exchanged():
    """It waits for its own arrivals, whatever a sibling computes meanwhile, and both end with whole books."""
    engine = batcher(step_tokens=2000)
    first, waiting = counted("a", 20, 336), counted("b", 20, 336)
    submit(engine, first, waiting)
    assert waiting.expect(0, 10, Waiting.FOR_ALL) == range(10)
    assert pass_of(engine) == [("a", 0, 336)]
    assert waiting.claim(range(10))
    for position in range(10):
        waiting.arrived(position)
    waiting.arrivals_ended()
    engine.settle_arrivals(waiting)
    assert pass_of(engine) == [("b", 160, 336)]
    assert waiting.hit_tokens == 0
    assert computed(engine) == {}


def test_of_a_prefill_only_the_last_block_is_computed():
    """Otherwise nobody would notice that it is done: it takes part in a pass, with the very last block."""
    engine = batcher(step_tokens=2000)
    submit(engine, counted("a", 20, 340, output=0), counted("b", 20, 340, output=0))
    assert pass_of(engine) == [("a", 0, 336)]
    assert pass_of(engine) == [("b", 320, 336)]
    assert not len(engine)
    engine = batcher(step_tokens=2000)
    submit(engine, counted("a", 21, 340, output=0), counted("b", 21, 340, output=0))
    assert [pass_of(engine), pass_of(engine)] == [[("a", 0, 336)], [("b", 320, 336)]]


def test_a_longer_hit_gives_back_what_it_replaces():
    """`extend_hit`: blocks of the sibling are used by both, and the own ones are free."""
    engine = batcher(blocks=60, step_tokens=336)
    submit(engine, counted("a", 20, 336), counted("b", 20, 336))
    assert engine.cache.free == 60 - 2 * 22
    pass_of(engine)
    batch = engine.next_step()
    assert [(c.sequence.request_id, c.start) for c in batch.chunks] == [("b", 320)]
    assert engine.cache.free == 60 - 22 - 2
    engine.count(batch)
    assert computed(engine) == {}


@settings(deadline=None, max_examples=150)
@given(
    prompts=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 600), st.integers(0, 3)), min_size=1, max_size=8),
    step_tokens=st.sampled_from([5, 40, 128, 1000]),
    seats=st.integers(1, 8),
    blocks=st.integers(45, 300),
    seed=st.integers(0, 3),
)
def test_no_pass_computes_a_block_twice(prompts, step_tokens, seats, blocks, seed):
    """Of all that have not begun before it; and whatever is shared, everybody ends."""
    engine, random = batcher(blocks, step_tokens, seats), Random(seed)
    coming = [counted(f"r{n}", shared, tokens, output=output) for n, (shared, tokens, output) in enumerate(prompts)]
    while coming or len(engine):
        if coming and random.random() < 0.6:
            submit(engine, coming.pop())
        begun = {s.request_id for s in engine._prefilling.values() if s.has_begun}
        batch = engine.next_step()
        if batch is None:
            engine.finished_without_step()
            engine.admit()
            continue
        spans = [
            chunk.sequence.keys[position]
            for chunk in batch.chunks
            if chunk.sequence.request_id not in begun
            for position in range(chunk.start // BLOCK, min(-(-chunk.stop // BLOCK), exchangeable(chunk.sequence)))
        ]
        firsts = [chunk.sequence.keys[chunk.start // BLOCK :][:1] for chunk in batch.chunks]
        assert len(batch.chunks) + len(batch.decoding) <= seats
        for number, chunk in enumerate(batch.chunks):
            if chunk.sequence.request_id in begun or chunk.start // BLOCK >= exchangeable(chunk.sequence):
                continue
            before = {
                key
                for other in batch.chunks[:number]
                for key in other.sequence.keys[other.start // BLOCK : -(-other.stop // BLOCK)]
            }
            assert not before & set(firsts[number]), "it begins with a block that is being computed"
        assert len(spans) == len(set(spans))
        engine.count(batch)
        engine.finished_without_step()
        engine.admit()
        engine.check()
    assert engine.cache.used == 0


def exchangeable(sequence: Sequence) -> int:
    return min(sequence.reusable_blocks - sequence.is_prefill_only, len(sequence.keys))

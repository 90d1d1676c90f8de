"""Batcher and sequences against a naive memory: every position gets its KV once, from one place, and in time.

The memory holds, per slot, a number that stands for the KV of a token behind its whole prefix. Passes and arrivals
write it; every pass checks what it attends to. Garbage stands wherever a write is going on.
"""

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from homing.router.core.types import BlockKey
from homing.workers.engine.batcher import Batcher
from homing.workers.engine.kvcache import KvCache, Stored
from homing.workers.engine.sequence import Waiting
from homing.workers.engine.step import Batch, StepPlan
from homing.workers.engine.tokens import TokenSequence

BLOCK = 16
BEING_WRITTEN = -1


def kv(tokens: list[int] | tuple[int, ...]) -> list[int]:
    """What stands for the KV of each token: a function of its whole prefix."""
    out, state = [], 17
    for token in tokens:
        state = (state * 1_000_003 + token + 1) & 0x7FFF_FFFF_FFFF_FFFF
        out.append(state)
    return out


def next_token(tokens: list[int]) -> int:
    return kv(tokens)[-1] % 97


def prompt(family: int, length: int, fork: int) -> list[int]:
    """Prompts of one family share everything before `fork`."""
    return [(family * 31 + p * 7) % 97 if p < fork else (family + p * 11 + fork) % 97 for p in range(length)]


@dataclass(eq=False)
class Tracked:
    """One sequence, its pull, and where each position's KV came from."""

    sequence: TokenSequence
    waiting: Waiting
    span: tuple[int, int]
    piece: int
    kv: list[int] = field(default_factory=list)
    origin: dict[int, str] = field(default_factory=dict)
    unsent: list[int] = field(default_factory=list)
    claimed: list[int] = field(default_factory=list)
    pulling: bool = False
    hit: int = 0


class BatcherMachine(RuleBasedStateMachine):
    """What a runtime does, in any order: requests, claims, arrivals, broken pulls, cancels, passes."""

    @initialize(blocks=st.integers(44, 130), step_tokens=st.sampled_from([5, 64, 256]), most=st.integers(1, 4))
    def begin(self, blocks: int, step_tokens: int, most: int) -> None:
        self.cache = KvCache(blocks)
        self.batcher = Batcher(self.cache, step_tokens_max=step_tokens, sequences_max=most)
        self.step_tokens, self.most = step_tokens, most
        self.memory = [[0] * BLOCK for _ in range(blocks)]
        self.findable: dict[BlockKey, BlockKey | None] = {}
        self.live: dict[str, Tracked] = {}
        self.zombies: list[Tracked] = []
        self.plan: StepPlan | None = None
        self.batch: Batch | None = None
        self.writing: set[int] = set()
        self.stepping: dict[str, Tracked] = {}
        self.count = 0

    # -- requests --------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.live) < 6)
    @rule(
        family=st.integers(0, 1),
        length=st.one_of(st.integers(1, 50), st.integers(1, 600), st.sampled_from([15, 16, 17, 160, 161])),
        fork=st.sampled_from([0, 20, 64, 300, 1000]),
        output=st.integers(0, 6),
        waiting=st.sampled_from(list(Waiting)),
        span=st.one_of(st.none(), st.tuples(st.integers(0, 20), st.integers(0, 45))),
        piece=st.integers(1, 5),
        name=st.sampled_from(["x", "y", None]),
    )
    def submit(
        self,
        family: int,
        length: int,
        fork: int,
        output: int,
        waiting: Waiting,
        span: tuple[int, int] | None,
        piece: int,
        name: str | None,
    ) -> None:
        """A request comes; an id may come again as soon as it is gone, even while a pass still writes for it."""
        self.count += 1
        sequence = TokenSequence(
            name if name is not None and name not in self.live else str(self.count),
            prompt(family, length, fork),
            block_tokens=BLOCK,
            key_seed=1337,
            max_output_tokens=output,
            eos_ids=frozenset({3}),
        )
        if sequence.blocks_needed > self.cache.total:
            return
        self.live[sequence.request_id] = Tracked(sequence, waiting, span or (0, 0), piece)
        self.batcher.submit(sequence)
        self.admit()

    def admit(self) -> None:
        """Let in who fits, until nobody does: what ends without a pass makes room at once."""
        while True:
            for sequence in self.batcher.admit():
                self.admitted(self.live[sequence.request_id])
            finished = self.batcher.finished_without_step()
            for sequence in finished:
                self.ended(self.live[sequence.request_id])
            if not finished:
                break
        self.hear()

    def admitted(self, tracked: Tracked) -> None:
        sequence = tracked.sequence
        tracked.kv = kv(sequence.tokens)
        assert sequence.hit_tokens <= sequence.reusable_blocks * BLOCK < sequence.prompt_tokens
        cached = sequence.hit_tokens // BLOCK
        assert not self.writing & set(sequence.blocks[cached:]), "blocks that a pass writes were given away"
        self.hit(tracked)
        assert self.held(sequence, sequence.hit_tokens) == tracked.kv[: sequence.hit_tokens], "a hit holds other KV"
        needed = sequence.expect(*tracked.span, tracked.waiting)
        tracked.unsent = sorted(needed, reverse=tracked.waiting is Waiting.TO_MEET)
        tracked.pulling = bool(needed)

    def hit(self, tracked: Tracked) -> None:
        """It found so much in the cache, at once or when it was about to begin."""
        for position in range(tracked.hit, tracked.sequence.hit_tokens):
            self.came_from(tracked, position, "cache")
        tracked.hit = max(tracked.hit, tracked.sequence.hit_tokens)

    @rule(data=st.data())
    @precondition(lambda self: self.live)
    def cancel(self, data: st.DataObject) -> None:
        tracked = self.one_of(data, list(self.live.values()))
        if tracked.pulling:
            self.end_pull(tracked)
        if tracked.sequence.request_id in self.live:
            assert self.batcher.cancel(tracked.sequence.request_id)
            del self.live[tracked.sequence.request_id]
        assert not self.batcher.cancel(tracked.sequence.request_id)
        self.admit()

    # -- arrivals --------------------------------------------------------------------------------------------------

    def pulls(self) -> list[Tracked]:
        return [tracked for tracked in [*self.live.values(), *self.zombies] if tracked.pulling]

    @rule(data=st.data(), more=st.integers(0, 8), arrive=st.booleans())
    @precondition(lambda self: self.pulls())
    def claim(self, data: st.DataObject, more: int, arrive: bool) -> None:
        """Headers of the next pieces are here, and maybe the pieces too."""
        tracked = self.one_of(data, self.pulls())
        for _ in range(1 + more):
            if tracked.pulling:
                self.claim_piece(tracked)
            if arrive and tracked.claimed:
                self.arrive_block(tracked, tracked.claimed.pop())

    def claim_piece(self, tracked: Tracked) -> None:
        """One piece's header is here; when it is not wanted the pull is over, as ArrivalSink decides."""
        piece, tracked.unsent = tracked.unsent[: tracked.piece], tracked.unsent[tracked.piece :]
        needed = range(min(piece), max(piece) + 1) if piece else range(0)
        if not needed or not tracked.sequence.claim(needed):
            if not tracked.claimed:
                self.end_pull(tracked)
            return
        assert tracked.sequence.request_id in self.live, "a sequence that is gone claims blocks"
        for position in needed:
            tracked.claimed.append(position)
            block = tracked.sequence.blocks[position]
            assert block not in self.written_now(), "a block is received while a pass writes it"
            self.memory[block] = [BEING_WRITTEN] * BLOCK

    @rule(data=st.data())
    @precondition(lambda self: any(tracked.claimed for tracked in self.live.values()))
    def arrive(self, data: st.DataObject) -> None:
        tracked = self.one_of(data, [t for t in self.live.values() if t.claimed])
        self.arrive_block(tracked, tracked.claimed.pop(data.draw(st.integers(0, len(tracked.claimed) - 1))))

    def arrive_block(self, tracked: Tracked, position: int) -> None:
        for at in range(position * BLOCK, position * BLOCK + BLOCK):
            self.came_from(tracked, at, "wire")
            self.memory[tracked.sequence.blocks[position]][at % BLOCK] = tracked.kv[at]
        tracked.sequence.arrived(position)
        self.batcher.settle_arrivals(tracked.sequence)
        self.admit()

    @rule(data=st.data())
    @precondition(lambda self: self.pulls())
    def break_pull(self, data: st.DataObject) -> None:
        self.end_pull(self.one_of(data, self.pulls()))

    def end_pull(self, tracked: Tracked) -> None:
        for position in tracked.claimed:
            self.memory[tracked.sequence.blocks[position]] = [0] * BLOCK
        tracked.claimed.clear()
        tracked.unsent.clear()
        tracked.pulling = False
        tracked.sequence.arrivals_ended()
        self.batcher.settle_arrivals(tracked.sequence)
        self.admit()

    # -- passes ----------------------------------------------------------------------------------------------------

    @rule(more=st.integers(0, 3))
    def turn(self, more: int) -> None:
        """A pass ends or begins; `more` of them follow without anything between."""
        for _ in range(1 + more):
            if self.plan is None:
                self.begin_pass()
            else:
                self.end_pass()

    def begin_pass(self) -> None:
        self.batch = self.batcher.next_step()
        if self.batch is None:
            self.nothing_is_stuck()
            return
        for tracked in self.live.values():
            self.hit(tracked)
        plan = self.batch.plan()
        decodes = sum(self.live[step.request_id].sequence.is_decoding for step in plan.steps)
        assert plan.tokens <= max(self.step_tokens, decodes)
        assert len({step.request_id for step in plan.steps}) == len(plan.steps) <= self.most
        for step in plan.steps:
            tracked = self.live[step.request_id]
            sequence = tracked.sequence
            tracked.kv = kv(sequence.tokens)
            assert step.tokens == tuple(sequence.tokens[step.start : step.end])
            assert step.block_table == tuple(sequence.blocks[: len(step.block_table)])
            assert self.held(sequence, step.start) == tracked.kv[: step.start], "a pass attends to what is not there"
            for position in range(step.start, step.end):
                self.came_from(tracked, position, "computed")
                block = step.block_table[position // BLOCK]
                assert BEING_WRITTEN not in self.memory[block][position % BLOCK :], "computed into an arrival"
                self.memory[block][position % BLOCK] = BEING_WRITTEN
                self.writing.add(block)
            whole_prompt = step.end >= sequence.prompt_tokens
            assert step.sample == (whole_prompt and not sequence.is_prefill_only)
            self.stepping[step.request_id] = tracked
        self.plan = plan

    def written_now(self) -> set[int]:
        """Blocks that hold positions of the pass that runs."""
        return self.writing if self.plan is not None else set()

    def end_pass(self) -> None:
        plan, self.plan = self.plan, None
        assert plan is not None
        tokens = {}
        for step in plan.steps:
            tracked = self.stepping[step.request_id]
            if tracked not in self.live.values():
                tracked = None
            values = kv(tracked.sequence.tokens) if tracked else [0] * step.end
            for position in range(step.start, step.end):
                self.memory[step.block_table[position // BLOCK]][position % BLOCK] = values[position]
            if tracked and step.sample:
                tokens[step.request_id] = next_token(tracked.sequence.tokens)
        self.writing.clear()
        for progress in self.batcher.complete(self.batch, tokens):
            if progress.finished:
                self.ended(self.live[progress.sequence.request_id])
        self.admit()

    def ended(self, tracked: Tracked) -> None:
        """A sequence is done: its prompt is there, once and from one place; its answer is the right one."""
        sequence = self.live.pop(tracked.sequence.request_id).sequence
        assert not tracked.claimed, "finished while blocks are being received"
        assert set(tracked.origin) >= set(range(sequence.end)), "some positions came from nowhere"
        expected = sequence.tokens[: sequence.prompt_tokens]
        while not sequence.is_prefill_only and len(expected) - sequence.prompt_tokens < sequence.max_output_tokens:
            expected.append(next_token(expected))
            if expected[-1] in sequence.eos_ids:
                break
        assert sequence.tokens == expected
        if tracked.pulling:
            self.zombies.append(tracked)

    # -- what must always be true ----------------------------------------------------------------------------------

    def came_from(self, tracked: Tracked, position: int, origin: str) -> None:
        assert position not in tracked.origin, f"{position} came twice: {tracked.origin[position]} and {origin}"
        tracked.origin[position] = origin

    def held(self, sequence: TokenSequence, end: int) -> list[int]:
        """What the memory holds for the first `end` tokens."""
        blocks = sequence.blocks[: -(-end // BLOCK)]
        return [slot for block in blocks for slot in self.memory[block]][:end]

    def one_of(self, data: st.DataObject, choices: list[Tracked]) -> Tracked:
        return choices[data.draw(st.integers(0, len(choices) - 1))]

    def hear(self) -> None:
        for event in self.cache.take_events():
            if isinstance(event, Stored):
                self.findable[event.key] = event.parent
            else:
                del self.findable[event.key]

    def nothing_is_stuck(self) -> None:
        """No pass is possible: then everybody who runs waits for an arrival, and nobody could be let in."""
        waits = [t for t in self.live.values() if t.pulling]
        running = [t for t in self.live.values() if t.sequence.blocks]
        assert all(t in waits for t in running), "a sequence waits for nothing"
        if not running:
            assert not self.live, "a request waits while the worker is empty"

    @invariant()
    def holds_together(self) -> None:
        if not hasattr(self, "batcher"):
            return
        self.batcher.check()
        assert {entry.key for entry in self.cache.entries()} == set(self.findable)
        load = self.batcher.load()
        assert load.running_requests == len(self.live) == len(self.batcher)
        assert 0 <= load.queued_prefill_tokens <= sum(t.sequence.end for t in self.live.values())
        assert load.kv_blocks_used == self.cache.used

    def teardown(self) -> None:
        """Whatever happened, everything ends once the pulls do, and every block is free or merely cached."""
        if not hasattr(self, "batcher"):
            return
        for _ in range(10_000):
            for tracked in self.pulls():
                self.end_pull(tracked)
            if self.plan is not None:
                self.end_pass()
            elif self.live:
                self.begin_pass()
                assert self.plan is not None, "requests are left and nothing can be computed"
            else:
                break
        assert not self.live and len(self.batcher) == 0
        assert self.cache.used == 0
        self.cache.check()


BatcherMachine.TestCase.settings = settings(max_examples=400, stateful_step_count=50, deadline=None)
test_batcher_agrees_with_a_naive_memory = BatcherMachine.TestCase

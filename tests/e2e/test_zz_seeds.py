"""I8: moving KV never changes the answer. Whatever the plan, whatever breaks, the tokens are those of a worker that
computed everything itself.
"""

import random
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest

from homing.protos import common_pb2
from homing.workers.emulation import EmulatedLink, Wan

from .cluster import BLOCK, Answer, Node, free_port, prompt_of, run, worker

FETCH, MEET, SHIP = common_pb2.MOVE_KIND_FETCH, common_pb2.MOVE_KIND_MEET, common_pb2.MOVE_KIND_SHIP
LOGITS_MAX = 1e-3
KINDS = ("local", "fetch", "meet", "remote", "remote with fetch", "remote with meet", "direct", "inline", "inline meet")
LENGTHS = (1, 2, 15, 16, 17, 31, 32, 33, 127, 128, 129, 255, 256, 257, 511, 512, 513, 799, 800, 801, 900)
SITES = ("near", "far")


@dataclass
class Fleet:
    """A source, a prefill worker, targets with both transports, and a reference that is never given a block."""

    source: Node
    prefiller: Node
    target: Node
    inline: Node
    reference: Node
    wan: Wan
    ties: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    both_sides: Counter[str] = field(default_factory=Counter)

    def forget(self) -> None:
        for node in (self.source, self.prefiller, self.target, self.inline, self.reference):
            node.cache.clear()
            node.cache.check()

    def set_rate(self, bytes_per_s: float) -> None:
        self.wan.set_rate("near", "far", bytes_per_s)


async def open_fleet(stack: AsyncExitStack) -> Fleet:
    """The source stands near, everybody else far behind an emulated link, for the data plane and for gRPC frames."""
    links = [
        EmulatedLink(source=one, target=other, bytes_per_s=50e6, delay_s=0.0005) for one, other in (SITES, SITES[::-1])
    ]
    wan = await stack.enter_async_context(Wan(links))
    source_port, prefill_port = free_port(), free_port()
    ways = [await wan.open_gateway("far", "near", "127.0.0.1", port) for port in (source_port, prefill_port)]
    addresses = [{"far": f"{host}:{port}"} for host, port in ways]
    return Fleet(
        source=await stack.enter_async_context(
            worker("source", "near", data_port=source_port, data_address_from=addresses[0])
        ),
        prefiller=await stack.enter_async_context(
            worker("prefiller", "far", data_port=prefill_port, data_address_from=addresses[1])
        ),
        target=await stack.enter_async_context(worker("target", "far")),
        inline=await stack.enter_async_context(worker("inline", "far", inline=True)),
        reference=await stack.enter_async_context(worker("reference")),
        wan=wan,
    )


@dataclass(frozen=True)
class Case:
    """One request under one plan: how much of its prompt which worker has, and what is asked to move."""

    number: int
    kind: str
    tokens: list[int]
    held: int
    """Tokens that the source has cached."""
    warm: int
    """Tokens that the target (or the prefill worker) has cached."""
    end: int
    """Block at which the move ends."""
    bytes_per_s: float
    pass_s: float
    """What a pass takes beyond its computing, so that arrivals and computation are about as quick as each other."""
    sampling: common_pb2.Sampling


def random_case(number: int, rng: random.Random) -> Case:
    kind = KINDS[number % len(KINDS)]
    shortest = 2 * BLOCK if kind.startswith("remote") else 1
    length = max(shortest, rng.choice(LENGTHS) if rng.random() < 0.7 else rng.randrange(1, 901))
    if "meet" in kind:
        length = rng.choice((511, 512, 513, 800, 801, 900))
    held = length if kind in {"direct", "inline meet", "meet"} else rng.choice((length, rng.randrange(0, length + 1)))
    warm = 0 if kind == "direct" or rng.random() < 0.5 else rng.randrange(0, length // 2 + 1)
    return Case(
        number=number,
        kind=kind,
        tokens=prompt_of(number, length),
        held=held,
        warm=warm,
        end=max(1, rng.choice((length // BLOCK, -(-length // BLOCK) + 1, rng.randrange(0, length // BLOCK + 1)))),
        bytes_per_s=rng.choice((8e6, 20e6, 50e6)),
        pass_s=rng.choice((0.01, 0.02)) if "meet" in kind else 0.0,
        sampling=common_pb2.Sampling(temperature=rng.choice((0.0, 0.0, 0.0, 0.9)), seed=number, top_k=40),
    )


async def carry_out(fleet: Fleet, case: Case) -> Answer:
    """Put the caches into the case's state and run its plan."""
    name = f"{case.kind} {case.number}"
    fleet.set_rate(case.bytes_per_s)
    for node in (fleet.prefiller, fleet.target, fleet.inline):
        node.model.pass_s = case.pass_s
    target = fleet.inline if case.kind.startswith("inline") else fleet.target
    if case.held and case.kind != "local":
        await fleet.source.decode(f"hold {name}", case.tokens[: case.held], output=1)
    if case.warm:
        warmed = fleet.prefiller if case.kind.startswith("remote") else target
        await warmed.decode(f"warm {name}", case.tokens[: case.warm], output=1)
    if not case.kind.startswith("remote"):
        move = MEET if case.kind.endswith("meet") else FETCH
        sources = [] if case.kind == "local" else [fleet.source.gives(move, 0, case.end)]
        return await target.decode(name, case.tokens, sources, sampling=case.sampling)
    blocks = range((len(case.tokens) - 1) // BLOCK)
    inner = MEET if case.kind.endswith("meet") else FETCH
    prefill = fleet.prefiller.prefill(
        name, case.tokens, blocks, [] if case.kind == "remote" else [fleet.source.gives(inner, 0, case.end)]
    )
    answer = await target.decode(
        name, case.tokens, [fleet.prefiller.gives(SHIP, blocks.start, blocks.stop)], sampling=case.sampling
    )
    done = await prefill
    assert answer.transfer.complete, answer.transfer.reason
    assert answer.start.computed_tokens <= BLOCK, "the decode worker computed what the prefill worker gave"
    both = bool(done.transfers and done.transfers[0].blocks_arrived and sum_computed(done.prefills) > BLOCK)
    fleet.both_sides[case.kind] += both
    return answer


def sum_computed(prefills: Any) -> int:
    return sum(part.computed_to_tokens - part.computed_from_tokens for part in prefills)


def compare(fleet: Fleet, case: Case, answer: Answer, reference: Answer) -> None:
    """Equal tokens, or a counted tie: two best logits that differ by less than rounding does."""
    far_off = float((answer.logits[0] - reference.logits[0]).abs().max())
    assert far_off < LOGITS_MAX, f"{case}: first logits differ by {far_off}"
    if answer.tokens != reference.tokens:
        at = next(i for i, (a, b) in enumerate(zip(answer.tokens, reference.tokens, strict=True)) if a != b)
        best = reference.logits[at].topk(2).values
        assert case.sampling.temperature == 0 and best[0] - best[1] < LOGITS_MAX, f"{case}: {answer} {reference}"
        fleet.ties += 1


def accounted(case: Case, answer: Answer) -> bool:
    """Whether every token of the prompt came from exactly one place, as far as one can tell; true when both sides of
    a meeting did some of it.
    """
    start = answer.start
    moved = start.transfers[0].blocks_arrived if start.transfers else 0
    assert start.hit_tokens + start.computed_tokens <= len(case.tokens)
    assert start.hit_tokens + start.computed_tokens + moved * BLOCK >= len(case.tokens)
    if case.kind in {"local", "fetch", "direct", "inline"} and start.transfers and start.transfers[0].complete:
        assert start.hit_tokens + start.computed_tokens + moved * BLOCK == len(case.tokens)
    return moved > 0 and start.computed_tokens > BLOCK


@pytest.mark.timeout(400)
def test_tokens_are_the_same_under_every_plan(capsys: pytest.CaptureFixture[str]) -> None:
    async def check() -> None:
        rng = random.Random(202)
        async with AsyncExitStack() as stack:
            fleet = await open_fleet(stack)
            for number in range(400):
                case = random_case(number, rng)
                reference = await fleet.reference.decode(f"r{number}", case.tokens, sampling=case.sampling)
                assert reference.start.hit_tokens == 0
                answer = await carry_out(fleet, case)
                compare(fleet, case, answer, reference)
                if not case.kind.startswith("remote"):
                    fleet.both_sides[case.kind] += accounted(case, answer)
                fleet.kinds[case.kind] += 1
                fleet.forget()
            for node in (fleet.source, fleet.prefiller, fleet.target, fleet.inline, fleet.reference):
                await node.assert_idle()
        with capsys.disabled():
            print(f"\n{sum(fleet.kinds.values())} cases, {fleet.ties} ties; both sides: {dict(fleet.both_sides)}")
        assert fleet.ties == 0
        assert min(fleet.kinds.values()) >= 20
        assert all(fleet.both_sides[kind] >= 3 for kind in KINDS if kind.endswith("meet")), fleet.both_sides

    run(check(), 300)

"""A cache of many workers and prompts that look into it, for any index; the standard library alone.

Each document is held by eight workers, the first of them an eighth of it, the last all of it. The same seed gives the
same hashes to every index that is measured.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from random import Random
from typing import NamedTuple

WORKERS = 64
HOLDERS = 8
DOCUMENT_BLOCKS = 4096
EVENT_BLOCKS = 16
"""Blocks per stored event: what an engine tells after a chunk of 256 tokens."""
PROMPT_BLOCKS = (64, 512, 4096)


class Document(NamedTuple):
    """A prompt whose blocks are cached: local hashes, chained keys, and (worker, blocks held) for each holder."""

    hashes: list[int]
    keys: list[int]
    holders: list[tuple[int, int]]


class Stored(NamedTuple):
    """One event: `worker` holds these blocks below `parent`."""

    worker: int
    parent: int | None
    keys: list[int]
    hashes: list[int]


class Prompt(NamedTuple):
    """A question to the index, and the blocks that each worker must be found to hold."""

    name: str
    hashes: list[int]
    keys: list[int]
    answer: dict[int, int]


def documents(count: int, seed: int = 1) -> list[Document]:
    """So many documents; each adds 18,432 (worker, block) entries."""
    random = Random(seed)
    return [_document(random) for _ in range(count)]


def _document(random: Random) -> Document:
    workers = random.sample(range(WORKERS), HOLDERS)
    holders = [(worker, (i + 1) * DOCUMENT_BLOCKS // HOLDERS) for i, worker in enumerate(workers)]
    return Document(_numbers(random), _numbers(random), holders)


def _numbers(random: Random) -> list[int]:
    return [random.getrandbits(64) for _ in range(DOCUMENT_BLOCKS)]


def entries(docs: list[Document]) -> int:
    """How many (worker, block) pairs an index of these documents holds."""
    return sum(blocks for document in docs for _, blocks in document.holders)


def events(docs: list[Document], event_blocks: int = EVENT_BLOCKS) -> Iterator[Stored]:
    """What the workers told when they cached the documents."""
    for document in docs:
        for worker, blocks in document.holders:
            for first in range(0, blocks, event_blocks):
                end = min(first + event_blocks, blocks)
                parent = document.keys[first - 1] if first else None
                yield Stored(worker, parent, document.keys[first:end], document.hashes[first:end])


def prompts(docs: list[Document], seed: int = 2) -> list[Prompt]:
    """Prompts of every length that are cached wholly, to the half or not at all, sixteen of each."""
    random = Random(seed)
    found = []
    for blocks in PROMPT_BLOCKS:
        for name, cached in (("all", blocks), ("half", blocks // 2), ("nothing", 0)):
            for _ in range(16):
                document = random.choice(docs)
                unknown = [random.getrandbits(64) for _ in range(blocks - cached)]
                answer = {worker: min(held, cached) for worker, held in document.holders if cached}
                hashes, keys = document.hashes[:cached] + unknown, document.keys[:cached] + unknown
                found.append(Prompt(f"match {blocks} blocks, {name} cached", hashes, keys, answer))
    return found


def micros(call: Callable[[], object]) -> float:
    """How long one call takes, in microseconds."""
    start_s = time.perf_counter()
    call()
    return (time.perf_counter() - start_s) * 1e6


def row(case: str, samples_us: list[float]) -> dict[str, object]:
    """One line of the results: the median, and how bad it gets."""
    ordered = sorted(samples_us)
    return {
        "case": case,
        "median_us": round(statistics.median(ordered), 1),
        "p90_us": round(ordered[int(0.9 * (len(ordered) - 1))], 1),
        "samples": len(ordered),
    }


def rate_row(case: str, blocks: int, seconds: list[float]) -> dict[str, object]:
    """One line about throughput."""
    return {
        "case": case,
        "blocks_per_s": round(blocks / statistics.median(seconds)),
        "samples": len(seconds),
    }

"""What the engines of the door's benchmark hold in their caches, told as vLLM tells it.

Tokens are those that an engine would make: by the model's tokenizer and chat template as Homing's own workers use them,
which is other code than the router's. Of each conversation the blocks before its number are held, by one engine: by the
first, the second and so on in turn. All of it is told before the load begins, and nothing changes during it.
"""

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from door_prompts import NUMBERS, Ask

from homing.router.core.types import BlockKey
from homing.workers.echo.kv_events import EventWriter, KvPublisher
from homing.workers.echo.settings import KvEventSettings
from homing.workers.echo.stored import Changes, EchoSequence, StoredBlock
from homing.workers.model.sources import load_tokenizer

BLOCK_TOKENS: Final = 16
START_S: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Which engine holds the beginning of an ask, and how many tokens of it."""

    engine: int
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where an engine's events are heard."""

    endpoint: str
    replay_endpoint: str


def held_by(asks: Sequence[Ask], engines: int, tokenizer: str) -> list[Held]:
    """For each ask what is cached of it: the full blocks that do not depend on its number."""
    chat = load_tokenizer(tokenizer).chat
    held = []
    for position, ask in enumerate(asks):
        one, other = (chat(ask.messages_of(number)) for number in (0, NUMBERS - 1))
        same = next(index for index, (left, right) in enumerate(zip(one, other, strict=True)) if left != right)
        whole = same - same % BLOCK_TOKENS
        held.append(Held(engine=position % engines, tokens=tuple(one[:whole])))
    return held


def batches(held: Sequence[Held], engine: int) -> Iterator[Changes]:
    """One engine's cache, a batch for each prompt; a block that prompts share is stored once."""
    known: set[BlockKey] = set()
    for number, each in enumerate(held):
        if each.engine != engine:
            continue
        sequence = EchoSequence(
            str(number), list(each.tokens), block_tokens=BLOCK_TOKENS, max_output_tokens=1, eos_ids=frozenset()
        )
        new = [place for place, key in enumerate(sequence.keys) if key not in known]
        known.update(sequence.keys)
        yield Changes(blocks=tuple(StoredBlock(sequence, place) for place in new))


@contextlib.contextmanager
def publishing(folder: Path, held: Sequence[Held], engines: int) -> Iterator[list[Source]]:
    """A publisher for each engine, in a thread; everything is kept for whoever asks for a replay."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="kv events", daemon=True)
    thread.start()
    publishers = [KvPublisher(_settings(folder, engine, len(held))) for engine in range(engines)]
    try:
        asyncio.run_coroutine_threadsafe(_tell(publishers, held), loop).result(START_S)
        yield [Source(endpoint=one.endpoint, replay_endpoint=str(one.replay_endpoint)) for one in publishers]
    finally:
        asyncio.run_coroutine_threadsafe(_close(publishers), loop).result(START_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _settings(folder: Path, engine: int, messages: int) -> KvEventSettings:
    """Sockets in the file system: no port has to be found."""
    return KvEventSettings(
        endpoint=f"ipc://{folder}/events-{engine}",
        replay_endpoint=f"ipc://{folder}/replay-{engine}",
        buffer_steps=messages,
        hwm=messages,
    )


async def _tell(publishers: Sequence[KvPublisher], held: Sequence[Held]) -> None:
    for engine, publisher in enumerate(publishers):
        publisher.start()
        writer = EventWriter(BLOCK_TOKENS)
        for changes in batches(held, engine):
            publisher.publish(writer.events(changes))


async def _close(publishers: Sequence[KvPublisher]) -> None:
    for publisher in publishers:
        await publisher.close()

"""Two unmodified vLLM engines behind a real `homing serve`, asked by the official client.

float32 and greedy: what comes through the router is word for word what the engine says when it is asked itself. Every
answer tells what the router foretold of its prefix (`x-homing-prefix-tokens`) and what the engine found of it
(`cached_tokens`); the two are compared for all of them.
"""

import collections
import contextlib
import itertools
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from homing.router.cli.demo.ports import free_ports

from .front import PublishingEngine, Router, binding, client_of, connecting, together, until
from .prompts import english
from .vllm_engine import MODEL

openai = pytest.importorskip("openai")

WAYS = ("the engines bind", "the engines connect")
DEVICE_BLOCKS = 256
"""Little enough that prompts push others out."""
CASES = 60
CONVERSATIONS, TURNS = 6, 8
AGREES = 0.95
LOAD_TOKENS = 48
GREEDY = {"model": MODEL, "temperature": 0, "extra_body": {"ignore_eos": True}}


@dataclass(frozen=True)
class Answer:
    """What a client got, and what it was told of the way there."""

    text: str
    worker: str
    prompt_tokens: int
    foretold: int
    found: int


@dataclass
class Tally:
    """All answers of one way of connecting, by what was asked."""

    answers: dict[str, list[Answer]] = field(default_factory=lambda: collections.defaultdict(list))

    def share(self, kind):
        """How many answers found what was foretold; and those that did not."""
        answers = self.answers[kind]
        misses = [answer for answer in answers if answer.foretold != answer.found]
        hits = sum(answer.found > 0 for answer in answers)
        print(f"{kind}: {len(answers) - len(misses)} of {len(answers)} as foretold, {hits} with a hit; not: {misses}")
        return 1 - len(misses) / len(answers)


@dataclass
class Front:
    """Engines, the router before them, and its client."""

    engines: dict[str, PublishingEngine]
    router: Router
    client: openai.OpenAI
    tally: Tally


def two_engines(folder, way):
    if way == WAYS[0]:
        return [PublishingEngine(folder, n, binding(f"kv-{n}")[0], device_blocks=DEVICE_BLOCKS) for n in "AB"]
    (port,) = free_ports(1)
    return [PublishingEngine(folder, n, connecting(f"kv-{n}", port), device_blocks=DEVICE_BLOCKS) for n in "AB"]


@pytest.fixture(scope="module", params=WAYS)
def front(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("front")
    engines = two_engines(folder, request.param)
    with contextlib.ExitStack() as stack:
        stack.enter_context(together(*engines))
        backends = [{**engine.backend, "calibrate": True} for engine in engines]
        router = stack.enter_context(Router(folder, backends))
        for engine in engines:
            router.becomes(engine.name, "exact")
            calibrated(router, engine)
        yield Front({engine.name: engine for engine in engines}, router, router.client, Tally())


def calibrated(router, engine):
    """Wait until the router has measured how quickly an engine computes."""
    until(lambda: router.worker(engine.name)["prefill_s"]["samples"] >= 2, "its speed is known", 60)


def asked(client, prompt, *, streams, tokens=12):
    """A prompt (a text, or a chat's messages) through the router."""
    where = client.completions if isinstance(prompt, str) else client.chat.completions
    what = {"prompt": prompt} if isinstance(prompt, str) else {"messages": prompt}
    options = {**GREEDY, "max_tokens": tokens, **what}
    if streams:
        options |= {"stream": True, "stream_options": {"include_usage": True}}
    raw = where.with_raw_response.create(**options)
    text, usage = read(raw.parse()) if streams else whole(raw.parse())
    told = raw.headers
    found = usage.prompt_tokens_details.cached_tokens
    return Answer(text, told["x-homing-worker"], usage.prompt_tokens, int(told["x-homing-prefix-tokens"]), found)


def said(choice):
    """The text of a choice, whole or in parts, of a chat or of a completion."""
    part = getattr(choice, "delta", None) or getattr(choice, "message", None)
    return (choice.text if part is None else part.content) or ""


def whole(answer):
    return said(answer.choices[0]), answer.usage


def read(stream):
    text, usage = "", None
    for chunk in stream:
        text += "".join(said(choice) for choice in chunk.choices)
        usage = chunk.usage or usage
    return text, usage


def directly(engine, prompt, tokens=12):
    """The same of the engine itself."""
    client = client_of(engine.url)
    if isinstance(prompt, str):
        return whole(client.completions.create(**GREEDY, prompt=prompt, max_tokens=tokens))[0]
    return whole(client.chat.completions.create(**GREEDY, messages=prompt, max_tokens=tokens))[0]


def user(text):
    return {"role": "user", "content": text}


def case(index):
    """A prompt that nobody has seen: of 5 to 700 words, every other one a chat."""
    words = [5, 40, 90, 160, 260, 700][index % 6] + index
    text = english(1000 + index, words)
    return text if index % 2 else [{"role": "system", "content": f"You are helper {index}."}, user(text)]


def test_the_same_text_as_the_engine_itself(front):
    """Streamed, whole and from the engine itself."""

    def ask(index):
        prompt = case(index)
        answers = [asked(front.client, prompt, streams=streams) for streams in (index % 4 < 2, index % 4 >= 2)]
        expected = directly(front.engines[answers[-1].worker], prompt)
        return answers, expected

    with ThreadPoolExecutor(2) as pool:
        for answers, expected in pool.map(ask, range(CASES)):
            front.tally.answers["prompts, twice each"] += answers
            assert [answer.text for answer in answers] == [expected] * 2
            assert expected
    assert {answer.worker for answer in front.tally.answers["prompts, twice each"]} == set(front.engines)
    assert front.tally.share("prompts, twice each") >= AGREES


def test_conversations_stay_with_their_cache(front):
    """Two turns at a time: with more, waiting for the cache may cost more than to compute elsewhere, and they move."""
    histories = [[user(english(2000 + number, 120))] for number in range(CONVERSATIONS)]
    ways = [[] for _ in histories]

    def turn(number):
        history, way = histories[number], ways[number]
        answer = asked(front.client, history, streams=len(way) % 2 == 0, tokens=24)
        way.append(answer)
        history += [{"role": "assistant", "content": answer.text}, user(english(3000 + 100 * number + len(way), 25))]

    with ThreadPoolExecutor(2) as pool:
        for _ in range(TURNS):
            list(pool.map(turn, random.sample(range(CONVERSATIONS), CONVERSATIONS)))
    front.tally.answers["turns"] += itertools.chain(*ways)
    assert front.tally.share("turns") >= AGREES
    print(f"turns are answered by {[''.join(answer.worker for answer in way) for way in ways]}")
    for way in ways:
        assert len({answer.worker for answer in way}) == 1, way
        for before, answer in itertools.pairwise(way):
            assert answer.found >= before.prompt_tokens // 32 * 32, (before, answer)
            if answer.foretold != answer.found:
                print(f"not as foretold after a prompt of {before.prompt_tokens} tokens and its answer: {answer}")
    assert {way[0].worker for way in ways} == set(front.engines)


def test_what_is_foretold_is_found_under_load(front):
    """Documents asked about again and again by many at once, and prompts that push them out."""
    dice = random.Random(7)
    documents = [english(4000 + number, dice.randrange(60, 260)) for number in range(10)]

    def ask(number):
        text = english(5000 + number, 20)
        prompt = text if number % 5 == 4 else f"{dice.choice(documents)} {text}"
        return asked(front.client, prompt if number % 2 else [user(prompt)], streams=number % 3 > 0, tokens=8)

    with ThreadPoolExecutor(4) as pool:
        front.tally.answers["load"] += pool.map(ask, range(120))
    front.tally.share("load")


def test_the_share_over_all(front):
    everything = list(itertools.chain(*front.tally.answers.values()))
    front.tally.answers["all"] = everything
    assert front.tally.share("all") >= AGREES
    hits = front.router.fleet()["prefix_hits"]
    print(hits)
    assert hits["compared"] == len(everything)
    assert hits["agreed"] == sum(answer.foretold == answer.found for answer in everything)


# -- an engine dies ----------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """How one request of the load ended."""

    streams: bool
    worker: str = ""
    has_begun: bool = False
    tokens: int = 0
    error: Exception | None = None
    ended_s: float = 0.0


def load(front, number, outcome):
    """One request of the load; what becomes of it is written down as it goes."""
    prompt = english(6000 + number, [20, 150, 450][number % 3])
    options = {**GREEDY, "prompt": prompt, "max_tokens": LOAD_TOKENS, "stream": outcome.streams}
    if outcome.streams:
        options["stream_options"] = {"include_usage": True}
    try:
        raw = front.client.completions.with_raw_response.create(**options)
        outcome.worker = raw.headers["x-homing-worker"]
        for part in raw.parse() if outcome.streams else [raw.parse()]:
            outcome.has_begun = True
            outcome.tokens = part.usage.completion_tokens if part.usage else 0
    except openai.OpenAIError as error:
        outcome.error = error
    outcome.ended_s = time.monotonic()


def test_an_engine_is_killed_under_load_and_comes_back(front):
    victim, router = front.engines["A"], front.router
    known = victim.name
    assert router.worker(known)["cached_blocks"]["device"] > 0
    numbers, stop = itertools.count(), threading.Event()
    outcomes = []

    def client():
        while not stop.is_set():
            number = next(numbers)
            outcome = Outcome(streams=number % 3 > 0)
            outcomes.append(outcome)
            load(front, number, outcome)

    def is_busy():
        """It has begun to answer some and not others, and the load is well under way."""
        begun = [each for each in outcomes if each.worker == known and each.has_begun and not each.ended_s]
        busy = router.worker(known)["running_requests"]
        return bool(begun) and busy >= len(begun) + 2 and sum(each.ended_s > 0 for each in outcomes) >= 10

    with ThreadPoolExecutor(10) as pool:
        clients = [pool.submit(client) for _ in range(10)]
        try:
            until(is_busy, "the load reached it", 120)
            killed_s = time.monotonic()
            victim.kill()
            until(lambda: router.worker(known) is None, "the index has forgotten it", 20)
            forgotten_s = time.monotonic() - killed_s
            until(lambda: sum(outcome.ended_s > killed_s for outcome in outcomes) >= 15, "the load went on", 120)
        finally:
            stop.set()
        for each in clients:
            each.result()
    broken = [outcome for outcome in outcomes if outcome.error is not None]
    retried = router.log.read_text().count("attempt failed")
    told = f"{len(broken)} streams broken, {retried} attempts failed; forgotten in {forgotten_s:.2f} s"
    print(f"{len(outcomes)} requests, {told}")
    assert all(outcome.streams and outcome.has_begun for outcome in broken), "what had no token yet must not fail"
    assert all(isinstance(outcome.error, openai.APIError) and "worker A" in str(outcome.error) for outcome in broken)
    assert broken and retried, "the engine died when nothing could be seen of it"
    assert all(outcome.tokens == LOAD_TOKENS for outcome in outcomes if outcome.error is None)
    comes_back(front, victim)


def comes_back(front, victim):
    """It is started again, joins with an empty cache, and is used."""
    router = front.router
    victim.start()
    joined_s = until(lambda: router.worker(victim.name) is not None, "it joined again", 20)
    router.becomes(victim.name, "exact")
    calibrated(router, victim)
    with ThreadPoolExecutor(12) as pool:
        prompts = [english(7000 + number, 90) for number in range(12)]
        first = list(pool.map(lambda prompt: asked(front.client, prompt, streams=True), prompts))
    again = [asked(front.client, prompt, streams=False) for prompt in prompts]
    used = collections.Counter(answer.worker for answer in first)
    print(f"joined {joined_s:.2f} s after it was healthy; then {dict(used)}")
    assert used[victim.name]
    assert all(answer.foretold == answer.found for answer in again), again
    assert any(answer.found for answer in again if answer.worker == victim.name)

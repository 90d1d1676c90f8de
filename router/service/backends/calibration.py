"""How quickly an engine computes prompts, measured when it joins: two prompts that nobody has cached, one token each.

Done where KV moves, since whether moving pays is a question of this speed, and elsewhere only when the file says so.
"""

import asyncio
import random
from typing import Final

import msgspec

from homing.router.core.events import LinkMeasured, PrefillMeasured
from homing.router.engines.types import EngineError

from ..door.upstream import UpstreamError
from ..door.usage import usage_in
from ..driver import Driver
from .endpoint import Endpoint
from .watch import Backend

WORDS: Final = (48, 768)
"""Lengths of the prompts, shorter where the model's context wants it."""
WORD_TOKENS_MAX: Final = 5
"""Four letters and a space, with the worst of tokenizers."""
_ALPHABET: Final = "abcdefghijklmnopqrstuvwxyz"


async def calibrate(backend: Backend, driver: Driver) -> None:
    """Measure the way to an engine, and, where that is wanted, every rank's speed; raises EngineError."""
    wanted = backend.section.calibrate
    for endpoint in backend.endpoints:
        way_s = await _way_s(endpoint)
        home = driver.scheduler.world.site
        if endpoint.site != home:
            driver.feed(LinkMeasured(source=home, target=endpoint.site, rtt_s=way_s))
        if wanted or (wanted is None and backend.actuator is not None):
            await _measure(endpoint, driver, way_s)


async def _measure(endpoint: Endpoint, driver: Driver, way_s: float) -> None:
    fits = max(1, driver.scheduler.models[endpoint.model].context_tokens // WORD_TOKENS_MAX - 1)
    await _prefill(endpoint, min(WORDS[0], fits))  # the first prompt of an engine is slower than all others
    for words in WORDS:
        tokens, seconds = await _prefill(endpoint, min(words, fits))
        driver.feed(
            PrefillMeasured(
                worker_id=endpoint.worker, cached_tokens=0, end_tokens=tokens, seconds=max(seconds - way_s, 1e-5)
            )
        )


async def _way_s(endpoint: Endpoint) -> float:
    try:
        return await endpoint.upstream.round_trip_s()
    except UpstreamError as error:
        raise EngineError(f"{endpoint.url}: {error}") from error


async def _prefill(endpoint: Endpoint, words: int) -> tuple[int, float]:
    """Tokens and seconds of one prompt."""
    dice = random.SystemRandom()
    text = " ".join("".join(dice.choices(_ALPHABET, k=4)) for _ in range(words))
    body = {"model": endpoint.model, "prompt": text, "max_tokens": 1, "temperature": 0, **endpoint.patch.body}
    headers = {"content-type": "application/json", **endpoint.headers, **endpoint.patch.headers}
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    parts: list[bytes] = []
    try:
        answer, head = await endpoint.upstream.ask("POST", "/v1/completions", headers, msgspec.json.encode(body))
        try:
            answer.take(parts.append)
            await answer.done()
        finally:
            endpoint.upstream.release(answer)
    except UpstreamError as error:
        raise EngineError(f"{endpoint.url}/v1/completions: {error}") from error
    took_s = loop.time() - began_s
    told = usage_in(b"".join(parts))
    if head.status != 200 or told is None or not told.prompt_tokens:
        raise EngineError(f"{endpoint.url}/v1/completions: answered {head.status} without telling the prompt's tokens")
    return told.prompt_tokens, took_s

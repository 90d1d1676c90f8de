"""A real Envoy, configured by `homing envoy-config`, in front of a real router's picks and live echo engines."""

import asyncio
import json
import sys
import tempfile
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from random import Random
from types import SimpleNamespace

import aiohttp
import pytest
import yaml
from typer.testing import CliRunner

from homing.router.cli.main import app
from homing.router.core.errors import ConfigError
from homing.router.core.types import Tier, Trust
from homing.router.service.config import parse_config
from homing.router.service.journal import DecisionJournal
from homing.router.service.process import RouterProcess
from homing.workers.echo.openai import EchoServer
from homing.workers.echo.settings import EchoSettings, KvEventSettings, StepTimes

from ..router.envoy.conftest import envoy, envoy_binary, listening_at, text_of
from ..router.envoy.test_gateway import subset, with_subset_header
from .cluster import eventually, run
from .doors import INSTANT, MODEL, SLOW, chat, running

QUICK = StepTimes(prefill_a_s=0.001, prefill_b_s=2e-5, decode_s=0)
KNOWN = ", prior: {a_s: 0.001, b_s: 2.0e-5, q_s: 0}"
"""QUICK, told to the router."""
MODES = pytest.mark.parametrize("mode", ["streamed", "buffered"])


def configured(*arguments):
    """What the command prints."""
    result = CliRunner().invoke(app, ["envoy-config", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


class Watched(EchoServer):
    """An engine that notes the headers of what it is asked."""

    def __init__(self, settings):
        super().__init__(settings)
        self.seen = []

    async def _answer(self, request, *, chat):
        self.seen.append(request.headers)
        return await super()._answer(request, chat=chat)


@asynccontextmanager
async def watched(count, **settings):
    settings = {"times": INSTANT, "model": MODEL, "kv_events": KvEventSettings(), **settings}
    async with AsyncExitStack() as stack:
        made = [Watched(EchoSettings(**settings)) for _ in range(count)]
        for engine in made:
            stack.push_async_callback(engine.close)
            await engine.start()
        yield made


def urls_of(engines):
    return [engine.url for engine in engines]


@asynccontextmanager
async def echo_process(*arguments):
    """An engine that can be killed; its URL and how."""
    told = [sys.executable, "-m", "homing.workers.echo", "--kv-events", *arguments]
    process = await asyncio.create_subprocess_exec(*told, stdout=asyncio.subprocess.PIPE)
    try:
        hello = json.loads(await asyncio.wait_for(process.stdout.readline(), 20))
        yield hello["url"], process.kill
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


class Site(SimpleNamespace):
    """Gateway (`url`), router (`process`, `journal`) and client."""

    async def post(self, body, headers=None, path="/v1/chat/completions"):
        async with self.client.post(self.url + path, json=body, headers=headers) as answer:
            told = await answer.read()
            is_json = answer.content_type == "application/json"
            return answer.status, json.loads(told) if is_json else told.decode(), answer.headers

    async def stream(self, body, headers=None):
        """Status, events, and whether the stream came to its end."""
        events = []
        try:
            async with self.client.post(f"{self.url}/v1/chat/completions", json=body, headers=headers) as answer:
                async for line in answer.content:
                    if line.startswith(b"data: "):
                        events.append(line[6:].strip())
                return answer.status, events, events[-1:] == [b"[DONE]"]
        except aiohttp.ClientPayloadError:
            return answer.status, events, False

    async def fleet(self):
        async with self.client.get(f"http://127.0.0.1:{self.process.http_port}/fleet") as answer:
            return await answer.json()

    def worker_of(self, request_id):
        """Where the router decided that a request goes."""
        (decision, _), *_ = self.journal.decisions(request_id)
        return decision.plan.decode

    async def assert_idle(self):
        """Nothing is booked, nothing waits, nothing is held."""
        scheduler, front = self.process.scheduler, self.process.front
        processor = front._ext_proc.processor
        await eventually(lambda: not processor.open_streams and not scheduler.in_flight, "every request has ended")
        assert len(scheduler.fleet.ledger) == len(scheduler.admission) == 0
        assert not processor._picker._held
        assert not self.process.driver._mailboxes
        assert not scheduler._attempts
        scheduler.check()
        told = await self.fleet()
        assert (told["requests_in_flight"], told["requests_waiting"]) == (0, 0)


@asynccontextmanager
async def fronted(*urls, router="", backend="", mode="streamed", tweak=lambda config: None):
    """Engines at these URLs, as e0, e1 and so on, behind Envoy."""
    envoy_binary()
    backends = ", ".join(f"{{url: '{url}', id: e{number}{backend}}}" for number, url in enumerate(urls))
    text = (
        "router: {ext_proc: '127.0.0.1:0', listen: '127.0.0.1:0', http: '127.0.0.1:0', poll_s: 0.1, "
        f"first_token_timeout_s: 10{router}}}\nbackends: [{backends}]"
    )
    process = RouterProcess(parse_config(text), lambda name: None)
    journal = DecisionJournal(2000)
    process.driver.observe(journal)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(process.close)
        await process.start()
        endpoints = [f"--endpoint={url.removeprefix('http://')}" for url in urls] or ["--endpoint=127.0.0.1:1"]
        ext_proc = f"--ext-proc=127.0.0.1:{process.front.ext_proc_port}"
        any_port = ("--listen=127.0.0.1:0", "--admin=127.0.0.1:0")
        config = yaml.safe_load(configured(ext_proc, *endpoints, *any_port, f"--body-mode={mode}"))
        tweak(config)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        await stack.enter_async_context(envoy(config, folder))
        client = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=30))
        )
        url = await listening_at(client, await text_of(folder / "admin"))
        await eventually(lambda: len(process.scheduler.fleet) == len(urls), "all engines have joined", 10)
        fleet = process.scheduler.fleet
        await eventually(lambda: all(state.trust is Trust.EXACT for state in fleet), "all caches are known", 10)
        site = Site(process=process, journal=journal, client=client, url=url)
        yield site
        await site.assert_idle()


def conversations(seed, count, turns):
    """A system's message and a user's, by conversation: of five openings, then a long text, then short questions."""
    dice = Random(seed)
    openings = [dice.randbytes(150).hex() for _ in range(5)]
    for number in range(count):
        yield openings[number % 5], [dice.randbytes(size).hex() for size in (500, *[20] * (turns - 1))]


# -- where requests go -------------------------------------------------------------------------------------------------


class Conversation:
    """Asks turn by turn; `turns` are the ids of its requests with the usage that the engine told."""

    def __init__(self, site, name, opening):
        self.site, self.name = site, name
        self.messages = [{"role": "system", "content": opening}]
        self.turns = []

    async def ask(self, text):
        self.messages.append({"role": "user", "content": text})
        request_id = f"{self.name}.{len(self.turns)}"
        body = {"model": MODEL, "messages": self.messages, "max_tokens": 8}
        status, told, _ = await self.site.post(body, {"x-request-id": request_id})
        assert (status, told["choices"][0]["message"]["content"]) == (200, text[:8])
        self.messages.append({"role": "assistant", "content": text[:8]})
        self.turns.append((request_id, told["usage"]["prompt_tokens_details"]["cached_tokens"]))


def landed_where_picked(site, engines):
    """Engines by request, after a check that each is the one that was decided on."""
    landed = {}
    for number, engine in enumerate(engines):
        for headers in engine.seen:
            request_id = headers["x-request-id"]
            landed[request_id] = f"e{number}"
            assert site.worker_of(request_id) == headers["x-homing-worker"] == f"e{number}"
            assert headers["x-gateway-destination-endpoint"].split(",")[0] == engine.url.removeprefix("http://")
    assert len(landed) == sum(len(engine.seen) for engine in engines)
    return landed


@MODES
def test_requests_go_where_homing_picked(mode):
    count, turns = (125, 8) if mode == "streamed" else (10, 8)

    async def scenario():
        async with watched(3, times=QUICK) as engines, fronted(*urls_of(engines), backend=KNOWN, mode=mode) as site:
            slots = asyncio.Semaphore(16)

            async def converse(number, opening, asked):
                async with slots:
                    for text in asked:
                        await conversation[number].ask(text)

            told = list(conversations(1, count, turns))
            conversation = [Conversation(site, f"c{number}", opening) for number, (opening, _) in enumerate(told)]
            await asyncio.gather(*(converse(number, *each) for number, each in enumerate(told)))
            landed = landed_where_picked(site, engines)
            assert len(landed) == count * turns
            assert len(Counter(landed.values())) == 3

    run(scenario())


def test_a_conversation_goes_where_its_cache_is():
    """They begin together and spread; then they take turns, so that nobody has to give way."""

    async def scenario():
        async with watched(3, times=QUICK) as engines, fronted(*urls_of(engines), backend=KNOWN) as site:
            scheduler = site.process.scheduler

            def all_is_known():
                told = [scheduler.index[Tier.DEVICE].blocks_of(scheduler.fleet.get(f"e{n}").bit) for n in range(3)]
                return told == [len(engine._writer._digests) for engine in engines]

            told = list(conversations(2, 12, 6))
            conversation = [Conversation(site, f"c{number}", opening) for number, (opening, _) in enumerate(told)]
            await asyncio.gather(*(conversation[number].ask(asked[0]) for number, (_, asked) in enumerate(told)))
            for turn in range(1, 6):
                for number, (_, asked) in enumerate(told):
                    await eventually(all_is_known, "the router knows what is cached")
                    await conversation[number].ask(asked[turn])
            landed = landed_where_picked(site, engines)
            for each in conversation:
                assert len({landed[name] for name, _ in each.turns}) == 1
                for name, cached_tokens in each.turns[1:]:
                    assert site.journal.decisions(name)[0][0].plan.estimate.hit_tokens == cached_tokens > 1000
            assert len(set(landed.values())) == 3

    run(scenario())


def test_a_subset_hint_is_honoured_by_the_decision():
    async def scenario():
        async with watched(3) as engines:
            urls = [engine.url for engine in engines]
            async with fronted(*urls, tweak=with_subset_header) as site:
                addresses = [url.removeprefix("http://") for url in urls]
                text = "x" * 400
                assert (await site.post(chat(text)))[0] == 200
                await eventually(lambda: any(engine.seen for engine in engines), "it was answered")
                warm = next(number for number, engine in enumerate(engines) if engine.seen)
                for number, address in enumerate(addresses):
                    before = len(engines[number].seen)
                    assert (await site.post(chat(text), subset(address)))[0] == 200
                    assert len(engines[number].seen) == before + 1, "although the cache is elsewhere"
                    seen = engines[number].seen[-1]
                    assert (seen["x-homing-worker"], seen["x-gateway-destination-endpoint"]) == (f"e{number}", address)
                others = [each for number, each in enumerate(addresses) if number != warm]
                assert (await site.post(chat("y" * 400), subset(*others)))[0] == 200
                for hint in (subset(), subset("10.0.0.1:1")):
                    status, told, _ = await site.post(chat(text), hint)
                    assert (status, told["error"]["type"]) == (503, "service_unavailable")

    run(scenario())


def test_two_requests_of_one_id_are_two():
    async def scenario():
        async with watched(2, times=SLOW) as engines, fronted(*urls_of(engines)) as site:
            same = {"x-request-id": "same"}
            asked = [site.post(chat(f"{number} {'z' * 20}"), same) for number in range(6)]
            answers = await asyncio.gather(*asked, site.client.get(f"{site.url}/v1/models", headers=same))
            assert [answer[0] for answer in answers[:6]] == [200] * 6
            answers[6].release()
            seen = [headers["x-request-id"] for engine in engines for headers in engine.seen]
            assert len(set(seen)) == 6
            assert all(each.partition("~")[0] == "same" for each in seen)

    run(scenario())


# -- when engines fail -------------------------------------------------------------------------------------------------


def test_an_engine_that_is_killed_fails_no_request_that_had_no_token():
    async def scenario():
        async with AsyncExitStack() as stack:
            engines = await stack.enter_async_context(watched(2, times=SLOW))
            doomed, kill = await stack.enter_async_context(echo_process("--decode-s=0.1"))
            site = await stack.enter_async_context(fronted(doomed, *urls_of(engines)))
            dice = Random(2)
            texts = [dice.randbytes(60).hex() for _ in range(90)]
            asked = [
                asyncio.create_task(site.post(chat(text, max_tokens=40), {"x-request-id": f"w{number}"}))
                for number, text in enumerate(texts)
            ]
            streamed = [asyncio.create_task(site.stream(chat(text, stream=True, max_tokens=40))) for text in texts]

            def at_the_doomed():
                names = [f"w{number}" for number in range(len(texts))]
                there = [name for name in names if site.process.scheduler.knows(name) and site.journal.decisions(name)]
                return [name for name in there if site.worker_of(name) == "e0"]

            await eventually(lambda: len(at_the_doomed()) >= 10, "it has much to do", 15)
            await asyncio.sleep(0.5)  # streams begin; none ends, at a token per 0.1 s
            kill()
            whole = await asyncio.gather(*asked)
            parts = await asyncio.gather(*streamed)
            assert [status for status, _, _ in whole] == [200] * len(texts)
            for text, (_, told, _) in zip(texts, whole, strict=True):
                assert told["choices"][0]["message"]["content"] == text[:40]
            picked = sum(site.worker_of(f"w{number}") == "e0" for number in range(len(texts)))
            seen = sum(headers["x-request-id"].startswith("w") for engine in engines for headers in engine.seen)
            assert picked >= 10
            assert len(texts) - picked < seen <= len(texts), "the others answered in its place"
            broken = [events for _, events, is_whole in parts if not is_whole]
            assert all(events for events in broken), "whoever had no token was answered elsewhere"
            assert {status for status, _, _ in parts} == {200}
            await eventually(lambda: len(site.process.scheduler.fleet) == 2, "it is out of the fleet")
            assert (await site.post(chat("after")))[0] == 200
            told = await site.fleet()
            assert sorted(worker["id"] for worker in told["workers"]) == ["e1", "e2"]

    run(scenario())


def test_without_an_engine_there_is_503_and_with_one_an_answer():
    async def scenario():
        async with fronted() as site:
            status, told, headers = await site.post(chat("hello"))
            assert (status, told["error"]["type"], headers["retry-after"]) == (503, "service_unavailable", "1")
        async with watched(1) as (engine,), fronted(engine.url) as site:
            assert (await site.post(chat("hello")))[0] == 200
            status, told, _ = await site.post({**chat("hello"), "model": "other"})
            assert (status, told["error"]["message"]) == (404, "model: no model 'other'; known are echo")
            await engine.close()
            assert (await site.post(chat("hello")))[0] == 503
            await eventually(lambda: not len(site.process.scheduler.fleet), "it is out of the fleet")
            status, told, headers = await site.post(chat("hello"))
            assert (status, headers["retry-after"]) == (503, "1")
            assert told["error"]["message"] == "no engine serves echo at the moment"

    run(scenario())


def test_a_full_queue_is_429_and_who_leaves_it_leaves_nothing():
    async def scenario():
        limits = {"router": ", queue_max: 2", "backend": ", requests_max: 1"}
        async with watched(1, times=SLOW) as (engine,), fronted(engine.url, **limits) as site:
            scheduler = site.process.scheduler
            first = asyncio.create_task(site.stream(chat("a" * 300, stream=True, max_tokens=300)))
            await eventually(lambda: running(engine) == 1, "the first is answered")
            waiting = [asyncio.create_task(site.post(chat(f"b{number}"))) for number in range(2)]
            await eventually(lambda: len(scheduler.admission) == 2, "two wait")
            status, told, headers = await site.post(chat("c"))
            assert (status, told["error"]["type"]) == (429, "rate_limit_exceeded")
            assert int(headers["retry-after"]) >= 1
            waiting[0].cancel()
            await eventually(lambda: len(scheduler.admission) == 1, "one has left")
            assert (await site.fleet())["requests_waiting"] == 1
            first.cancel()
            assert (await waiting[1])[0] == 200, "who leaves while it is answered makes room"
            await eventually(lambda: engine.engine.counts.cancelled == 1, "the engine heard of it")

    run(scenario())


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [["--format", "json"], ["--body-mode", "buffered"], ["--listen", "[::1]:0"]])
def test_what_the_command_prints_is_valid_to_envoy(more, tmp_path):
    engines = configured("--for-file", "-e", "10.0.0.1:8000", "-e", "[fd00::1]:8000", "--format", "json")
    (tmp_path / "engines.json").write_text(engines)
    for name, where in (
        ("static", "--endpoint=10.0.0.1:8000"),
        ("file", f"--endpoints-file={tmp_path / 'engines.json'}"),
    ):
        path = tmp_path / f"{name}.{'json' if 'json' in more else 'yaml'}"
        path.write_text(configured("--ext-proc", "router.example:9002", where, *more))
        asyncio.run(validate(path))


async def validate(path):
    arguments = ["--mode", "validate", "-c", path, "-l", "error"]
    process = await asyncio.create_subprocess_exec(
        envoy_binary(), *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    told, _ = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 0, told.decode()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--ext-proc: missing; give the HOST:PORT of the router's ext_proc"),
        (["--ext-proc", "router"], "--ext-proc: expected HOST:PORT, got 'router'; end it with a port of 1 to 65535"),
        (["--ext-proc", "http://r:1"], "got 'http://r:1'; leave out the scheme and the path"),
        (["--ext-proc", "r:1"], "got neither"),
        (["--ext-proc", "r:1", "-e", "10.0.0.1:1", "--endpoints-file", "f"], "got both"),
        (["--ext-proc", "r:1", "-e", "engine:1"], "--endpoint: expected IP:PORT or .*Envoy takes no names there"),
        (["--ext-proc", "r:1", "-e", "10.0.0.1:0"], "end it with a port of 1 to 65535"),
        (["--ext-proc", "r:1", "-e", "::1:80"], "brackets go around IPv6 addresses"),
        (["--ext-proc", "r:1", "-e", "10.0.0.1:1", "-e", "10.0.0.1:1"], "10.0.0.1:1 is given twice"),
        (["--ext-proc", "r:1", "-e", "10.0.0.1:1", "--listen", "x"], "--listen: expected IP:PORT"),
        (["--ext-proc", "r:1", "-e", "10.0.0.1:1", "--body-mode", "none"], "--body-mode: expected streamed or buf"),
        (["--ext-proc", "r:1", "-e", "10.0.0.1:1", "--format", "xml"], "--format: expected yaml or json, got 'xml'"),
        (["--for-file", "--endpoints-file", "f"], "leave out --endpoints-file, and redirect to it"),
    ],
)
def test_errors_name_the_flag_the_rule_and_the_fix(arguments, says):
    with pytest.raises(ConfigError, match=says):
        configured(*arguments)

"""Engines that come and go: by the operator's hand, by the file, and by themselves."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from urllib.parse import quote

import aiohttp
import msgspec
import pytest

from homing.router.core.errors import ConfigError
from homing.router.service.config import parse_config

from .cluster import eventually, run
from .doors import MODEL, SLOW, chat, engines, fronted, opened, running


async def serving(system, name):
    async def serves():
        _, told, _ = await system.operate("GET", f"/workers/{quote(name, safe='')}")
        return told.get("status") == "serving"

    for _ in range(500):
        if await serves():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{name} never served")


def reloaded(system, backends, **router):
    """The file's new form."""
    data = msgspec.to_builtins(system.process._config) | {"backends": backends}
    data["router"] |= router
    system.process.apply(parse_config(json.dumps(data)))


# -- the operator's hand -----------------------------------------------------------------------------------------------


def test_a_worker_is_added_used_and_removed():
    async def scenario():
        async with engines(2) as (first, second), opened(first.url) as system:
            status, told, headers = await system.operate("POST", "/workers", {"url": second.url, "id": "rack/2"})
            assert (status, told["status"]) == (202, "looking")
            assert headers["location"] == "/workers/rack%2F2"
            await serving(system, "rack/2")
            _, told, _ = await system.operate("GET", headers["location"])
            assert told["engine"] == "vllm"
            assert told["models"] == [MODEL]
            assert [worker["id"] for worker in told["workers"]] == ["rack/2"]
            _, told, _ = await system.operate("GET", "/workers")
            assert [worker["id"] for worker in told["workers"]] == ["e0", "rack/2"]
            assert (await system.operate("POST", "/workers", {"url": second.url, "id": "rack/2"}))[0] == 409
            assert (await system.operate("DELETE", "/workers/e0"))[0] == 202
            await system.joined(1)
            status, _, headers = await system.chat("who is there?")
            assert (status, headers["x-homing-worker"]) == (200, "rack/2")
            assert (await system.operate("DELETE", "/workers/e0"))[0] == 404
            status, told, _ = await system.operate("GET", "/workers/e0")
            assert status == 404
            assert "rack/2" in told["error"]["message"]
            status, told, _ = await system.operate("GET", "/fleet")
            assert [worker["id"] for worker in told["workers"]] == ["rack/2"]

    run(scenario())


def test_a_removed_engine_ends_what_it_does():
    async def scenario():
        async with fronted(2, times=SLOW) as system:
            body = {"stream": True, "ignore_eos": True, "max_tokens": 60}
            asking = [asyncio.ensure_future(system.chat("x", **body)) for _ in range(4)]
            await eventually(lambda: all(running(engine) for engine in system.engines), "both work")
            assert (await system.operate("DELETE", "/workers/e0"))[0] == 202
            for _ in range(3):
                assert (await system.chat("y"))[2]["x-homing-worker"] == "e1"
            for status, told, _ in await asyncio.gather(*asking):
                assert status == 200
                assert told.endswith("data: [DONE]\n\n")
                assert "error" not in told
            await system.joined(1)

    run(scenario())


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not JSON"),
        (b'"\xff"', "not JSON"),
        (b"[" * 10_000, "not JSON"),
        (b"[]", "object"),
        (b"{}", "url"),
        (b'{"url":"ftp://a"}', "url"),
        (b'{"url":"http://"}', "url"),
        (b'{"url":7}', "url"),
        (b'{"url":"http://127.0.0.1:99999"}', "url"),
        (b'{"url":"http://[::1"}', "url"),
        (b'{"url":"http://127.0.0.1:1","colour":"red"}', "colour"),
        (b'{"url":"http://127.0.0.1:1","role":"prefill"}', "connector"),
        (b'{"url":"http://127.0.0.1:1","api_key_env":"NO_SUCH_KEY_IN_HERE"}', "NO_SUCH_KEY_IN_HERE"),
        (b'{"url":"http://127.0.0.1:1","connector":{"name":"magic"}}', "magic"),
    ],
    ids=range(14),
)
def test_a_worker_that_cannot_be_is_refused(body, says):
    async def scenario():
        async with opened() as system:
            status, told, _ = await system.operate("POST", "/workers", body)
            assert status == 400, told
            assert says in told["error"]["message"]
            assert (await system.operate("GET", "/workers"))[1] == {"workers": []}

    run(scenario())


def test_a_key_in_a_url_is_told_to_nobody():
    async def scenario():
        async with opened() as system:
            url = "http://me:secret@127.0.0.1:1"
            await system.operate("POST", "/workers", {"url": url})
            for path in ("/workers", "/fleet", "/metrics"):
                _, told, _ = await system.operate("GET", path)
                assert "secret" not in str(told), path

    run(scenario())


def test_what_is_not_there_is_looked_for_until_it_is():
    async def scenario():
        async with engines(1) as (engine,):
            url = engine.url
        async with opened() as system:
            await system.operate("POST", "/workers", {"url": url, "id": "late"})
            _, told, _ = await system.operate("GET", "/workers/late")
            assert told["status"] == "looking"
            await asyncio.sleep(0.05)
            _, told, _ = await system.operate("GET", "/workers/late")
            assert "connect" in told["problem"].lower()
            async with engines(1, port=int(url.rpartition(":")[2])):
                await serving(system, "late")
                assert (await system.chat("x"))[0] == 200

    run(scenario())


def test_one_name_removed_and_added_again_and_again():
    """Each waits until the one before it has left: never are there two of one name."""

    async def scenario():
        async with fronted(1, times=SLOW) as system:
            (engine,) = system.engines
            asking = asyncio.ensure_future(system.chat("x", ignore_eos=True, max_tokens=80))
            await eventually(lambda: running(engine) == 1, "it works")
            for _ in range(3):
                assert (await system.operate("DELETE", "/workers/e0"))[0] == 202
                status, _, _ = await system.operate("POST", "/workers", {"url": engine.url, "id": "e0"})
                assert status == 202
            await asyncio.sleep(0.2)
            assert not asking.done()
            _, told, _ = await system.operate("GET", "/workers/e0")
            assert told["status"] == "looking"
            assert (await asking)[0] == 200
            await serving(system, "e0")
            assert (await system.chat("again"))[0] == 200

    run(scenario())


def test_coming_and_going_leaves_nothing_behind():
    async def scenario():
        async with fronted(1) as system:
            (engine,) = system.engines
            counts = []
            for _ in range(6):
                assert (await system.chat("x"))[0] == 200
                await system.operate("DELETE", "/workers/e0")
                await system.joined(0)
                await system.operate("POST", "/workers", {"url": engine.url, "id": "e0"})
                await serving(system, "e0")
                await asyncio.sleep(0.1)
                counts.append(len(asyncio.all_tasks()))
            assert counts[-1] <= counts[1] + 1, counts

    run(scenario())


# -- the file ----------------------------------------------------------------------------------------------------------


def test_the_file_is_taken_anew_while_requests_run():
    async def scenario():
        async with engines(3, times=SLOW) as (one, two, three), opened(one.url) as system:
            asking = asyncio.ensure_future(system.chat("x", stream=True, ignore_eos=True, max_tokens=60))
            await eventually(lambda: running(one) == 1, "it works")
            await system.operate("POST", "/workers", {"url": three.url, "id": "by-hand"})
            await serving(system, "by-hand")
            reloaded(system, [{"url": two.url, "id": "e1"}])
            await serving(system, "e1")
            status, told, _ = await asking
            assert status == 200
            assert told.endswith("data: [DONE]\n\n")
            await system.joined(2)
            _, told, _ = await system.operate("GET", "/workers")
            assert sorted(worker["id"] for worker in told["workers"]) == ["by-hand", "e1"]
            reloaded(system, [{"url": two.url, "id": "e1", "requests_max": 7}])
            await eventually(
                lambda: (state := system.scheduler.fleet.get("e1")) and state.worker.requests_max == 7, "it changed"
            )
            assert (await system.chat("x"))[0] == 200
            with pytest.raises(ConfigError, match="magic"):
                reloaded(system, [{"url": one.url, "id": "e9", "connector": {"name": "magic"}}])
            assert len(system.scheduler.fleet) == 2

    run(scenario())


# -- processes ---------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def process(*arguments):
    made = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield made
    finally:
        with contextlib.suppress(ProcessLookupError):
            made.kill()
        await made.communicate()


@contextlib.asynccontextmanager
async def echo_process(*arguments):
    async with process("homing.workers.echo", "--model", MODEL, "--decode-s", "0.01", *arguments) as made:
        yield made, json.loads(await asyncio.wait_for(made.stdout.readline(), 30))["url"]


def test_an_engine_that_is_killed_costs_no_request_that_had_no_token():
    """SIGKILL: nothing is said, the kernel closes what was open."""

    async def scenario():
        async with (
            engines(1, times=SLOW) as (lasting,),
            echo_process() as (dying, url),
            opened(lasting.url, url) as system,
        ):
            asking = [
                asyncio.ensure_future(system.chat(f"{number} of many words to be said again", stream=number % 2 == 0))
                for number in range(40)
            ]
            await asyncio.sleep(0.15)
            dying.kill()
            begun = 0
            for status, told, _ in await asyncio.gather(*asking):
                assert status == 200, told
                if isinstance(told, str) and not told.endswith("data: [DONE]\n\n"):
                    assert '"code":"stream_broken"' in told.rstrip().rpartition("\n")[2]
                    begun += 1
            assert begun < 30
            await system.joined(1)

    run(scenario())


def test_the_command_follows_its_file(tmp_path):
    async def scenario():
        path = tmp_path / "homing.yaml"

        def write(*backends):
            told = [{"url": engine.url, "id": name} for name, engine in backends]
            section = {
                "door": "127.0.0.1:0",
                "listen": "127.0.0.1:0",
                "http": "127.0.0.1:0",
                "poll_s": 0.1,
                "log": "json",
            }
            path.write_text(json.dumps({"router": section, "backends": told}))

        async with engines(2) as (one, two), aiohttp.ClientSession() as session:
            write(("one", one))
            async with process("homing.router.cli.main", "serve", "--config", str(path)) as router:
                log = []

                async def said(words):
                    while not any(words in line for line in log):
                        log.append((await asyncio.wait_for(router.stderr.readline(), 15)).decode())
                        assert log[-1], log
                    return next(line for line in log if words in line)

                door = (await said("the door is open")).partition("http://")[2].split('"')[0]
                await said("backend one")

                async def worker():
                    async with session.post(f"http://{door}/v1/chat/completions", json=chat("x")) as answer:
                        return answer.headers["x-homing-worker"]

                assert await worker() == "one"
                write(("two", two))
                router.send_signal(signal.SIGHUP)
                await said("backend two")
                assert await worker() == "two"
                write(("one", one))
                os.utime(path, ns=(1, 1))
                await said("added: one")
                path.write_text("backends: 7")
                await said("not taken")
                assert await worker() in {"one", "two"}
                router.terminate()
                assert await asyncio.wait_for(router.wait(), 10) == 0

    run(scenario())

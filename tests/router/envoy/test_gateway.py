"""The endpoint picker behind a real Envoy."""

import asyncio
import hashlib
import json
from base64 import b64encode
from random import Random

import aiohttp
import pytest
from google.protobuf.struct_pb2 import ListValue, Value

from homing.router.envoy.bootstrap import BodyMode, discovery
from homing.router.envoy.service import Limits

REQUESTS = 1000
MODES = pytest.mark.parametrize("mode", list(BodyMode))
SUBSET_FILTER = {
    "name": "envoy.filters.http.header_to_metadata",
    "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.header_to_metadata.v3.Config",
        "request_rules": [
            {
                "header": "x-subset",
                "remove": True,
                "on_header_present": {
                    "metadata_namespace": "envoy.lb.subset_hint",
                    "key": "x-gateway-destination-endpoint-subset",
                    "type": "PROTOBUF_VALUE",
                    "encode": "BASE64",
                },
            }
        ],
    },
}


def manager(config):
    return config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]


def with_subset_header(config):
    manager(config)["http_filters"].insert(0, SUBSET_FILTER)


def with_response_bodies(config):
    manager(config)["http_filters"][0]["typed_config"]["processing_mode"]["response_body_mode"] = "FULL_DUPLEX_STREAMED"


def subset(*endpoints):
    hint = Value(list_value=ListValue(values=[Value(string_value=endpoint) for endpoint in endpoints]))
    return {"x-subset": b64encode(hint.SerializeToString()).decode()}


def bodies(seed):
    """Chat requests: most of 500 bytes, one in twenty of 200 kB, one in ten streams its answer."""
    dice = Random(seed)
    for number in range(REQUESTS):
        length = 200_000 if number % 20 == 7 else 500
        wish = {"stream": number % 10 == 3, "events": 3, "messages": dice.randbytes(length // 2).hex()}
        yield json.dumps(wish).encode()


@MODES
def test_a_thousand_requests_land_where_the_picker_said(site, mode):
    async def scenario():
        async with site(mode) as here:
            slots = asyncio.Semaphore(48)

            async def ask(body):
                async with slots:
                    status, _, answer = await here.post(body)
                text = answer.decode().removeprefix("data: ").partition("\n")[0]
                assert not json.loads(body)["stream"] or answer.endswith(b"data: [DONE]\n\n")
                expected = {"endpoint": here.picker.order(body)[0], "sha256": hashlib.sha256(body).hexdigest()}
                return status == 200 and json.loads(text) == expected

            assert sum(await asyncio.gather(*(ask(body) for body in bodies(1)))) == REQUESTS
            await here.settled()
            ledger = here.picker.ledger
            assert len(ledger.ended) == len(ledger.served) == REQUESTS
            assert all(endpoint == pick.endpoints[0] and status == 200 for pick, endpoint, status in ledger.served)
            assert not any(ledger.ended.values())
            assert all(min(len(engine.seen), 250) == 250 for engine in here.engines)
            headers = here.engines[0].seen[0][1]
            assert headers["x-homing-plan"] == "local"
            assert headers["x-gateway-destination-endpoint"].split(",")[0] == here.engines[0].endpoint

    asyncio.run(scenario())


@MODES
def test_the_next_endpoint_answers_for_a_dead_one(site, mode):
    async def scenario():
        async with site(mode) as here:
            dead = here.engines[1]
            await asyncio.gather(*(here.post({"number": number}) for number in range(20)))
            await dead.stop()
            wishes = [
                json.dumps({"number": number, "text": "x" * 3000 * (number % 40)}).encode() for number in range(120)
            ]
            answers = await asyncio.gather(*(here.post(wish) for wish in wishes))
            await here.settled()
            moved = 0
            for wish, (status, _, answer) in zip(wishes, answers, strict=True):
                order = here.picker.order(wish)
                moved += order[0] == dead.endpoint
                alive = next(endpoint for endpoint in order if endpoint != dead.endpoint)
                said = json.loads(answer)
                assert (status, said["endpoint"], said["sha256"]) == (200, alive, hashlib.sha256(wish).hexdigest())
            assert moved > 20
            assert all(endpoint != dead.endpoint for _, endpoint, _ in here.picker.ledger.served[-120:])

            alone = next(w for w in ({"endpoints": 1, "n": n} for n in range(99)) if first(here, w) == dead.endpoint)
            assert (await here.post(alone))[0] == 503, "no endpoint but the picked ones may answer"

    asyncio.run(scenario())


def first(here, wish):
    return here.picker.order(json.dumps(wish).encode())[0]


@MODES
def test_an_engine_that_dies_over_a_request_hands_it_to_the_next(site, mode):
    async def scenario():
        async with site(mode) as here:
            wish = json.dumps({"prompt": "y" * 100_000}).encode()
            chosen, next_one, _ = (engine_at(here, endpoint) for endpoint in here.picker.order(wish))
            chosen.aborts = 1
            status, _, answer = await here.post(wish)
            assert (status, json.loads(answer)["endpoint"]) == (200, next_one.endpoint)
            assert [seen[2] for seen in chosen.seen] == [seen[2] for seen in next_one.seen] == [wish]
            await here.settled()
            assert here.picker.ledger.served[0][1] == next_one.endpoint

    asyncio.run(scenario())


def engine_at(here, endpoint):
    return next(engine for engine in here.engines if engine.endpoint == endpoint)


@MODES
def test_refusals_reach_the_client_as_openai_errors(site, mode):
    async def scenario():
        async with site(mode, Limits(body_bytes_max=300_000)) as here:
            cases = [
                ({"refuse": 429, "retry_after_s": 2.5}, 429, "rate_limit_exceeded"),
                ({"refuse": 503}, 503, "service_unavailable"),
                (b"{broken", 400, "invalid_request_error"),
                ({"bug": True}, 500, "server_error"),
                ({"text": "x" * 300_000}, 413, "invalid_request_error"),
            ]
            for body, status, kind in cases:
                got, headers, answer = await here.post(body)
                error = json.loads(answer)["error"]
                assert (got, error["type"], error["code"]) == (status, kind, status)
                assert headers["content-type"] == "application/json"
                assert headers.get("retry-after") == ("3" if status == 429 else None)
                assert error["message"]
            await here.settled()
            assert not any(engine.seen for engine in here.engines)

    asyncio.run(scenario())


@MODES
def test_a_subset_hint_limits_the_choice(site, mode):
    async def scenario():
        async with site(mode, tweak=with_subset_header) as here:
            endpoints = [engine.endpoint for engine in here.engines]
            for number in range(12):
                wish = {"number": number}
                allowed = endpoints[number % 3 :][:2]
                status, _, answer = await here.post(wish, headers=subset(*allowed))
                order = here.picker.order(json.dumps(wish).encode())
                assert (status, json.loads(answer)["endpoint"]) == (200, next(e for e in order if e in allowed))
            assert (await here.post({"n": 1}, headers=subset()))[0] == 503
            assert (await here.post({"n": 1}, headers=subset("10.0.0.1:1")))[0] == 503
            await here.settled()

    asyncio.run(scenario())


@MODES
def test_what_is_no_inference_goes_anywhere_and_clients_cannot_choose(site, mode):
    async def scenario():
        async with site(mode) as here:
            async with here.client.get(here.url + "/v1/models?limit=1") as response:
                assert response.status == 200
                assert (await response.json())["endpoint"] in here.picker.endpoints
            wish = {"n": 1}
            forged = next(e for e in here.picker.endpoints if e != first(here, wish))
            _, _, answer = await here.post(wish, headers={"x-gateway-destination-endpoint": forged})
            assert json.loads(answer)["endpoint"] == first(here, wish)
            _, headers, _ = engine_at(here, first(here, wish)).seen[-1]
            order = here.picker.order(json.dumps(wish).encode())
            assert headers.getall("x-gateway-destination-endpoint") == [",".join(order)]
            await here.settled()

    asyncio.run(scenario())


@MODES
@pytest.mark.parametrize("length", [2, 150_000])
def test_a_replaced_body_is_what_the_engine_gets(site, mode, length):
    async def scenario():
        async with site(mode) as here:
            status, _, answer = await here.post({"replace": "z" * length})
            sent = json.dumps({"kv_transfer_params": "z" * length}).encode()
            assert (status, json.loads(answer)["sha256"]) == (200, hashlib.sha256(sent).hexdigest())

    asyncio.run(scenario())


@MODES
def test_a_client_that_leaves_takes_its_request_along(site, mode):
    async def scenario():
        async with site(mode) as here:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(here.post({"wait_s": 60}), 0.3)
            await here.settled()
            assert here.picker.cancelled_picks == 1
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(here.post({"stream": True, "events": 1000, "pause_s": 0.05}), 0.3)
            await here.settled()
            assert list(here.picker.ledger.ended.values()) == [True]

    asyncio.run(scenario())


def test_an_engine_that_breaks_off_is_told_from_one_that_finishes(site):
    async def scenario():
        async with site() as here:
            await here.post({"stream": True, "events": 3})
            with pytest.raises(aiohttp.ClientPayloadError):
                await here.post({"stream": True, "events": 3, "pause_s": 0.03, "breaks": True})
            await here.post({"stream": True, "events": 3})
            await here.settled()
            assert list(here.picker.ledger.ended.values()) == [False, True, False]

    asyncio.run(scenario())


def test_a_gateway_that_shows_response_bodies_shows_their_end(site):
    async def scenario():
        async with site(tweak=with_response_bodies) as here:
            _, _, whole = await here.post({"stream": True, "events": 200})
            assert whole.count(b"data: ") == 201
            await here.settled()
            assert list(here.picker.ledger.ended.values()) == [False]
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(here.post({"stream": True, "events": 1000, "pause_s": 0.05}), 0.3)
            await here.settled()
            assert list(here.picker.ledger.ended.values()) == [False, True]

    asyncio.run(scenario())


def test_engines_that_come_later_are_read_from_a_file(site, tmp_path):
    def write(endpoints):
        (tmp_path / "new").write_text(json.dumps(discovery(endpoints)))
        (tmp_path / "new").rename(tmp_path / "engines.json")

    async def scenario():
        write(["127.0.0.1:1"])
        async with site(file=tmp_path / "engines.json") as here:
            assert (await here.post({"n": 1}))[0] == 503
            write(here.picker.endpoints)
            async with asyncio.timeout(10):
                while (answer := await here.post({"n": 1}))[0] != 200:
                    await asyncio.sleep(0.05)
            assert json.loads(answer[2])["endpoint"] == first(here, {"n": 1})

    asyncio.run(scenario())


def test_time_outs_and_bounds_answer(site):
    async def scenario():
        limits = Limits(streams_max=1, pick_timeout_s=0.3, body_timeout_s=0.3)
        async with site(limits=limits) as here:
            waiting = asyncio.create_task(here.post({"wait_s": 60}))
            while not here.server.processor.open_streams:
                await asyncio.sleep(0.01)
            assert (await here.post({"n": 1}))[0] == 503
            status, headers, _ = await waiting
            assert (status, headers["retry-after"], here.picker.cancelled_picks) == (503, "1", 1)

            async def slowly():
                yield b"{"
                await asyncio.sleep(1.0)
                yield b"}"

            async with here.client.post(here.url + "/v1/completions", data=slowly()) as response:
                assert response.status == 408
            await here.settled()

    asyncio.run(scenario())

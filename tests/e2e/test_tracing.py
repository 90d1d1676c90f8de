"""Spans of the door, as a collector gets them."""

import asyncio
import gzip

import pytest
from aiohttp import web

from .doors import engines, opened

trace_service = pytest.importorskip(
    "opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason="needs the extra `traces`"
)
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


async def collector(spans):
    async def take(request):
        data = await request.read()
        if request.headers.get("content-encoding") == "gzip":
            data = gzip.decompress(data)
        told = trace_service.ExportTraceServiceRequest.FromString(data)
        spans.extend(span for of in told.resource_spans for scope in of.scope_spans for span in scope.spans)
        return web.Response(body=b"", content_type="application/x-protobuf")

    app = web.Application()
    app.router.add_post("/v1/traces", take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}/v1/traces"


async def seen_by_engine(seen):
    """An engine that keeps the headers of what it is asked."""

    async def answer(request):
        seen.append(request.headers.get("traceparent"))
        return web.json_response({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})

    async def well(request):
        return web.Response()

    async def models(request):
        return web.json_response({"object": "list", "data": [{"id": "echo", "object": "model"}]})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    app.router.add_get("/v1/models", models)
    app.router.add_get("/health", well)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"


def test_a_request_and_its_attempt_are_spans_of_the_clients_trace():
    async def main():
        spans, seen = [], []
        collecting, endpoint = await collector(spans)
        engine, url = await seen_by_engine(seen)
        try:
            async with opened(url, router=f"traces: '{endpoint}'") as door:
                headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
                status, _, _ = await door.chat("Hi", headers)
                assert status == 200
                (told,) = seen
                # Closing sends what is left, and waits for the collector, which answers in this very loop.
                await asyncio.to_thread(door.process.front._tracing.close)
                by_name = {span.name: span for span in spans}
                request, attempt = by_name["POST /v1/chat/completions"], by_name["attempt 1"]
                assert {span.trace_id.hex() for span in (request, attempt)} == {TRACE}
                assert request.parent_span_id.hex() == PARENT
                assert attempt.parent_span_id == request.span_id
                assert told == f"00-{TRACE}-{attempt.span_id.hex()}-01", "the engine's span belongs below the attempt's"
                attributes = {each.key: each.value for each in attempt.attributes}
                assert attributes["homing.plan"].string_value == "local"
                assert attributes["homing.decode"].string_value == "e0"
        finally:
            await engine.cleanup()
            await collecting.cleanup()

    asyncio.run(main())


def test_without_a_collector_the_clients_own_context_goes_on():
    async def main():
        seen = []
        engine, url = await seen_by_engine(seen)
        try:
            async with opened(url) as door:
                await door.chat("Hi", {"traceparent": f"00-{TRACE}-{PARENT}-01"})
                assert seen == [f"00-{TRACE}-{PARENT}-01"]
        finally:
            await engine.cleanup()

    asyncio.run(main())


def test_a_collector_that_is_not_there_stops_nothing():
    async def main():
        async with engines(1) as made, opened(made[0].url, router="traces: 'http://127.0.0.1:9/v1/traces'") as door:
            status, _, _ = await door.chat("Hi", max_tokens=2)
            assert status == 200

    asyncio.run(main())

"""Three seconds of what `fuzz_http.py` does for as long as it is let, and the door held to its own OpenAPI document."""

import asyncio
import json
import threading
from contextlib import contextmanager

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from homing.router.service.door.openapi import OPENAPI

from .fuzz_http import fuzz, live

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
schema = schemathesis.openapi.from_dict(json.loads(OPENAPI))


@pytest.mark.timeout(90)
def test_odd_requests_break_nothing():
    found = asyncio.run(fuzz(3.0, seed=1))
    assert not found.failures, "\n".join(found.failures[:10])
    assert found.statuses[200] > 20, "some are still good"
    assert found.statuses[400] > 20


@contextmanager
def door_in_a_thread():
    """The URL of a live door: schemathesis waits for its answers, so that the door needs a loop elsewhere."""
    ready, over = threading.Event(), None
    port = 0

    async def serve():
        nonlocal over, port
        over = asyncio.Event()
        async with live() as process:
            port = process.front.door_port
            ready.set()
            await over.wait()

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    try:
        assert ready.wait(20)
        yield f"http://127.0.0.1:{port}"
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(10)
        loop.close()


@pytest.fixture(scope="module")
def door():
    with door_in_a_thread() as url:
        yield url


@schema.parametrize()
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_the_door_keeps_to_its_document(case, door):
    case.call_and_validate(base_url=door, checks=CHECKS, timeout=10)

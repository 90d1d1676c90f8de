"""The gRPC server without a gateway: health, bounds, broken streams, and how endings are matched."""

import asyncio

import grpc
import pytest
from envoy.data.accesslog.v3.accesslog_pb2 import HTTPAccessLogEntry
from envoy.service.accesslog.v3.als_pb2 import StreamAccessLogsMessage
from envoy.service.accesslog.v3.als_pb2_grpc import AccessLogServiceStub
from envoy.service.ext_proc.v3.external_processor_pb2 import HttpHeaders, ProcessingRequest
from envoy.service.ext_proc.v3.external_processor_pb2_grpc import ExternalProcessorStub
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from hypothesis import given
from hypothesis import strategies as st

from homing.router.core.errors import ConfigError
from homing.router.envoy.bootstrap import Gateway, bootstrap
from homing.router.envoy.endings import EARLY_MAX, Endings
from homing.router.envoy.service import ExtProcServer, Limits
from homing.router.envoy.types import Pick

SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"


class AnyEndpoint:
    """Picks the same endpoint for everybody and counts what is open."""

    def __init__(self):
        self.open = 0
        self.cancelled = []

    async def pick(self, path, headers, body, subset):
        self.open += 1
        return Pick(request_id="r", endpoints=("10.0.0.1:80",))

    def served(self, pick, endpoint, status):
        pass

    def ended(self, pick, *, cancelled):
        self.open -= 1
        self.cancelled.append(cancelled)


async def with_server(work, limits=None):
    picker = AnyEndpoint()
    server = ExtProcServer(picker, limits)
    port = await server.start("127.0.0.1:0")
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await work(server, picker, channel)
    finally:
        await server.stop(0)


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


def test_health_is_told_by_the_names_that_gateways_ask():
    async def work(server, picker, channel):
        async def status(name):
            reply = await HealthStub(channel).Check(HealthCheckRequest(service=name), timeout=5)
            return HealthCheckResponse.ServingStatus.Name(reply.status)

        for ready in (False, True, False):
            await server.set_ready(ready=ready)
            assert await status("liveness") == await status("") == "SERVING"
            assert await status("readiness") == await status(SERVICE) == ("SERVING" if ready else "NOT_SERVING")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await status("other")
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND

    asyncio.run(with_server(work))


@pytest.mark.parametrize("half_closes", [True, False])
def test_a_pick_is_given_back_when_the_stream_breaks(half_closes):
    async def work(server, picker, channel):
        call = ExternalProcessorStub(channel).Process(timeout=10)
        await call.write(ProcessingRequest(request_headers=HttpHeaders(end_of_stream=True)))
        reply = await call.read()
        assert reply.dynamic_metadata["envoy.lb"]["x-gateway-destination-endpoint"] == "10.0.0.1:80"
        assert picker.open == 1
        if half_closes:
            await call.done_writing()
        else:
            call.cancel()
        await until(lambda: picker.open == 0)
        assert picker.cancelled == [True]

    asyncio.run(with_server(work))


def test_a_response_that_does_not_end_is_given_up():
    async def work(server, picker, channel):
        call = ExternalProcessorStub(channel).Process(timeout=10)
        await call.write(ProcessingRequest(request_headers=HttpHeaders(end_of_stream=True)))
        await call.read()
        await call.write(ProcessingRequest(response_headers=HttpHeaders()))
        await call.read()
        assert await call.read() is grpc.aio.EOF
        assert picker.cancelled == [True]

    asyncio.run(with_server(work, Limits(response_timeout_s=0.2)))


@pytest.mark.parametrize("log_first", [True, False])
def test_the_log_says_how_a_response_ended(log_first):
    async def work(server, picker, channel):
        log = AccessLogServiceStub(channel).StreamAccessLogs(timeout=10)
        await log.write(StreamAccessLogsMessage())
        await until(lambda: server.endings.open_logs)
        call = ExternalProcessorStub(channel).Process(timeout=10)
        await call.write(ProcessingRequest(request_headers=HttpHeaders(end_of_stream=True)))
        stream = (await call.read()).dynamic_metadata["envoy.lb"]["homing-stream"]
        await call.write(ProcessingRequest(response_headers=HttpHeaders()))
        await call.read()
        entry = HTTPAccessLogEntry()
        entry.common_properties.response_flags.upstream_remote_reset = True
        entry.common_properties.metadata.filter_metadata["envoy.lb"]["homing-stream"] = stream
        message = StreamAccessLogsMessage(
            http_logs=StreamAccessLogsMessage.HTTPAccessLogEntries(log_entry=[HTTPAccessLogEntry(), entry])
        )
        steps = [lambda: log.write(message), call.done_writing]
        for step in steps if log_first else reversed(steps):
            assert picker.open == 1
            await step()
            await asyncio.sleep(0.05)
        await until(lambda: picker.open == 0)
        assert picker.cancelled == [True]

    asyncio.run(with_server(work))


def test_a_taken_port_and_a_bad_limit_are_named():
    async def work(server, picker, channel):
        for address in ("nonsense:port", "256.0.0.1:99999"):
            with pytest.raises(ConfigError, match="cannot listen on"):
                await ExtProcServer(picker).start(address)

    asyncio.run(with_server(work))
    with pytest.raises(ConfigError, match="pick_timeout_s must be above 0"):
        Limits(pick_timeout_s=0)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.booleans()), max_size=20))
def test_every_end_is_settled_once_whatever_comes_first(steps):
    async def scenario():
        endings, told, settled, asked = Endings(), {}, {}, set()
        endings.open_logs = 1
        for number, is_log, cut_off in steps:
            name = str(number)
            if is_log and name not in told:
                told[name] = cut_off
                endings.tell(name, cut_off)
            elif not is_log and name not in asked:
                asked.add(name)
                endings.settle(name, settled.setdefault(name, []).append)
        endings.close()
        assert settled == {name: [told.get(name, False)] for name in asked}

    asyncio.run(scenario())


def test_entries_that_nobody_waits_for_are_bounded():
    endings = Endings()
    for number in range(EARLY_MAX + 5):
        endings.tell(str(number), True)
    settled = []
    endings.settle("4", settled.append)
    endings.settle("5", settled.append)
    assert settled == [False, True]


@pytest.mark.parametrize(
    ("facts", "found"),
    [
        ({"endpoints": ("engine:8000",)}, "engines: endpoint: expected ip:port"),
        ({"endpoints": ("10.0.0.1",)}, "'10.0.0.1'"),
        ({"endpoints": ("10.0.0.1:70000",)}, "70000"),
        ({"endpoints": ("10.0.0.1:80",), "listen": "8080"}, "listen: "),
        ({"endpoints": ("10.0.0.1:80",), "ext_proc": "homing"}, "expected host:port"),
        ({"endpoints": ()}, "endpoints: give either"),
        ({"endpoints": ("10.0.0.1:80",), "endpoints_file": "e.json"}, "endpoints: give either"),
    ],
)
def test_a_gateway_that_cannot_be_is_named(facts, found):
    with pytest.raises(ConfigError, match=found):
        bootstrap(Gateway(**{"ext_proc": "homing:9002", **facts}))

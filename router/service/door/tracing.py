"""Spans of requests, for whoever follows them across services (OpenTelemetry, W3C trace context).

One span for a request, one below it for each attempt. Without a collector nothing is made, and a client's `traceparent`
goes on as it came.
"""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from homing.router.core.errors import ConfigError
from homing.router.core.types import Decision

from .calls import Call

if TYPE_CHECKING:
    from opentelemetry.trace import Span

log = logging.getLogger(__name__)

EXPORT_S = 2.0
"""How long a collector may take; what it does not take is lost."""


class Tracing:
    """Sends spans to a collector that takes OTLP over HTTP. Raises ConfigError where the packages are missing."""

    def __init__(self, endpoint: str) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
            from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
            from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
            from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        except ImportError as error:
            raise ConfigError(
                f"router.traces: needs more packages: pip install 'homing[traces]' ({error}); where homing[envoy] is "
                "installed too, whose xds-protos brings an old copy of some files: pip install --force-reinstall "
                "--no-deps opentelemetry-proto"
            ) from error
        self._provider = TracerProvider(resource=Resource.create({"service.name": "homing"}))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_S)))
        self._tracer = self._provider.get_tracer("homing")

    def begin(self, call: Call) -> "RequestSpan":
        """A request came in."""
        from opentelemetry.propagate import extract  # noqa: PLC0415
        from opentelemetry.trace import SpanKind  # noqa: PLC0415

        span = self._tracer.start_span(f"POST {call.path}", context=extract(call.headers), kind=SpanKind.SERVER)
        span.set_attribute("gen_ai.request.model", call.model)
        span.set_attribute("homing.request_id", call.id)
        return RequestSpan(self, span)

    def below(self, parent: "Span", name: str) -> "Span":
        """A part of a span's work that another service does."""
        from opentelemetry.trace import SpanKind, set_span_in_context  # noqa: PLC0415

        span: Span = self._tracer.start_span(name, context=set_span_in_context(parent), kind=SpanKind.CLIENT)
        return span

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


class RequestSpan:
    """The span of one request, and of the attempt that runs."""

    def __init__(self, tracing: Tracing, span: "Span") -> None:
        self._tracing = tracing
        self._span = span
        self._attempt: Span | None = None

    def attempt(self, decision: Decision) -> Mapping[str, str]:
        """An engine is asked; the headers by which it knows whose span its own belongs to."""
        from opentelemetry.propagate import inject  # noqa: PLC0415
        from opentelemetry.trace import set_span_in_context  # noqa: PLC0415

        self.attempt_ended()
        plan = decision.plan
        span = self._attempt = self._tracing.below(self._span, f"attempt {decision.attempt}")
        span.set_attribute("homing.plan", plan.kind.value)
        span.set_attribute("homing.prefill", plan.prefill)
        span.set_attribute("homing.decode", plan.decode)
        span.set_attribute("homing.prefix_tokens", plan.estimate.hit_tokens)
        span.set_attribute("homing.predicted_ttft_s", plan.estimate.ttft_s)
        headers: dict[str, str] = {}
        inject(headers, context=set_span_in_context(span))
        return headers

    def first_token(self, ttft_s: float) -> None:
        """The answer began."""
        if self._attempt is not None:
            self._attempt.set_attribute("homing.ttft_s", ttft_s)
            self._attempt.add_event("first token")

    def attempt_ended(self, problem: str = "") -> None:
        """The attempt is over."""
        _end(self._attempt, problem)
        self._attempt = None

    def end(self, problem: str = "") -> None:
        """The request is over."""
        self.attempt_ended(problem)
        _end(self._span, problem)


def _end(span: "Span | None", problem: str) -> None:
    from opentelemetry.trace import Status, StatusCode  # noqa: PLC0415

    if span is None:
        return
    if problem:
        span.set_status(Status(StatusCode.ERROR, problem))
    span.end()

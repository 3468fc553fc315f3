"""Spans of OpenTelemetry: a request and the stages that it went through. Off unless configured.

Stages are timed where they run, once for all requests of a batch. So their spans are not opened and
closed around the work but written down when the request is over, end to end in the order of the
stages: nothing of this is in the way of an answer, and where it is off there is nothing at all.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from hybridrec import __version__
from hybridrec.checks import InputError, require_extra

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.sdk.trace.export import SpanExporter

_VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PREFIX = "hybridrec."


class Tracing:
    """Writes down spans.

    Args:
        processor: takes them, and sends them off in a thread of its own.

    The provider is this object's own: one that an application has set up stays as it is. What
    OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES and OTEL_TRACES_SAMPLER say holds.

    Raises:
        MissingExtraError: opentelemetry is not installed.
    """

    def __init__(self, processor: SpanProcessor) -> None:
        self._api = require_extra("opentelemetry.trace", extra="otel")
        context = require_extra("opentelemetry.trace.propagation.tracecontext", extra="otel")
        resources = require_extra("opentelemetry.sdk.resources", extra="otel")
        sdk = require_extra("opentelemetry.sdk.trace", extra="otel")
        name = os.environ.get("OTEL_SERVICE_NAME", "hybridrec")
        resource = resources.Resource.create({"service.name": name, "service.version": __version__})
        self._provider = sdk.TracerProvider(resource=resource)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("hybridrec.serve", __version__)
        self._incoming = context.TraceContextTextMapPropagator()

    def request(
        self,
        method: str,
        route: str,
        status: int,
        seconds: float,
        *,
        stages: Mapping[str, float] | None = None,
        since: float = 0.0,
        headers: Mapping[str, str] | None = None,
        **attributes: str | float | bool | None,
    ) -> str:
        """A request that has just been answered.

        Args:
            method: of HTTP.
            route: the template of the path, never the path: users' ids are in some.
            status: of the answer.
            seconds: it took.
            stages: seconds by stage, in their order: "queue", "recall", "fuse", "rerank", ...
            since: seconds since the last of the stages ended.
            headers: of the request, by lower-case names: ``traceparent`` and ``tracestate`` make it
                part of the caller's trace.
            attributes: more of it ("request_id", "model", "degraded"); None is left out.

        Returns:
            The trace's id in 32 hex digits, for the request's line in the log.
        """
        now = time.time_ns()
        span = self._tracer.start_span(
            f"{method} {route}",
            context=self._incoming.extract(headers or {}),
            kind=self._api.SpanKind.SERVER,
            start_time=now - _nanoseconds(seconds),
            attributes={
                "http.request.method": method,
                "http.route": route,
                "http.response.status_code": status,
                **{
                    _PREFIX + name: value for name, value in attributes.items() if value is not None
                },
            },
        )
        if status >= 500:
            span.set_status(self._api.StatusCode.ERROR)
        if stages and span.is_recording():
            self._stages(span, stages, now - _nanoseconds(since))
        span.end(end_time=now)
        return f"{span.get_span_context().trace_id:032x}"

    def _stages(self, parent: Any, stages: Mapping[str, float], end: int) -> None:
        within = self._api.set_span_in_context(parent)
        start = end - sum(_nanoseconds(seconds) for seconds in stages.values())
        for name, seconds in stages.items():
            span = self._tracer.start_span(_PREFIX + name, context=within, start_time=start)
            start += _nanoseconds(seconds)
            span.end(end_time=start)

    def close(self) -> None:
        """Send off what is left."""
        self._provider.shutdown()


def set_up_tracing(endpoint: str | None = None) -> Tracing | None:
    """Tracing to an OTLP collector over HTTP; None where none is configured.

    Args:
        endpoint: its address (http://collector:4318); None takes it from the variables that
            OpenTelemetry's specification names (OTEL_EXPORTER_OTLP_ENDPOINT and its kin).

    Raises:
        InputError: no address of HTTP.
        MissingExtraError: opentelemetry is not installed and a collector is configured.
    """
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if endpoint is None and not any(os.environ.get(name) for name in _VARIABLES):
        return None
    if endpoint is not None and not endpoint.startswith(("http://", "https://")):
        raise InputError(f"otlp is {endpoint!r}; wanted http://HOST:4318 or https://...")
    return Tracing(_batched(_exporter(endpoint)))


def _exporter(endpoint: str | None) -> SpanExporter:
    otlp = require_extra("opentelemetry.exporter.otlp.proto.http.trace_exporter", extra="otel")
    where = None if endpoint is None else f"{endpoint.rstrip('/')}/v1/traces"
    exporter: SpanExporter = otlp.OTLPSpanExporter(endpoint=where)
    return exporter


def _batched(exporter: SpanExporter) -> SpanProcessor:
    export = require_extra("opentelemetry.sdk.trace.export", extra="otel")
    processor: SpanProcessor = export.BatchSpanProcessor(exporter)
    return processor


def _nanoseconds(seconds: float) -> int:
    return int(1e9 * seconds)

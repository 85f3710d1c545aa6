"""OpenTelemetry traces of requests, off unless an endpoint is set.

One trace for each request: `request`, and in it `model` (its turn, the features, the graphs) and
`decision`. Spans
carry what the tables below name and nothing else: no ids of people, no values, no error texts. A
caller's `traceparent` header continues the caller's trace. Where tracing is off, a span is one
shared object that does nothing, and OpenTelemetry is not imported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from foundation.errors import ConfigError, InternalError, listing

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.export import SpanExporter

SPANS = ("request", "model", "decision")
# What a span may say, under OpenTelemetry's own names where it has one.
ATTRIBUTES = {
    "method": "http.request.method",
    "route": "http.route",
    "status": "http.response.status_code",
    "package": "riskfm.package",
    "channel": "riskfm.channel",
    "release": "riskfm.release",
    "rows": "riskfm.rows",
}
_OFF: AbstractContextManager[Any] = nullcontext()
_TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class Tracing:
    """Makes spans and sends them in the background.

    Args:
        endpoint: OTLP/HTTP URL such as http://collector:4318/v1/traces; empty: off.
        version: of the service, for the collector.
        exporter: takes the spans instead, at once; for tests.
    Raises:
        ConfigError: the extra `tracing` is not installed.
    """

    def __init__(
        self, endpoint: str = "", version: str = "0", exporter: SpanExporter | None = None
    ) -> None:
        self.on = bool(endpoint) or exporter is not None
        if self.on:
            self._start(endpoint, version, exporter)

    def _start(self, endpoint: str, version: str, exporter: SpanExporter | None) -> None:
        try:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor

            if exporter is None:
                from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        except ImportError:
            raise ConfigError(
                "trace_endpoint needs OpenTelemetry: pip install 'riskfm[tracing]'"
            ) from None
        # Written out, not detected: variables and host names stay out of the traces.
        resource = Resource({"service.name": "riskfm", "service.version": version})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(
            SimpleSpanProcessor(exporter)
            if exporter is not None
            else BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint))
        )
        self._tracer = self._provider.get_tracer("riskfm", version)

    def span(
        self, name: str, parent: Context | None = None, **attributes: str | int
    ) -> AbstractContextManager[Any]:
        """Time a part of a request, for the time of a with block.

        Args:
            name: one of `SPANS`.
            parent: of `carried` or `caller`; the span around it in this thread if None.
            attributes: of `ATTRIBUTES`; empty ones are left out.
        Raises:
            InternalError: a name or an attribute that is not declared.
        """
        if not self.on:
            return _OFF
        return self._span(name, parent, attributes)

    @contextmanager
    def _span(
        self, name: str, parent: Context | None, attributes: dict[str, str | int]
    ) -> Iterator[Any]:
        if name not in SPANS:
            raise InternalError(f"no span is called '{name}'; spans: {listing(SPANS)}")
        with self._tracer.start_as_current_span(
            name, context=parent, record_exception=False, set_status_on_exception=False
        ) as span:
            note(span, **attributes)
            try:
                yield span
            except BaseException as exc:
                _fail(span, exc)
                raise

    def carried(self) -> Context | None:
        """Where this thread is in the trace, for `span` in another thread; None where off."""
        if not self.on:
            return None
        from opentelemetry.context import get_current

        return get_current()

    def caller(self, traceparent: str) -> Context | None:
        """Where the caller is in its own trace, from a `traceparent` header; None without one."""
        if not self.on or not _TRACEPARENT.fullmatch(traceparent):
            return None
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        return TraceContextTextMapPropagator().extract({"traceparent": traceparent})

    def close(self) -> None:
        """Send what waits and stop."""
        if self.on:
            self._provider.shutdown()
            self.on = False


def note(span: Any, **attributes: str | int) -> None:
    """Add attributes to a span, such as the status once it is known; None is no span.

    Raises:
        InternalError: an attribute that is not declared.
    """
    if span is None:
        return
    for name, value in attributes.items():
        if name not in ATTRIBUTES:
            raise InternalError(
                f"no attribute is called '{name}'; attributes: {listing(ATTRIBUTES)}"
            )
        if value not in ("", None):
            span.set_attribute(ATTRIBUTES[name], value)


def _fail(span: Any, exc: BaseException) -> None:
    """The type only: the text of an error may hold values of the request."""
    from opentelemetry.trace import Status, StatusCode

    span.set_status(Status(StatusCode.ERROR, type(exc).__name__))

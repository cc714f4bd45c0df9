"""OpenTelemetry traces, where the environment enables them: a span per request, its stages below it.

OpenTelemetry's own variables say all (its specification, "Environment Variable Specification"):
``OTEL_EXPORTER_OTLP_ENDPOINT`` or ``OTEL_TRACES_EXPORTER`` switch it on; service name, sampler, headers and
protocol (http/protobuf, as the specification recommends, unless another is named) follow the rest.
Attributes have the names of its semantic conventions where there are such, ``pdserve.…`` else.

OpenTelemetry's own ASGI instrumentation takes a request 76 µs, where this takes 26, and knows no route.
"""

import contextlib
import importlib.metadata
import threading
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from pdserve import __version__
from pdserve.errors import SettingsError

if TYPE_CHECKING:
    from opentelemetry import trace
    from opentelemetry.sdk.trace.export import SpanExporter

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PROTOCOLS = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}
_FLUSH_S = 2  # A collector that does not answer must not hold up the end of the server for longer.

# gRPC codes that are the server's fault, by the semantic conventions.
_SERVERS_FAULT = ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")


class Span:
    """The span of one request; its stages are recorded once they are over."""

    __slots__ = ("_context", "_span", "_tracer", "trace_id")

    def __init__(self, tracer: "trace.Tracer", span: "trace.Span") -> None:
        from opentelemetry import trace

        self._tracer = tracer
        self._span = span
        self._context = trace.set_span_in_context(span)
        self.trace_id = trace.format_trace_id(span.get_span_context().trace_id)

    def stage(self, name: str, seconds: float, model: str = "", ago: float = 0) -> None:
        """Record a stage that took so many seconds and ended ``ago`` seconds before now."""
        end = time.time_ns() - round(ago * 1e9)
        attributes = {"pdserve.model": model} if model else None
        start = end - round(seconds * 1e9)
        self._tracer.start_span(name, self._context, attributes=attributes, start_time=start).end(end)

    def end(self, name: str, code: str, attributes: Mapping[str, str | int]) -> None:
        """End the span. ``code``: see `pdserve.services.telemetry.metrics.RequestContext.code`."""
        from opentelemetry.trace import StatusCode

        self._span.update_name(name)
        self._span.set_attributes(dict(attributes))
        if code.startswith(("5", "err_no_")) or code in _SERVERS_FAULT:
            self._span.set_status(StatusCode.ERROR)
            self._span.set_attribute("error.type", code)
        self._span.end()


class Tracer:
    """Starts the spans of requests."""

    def __init__(self, tracer: "trace.Tracer") -> None:
        from opentelemetry import propagate

        self._tracer = tracer
        self.fields = frozenset(propagate.get_global_textmap().fields)  # headers that carry a caller's trace

    def span(self, carried: Mapping[str, str]) -> Span | None:
        """Start the span of a request, below the caller's where ``carried`` names it; None if not sampled."""
        from opentelemetry import propagate, trace

        span = self._tracer.start_span("request", propagate.extract(carried), trace.SpanKind.SERVER)
        return Span(self._tracer, span) if span.is_recording() else None


@contextlib.contextmanager
def open_tracing(service_kind: str, environ: Mapping[str, str]) -> Iterator[Tracer | None]:
    """Trace until the end; yields None where the environment does not enable it.

    Raises SettingsError where the packages are missing, or there is no such exporter.
    """
    wanted = environ.get("OTEL_TRACES_EXPORTER") or ("otlp" if any(map(environ.get, _ENDPOINTS)) else "none")
    if wanted == "none" or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        yield None
        return
    try:
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise SettingsError(
            "Traces are enabled (OTEL_… in the environment) and OpenTelemetry is not installed; "
            "type `pip install 'pdserve[otel]'`, or set OTEL_SDK_DISABLED=true."
        ) from error
    defaults = {"service.name": f"pdserve-{service_kind}", "service.version": __version__}
    resource = Resource.create({**defaults, **OTELResourceDetector().detect().attributes})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(_exporter(wanted, environ)))
    try:
        yield Tracer(provider.get_tracer("pdserve", __version__))
    finally:
        closing = threading.Thread(target=provider.shutdown, name="pdserve-traces", daemon=True)
        closing.start()
        closing.join(_FLUSH_S)


def _exporter(wanted: str, environ: Mapping[str, str]) -> "SpanExporter":
    """The installed exporter that OTEL_TRACES_EXPORTER names."""
    name = wanted
    if wanted == "otlp":
        variables = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
        protocol = next(filter(None, map(environ.get, variables)), "http/protobuf")
        if protocol not in _PROTOCOLS:
            raise SettingsError(
                f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}; use {' or '.join(_PROTOCOLS)}."
            )
        name = _PROTOCOLS[protocol]
    for entry in importlib.metadata.entry_points(group="opentelemetry_traces_exporter", name=name):
        exporter: SpanExporter = entry.load()()
        return exporter
    raise SettingsError(
        f"OTEL_TRACES_EXPORTER is {wanted!r} and no such exporter is installed; use otlp "
        "(`pip install 'pdserve[otel]'`), console or none."
    )

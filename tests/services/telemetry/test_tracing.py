"""Traces: what a collector gets over the network, and what is said where none can be sent."""

import asyncio
import contextlib
import gzip
import http.server
import io
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest

from pdserve.errors import SettingsError
from pdserve.formats.protos import pipeline
from pdserve.services.budget import Entrance
from pdserve.services.grpc.server import build_server
from pdserve.services.http.app import build_app
from pdserve.services.telemetry.logs import JsonLines
from pdserve.services.telemetry.metrics import Metrics
from pdserve.services.telemetry.middleware import TelemetryInterceptor
from pdserve.services.telemetry.tracing import open_tracing
from pdserve.settings import ServerSettings
from tests.extras import import_or_skip
from tests.services.watching import FakeService, served, until

SETTINGS = ServerSettings(name="imagenet")
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector:
    """Takes OTLP over HTTP; ``spans`` are what came, with their resources."""

    def __init__(self) -> None:
        self.spans: list[tuple[Any, dict[str, Any]]] = []
        self.url = ""

    def take(self, body: bytes) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            resource = attributes(of_resource.resource)
            for scope in of_resource.scope_spans:
                self.spans += [(span, resource) for span in scope.spans]

    def named(self, name: str) -> Any:
        (span,) = (span for span, _ in self.spans if span.name == name)
        return span


def attributes(of: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in of.attributes}


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector that the environment names; it gets all spans once tracing has ended."""
    import_or_skip("opentelemetry.exporter.otlp.proto.http", "otel")
    found = Collector()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.take(gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    for name in (
        "OTEL_SERVICE_NAME",
        "OTEL_RESOURCE_ATTRIBUTES",
        "OTEL_TRACES_EXPORTER",
        "OTEL_SDK_DISABLED",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    found.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


@contextlib.contextmanager
def traced() -> Iterator[httpx.Client]:
    """A traced service and a client of it."""
    metrics = Metrics()
    service = FakeService(metrics)
    with open_tracing(service.kind, os.environ) as tracer:
        assert tracer
        app = build_app(service, SETTINGS, metrics, tracer=tracer)
        with served(app) as url, httpx.Client(base_url=url, trust_env=False, verify=False) as client:
            yield client


def test_a_request_and_its_stages(collector: Collector) -> None:
    began = time.time_ns()
    with traced() as client:
        answer = client.post("/v1/classification", content=b"image", headers={"X-Request-ID": "mine"})
        assert answer.status_code == 200
    request = collector.named("POST /v1/classification")
    assert attributes(request) == {
        "http.request.method": "POST", "http.route": "/v1/classification", "http.response.status_code": 200,
        "pdserve.images": 1, "pdserve.request_id": "mine",
    }  # fmt: skip
    assert request.kind == request.SPAN_KIND_SERVER
    assert request.parent_span_id == b""
    assert collector.spans[0][1]["service.name"] == "pdserve-classification"
    queue, infer = collector.named("queue"), collector.named("infer")
    for stage in (queue, infer):
        assert (stage.trace_id, stage.parent_span_id) == (request.trace_id, request.span_id)
        assert attributes(stage) == {"pdserve.model": "fake"}
    assert abs(infer.end_time_unix_nano - infer.start_time_unix_nano - 10_000_000) < 1000
    assert abs(queue.end_time_unix_nano - queue.start_time_unix_nano - 2_000_000) < 1000
    assert began - 1e9 < queue.end_time_unix_nano < infer.end_time_unix_nano <= request.end_time_unix_nano


def test_the_callers_trace_goes_on(collector: Collector) -> None:
    with traced() as client:
        client.post("/v1/classification", content=b"bad", headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
        client.post("/v1/classification", content=b"x", headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
        client.post("/imagenet/prediction", content=b"{}", headers={"traceparent": "nonsense"})
    request = collector.named("POST /v1/classification")  # the caller's other is not sampled
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, PARENT)
    assert collector.named("POST /{name}/{method}").trace_id.hex() != TRACE


def test_failures_are_told(collector: Collector) -> None:
    with traced() as client:
        client.post("/imagenet/prediction", content=b"{}")
        client.post("/v1/classification", content=b"full")
        client.get("/nothing")
    failed = collector.named("POST /{name}/{method}")
    assert failed.status.code == failed.status.STATUS_CODE_ERROR
    assert attributes(failed)["error.type"] == "err_no_10000"
    assert attributes(failed)["http.response.status_code"] == 200
    full = collector.named("POST /v1/classification")
    assert attributes(full)["error.type"] == "503"
    callers_fault = collector.named("GET other")
    assert callers_fault.status.code == callers_fault.status.STATUS_CODE_UNSET


def test_probes_are_not_traced(collector: Collector) -> None:
    with traced() as client:
        for path in ("/v2/health/live", "/v2/health/ready", "/metrics", "/v2"):
            client.get(path)
    assert [span.name for span, _ in collector.spans] == ["GET /v2"]


def test_names_and_samplers_of_the_environment(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    with traced() as client:
        client.get("/v2")
    assert collector.spans[0][1]["service.name"] == "shop"
    collector.spans.clear()
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    with traced() as client:
        client.get("/v2")
    assert collector.spans == []


def test_calls_over_grpc(collector: Collector) -> None:
    async def test() -> None:
        metrics = Metrics()
        service = FakeService(metrics)
        with open_tracing(service.kind, os.environ) as tracer:
            interceptors = (TelemetryInterceptor(metrics, tracer=tracer),)
            server, port = build_server(service, Entrance(SETTINGS), 0, interceptors)
            await server.start()
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                ask = channel.unary_unary(
                    pipeline.METHOD,
                    request_serializer=pipeline.request_class().SerializeToString,
                    response_deserializer=pipeline.response_class().FromString,
                )
                request = pipeline.request_class()(key=["a"], value=["aW1hZ2U="])
                await ask(request, metadata=(("traceparent", f"00-{TRACE}-{PARENT}-01"),))
                await ask(pipeline.request_class()())
            await server.stop(None)

    asyncio.run(test())
    first, second = sorted(
        (span for span, _ in collector.spans if span.name == "gRPC inference"),
        key=lambda span: span.start_time_unix_nano,
    )
    assert (first.trace_id.hex(), first.parent_span_id.hex()) == (TRACE, PARENT)
    assert collector.named("infer").parent_span_id == first.span_id
    expected = {
        "rpc.system": "grpc",
        "rpc.method": "inference",
        "rpc.grpc.status_code": 0,
        "pdserve.images": 1,
    }
    assert attributes(first).items() >= expected.items()
    assert attributes(second)["error.type"] == "err_no_10000"


def test_lines_of_the_log_name_the_trace(collector: Collector) -> None:
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(JsonLines())
    logging.getLogger("pdserve").addHandler(handler)
    try:
        with traced() as client:
            client.post(
                "/v1/classification", content=b"broken", headers={"traceparent": f"00-{TRACE}-{PARENT}-01"}
            )
            until(text.getvalue)
    finally:
        logging.getLogger("pdserve").removeHandler(handler)
    assert json.loads(text.getvalue().splitlines()[0])["trace_id"] == TRACE


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_SERVICE_NAME": "shop"},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"},
        {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"},
    ],
)
def test_off_unless_asked_for(environ: dict[str, str]) -> None:
    with open_tracing("classification", environ) as tracer:
        assert tracer is None


@pytest.mark.parametrize(
    "environ",
    [{"OTEL_TRACES_EXPORTER": "otlp"}, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318"}],
)
def test_asked_for_and_not_installed(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with (
        pytest.raises(SettingsError, match=r"pip install 'pdserve\[otel\]'"),
        open_tracing("classification", environ),
    ):
        pass


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"OTEL_TRACES_EXPORTER": "pigeon"}, "OTEL_TRACES_EXPORTER is 'pigeon'"),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
            "OTEL_EXPORTER_OTLP_PROTOCOL is 'http/json'; use grpc or http/protobuf",
        ),
    ],
)
def test_an_exporter_there_is_not(environ: dict[str, str], words: str) -> None:
    import_or_skip("opentelemetry.sdk", "otel")
    with pytest.raises(SettingsError, match=words), open_tracing("classification", environ):
        pass


def test_a_collector_that_is_not_there_breaks_nothing(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with traced() as client:
        assert client.get("/v2").status_code == 200

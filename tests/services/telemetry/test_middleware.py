"""What is seen of requests from outside: ids, numbers, lines of the log; over real listeners."""

import asyncio
import base64
import contextlib
import io
import logging
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest

from pdserve.formats.protos import pipeline
from pdserve.services.budget import Entrance
from pdserve.services.grpc.server import build_server
from pdserve.services.http.app import RouteTable, build_app
from pdserve.services.protocols import Context, Resource, resources
from pdserve.services.telemetry.logs import TextLines
from pdserve.services.telemetry.metrics import Metrics, RequestContext, current
from pdserve.services.telemetry.middleware import TelemetryInterceptor, telemetry
from pdserve.settings import ServerSettings
from tests.services.watching import FakeService, counted, numbers, served, until

SETTINGS = ServerSettings(name="imagenet")
V1 = "/v1/classification"
OLD = "/{name}/{method}"


def paths(metrics: Metrics) -> Callable[[str], Resource | None]:
    """The resources of a service by their paths."""
    return RouteTable(resources(Context(FakeService(metrics), Entrance(SETTINGS), metrics))).find


class Listener:
    """A server over HTTP, a client of it, and its numbers."""

    def __init__(self, client: httpx.Client, metrics: Metrics, service: FakeService) -> None:
        self.client = client
        self.metrics = metrics
        self.service = service


@contextlib.contextmanager
def opened(access: bool = False) -> Iterator[Listener]:
    metrics = Metrics()
    service = FakeService(metrics)
    settings = SETTINGS.model_copy(update={"log_format": "json" if access else "text"})
    app = build_app(service, settings, metrics)
    with served(app) as url, httpx.Client(base_url=url, trust_env=False, verify=False, timeout=20) as client:
        yield Listener(client, metrics, service)


@pytest.fixture
def listener() -> Iterator[Listener]:
    with opened() as listener:
        yield listener


def old_body(image: bytes) -> dict[str, Any]:
    return {"key": ["image"], "value": [base64.b64encode(image).decode()]}


@pytest.mark.parametrize("path", [V1, "/v2/health/live", "/nothing/at/all", "/v1/nothing"])
def test_every_answer_has_an_id_of_its_own(listener: Listener, path: str) -> None:
    ids = {listener.client.get(path).headers["X-Request-ID"] for _ in range(3)}
    assert len(ids) == 3
    assert all(re.fullmatch("[0-9a-f]{16}", each) for each in ids)


@pytest.mark.parametrize("asked", ["a", "0af7651916cd43dd8448eb211c80319c", "!~" * 64, "a/b:c=d"])
def test_the_callers_id_is_kept(listener: Listener, asked: str) -> None:
    for path in (V1, "/nothing"):
        assert listener.client.post(path, headers={"X-Request-ID": asked}).headers["X-Request-ID"] == asked


@pytest.mark.parametrize("asked", [b"", b"x" * 129, b"a b", b"a\tb", b"caf\xc3\xa9"])
def test_an_unfit_id_is_replaced(listener: Listener, asked: bytes) -> None:
    response = listener.client.get("/v2/health/live", headers=[(b"X-Request-ID", asked)])
    assert re.fullmatch("[0-9a-f]{16}", response.headers["X-Request-ID"])


@pytest.mark.parametrize(
    ("body", "status"), [(b"image", 200), (b"bad", 400), (b"full", 503), (b"broken", 500)]
)
def test_requests_are_counted_by_route_and_status(listener: Listener, body: bytes, status: int) -> None:
    response = listener.client.post(f"{V1}?top_k=2", content=body, headers={"X-Request-ID": "mine"})
    assert (response.status_code, response.headers["X-Request-ID"]) == (status, "mine")
    counted(listener.metrics, {(V1, str(status)): 1})
    assert numbers(listener.metrics)[f'pdserve_request_seconds_count{{route="{V1}"}}'] == 1


@pytest.mark.parametrize(
    ("image", "code"), [(b"image", "200"), (b"bad", "err_no_10000"), (b"full", "err_no_10000")]
)
def test_failures_of_the_pipeline_are_no_successes(listener: Listener, image: bytes, code: str) -> None:
    for name in ("imagenet", "classification"):
        assert listener.client.post(f"/{name}/prediction", json=old_body(image)).status_code == 200
    counted(listener.metrics, {(OLD, code): 2})
    wrong = listener.client.post("/other/prediction", json=old_body(image))
    assert wrong.json()["err_no"] == 3002
    counted(listener.metrics, {(OLD, code): 2, (OLD, "err_no_3002"): 1})


def test_a_caller_cannot_make_up_labels(listener: Listener) -> None:
    for i in range(20):
        listener.client.post(f"/made/up/{i}")
        listener.client.get(f"/{i}")
        listener.client.post(f"/{i}/prediction", json=old_body(b"image"))
        listener.client.request("PROPFIND", V1)
    counted(listener.metrics, {
        ("other", "404"): 40, (OLD, "err_no_3002"): 20, (V1, "405"): 20,
    })  # fmt: skip


def test_routes_that_the_router_keeps_to_itself(listener: Listener) -> None:
    for path in ("/docs", "/openapi.json", "/v2/health/ready"):
        listener.client.get(path)
    counted(
        listener.metrics,
        dict.fromkeys((("/docs", "200"), ("/openapi.json", "200"), ("/v2/health/ready", "200")), 1),
    )


def test_refusals_before_the_router_have_their_routes() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 401})
        await send({"type": "http.response.body"})

    metrics = Metrics()
    with served(telemetry(app, paths(metrics), metrics)) as url:
        for path in (V1, "/metrics", "/imagenet/prediction", "/x/y", "/v1/made_up", "/made_up", "/made/up/1"):
            httpx.get(url + path, trust_env=False, verify=False)
        counted(metrics, {(V1, "401"): 1, ("/metrics", "401"): 1, (OLD, "401"): 2, ("other", "401"): 3})


def test_images_by_outcome(listener: Listener) -> None:
    def images() -> dict[str, float]:
        found = {
            re.fullmatch(r'pdserve_images_total\{outcome="(.*)"\}', k): v
            for k, v in numbers(listener.metrics).items()
        }
        return {match[1]: value for match, value in found.items() if match}

    files = [("images", (str(i), content)) for i, content in enumerate((b"one", b"bad", b"two"))]
    assert listener.client.post(V1, files=files).status_code == 200
    assert images() == {"ok": 2, "bad_image": 1}
    listener.client.post(V1, files=[*files, ("images", ("full", b"full"))])
    assert images() == {"ok": 2, "bad_image": 1, "overloaded": 4}
    listener.client.post(V1, content=b"broken")
    assert images() == {"ok": 2, "bad_image": 1, "overloaded": 4, "error": 1}


def test_a_caller_that_goes_away_is_told_apart(listener: Listener) -> None:
    port = int(listener.client.base_url.port or 0)
    with socket.create_connection(("127.0.0.1", port)) as half:
        half.sendall(f"POST {V1} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc".encode())
    counted(listener.metrics, {(V1, "499"): 1})


def test_a_fault_of_the_application_is_answered_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/half":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
        raise ValueError("a fault of ours in /home/somebody")

    metrics = Metrics()
    with served(telemetry(app, paths(metrics), metrics)) as url:
        response = httpx.get(url + V1, headers={"X-Request-ID": "mine"}, trust_env=False, verify=False)
        assert (response.status_code, response.headers["X-Request-ID"]) == (500, "mine")
        assert response.json() == {"error": {"code": "error", "message": "internal error"}}
        assert [record.message for record in caplog.records if record.exc_info] == [f"GET {V1} failed"]
        with pytest.raises(httpx.HTTPError):  # rather than half an answer
            httpx.get(url + "/half", trust_env=False, verify=False)
    counted(metrics, {(V1, "500"): 1, ("other", "500"): 1})


def test_lines_that_are_logged_meanwhile_have_the_id(listener: Listener) -> None:
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(TextLines())
    logging.getLogger().addHandler(handler)
    try:
        listener.client.post(V1, content=b"broken", headers={"X-Request-ID": "mine"})
        until(lambda: "ValueError: a fault of ours" in text.getvalue())
    finally:
        logging.getLogger().removeHandler(handler)
    assert f"{V1} failed (request mine)\nTraceback" in text.getvalue()


def test_a_line_per_request_where_wanted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with opened() as listener:
        listener.client.post(V1, content=b"image")
        assert not [record for record in caplog.records if record.name == "pdserve.access"]
    with opened(access=True) as listener:
        listener.client.post(f"{V1}?top_k=1", files=[("images", ("a", b"a")), ("images", ("b", b"b"))])
        listener.client.post("/imagenet/prediction", json=old_body(b"bad"))
        first, second = (record.__dict__ for record in caplog.records if record.name == "pdserve.access")
    assert first["message"] == f"POST {V1} 200"
    assert (first["method"], first["route"], first["status"]) == ("POST", V1, "200")
    assert (first["images"], first["client"]) == (2, "127.0.0.1")
    assert first["bytes_in"] > 100
    assert 0 < first["duration_ms"] < 20_000
    assert (second["route"], second["status"], second["images"]) == (OLD, "err_no_10000", 1)


def test_what_is_no_request_passes() -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    async def nothing(*_: Any) -> Any: ...

    metrics = Metrics()
    asyncio.run(telemetry(app, paths(metrics), metrics)({"type": "lifespan"}, nothing, nothing))
    assert seen == ["lifespan"]
    counted(metrics, {})


class Calls:
    """A server over gRPC and a channel to it."""

    def __init__(self, channel: "grpc.aio.Channel", metrics: Metrics, service: FakeService) -> None:
        self.channel = channel
        self.metrics = metrics
        self.service = service

    def ask(self, image: bytes, name: str = "imagenet", **options: Any) -> Any:
        method = self.channel.unary_unary(
            pipeline.METHOD,
            request_serializer=pipeline.request_class().SerializeToString,
            response_deserializer=pipeline.response_class().FromString,
        )
        body = old_body(image)
        return method(pipeline.request_class()(name=name, **body), **options)


class Refusing(grpc.aio.ServerInterceptor):
    """As one that asks for a key does, before it looks what the method is."""

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        if "refuse" not in dict(details.invocation_metadata):
            return await continuation(details)

        async def refuse(_: Any, context: Any) -> None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "Show a key.")

        return grpc.stream_unary_rpc_method_handler(refuse)


@contextlib.asynccontextmanager
async def calls(access: bool = False) -> AsyncIterator[Calls]:
    metrics = Metrics()
    service = FakeService(metrics)
    interceptors = (TelemetryInterceptor(metrics, access=access), Refusing())
    server, port = build_server(service, Entrance(SETTINGS), 0, interceptors)
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Calls(channel, metrics, service)
    await server.stop(None)


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 30))


def test_grpc_answers_with_an_id() -> None:
    async def test() -> None:
        async with calls() as open_calls:
            ids = set()
            for _ in range(2):
                call = open_calls.ask(b"image")
                assert (await call).err_no == 0
                ids.add(dict(await call.trailing_metadata())["x-request-id"])
            assert len(ids) == 2
            call = open_calls.ask(b"image", metadata=(("x-request-id", "mine"),))
            await call
            assert dict(await call.trailing_metadata())["x-request-id"] == "mine"
            call = open_calls.ask(b"image", metadata=(("x-request-id", "not mine"),))
            await call
            assert dict(await call.trailing_metadata())["x-request-id"] != "not mine"

    run(test)


def test_grpc_calls_are_counted_by_status_and_err_no() -> None:
    async def test() -> None:
        async with calls() as open_calls:
            assert (await open_calls.ask(b"image")).err_no == 0
            assert (await open_calls.ask(b"bad")).err_no == 10000
            assert (await open_calls.ask(b"image", name="x")).err_no == 3002
            full = open_calls.ask(b"full")
            assert await full.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "x-request-id" in dict(await full.trailing_metadata())
            await asyncio.to_thread(
                counted,
                open_calls.metrics,
                {
                    ("inference", "OK"): 1,
                    ("inference", "err_no_10000"): 1,
                    ("inference", "err_no_3002"): 1,
                    ("inference", "RESOURCE_EXHAUSTED"): 1,
                },
            )

    run(test)


def test_refused_grpc_calls_have_an_id_and_are_counted() -> None:
    async def test() -> None:
        async with calls() as open_calls:
            call = open_calls.ask(b"image", metadata=(("refuse", "1"), ("x-request-id", "mine")))
            assert await call.code() == grpc.StatusCode.UNAUTHENTICATED
            assert dict(await call.trailing_metadata())["x-request-id"] == "mine"
            for i in range(3):
                made_up = open_calls.channel.unary_unary(f"/made/up{i}")(b"", metadata=(("refuse", "1"),))
                assert await made_up.code() == grpc.StatusCode.UNAUTHENTICATED
            expected = {("inference", "UNAUTHENTICATED"): 1, ("other", "UNAUTHENTICATED"): 3}
            await asyncio.to_thread(counted, open_calls.metrics, expected)

    run(test)


def test_grpc_methods_that_are_not_there() -> None:
    async def test() -> None:
        async with calls() as open_calls:
            for method in ("/a/b", f"/{pipeline.SERVICE}/none", "/c/d"):
                call = open_calls.channel.unary_unary(method)(b"x" * 100_000)
                assert await call.code() == grpc.StatusCode.UNIMPLEMENTED
                assert "x-request-id" in dict(await call.trailing_metadata())
            await asyncio.to_thread(counted, open_calls.metrics, {("other", "UNIMPLEMENTED"): 3})

    run(test)


def test_grpc_callers_that_go_away_or_do_not_wait() -> None:
    async def test() -> None:
        async with calls() as open_calls:
            assert (await open_calls.ask(b"image")).err_no == 0  # there is a connection now
            with pytest.raises(grpc.aio.AioRpcError):
                await open_calls.ask(b"slow", timeout=0.5)
            call = open_calls.ask(b"slow")
            await asyncio.to_thread(until, lambda: open_calls.service.slow == 2)
            call.cancel()
            await asyncio.to_thread(
                counted,
                open_calls.metrics,
                {
                    ("inference", "OK"): 1,
                    ("inference", "DEADLINE_EXCEEDED"): 1,
                    ("inference", "CANCELLED"): 1,
                },
            )
            assert numbers(open_calls.metrics)['pdserve_images_total{outcome="gone"}'] == 2

    run(test)


def test_lines_of_grpc_calls(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def test() -> None:
        async with calls(access=True) as open_calls:
            await open_calls.ask(b"bad")

    run(test)
    (line,) = (record.__dict__ for record in caplog.records if record.name == "pdserve.access")
    assert line["message"] == "gRPC inference err_no_10000"
    assert (line["method"], line["images"], line["client"]) == ("gRPC", 1, "127.0.0.1")
    assert line["bytes_in"] > 0


def test_a_fault_in_a_grpc_method_tells_nothing_of_us(caplog: pytest.LogCaptureFixture) -> None:
    async def method(asked: bytes, context: Any) -> bytes:
        assert isinstance(current.get(), RequestContext)
        context.set_trailing_metadata((("other", "1"),))
        if asked == b"code":
            context.set_code(grpc.StatusCode.NOT_FOUND)
        if asked == b"broken":
            raise ValueError("a fault of ours in /home/somebody")
        return b"fine"

    async def test() -> None:
        metrics = Metrics()
        server = grpc.aio.server(interceptors=(TelemetryInterceptor(metrics),))
        handlers = {"inference": grpc.unary_unary_rpc_method_handler(method)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(pipeline.SERVICE, handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            ask = channel.unary_unary(pipeline.METHOD)
            call = ask(b"broken")
            assert (await call.code(), await call.details()) == (grpc.StatusCode.INTERNAL, "internal error")
            call = ask(b"fine")
            assert await call == b"fine"
            assert set(dict(await call.trailing_metadata())) == {"other", "x-request-id"}
            assert await ask(b"code").code() == grpc.StatusCode.NOT_FOUND
        await server.stop(None)
        counted(metrics, {("inference", code): 1 for code in ("INTERNAL", "OK", "NOT_FOUND")})

    run(test)
    assert [record.message for record in caplog.records if record.exc_info] == ["gRPC inference failed"]


@pytest.mark.parametrize("asked", ["", "a\x7f", "a\n", "\x00", "é", "x" * 129])
def test_ids_that_would_not_fit_into_a_line(asked: str) -> None:
    assert re.fullmatch("[0-9a-f]{16}", RequestContext(asked).id)

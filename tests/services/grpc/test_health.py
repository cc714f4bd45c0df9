"""gRPC's health checking protocol, asked by its own generated client."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from pdserve.formats.protos import INFERENCE, pipeline
from pdserve.services.auth import KeyInterceptor, Keys
from pdserve.services.budget import Entrance
from pdserve.services.grpc import health
from pdserve.services.grpc.server import grpc_listener
from pdserve.services.repository import Repository
from pdserve.services.telemetry.metrics import Metrics
from pdserve.services.telemetry.middleware import TelemetryInterceptor
from pdserve.settings import ServerSettings
from tests.services.watching import FakeService, requests

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
SETTINGS = ServerSettings(name="imagenet", grace_s=10)


class Opened:
    """A server that wants a key, its readiness, and a client without one."""

    def __init__(self, channel: Any, service: FakeService, metrics: Metrics) -> None:
        self.channel = channel
        self.stub = HealthStub(channel)
        self.service = service
        self.metrics = metrics

    async def check(self, name: str = "") -> int:
        return int((await self.stub.Check(HealthCheckRequest(service=name), timeout=10)).status)


@contextlib.asynccontextmanager
async def opened() -> AsyncIterator[Opened]:
    metrics = Metrics()
    service = FakeService(metrics)
    interceptors = TelemetryInterceptor(metrics), KeyInterceptor(Keys("k" * 32, None))
    async with (
        grpc_listener(service, Entrance(SETTINGS), 0, interceptors) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        yield Opened(channel, service, metrics)


def run(test: Callable[[Opened], Awaitable[None]]) -> None:
    async def main() -> None:
        async with opened() as server:
            await test(server)

    asyncio.run(main())


@pytest.mark.parametrize("name", ["", pipeline.SERVICE])
def test_the_status_follows_readiness_and_needs_no_key(name: str) -> None:
    async def test(server: Opened) -> None:
        assert await server.check(name) == SERVING
        server.service.ready = False
        assert await server.check(name) == NOT_SERVING
        server.service.ready = True
        assert await server.check(name) == SERVING
        assert requests(server.metrics) == {("Check", "OK"): 3}

    run(test)


def test_each_service_has_its_own_status_and_the_server_that_of_all() -> None:
    async def test() -> None:
        metrics = Metrics()
        cups, cars = FakeService(metrics), FakeService(metrics)
        services = Repository({"cups": cups, "cars": cars})
        async with (
            grpc_listener(services, Entrance(SETTINGS), 0, ()) as port,
            grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        ):
            server = Opened(channel, cups, metrics)
            cars.ready = False
            for name, status in (
                ("cups", SERVING),
                ("cars", NOT_SERVING),
                ("", NOT_SERVING),
                (INFERENCE, NOT_SERVING),
                ("grpc.health.v1.Health", NOT_SERVING),
            ):
                assert await server.check(name) == status
            cars.ready = True
            seen = []
            async for answer in server.stub.Watch(HealthCheckRequest(service="cars"), timeout=20):
                seen.append(answer.status)
                cars.ready = False
            assert seen == [SERVING, NOT_SERVING]

    asyncio.run(test())


def test_a_service_that_is_not_here() -> None:
    async def test(server: Opened) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await server.check("no.such.Service")
        assert failed.value.code() is grpc.StatusCode.NOT_FOUND
        async for answer in server.stub.Watch(HealthCheckRequest(service="no.such.Service")):
            assert answer.status == HealthCheckResponse.SERVICE_UNKNOWN
            break

    run(test)


def test_other_methods_still_need_a_key() -> None:
    async def test(server: Opened) -> None:
        made_up = "/grpc.health.v1.Health/made_up", f"/{pipeline.SERVICE}/made_up"
        for method in (pipeline.METHOD, "/grpc.health.v1.Healthy/Check", "/x/Health", *made_up):
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await server.channel.unary_unary(method)(b"")
            assert failed.value.code() is grpc.StatusCode.UNAUTHENTICATED
        # No label takes what a caller sent.
        code = "UNAUTHENTICATED"
        expected = {("inference", code): 1, ("other", code): 4}
        async with asyncio.timeout(20):  # the last is counted when its caller may have its answer already
            while requests(server.metrics) != expected:
                await asyncio.sleep(0.01)

    run(test)


def test_watching_ends_with_the_service_and_does_not_hold_it_up() -> None:
    async def test(server: Opened) -> None:
        seen = []
        async for answer in server.stub.Watch(HealthCheckRequest(), timeout=20):
            seen.append(answer.status)
            server.service.ready = False
        assert seen == [SERVING, NOT_SERVING]

    run(test)


def test_health_is_no_prediction() -> None:
    async def test(server: Opened) -> None:
        await server.check()
        assert b"pd_query_request_success_total 0.0" in server.metrics.exposition()[0]

    run(test)


def test_watches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "MAX_WATCHES", 1)

    async def test(server: Opened) -> None:
        first = server.stub.Watch(HealthCheckRequest(), timeout=20)
        assert (await first.read()).status == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await server.stub.Watch(HealthCheckRequest(), timeout=20).read()
        assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        server.service.ready = False  # the first ends, and makes place for another
        assert (await first.read()).status == NOT_SERVING
        assert await first.read() is grpc.aio.EOF
        again = [answer.status async for answer in server.stub.Watch(HealthCheckRequest(), timeout=20)]
        assert again == [NOT_SERVING]

    run(test)

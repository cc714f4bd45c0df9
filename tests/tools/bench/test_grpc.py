"""The gRPC route, against a server that does as a test wants."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from pdserve.clients.credentials import Access
from pdserve.formats.protos import pipeline
from pdserve.tools.bench import Run, build_target, closed_loop, open_loop

Answer = Callable[[Any, Any], Awaitable[Any]]


@asynccontextmanager
async def odd_server(answer: Answer) -> AsyncIterator[str]:
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(
        answer,
        request_deserializer=pipeline.request_class().FromString,
        response_serializer=pipeline.response_class().SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(pipeline.SERVICE, {"inference": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


def run(answer: Answer, **options: Any) -> Run:
    async def both() -> Run:
        access = options.pop("access", Access())
        async with odd_server(answer) as address:
            target = build_target("grpc", address, [b"a", b"b"], access=access)
            given = {"requests": 4, "warm_up_s": 0, "timeout_s": 10} | options
            if "rate" in given:
                return await open_loop(target, **given)
            return await closed_loop(target, clients=2, **given)

    return asyncio.run(both())


def test_good_answers() -> None:
    values, peers, keys = [], set(), []

    async def good(request: Any, context: Any) -> Any:
        values.append(request.value[0])
        peers.add(context.peer())
        keys.append(dict(context.invocation_metadata()).get("authorization"))
        return pipeline.response_class()(key=["label"], value=["['red']"])

    result = run(good, requests=20, access=Access("secret"))
    assert result.answers == 20
    assert (result.route, result.failed) == ("grpc", 0)
    assert sorted(set(values)) == ["YQ==", "Yg=="]
    assert len(peers) == 2  # a connection per client
    assert set(keys) == {"Bearer secret"}


def test_an_open_loop() -> None:
    async def slow(request: Any, context: Any) -> Any:
        await asyncio.sleep(0.2)
        return pipeline.response_class()()

    result = run(slow, rate=100, arrivals="constant", requests=10)
    assert result.answers == 10
    assert result.seconds < 1.5  # they were in flight together
    assert min(result.latencies) >= 0.19


def test_errors_by_kind() -> None:
    async def failing(request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "The queue is full.")

    async def refusing(request: Any, context: Any) -> Any:
        return pipeline.response_class()(err_no=6000, err_msg="too late")

    result = run(failing)
    assert result.errors == {"RESOURCE_EXHAUSTED": 4}
    assert result.examples == {"RESOURCE_EXHAUSTED": "The queue is full."}
    result = run(refusing)
    assert result.errors == {"err_no 6000": 4}
    assert result.examples == {"err_no 6000": "too late"}


def test_a_server_that_hangs() -> None:
    async def silent(request: Any, context: Any) -> Any:
        await asyncio.sleep(30)

    assert run(silent, timeout_s=0.1).errors == {"timeout": 4}


def test_nobody_there() -> None:
    async def both() -> Run:
        async with odd_server(lambda request, context: asyncio.sleep(0)) as address:
            target = build_target("grpc", address, [b"a"])
        return await closed_loop(target, clients=2, requests=4, warm_up_s=0)

    assert asyncio.run(both()).errors == {"connection refused": 4}


def test_a_deadline_of_the_server() -> None:
    async def late(request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "The answer would come too late.")

    assert run(late).errors == {"DEADLINE_EXCEEDED": 4}

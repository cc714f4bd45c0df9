"""gRPC's health checking protocol (grpc.health.v1), as load balancers and Kubernetes probe it."""

import asyncio
from collections.abc import Mapping
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from pdserve.formats.protos import pipeline
from pdserve.services.budget import Entrance
from pdserve.services.service import Answering

_POLL_S = 0.5
# Streams of Watch at once: they need no key, and each is a task that wakes at every poll.
MAX_WATCHES = 100
_Context = grpc.aio.ServicerContext[Any, Any]


def methods(service: Answering, entrance: Entrance) -> "Mapping[str, grpc.RpcMethodHandler[Any, Any]]":
    """The handlers of the protocol's methods, by name; the status follows the service's readiness."""

    def status(name: str) -> Any:
        if name not in ("", pipeline.SERVICE):
            return HealthCheckResponse.SERVICE_UNKNOWN
        return HealthCheckResponse.SERVING if service.ready else HealthCheckResponse.NOT_SERVING

    async def check(request: Any, context: _Context) -> Any:
        found = status(request.service)
        if found == HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "This server has no such service.")
        return HealthCheckResponse(status=found)

    watches = 0

    async def watch(request: Any, context: _Context) -> None:
        nonlocal watches
        if watches >= MAX_WATCHES:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "Too many watch; call Check.")
        watches += 1
        try:
            await report(request, context)
        finally:
            watches -= 1

    async def report(request: Any, context: _Context) -> None:
        last = None
        while True:
            ready, found = service.ready, status(request.service)  # before the write, which may take a while
            if found != last:
                await context.write(HealthCheckResponse(status=found))
                last = found
            if not ready:
                return  # or the stream would hold up the end of the server; the caller opens another
            await asyncio.sleep(_POLL_S)

    coding = HealthCheckRequest.FromString, HealthCheckResponse.SerializeToString
    return {
        "Check": grpc.unary_unary_rpc_method_handler(check, *coding),
        "Watch": grpc.unary_stream_rpc_method_handler(watch, *coding),
    }

"""gRPC's health checking protocol (grpc.health.v1), as load balancers and Kubernetes probe it."""

import asyncio
from collections.abc import Mapping
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1.health_pb2 import HealthCheckResponse

from pdserve.services.grpc.intake import Intake, end
from pdserve.services.grpc.wire import MalformedMessageError, read_service
from pdserve.services.parsing import TooMuchError
from pdserve.services.protocols import PROTOCOLS
from pdserve.services.repository import Repository

_POLL_S = 0.5
# Streams of Watch at once: they need no key, and each is a task that wakes at every poll.
MAX_WATCHES = 100
_Context = grpc.aio.ServicerContext[Any, Any]


def methods(services: Repository, intake: Intake) -> "Mapping[str, grpc.RpcMethodHandler[Any, Any]]":
    """The handlers of the protocol's methods, by name; the status follows the services' readiness.

    The empty name and those of gRPC services mean the server as a whole, others one of its services.
    """
    overall = {"", *(protocol.grpc_service for protocol in PROTOCOLS.values())}

    def status(name: str) -> Any:
        asked = services if name in overall else services.find(name)
        if asked is None:
            return HealthCheckResponse.SERVICE_UNKNOWN
        return HealthCheckResponse.SERVING if asked.ready else HealthCheckResponse.NOT_SERVING

    async def asked(context: _Context) -> str:
        """The name of the service that is asked about."""
        try:
            async with intake.message(context) as message:
                return read_service(message)
        except (MalformedMessageError, TooMuchError) as error:
            await end(context, "INVALID_ARGUMENT", error.message)

    async def check(_messages: Any, context: _Context) -> Any:
        found = status(await asked(context))
        if found == HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "This server has no such service.")
        return HealthCheckResponse(status=found)

    watches = 0

    async def watch(_messages: Any, context: _Context) -> None:
        nonlocal watches
        if watches >= MAX_WATCHES:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "Too many watch; call Check.")
        watches += 1
        try:
            await report(await asked(context), context)
        finally:
            watches -= 1

    async def report(name: str, context: _Context) -> None:
        last = None
        while True:
            ready, found = services.ready, status(name)  # before the write, which may take a while
            if found != last:
                await context.write(HealthCheckResponse(status=found))
                last = found
            if not ready:
                return  # or the stream would hold up the end of the server; the caller opens another
            await asyncio.sleep(_POLL_S)

    # Handlers that take a stream are called before the message is in.
    serializer = HealthCheckResponse.SerializeToString
    return {
        "Check": grpc.stream_unary_rpc_method_handler(check, response_serializer=serializer),
        "Watch": grpc.stream_stream_rpc_method_handler(watch, response_serializer=serializer),
    }

"""gRPC's server reflection: what services and messages there are, for grpcurl and its like.

As github.com/grpc/grpc, "doc/server-reflection.md". A server without a key describes itself to everybody; one
with keys only where that is asked for (``--grpc-reflection``), and then to callers with a key.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2

from pdserve.formats.protos import descriptors, message
from pdserve.services.grpc.intake import Intake, end
from pdserve.services.grpc.wire import BYTES, MalformedMessageError, Reader, text_of
from pdserve.services.parsing import Bounds, TooMuchError
from pdserve.services.protocols import PROTOCOLS
from pdserve.services.repository import Repository

_Context = grpc.aio.ServicerContext[Any, Any]
_RESPONSE = "grpc.reflection.v1.ServerReflectionResponse"
MAX_STREAMS = 100
"""Callers at once that look."""
_LONGEST = 64 * 1024  # bytes of a question: names are short
_NOT_FOUND = grpc.StatusCode.NOT_FOUND.value[0]


def methods(services: Repository, intake: Intake) -> "Mapping[str, grpc.RpcMethodHandler[Any, Any]]":
    """The handler of the protocol's method; none where the server is not to describe itself."""
    settings = intake.settings
    keyed = settings.api_key is not None or settings.api_key_file is not None
    if keyed and not settings.grpc_reflection:
        return {}
    streams = 0

    async def info(_messages: Any, context: _Context) -> None:
        nonlocal streams
        if streams >= MAX_STREAMS:
            await end(context, "RESOURCE_EXHAUSTED", "Too many look at this server's methods; ask again.")
        streams += 1
        try:
            await _answered(intake, context)
        finally:
            streams -= 1

    response = message(_RESPONSE)
    return {
        "ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(
            info, response_serializer=response.SerializeToString
        )
    }


async def _answered(intake: Intake, context: _Context) -> None:
    while True:
        async with intake.next_message(context) as question:
            if question is None:
                return
            try:
                answer = answered(question)
            except (MalformedMessageError, TooMuchError) as error:
                await end(context, error.grpc_status, error.message)
        await context.write(answer)


def answered(question: bytes) -> Any:
    """The answer to a ServerReflectionRequest. Raises MalformedMessageError, TooMuchError."""
    if len(question) > _LONGEST:
        raise TooMuchError(Bounds(0, _LONGEST), "bytes")
    asked, name, host = 0, "", ""
    for number, wire, content in Reader(Bounds(16, 0)).fields(memoryview(question)):
        if wire == BYTES and isinstance(content, memoryview):
            if number == 1:
                host = text_of(content)
            elif number in (3, 4, 5, 6, 7):
                asked, name = number, "" if number == 5 else text_of(content)
    answer = message(_RESPONSE)(valid_host=host)
    answer.original_request.MergeFromString(question)
    if asked == 7:
        for service in sorted(_services()):
            answer.list_services_response.service.add(name=service)
    elif asked in (3, 4) and (file := (_by_name() if asked == 3 else _by_symbol()).get(name)):
        answer.file_descriptor_response.file_descriptor_proto.append(file)
    else:
        answer.error_response.error_code = _NOT_FOUND
        answer.error_response.error_message = f"There is no {name[:100]!r} here."
    return answer


@cache
def _services() -> frozenset[str]:
    """The gRPC services that are described."""
    offered = {protocol.grpc_service for protocol in PROTOCOLS.values() if protocol.transport == "grpc"}
    return frozenset(
        f"{file.package}.{service.name}"
        for file in _files()
        for service in file.service
        if f"{file.package}.{service.name}" in offered
    )


@cache
def _files() -> tuple[Any, ...]:
    """The files that describe a service, and those alone; none imports another."""
    health = descriptor_pb2.FileDescriptorProto.FromString(health_pb2.DESCRIPTOR.serialized_pb)
    return (*(file for file in descriptors() if file.service), health)


@cache
def _by_name() -> Mapping[str, bytes]:
    return {file.name: file.SerializeToString() for file in _files()}


@cache
def _by_symbol() -> Mapping[str, bytes]:
    return {symbol: _by_name()[file.name] for file in _files() for symbol in _symbols(file)}


def _symbols(file: Any) -> Iterator[str]:
    """Full names of services, methods, messages, and what is in them."""
    for service in file.service:
        name = f"{file.package}.{service.name}"
        yield name
        yield from (f"{name}.{method.name}" for method in service.method)
    yield from (f"{file.package}.{enum.name}" for enum in file.enum_type)
    yield from _in_messages(file.message_type, file.package)


def _in_messages(messages: Any, parent: str) -> Iterator[str]:
    for each in messages:
        name = f"{parent}.{each.name}"
        yield name
        yield from (f"{name}.{enum.name}" for enum in each.enum_type)
        yield from (f"{name}.{field.name}" for field in each.field)
        yield from _in_messages(each.nested_type, name)

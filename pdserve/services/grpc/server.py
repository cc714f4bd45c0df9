"""The gRPC door: the pipeline protocol's one method.

A request that failed as a whole because the queue is full, or the time up, ends with the gRPC status that
says so; all other failures are answers with an ``err_no``, as of the published server. Its client
(paddle_serving_server 0.9.0, PipelineClient) has no deadline and no retries, and lets a status other than
OK through to its caller as grpc.RpcError.
"""

from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio

from pdserve.errors import DeadlineError, OverloadedError, SettingsError
from pdserve.formats.protos import pipeline
from pdserve.services.pipeline_protocol import PipelineRequest, answer
from pdserve.services.service import Answering
from pdserve.services.sockets import shown
from pdserve.settings import ServerSettings

# A silent peer is pinged after the first, and taken for gone the second later.
_PING_AFTER_S = 60
_PING_TIMEOUT_S = 20
# How often clients may ping: gRPC's own default cuts off those that do it more than once in five minutes.
_PINGED_EVERY_S = 10
# Requests at once on one connection; more wait at the client.
_STREAMS = 256


def build_server(
    service: Answering,
    settings: ServerSettings,
    port: int,
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    credentials: grpc.ServerCredentials | None = None,
) -> tuple[grpc.aio.Server, int]:
    """A server bound to the port (0: any free one) and not started yet, and the port it has.

    ``credentials`` make it speak TLS. Raises SettingsError where it cannot listen.
    """
    server = grpc.aio.server(interceptors=tuple(interceptors), options=_options(settings))
    handler = grpc.unary_unary_rpc_method_handler(
        _inference(service),
        request_deserializer=pipeline.request_class().FromString,
        response_serializer=pipeline.response_class().SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(pipeline.SERVICE, {"inference": handler}),)
    )
    address = f"{shown(settings.host)}:{port}"
    try:
        if credentials:
            bound = server.add_secure_port(address, credentials)
        else:
            bound = server.add_insecure_port(address)
    except RuntimeError as error:
        raise SettingsError(f"Cannot listen on {address}; give another port with --rpc-port.") from error
    return server, bound


def _options(settings: ServerSettings) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", settings.max_body_bytes),
        ("grpc.max_send_message_length", pipeline.MAX_MESSAGE_BYTES),
        # Between the two limits gRPC would refuse some, by chance.
        ("grpc.max_metadata_size", settings.max_header_bytes),
        ("grpc.absolute_max_metadata_size", settings.max_header_bytes),
        ("grpc.server_handshake_timeout_ms", _ms(settings.header_timeout_s)),
        ("grpc.max_connection_idle_ms", _ms(settings.keep_alive_s)),
        ("grpc.keepalive_time_ms", _ms(_PING_AFTER_S)),
        ("grpc.keepalive_timeout_ms", _ms(_PING_TIMEOUT_S)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),  # as many as it takes
        ("grpc.http2.min_ping_interval_without_data_ms", _ms(_PINGED_EVERY_S)),
        ("grpc.max_concurrent_streams", _STREAMS),
        ("grpc.so_reuseport", 0),  # or a second server would quietly take half of the requests
    ]


def _ms(seconds: float) -> int:
    """Whole milliseconds that fit into a C int."""
    return min(max(1, round(seconds * 1000)), 2**31 - 1)


def _inference(service: Answering) -> Any:
    response_class = pipeline.response_class()

    async def inference(request: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> Any:
        metadata = dict(context.invocation_metadata() or ())
        response = await answer(
            service,
            PipelineRequest(request.name, request.key, request.value, request.tensors, request.logid),
            full=pipeline.RESULTS_METADATA in metadata,
            top_k=_top_k(metadata.get(pipeline.TOP_K_METADATA)),
            timeout_s=context.time_remaining(),
        )
        if isinstance(response.error, OverloadedError | DeadlineError):
            status = grpc.StatusCode[response.error.grpc_status]
            later = ((pipeline.RETRY_AFTER_METADATA, "1"),)
            more = later if isinstance(response.error, OverloadedError) else ()
            # An abort forgets the metadata that were set before it.
            await context.abort(status, response.err_msg, (*context.trailing_metadata(), *more))
        return response_class(
            err_no=response.err_no, err_msg=response.err_msg, key=response.key, value=response.value
        )

    return inference


def _top_k(text: object) -> int | None:
    """What a client of ours asks for; None for what no client of ours sends."""
    return int(text) or None if isinstance(text, str) and text.isdecimal() and len(text) < 10 else None

"""The gRPC door: the pipeline protocol's one method."""

from typing import Any

import grpc
import grpc.aio

from pdserve.errors import SettingsError
from pdserve.protos import pipeline
from pdserve.services.pipeline_protocol import PipelineRequest, answer
from pdserve.services.service import Service
from pdserve.settings import ServerSettings


def build_server(service: Service, settings: ServerSettings, port: int) -> tuple[grpc.aio.Server, int]:
    """A server bound to the port (0: any free one) and not started yet, and the port it has.

    Raises SettingsError where it cannot listen.
    """
    limit = settings.max_body_bytes
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", limit),
            ("grpc.max_send_message_length", pipeline.MAX_MESSAGE_BYTES),
            ("grpc.so_reuseport", 0),  # or a second server would quietly take half of the requests
        ]
    )
    handler = grpc.unary_unary_rpc_method_handler(
        _inference(service),
        request_deserializer=pipeline.request_class().FromString,
        response_serializer=pipeline.response_class().SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(pipeline.SERVICE, {"inference": handler}),)
    )
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise SettingsError(f"Cannot listen on {host}:{port}; give another port with --rpc-port.") from error
    return server, bound


def _inference(service: Service) -> Any:
    response_class = pipeline.response_class()

    async def inference(request: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> Any:
        metadata = dict(context.invocation_metadata() or ())
        top_k = metadata.get(pipeline.TOP_K_METADATA)
        response = await answer(
            service,
            PipelineRequest(request.name, request.key, request.value, request.tensors, request.logid),
            full=pipeline.RESULTS_METADATA in metadata,
            top_k=int(top_k) if isinstance(top_k, str) and top_k.isdecimal() and int(top_k) else None,
        )
        return response_class(
            err_no=response.err_no, err_msg=response.err_msg, key=response.key, value=response.value
        )

    return inference

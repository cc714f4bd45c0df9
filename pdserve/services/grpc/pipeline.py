"""Paddle Serving's pipeline protocol over gRPC: its one method.

A request that failed as a whole because the queue is full, or the time up, ends with the gRPC status that
says so; all other failures are answers with an ``err_no``, as of the published server. Its client
(paddle_serving_server 0.9.0, PipelineClient) has no deadline and no retries, and lets a status other than
OK through to its caller as grpc.RpcError.
"""

from collections.abc import Mapping
from typing import Any

import grpc
import grpc.aio

from pdserve.errors import DeadlineError, OverloadedError
from pdserve.formats.protos import pipeline
from pdserve.services.budget import Entrance
from pdserve.services.pipeline_protocol import PipelineRequest, answer
from pdserve.services.service import Answering


def methods(service: Answering, entrance: Entrance) -> Mapping[str, "grpc.RpcMethodHandler[Any, Any]"]:
    """The handlers of the protocol's methods, by name."""
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

    return {
        "inference": grpc.unary_unary_rpc_method_handler(
            inference,
            request_deserializer=pipeline.request_class().FromString,
            response_serializer=response_class.SerializeToString,
        )
    }


def _top_k(text: object) -> int | None:
    """The number that pdserve's own clients send; None for what they do not send."""
    return int(text) or None if isinstance(text, str) and text.isdecimal() and len(text) < 10 else None

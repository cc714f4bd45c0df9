"""Paddle Serving's pipeline protocol over gRPC: its one method.

A request that failed as a whole because the queue is full, or the time up, ends with the gRPC status that
says so; all other failures are answers with an ``err_no``, as of the published server. Its client
(paddle_serving_server 0.9.0, PipelineClient) has no deadline and no retries, and lets a status other than
OK through to its caller as grpc.RpcError.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio

from pdserve.errors import BodyTooLargeError, DeadlineError, OverloadedError
from pdserve.formats.protos import pipeline
from pdserve.services.grpc.intake import Intake, end
from pdserve.services.grpc.wire import MalformedMessageError, read_request, read_tensors
from pdserve.services.parsing import Bounds, parsed
from pdserve.services.pipeline_protocol import PipelineRequest, answer, check_entries
from pdserve.services.repository import Repository
from pdserve.settings import ServerSettings


def methods(services: Repository, intake: Intake) -> Mapping[str, "grpc.RpcMethodHandler[Any, Any]"]:
    """The handlers of the protocol's methods, by name."""
    response_class = pipeline.response_class()
    limits = intake.settings

    async def inference(_messages: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> Any:
        async with intake.message(context) as body:
            return await answered(body, context)

    async def answered(body: bytes, context: "grpc.aio.ServicerContext[Any, Any]") -> Any:
        metadata = dict(context.invocation_metadata() or ())
        try:
            request = await parsed(lambda bounds: _parse(body, bounds, limits), len(body))
        except (MalformedMessageError, BodyTooLargeError) as error:
            await end(context, error.grpc_status, error.message)
        if not request.name and not services.alone:
            request = replace(request, name=str(metadata.get(pipeline.KIND_METADATA, "")))
        response = await answer(
            services,
            request,
            limits,
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

    # A handler that takes a stream is called before the message is in.
    return {
        "inference": grpc.stream_unary_rpc_method_handler(
            inference, response_serializer=response_class.SerializeToString
        )
    }


def _parse(body: bytes, bounds: Bounds, limits: ServerSettings) -> PipelineRequest:
    """A message -> a request. Raises MalformedMessageError, BodyTooLargeError."""
    found = read_request(body, bounds)
    check_entries(found.key, found.tensors, limits)
    tensors = read_tensors(found.tensors, bounds)
    return PipelineRequest(found.name, found.key, found.value, tensors, found.logid)


def _top_k(text: object) -> int | None:
    """The number that pdserve's own clients send; None for what they do not send."""
    return int(text) or None if isinstance(text, str) and text.isdecimal() and len(text) < 10 else None

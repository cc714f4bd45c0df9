"""The Open Inference Protocol over gRPC: the same answers as over HTTP, with their statuses."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import grpc
import grpc.aio

from pdserve import __version__
from pdserve.errors import OverloadedError, PdserveError
from pdserve.formats.protos import message as message_class
from pdserve.services.grpc.inference_wire import (
    ReadRequest,
    encode_contents,
    read_infer,
    read_small,
)
from pdserve.services.grpc.intake import Intake, client, end, refuse
from pdserve.services.http.messages import log_failures, message
from pdserve.services.http.oip import EXTENSIONS, metadata_of
from pdserve.services.inference.answer import infer
from pdserve.services.inference.models import config, find, models
from pdserve.services.inference.repository import check_change, index
from pdserve.services.inference.requests import InferResponse, shared_memory
from pdserve.services.inference.statistics import statistics
from pdserve.services.parsing import parsed
from pdserve.services.repository import Repository

_Context = grpc.aio.ServicerContext[Any, Any]
Handlers = Mapping[str, "grpc.RpcMethodHandler[Any, Any]"]
_SHARED_MEMORY = [
    f"{kind}SharedMemory{action}"
    for kind in ("System", "Cuda")
    for action in ("Status", "Register", "Unregister")
]


def health(services: Repository, intake: Intake) -> Handlers:
    """Liveness and readiness of the server."""

    async def live(_: bytes) -> Any:
        return _made("ServerLiveResponse", live=True)

    async def ready(_: bytes) -> Any:
        return _made("ServerReadyResponse", ready=services.ready)

    return {"ServerLive": unary(intake, live), "ServerReady": unary(intake, ready)}


def methods(services: Repository, intake: Intake) -> Handlers:
    """What is said of the server and its models."""

    def named(body: bytes) -> tuple[Any, Any]:
        texts = read_small(body).texts
        return find(services, texts.get(1, ""), texts.get(2, ""))

    async def metadata(_: bytes) -> Any:
        extensions = [each for each in EXTENSIONS if each != "binary_tensor_data"]  # which is HTTP's alone
        return _made("ServerMetadataResponse", name="pdserve", version=__version__, extensions=extensions)

    async def ready(body: bytes) -> Any:
        service, _ = named(body)
        return _made("ModelReadyResponse", ready=service.ready)

    async def model_metadata(body: bytes) -> Any:
        return _made("ModelMetadataResponse", **asdict(metadata_of(named(body)[1])))

    async def configuration(body: bytes) -> Any:
        return _made("ModelConfigResponse", config=config(named(body)[1], intake.settings.max_images))

    async def stats(body: bytes) -> Any:
        found = [named(body)] if read_small(body).texts.get(1) else models(services)
        return _made("ModelStatisticsResponse", model_stats=statistics(found))

    async def no_shared_memory(_: bytes) -> Any:
        raise shared_memory()

    return {
        "ServerMetadata": unary(intake, metadata),
        "ModelReady": unary(intake, ready),
        "ModelMetadata": unary(intake, model_metadata),
        "ModelConfig": unary(intake, configuration),
        "ModelStatistics": unary(intake, stats),
        **{name: unary(intake, no_shared_memory) for name in _SHARED_MEMORY},
    }


def inference(services: Repository, intake: Intake) -> Handlers:
    """Inference, of one request or of a stream of them."""
    limits = intake.settings

    async def answered(body: bytes, context: _Context) -> Any:
        read: ReadRequest = await parsed(lambda bounds: read_infer(body, bounds, limits), len(body))
        answer = await infer(services, read.request, limits, context.time_remaining())
        return _response(answer, read)

    async def one(_messages: Any, context: _Context) -> Any:
        async with intake.message(context) as body:
            return await _or_end(partial(answered, body, context), context)

    async def stream(_messages: Any, context: _Context) -> None:
        """Requests of a stream are answered in order; one that fails ends none of the others."""
        while True:
            async with intake.next_message(context) as body:
                if body is None:
                    return
                try:
                    found = _made("ModelStreamInferResponse", infer_response=await answered(body, context))
                except PdserveError as error:
                    log_failures([error], "ModelStreamInfer")
                    found = _made("ModelStreamInferResponse", error_message=message(error))
            await context.write(found)

    return {
        "ModelInfer": grpc.stream_unary_rpc_method_handler(one, response_serializer=_serialized),
        "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(stream, response_serializer=_serialized),
    }


def repository(services: Repository, intake: Intake) -> Handlers:
    """The model repository: services are listed, loaded and unloaded."""

    async def listed(body: bytes, _: _Context) -> Any:
        ready = read_small(body).flags.get(2, False)
        return _made("RepositoryIndexResponse", models=index(services, ready=ready))

    async def load(body: bytes, context: _Context) -> Any:
        await services.finish(services.load(changed(body, context)))
        return _made("RepositoryModelLoadResponse")

    async def unload(body: bytes, context: _Context) -> Any:
        await services.finish(services.unload(changed(body, context)))
        return _made("RepositoryModelUnloadResponse")

    def changed(body: bytes, context: _Context) -> str:
        """The name of the service."""
        asked = read_small(body)
        check_change(intake.settings, client(context), dict.fromkeys(asked.keys))
        return asked.texts.get(2, "")

    return {
        "RepositoryIndex": unary_of_context(intake, listed),
        "RepositoryModelLoad": unary_of_context(intake, load),
        "RepositoryModelUnload": unary_of_context(intake, unload),
    }


def unary(intake: Intake, work: Callable[[bytes], Awaitable[Any]]) -> "grpc.RpcMethodHandler[Any, Any]":
    """A handler that answers a small request, given as its bytes."""

    async def of_context(body: bytes, _: _Context) -> Any:
        return await work(body)

    return unary_of_context(intake, of_context)


def unary_of_context(
    intake: Intake, work: Callable[[bytes, _Context], Awaitable[Any]]
) -> "grpc.RpcMethodHandler[Any, Any]":
    """The same for what depends on who calls."""

    async def handler(_messages: Any, context: _Context) -> Any:
        async with intake.message(context) as body:
            return await _or_end(partial(work, body, context), context)

    # A handler that takes a stream is called before the message is in.
    return grpc.stream_unary_rpc_method_handler(handler, response_serializer=_serialized)


async def _or_end(work: Callable[[], Awaitable[Any]], context: _Context) -> Any:
    """What the work gives; an error of ours ends the call with its status."""
    try:
        return await work()
    except OverloadedError as error:
        await refuse(context, error.message)
    except PdserveError as error:
        log_failures([error], "gRPC")
        await end(context, error.grpc_status, message(error))


def _serialized(response: Any) -> bytes:
    found: bytes = response.SerializeToString()
    return found


def _made(kind: str, /, **fields: Any) -> Any:
    return message_class(f"inference.{kind}")(**fields)


def _response(answer: InferResponse, read: ReadRequest) -> Any:
    """An answer in the form of its request: tensors as bytes where its own were, else as contents."""
    response = _made(
        "ModelInferResponse", model_name=answer.model, model_version=answer.version, id=answer.id
    )
    if read.final:
        response.parameters["triton_final_response"].bool_param = True
    encoded = [None if read.raw else encode_contents(each.datatype, each.data) for each in answer.outputs]
    raw = read.raw or None in encoded
    for each, contents in zip(answer.outputs, encoded, strict=True):
        tensor = response.outputs.add(name=each.name, datatype=each.datatype, shape=each.shape)
        if raw:
            response.raw_output_contents.append(each.raw())
        elif contents is not None:
            title, values = contents
            getattr(tensor.contents, title).extend(values)
    return response

"""The Open Inference Protocol over HTTP: models, their metadata and statistics, and inference."""

from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from pdserve.errors import RequestError
from pdserve.services.budget import Reservation
from pdserve.services.http.bodies import RESERVATIONS, read_body, unless_gone
from pdserve.services.http.inference_body import (
    HEADER_LENGTH,
    READ_IN_PLACE,
    LongList,
    is_large,
    parse,
    response,
)
from pdserve.services.http.messages import json_object, json_response, operation, parameter
from pdserve.services.inference.answer import infer
from pdserve.services.inference.models import InferenceModel, config, find, models
from pdserve.services.inference.repository import check_change, index
from pdserve.services.inference.requests import VERSION, flag, shared_memory
from pdserve.services.inference.statistics import statistics
from pdserve.services.inference.tensors import InputTensor
from pdserve.services.parsing import Bounds, in_a_thread, parsed
from pdserve.services.protocols import Context, Endpoint, Route

EXTENSIONS = (
    "binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics",
)  # fmt: skip
"""Of the protocol, as Triton names them; nothing is named that is not there."""

MODEL = "/v2/models/{model}"
SMALL = Bounds(100, 16 * 1024)
"""What a request may have that sends no tensors."""
_VERSIONED = f"{MODEL}/versions/{{version}}"


@dataclass(frozen=True)
class InferenceError:
    """What went wrong, in the protocol's form."""

    error: str


@dataclass(frozen=True)
class TensorMetadata:
    """An input or output; -1 where an extent is free."""

    name: str
    datatype: str
    shape: list[int]


@dataclass(frozen=True)
class ModelMetadata:
    """A model."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


@dataclass(frozen=True)
class ModelReady:
    """Whether a request to this model would be answered now."""

    name: str
    ready: bool


@dataclass(frozen=True)
class ListedModel:
    """A service in the repository; state: READY or UNAVAILABLE."""

    name: str
    version: str
    state: str
    reason: str


@dataclass(frozen=True)
class RequestTensor:
    """A tensor of a request. ``data``: images as base64, or numbers; none where its bytes follow the JSON."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any] | None = None
    parameters: dict[str, Any] | None = None


@dataclass(frozen=True)
class RequestOutput:
    """An output that is asked for; parameters: binary_data, classification."""

    name: str
    parameters: dict[str, Any] | None = None


@dataclass(frozen=True)
class InferenceRequest:
    """A request; parameters: top_k, timeout (microseconds), binary_data_output."""

    inputs: Annotated[list[RequestTensor], Field(min_length=1)]
    outputs: list[RequestOutput] | None = None
    id: str | None = None
    parameters: dict[str, Any] | None = None


@dataclass(frozen=True)
class AnswerTensor:
    """A tensor of an answer."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any] = field(default_factory=list)
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class InferenceAnswer:
    """An answer."""

    model_name: str
    model_version: str
    outputs: list[AnswerTensor]
    id: str = ""


def error_response(status: int, code: str, text: str, headers: Mapping[str, str] | None = None) -> Response:
    """The answer to a request that failed, in the protocol's form: see `Protocol.errors`."""
    return json_response(InferenceError(text), status, headers)


def metadata_of(model: InferenceModel) -> ModelMetadata:
    """A model's metadata."""
    tensors = [
        [TensorMetadata(each.name, each.datatype, list(each.shape)) for each in infos]
        for infos in (model.inputs, model.outputs)
    ]
    return ModelMetadata(model.name, [VERSION], model.platform, *tensors)


def routes(context: Context) -> Iterator[Route]:
    """What is said of models."""
    services, limits = context.services, context.settings

    async def metadata(request: Request) -> Response:
        _, model = find(services, *_named(request))
        return json_response(metadata_of(model))

    async def ready(request: Request) -> Response:
        service, model = find(services, *_named(request))
        return json_response(ModelReady(model.name, service.ready), 200 if service.ready else 503)

    async def configuration(request: Request) -> Response:
        _, model = find(services, *_named(request))
        return json_response(config(model, limits.max_images))

    async def stats(request: Request) -> Response:
        return json_response({"model_stats": statistics([find(services, *_named(request))])})

    async def all_stats(_: Request) -> Response:
        return json_response({"model_stats": statistics(models(services))})

    async def no_shared_memory(_: Request) -> Response:
        raise shared_memory()

    about: Sequence[tuple[str, Endpoint, str, Any]] = (
        ("", metadata, "A model's inputs and outputs", ModelMetadata),
        ("/ready", ready, "Would a request to this model be answered?", ModelReady),
        ("/config", configuration, "A model's configuration, in Triton's form", dict[str, Any]),
        ("/stats", stats, "A model's statistics, in Triton's form", dict[str, Any]),
    )
    for path, parameters in _PATHS:
        for suffix, endpoint, summary, answer in about:
            failures = (404, 503) if suffix == "/ready" else (404,)
            described = operation(
                "inference", summary, answer, failures, failure=InferenceError, parameters=parameters
            )
            yield Route("GET", f"{path}{suffix}", endpoint, described)
    described = operation("inference", "Statistics of all models", dict[str, Any])
    yield Route("GET", "/v2/models/stats", all_stats, described)
    for kind in ("systemsharedmemory", "cudasharedmemory"):
        yield Route("GET", f"/v2/{kind}/status", no_shared_memory)
        yield Route("POST", f"/v2/{kind}/unregister", no_shared_memory)
        yield Route("GET", f"/v2/{kind}/region/{{region}}/status", no_shared_memory)
        for action in ("register", "unregister"):
            yield Route("POST", f"/v2/{kind}/region/{{region}}/{action}", no_shared_memory)


def inference(context: Context) -> Iterator[Route]:
    """Inference."""
    services, limits = context.services, context.settings

    async def ask(request: Request) -> Response:
        name, version = _named(request)
        find(services, name, version)
        if request.headers.get("content-encoding", "identity") != "identity":
            raise RequestError("The body is compressed, which is not read here; send it as it is.")
        body = await read_body(request, context.entrance)
        length = request.headers.get(HEADER_LENGTH)
        read = await parsed(partial(parse, body, length, limits), len(body))
        inputs = await _tensors(read.inputs, request.scope[RESERVATIONS][-1])
        asked = read.request(name, version, inputs)
        del body, read, inputs
        answer = await unless_gone(request.receive, infer(services, asked, limits))
        return await in_a_thread(partial(response, answer)) if is_large(answer) else response(answer)

    for path, parameters in _PATHS:
        described = operation(
            "inference",
            "Inference on images or tensors",
            InferenceAnswer,
            (400, 404, 408, 413, 500, 503, 504),
            failure=InferenceError,
            parameters=parameters,
            body={"application/json": InferenceRequest, "application/octet-stream": bytes},
        )
        yield Route("POST", f"{path}/infer", ask, described)


def repository(context: Context) -> Iterator[Route]:
    """The model repository: services are listed, loaded and unloaded."""
    services, settings = context.services, context.settings

    async def asked(request: Request) -> dict[str, Any]:
        body = await read_body(request, context.entrance)
        if not body.strip():
            return {}
        content: dict[str, Any] = json_object(body, SMALL, '{"parameters": {…}}').content
        return content

    async def listed(request: Request) -> Response:
        ready = flag(await asked(request), "ready") or False
        return json_response(index(services, ready=ready))

    def changing(change: Callable[[str], Coroutine[Any, Any, None]]) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            parameters = (await asked(request)).get("parameters") or {}
            if not isinstance(parameters, dict):
                raise RequestError("parameters must be an object.")
            address = (request.scope.get("client") or ("",))[0]
            check_change(settings, address, parameters)
            # Whoever asked may leave: what was begun is finished.
            await services.finish(change(request.scope["path"].split("/")[4]))
            return json_response({})

        return endpoint

    described = operation(
        "inference", "The services, loaded or not", list[ListedModel], (400,), failure=InferenceError
    )
    yield Route("POST", "/v2/repository/index", listed, described)
    for action, change, summary in (
        ("load", services.load, "Load a service, or reload it"),
        ("unload", services.unload, "Unload a service, and free its memory"),
    ):
        described = operation(
            "inference",
            summary,
            dict[str, Any],
            (400, 403, 404, 500),
            failure=InferenceError,
            parameters=[_NAME],
        )
        path = f"/v2/repository/models/{{model}}/{action}"
        yield Route("POST", path, changing(change), described, writes=True)


_NAME = parameter("model", str, "the name of a service, its kind, or a model of it", "path")
_PATHS = (
    (MODEL, [_NAME]),
    (_VERSIONED, [_NAME, parameter("version", str, f"always {VERSION}", "path")]),
)


def _named(request: Request) -> tuple[str, str]:
    """Model and version that a path names; an empty version where it names none."""
    parts = request.scope["path"].split("/")
    return parts[3], parts[5] if parts[4:5] == ["versions"] else ""


async def _tensors(
    inputs: Sequence[InputTensor | LongList], reservation: Reservation
) -> Sequence[InputTensor]:
    """The inputs, long lists read within the budget for bodies. Raises RequestError, OverloadedError."""
    long = [each for each in inputs if isinstance(each, LongList)]
    if not long:
        return [each for each in inputs if isinstance(each, InputTensor)]
    await reservation.grow(sum(each.bytes_needed for each in long))

    def read() -> list[InputTensor]:
        return [each.read() if isinstance(each, LongList) else each for each in inputs]

    return read() if sum(len(each.raw) for each in long) <= READ_IN_PLACE else await in_a_thread(read)

"""``POST /v1/embeddings`` and ``GET /v1/models`` in the form of OpenAI's API: a model's features of images.

The form is that of OpenAI's API reference (platform.openai.com/docs/api-reference, "Embeddings", "Models",
"Errors"), where ``input`` is text; here each text is an image file in base64, or a data: URL of one. Its
answers have no place for the error of one input, so an image that cannot be embedded fails the request.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import orjson
import pybase64
from pydantic import ConfigDict, Field, with_config
from starlette.requests import Request
from starlette.responses import Response

from pdserve.errors import PdserveError, RequestError
from pdserve.services.http.bodies import read_body, unless_gone
from pdserve.services.http.messages import (
    json_images,
    json_object,
    json_response,
    log_failures,
    message,
    operation,
)
from pdserve.services.parsing import Bounds, parsed
from pdserve.services.protocols import Context, Route
from pdserve.services.repository import Repository, listed
from pdserve.services.service import Service
from pdserve.settings import ServerSettings

_WANTED = '{"model": …, "input": [base64, …]}'


class ParameterError(RequestError):
    """A parameter of the request is at fault; ``param`` is its name."""

    def __init__(self, text: str, param: str | None) -> None:
        super().__init__(text)
        self.param = param


class NoSuchModelError(ParameterError):
    """The model that is asked for is not the one that runs here."""

    code = "model_not_found"
    http_status = 404


class BadInputError(ParameterError):
    """An image of the request has no embedding; code and status are its error's."""

    def __init__(self, index: int, cause: PdserveError) -> None:
        super().__init__(f"input[{index}]: {message(cause)}", "input")
        self.code, self.http_status = cause.code, cause.http_status


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class EmbeddingsRequest:
    """A request for embeddings."""

    model: Annotated[str, Field(description="the name that GET /v1/models gives")]
    input: Annotated[
        str | Annotated[list[str], Field(min_length=1)],
        Field(description="images in base64, or data: URLs of it; one, or a list"),
    ]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int | None, Field(description="the model's own; others are refused")] = None
    user: Annotated[str | None, Field(description="not used")] = None


@dataclass(frozen=True)
class OpenAIEmbedding:
    """The embedding of one image: a list of numbers, or the base64 of little-endian float32."""

    index: int
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"


@dataclass(frozen=True)
class Usage:
    """What the request took: images have no tokens, so their number stands for it."""

    prompt_tokens: int
    total_tokens: int


@dataclass(frozen=True)
class EmbeddingList:
    """The answer: an embedding of length 1 (L2) for each image, in order."""

    data: list[OpenAIEmbedding]
    model: str
    usage: Usage
    object: Literal["list"] = "list"


@dataclass(frozen=True)
class Model:
    """A model; ``created``: when the server began to serve it, in seconds since 1970."""

    id: str
    created: int
    owned_by: str = "pdserve"
    object: Literal["model"] = "model"


@dataclass(frozen=True)
class ModelList:
    """The models that a request can name."""

    data: list[Model]
    object: Literal["list"] = "list"


@dataclass(frozen=True)
class Failure:
    """What went wrong. ``param``: the parameter at fault, where it is one."""

    message: str
    type: str
    code: str
    param: str | None = None


@dataclass(frozen=True)
class OpenAIError:
    """The answer to a request that failed."""

    error: Failure = field(metadata={"description": "in the form of OpenAI's API"})


def error_response(
    status: int, code: str, text: str, headers: Mapping[str, str] | None = None, param: str | None = None
) -> Response:
    """The answer to a request that failed, whatever it failed at: see `Protocol.errors`."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return json_response(OpenAIError(Failure(text, kind, code, param)), status, headers)


def embeddings(context: Context) -> Iterator[Route]:
    """The route of embeddings, where a service has an embedder."""
    services, settings = context.services, context.settings
    if not _embedding(services):
        return

    async def embed(request: Request) -> Response:
        try:
            body = await read_body(request, context.entrance)
            asked, images = await parsed(partial(_parse, body, settings), len(body))
            del body  # what was parsed are copies, and the request may take a while
            name, service = _served(services, asked.model)
            _refuse_bad(asked.input, images)
            answers = await unless_gone(request.receive, service.embed(images))
            log_failures(answers, "/v1/embeddings")
            vectors = _vectors(answers, asked.dimensions)
        except ParameterError as error:
            later = {"Retry-After": "1"} if error.http_status == 503 else None
            return error_response(error.http_status, error.code, error.message, later, error.param)
        usage = Usage(len(vectors), len(vectors))
        encode: Callable[[Any], Any] = np.ascontiguousarray
        if asked.encoding_format == "base64":
            encode = _to_base64
        data = [OpenAIEmbedding(i, encode(vector)) for i, vector in enumerate(vectors)]
        # orjson writes float32 in as few digits as give the same float32 again.
        content = orjson.dumps(EmbeddingList(data, name, usage), option=orjson.OPT_SERIALIZE_NUMPY)
        return Response(content, media_type="application/json")

    described = operation(
        "embeddings",
        "A model's features of one image or several, in the form of OpenAI's API",
        EmbeddingList,
        (400, 404, 408, 413, 500, 503, 504),
        failure=OpenAIError,
        body={"application/json": EmbeddingsRequest},
    )
    yield Route("POST", "/v1/embeddings", embed, described)


def models(context: Context) -> Iterator[Route]:
    """The route that lists the models of `embeddings`: of several services, each by its name."""
    services, since = context.services, int(time.time())
    if not _embedding(services):
        return

    async def show(_: Request) -> Response:
        return json_response(ModelList([Model(name, since) for name in _models(services)]))

    yield Route("GET", "/v1/models", show, operation("embeddings", "The model of /v1/embeddings", ModelList))


def _embedding(services: Repository) -> dict[str, Service]:
    """The services that have an embedder, by name."""
    return {name: each for name, each in services if isinstance(each, Service) and each.has_embedder}


def _models(services: Repository) -> dict[str, Service]:
    """What a request may name as its model: of one service the embedder, of several their own names."""
    found = _embedding(services)
    return {_name(each): each for each in found.values()} if services.alone else found


def _name(service: Service) -> str:
    if service.embedder is None:
        raise RuntimeError("a reload has taken the embedder away")
    return service.embedder.name


def _served(services: Repository, wanted: str) -> tuple[str, Service]:
    """The model that is asked for, and its service; of several services an embedder's name does as well."""
    found = _models(services)
    if service := found.get(wanted):
        return wanted, service
    same = [each for each in found.values() if each.loaded and _name(each) == wanted]
    if len(same) == 1 and not services.alone:
        return wanted, same[0]
    known = repr(next(iter(found))) if len(found) == 1 else listed(list(found))
    verb = "is" if len(found) == 1 else "are"
    raise NoSuchModelError(
        f"The model {wanted[:100]!r} is not served here; this server's {verb} {known}.", "model"
    )


def _parse(
    body: bytes, limits: ServerSettings, bounds: Bounds
) -> tuple[EmbeddingsRequest, list[bytes | PdserveError]]:
    """A body -> a request, and its images. Raises RequestError, ParameterError."""
    read = json_object(body, bounds, _WANTED)
    content = read.content
    fields = {key: content.pop(key, None) for key in EmbeddingsRequest.__dataclass_fields__}
    if content:
        key = next(iter(content))
        raise ParameterError(f"The parameter {key[:100]!r} is not one of {', '.join(fields)}.", key)
    texts = fields["input"]
    for name, good, what in (
        ("model", isinstance(fields["model"], str), "the name of the model, as GET /v1/models gives it"),
        (
            "input",
            isinstance(texts, str)
            or (isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts)),
            "an image file in base64, or a list of such that is not empty",
        ),
        ("encoding_format", fields["encoding_format"] in (None, "float", "base64"), "float or base64"),
        ("dimensions", fields["dimensions"] is None or type(fields["dimensions"]) is int, "a whole number"),
        ("user", isinstance(fields["user"], str | None), "text"),
    ):
        if not good:
            given = "missing" if fields[name] is None else f"{fields[name]!r:.40}"
            raise ParameterError(f"{name} is {given}; it must be {what}.", name)
    images = json_images(read, texts if isinstance(texts, list) else [texts], limits)
    return EmbeddingsRequest(**fields), images


def _refuse_bad(texts: str | Sequence[str], images: Sequence[bytes | PdserveError]) -> None:
    """Raise ParameterError with the place of a text that was no image file in base64."""
    for index, image in enumerate(images):
        text = texts if isinstance(texts, str) else texts[index]
        if text[:8].lower().startswith(("http://", "https://")):
            raise ParameterError(
                f"input[{index}] is an address, and this server fetches nothing; send the file in base64.",
                "input",
            )
        if isinstance(image, PdserveError):
            raise BadInputError(index, image)


def _vectors(answers: Sequence[Any], dimensions: int | None) -> list[Any]:
    """The vectors, unless one is an error. Raises ParameterError, also for another ``dimensions``."""
    for index, answer in enumerate(answers):
        if isinstance(answer, PdserveError):
            raise BadInputError(index, answer)
        if dimensions not in (None, len(answer)):
            raise ParameterError(
                f"dimensions is {dimensions}; the model's embeddings have {len(answer)}, and are not cut.",
                "dimensions",
            )
    return list(answers)


def _to_base64(vector: Any) -> str:
    return pybase64.b64encode_as_string(vector.astype("<f4").tobytes())

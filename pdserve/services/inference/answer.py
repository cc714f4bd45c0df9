"""Answers requests of the Open Inference Protocol: images by the service, tensors by its models."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from pdserve.errors import ImageTooLargeError, PdserveError, RequestError
from pdserve.index.search import MAX_TOP_K
from pdserve.pipelines.base import Pipeline, PipelineModel, Steps, together
from pdserve.pipelines.feeds import Feeds, prepared_feeds
from pdserve.services.http.messages import encode, log_failures, message
from pdserve.services.inference import statistics
from pdserve.services.inference.models import (
    IMAGE,
    MOST_ELEMENTS,
    InferenceModel,
    feed_shape,
    find,
    parts,
)
from pdserve.services.inference.requests import InferRequest, InferResponse, Wanted
from pdserve.services.inference.tensors import BYTES, InputTensor, OutputTensor, datatype_of, output, shown
from pdserve.services.parsing import SLICE, Buffer, copied, in_a_thread
from pdserve.services.repository import Repository
from pdserve.services.service import Answering, Service, check_count
from pdserve.settings import ServerSettings
from pdserve.vision.types import Array, Image8

Fetches = Mapping[str, Array]
_PIXELS_LIST = 4  # dimensions of UINT8 pixels: images, height, width, channels


class BadElementError(RequestError):
    """An element of a request has no answer; code and statuses are its error's."""

    def __init__(self, place: int, cause: PdserveError) -> None:
        super().__init__(f"{IMAGE}[{place}]: {message(cause)}")
        self.code, self.http_status, self.grpc_status = cause.code, cause.http_status, cause.grpc_status


async def infer(
    services: Repository, request: InferRequest, limits: ServerSettings, timeout_s: float | None = None
) -> InferResponse:
    """Answer a request. ``timeout_s``: how long its caller will wait, beside what the request says.

    The answers have no place for the error of one element, so the first fails the request. Raises
    UnknownModelError, RequestError and what `Service.answer` raises.
    """
    service, model = find(services, request.model, request.version)
    if isinstance(service, Service) and service.cold:  # its models' own tensors are not known before
        await service.awake(1, timeout_s)
        service, model = find(services, request.model, request.version)
    started, images = time.perf_counter_ns(), 0
    times = [each for each in (timeout_s, request.timeout_s) if each is not None]
    request = replace(request, timeout_s=min(times, default=None))
    success = False
    try:
        wanted = _wanted(model, request)
        files = await _images(service, model, request.inputs, limits)
        if files is not None:
            images = len(files)
            outputs = await _of_images(service, model, request, wanted, files)
        else:
            rows = _rows(service, model, request.inputs)
            images = len(rows)
            check_count(rows, limits)
            outputs = await _of_rows(service, model, request, wanted, rows)
        success = True
    finally:
        statistics.record(service, model.name, images, started, success=success)
    return InferResponse(model.name, outputs, request.id)


def _wanted(model: InferenceModel, request: InferRequest) -> Sequence[Wanted]:
    """The outputs that are asked for. Raises RequestError for one that is not there, or twice."""
    wanted = request.outputs or [Wanted(name) for name in model.usual]
    there = [info.name for info in model.outputs]
    for place, each in enumerate(wanted):
        if each.name not in there:
            raise RequestError(
                f"The model {shown(model.name)} has no output {shown(each.name)}; it has "
                f"{', '.join(map(repr, there))}."
            )
        if any(each.name == other.name for other in wanted[:place]):
            raise RequestError(f"The output {shown(each.name)} is asked for twice.")
    return wanted


async def _images(
    service: Answering, model: InferenceModel, inputs: Sequence[InputTensor], limits: ServerSettings
) -> Sequence[bytes | PdserveError] | None:
    """The request's images, as files; None where it has tensors for the model itself. Raises RequestError."""
    part = parts(service).get(model.role) if model.role else None
    own = [feed.alias for feed in part.engines[0].feeds] if part else []
    names = (IMAGE, *own) if len(own) == 1 else (IMAGE,)
    if len(inputs) == 1 and inputs[0].name in names and (part is None or part.prepare is not None):
        (tensor,) = inputs
        if tensor.datatype == BYTES:
            return cast("Sequence[bytes | PdserveError]", tensor.data)
        if tensor.datatype == "UINT8" and not (part and part.engines[0].feeds[0].dtype == "uint8"):
            return await _files(tensor, limits)
    if part is None:
        got = ", ".join(f"{shown(each.name)} ({each.datatype})" for each in inputs[:8]) or "none"
        raise RequestError(
            f"The request's inputs are {got}; {shown(model.name)} takes one, {IMAGE!r}: BYTES, an image file "
            "each, or UINT8 of images × height × width × 3."
        )
    return None


async def _files(tensor: InputTensor, limits: ServerSettings) -> list[bytes | PdserveError]:
    """Pixels, RGB, as image files (PPM, which has them as they are): what bounds files bounds these, too.

    Raises RequestError, ImageTooLargeError.
    """
    shape = tensor.shape if len(tensor.shape) == _PIXELS_LIST else (1, *tensor.shape)
    if len(shape) != _PIXELS_LIST or shape[-1] != 3:
        raise RequestError(
            f"The input {shown(tensor.name)} is UINT8 of the shape {list(tensor.shape)}; pixels are images × "
            "height × width × 3, red, green, blue."
        )
    count, height, width, _ = shape
    check_count(range(count), limits)
    if height * width > limits.max_pixels:
        raise ImageTooLargeError(
            f"The images have {width}×{height} pixels, more than the limit of {limits.max_pixels}."
        )
    pixels = cast("Image8", tensor.data).reshape(shape)

    head = b"P6 %d %d 255\n" % (width, height)

    def made() -> list[Buffer]:
        return [copied(memoryview(image).cast("B"), head) for image in pixels]

    files = made() if pixels.nbytes <= SLICE else await in_a_thread(made)
    return cast("list[bytes | PdserveError]", files)


def _rows(service: Answering, model: InferenceModel, inputs: Sequence[InputTensor]) -> list[Feeds]:
    """A model's own tensors, row by row. Raises RequestError for what does not fit it."""
    part = parts(service)[model.role or ""]
    feeds = {feed.alias: feed for feed in part.engines[0].feeds}
    given = {tensor.name: tensor for tensor in inputs}
    if given.keys() != feeds.keys() or len(given) != len(inputs):
        got = ", ".join(shown(each.name) for each in inputs[:8]) or "none"
        raise RequestError(
            f"The request's inputs are {got}; {shown(model.name)} takes {', '.join(map(repr, feeds))}"
            f"{f', or {IMAGE!r} alone' if part.prepare else ''}."
        )
    count = inputs[0].shape[0]
    for alias, feed in feeds.items():
        tensor, shape, datatype = given[alias], feed_shape(part, alias), datatype_of(feed.dtype)
        fits = len(tensor.shape) == len(shape) and all(
            known in (-1, got) for got, known in zip(tensor.shape, shape, strict=True)
        )
        elements = math.prod(tensor.shape[1:])
        if tensor.datatype != datatype or not fits or tensor.shape[0] != count or elements > MOST_ELEMENTS:
            raise RequestError(
                f"The input {alias!r} is {tensor.datatype} of the shape {list(tensor.shape)}; "
                f"{shown(model.name)} takes {datatype} of {list(shape)}, with as many rows in each input, "
                f"and at most {MOST_ELEMENTS} numbers in one."
            )
    arrays = {alias: np.require(cast("Array", given[alias].data), requirements="W") for alias in feeds}
    return [Feeds({alias: array[at : at + 1] for alias, array in arrays.items()}) for at in range(count)]


async def _of_images(
    service: Answering,
    model: InferenceModel,
    request: InferRequest,
    wanted: Sequence[Wanted],
    files: Sequence[bytes | PdserveError],
) -> list[OutputTensor]:
    """Outputs for images. The answer alone is made as in every other protocol."""
    if model.items and all(each.name == model.items for each in wanted):
        answers = await service.answer(files, request.top_k, request.timeout_s)
        _check(answers, model.name)
        items = [getattr(answer, model.items) for answer in answers]
        return [_answer_output(each, items, request.binary) for each in wanted]
    role = model.role or ""

    async def work(pipeline: Pipeline[Any], steps: Steps) -> list[Any]:
        part = pipeline.models[role]
        prepare = _Prepare(part)
        prepared = await together([steps.decoded(file, prepare) for file in files])
        feeds = [each for each in prepared if not isinstance(each, PdserveError)]
        for each in feeds:
            steps.record("decode", each.decode_s, part.name, each.ended - each.preprocess_s)
            steps.record("preprocess", each.preprocess_s, part.name, each.ended)
        results = iter(await steps.infer(role, [each.feeds for each in feeds]))
        return [each if isinstance(each, PdserveError) else next(results) for each in prepared]

    return await _run(service, model, request, wanted, files, work)


async def _of_rows(
    service: Answering,
    model: InferenceModel,
    request: InferRequest,
    wanted: Sequence[Wanted],
    rows: Sequence[Feeds],
) -> list[OutputTensor]:
    async def work(_: Pipeline[Any], steps: Steps) -> list[Any]:
        return await steps.infer(model.role or "", rows)

    return await _run(service, model, request, wanted, rows, work)


async def _run(
    service: Answering,
    model: InferenceModel,
    request: InferRequest,
    wanted: Sequence[Wanted],
    images: Sequence[object],
    work: Any,
) -> list[OutputTensor]:
    """Outputs of fetches; ``work`` gives those of each image."""
    if not isinstance(service, Service):
        raise TypeError("a stand-in for a service has no models")
    results: list[Any] = await service.run(images, work, request.timeout_s)
    _check(results, model.name)
    part = parts(service)[model.role or ""]
    outputs = []
    for each in wanted:
        binary = request.binary if each.binary is None else each.binary
        if each.name == model.items and part.read:
            read = part.read
            scores = [_finite(fetches[part.scores], part) for fetches in results]
            items = [read(row[0], request.top_k) for row in scores]
            outputs.append(_answer_output(each, items, request.binary))
            continue
        array = _joined(each.name, [fetches[each.name] for fetches in results])
        if each.classes:
            outputs.append(_classes(part, each, array, binary))
        else:
            outputs.append(output(each.name, array, binary))
    return outputs


@dataclass(frozen=True, slots=True)
class _Prepared:
    feeds: Feeds
    decode_s: float
    preprocess_s: float
    ended: float


class _Prepare:
    """Makes a model's feeds of an image; durations in seconds, ends on time.perf_counter's clock."""

    def __init__(self, part: PipelineModel) -> None:
        self._part = part

    def __call__(self, image: Image8, decode_s: float) -> _Prepared:
        if self._part.prepare is None:
            raise TypeError("a model that takes no images")
        started = time.perf_counter()
        feeds = prepared_feeds(self._part, self._part.prepare(image))
        ended = time.perf_counter()
        return _Prepared(feeds, decode_s, ended - started, ended)


def _check(answers: Sequence[Any], what: str) -> None:
    log_failures(answers, what)
    for place, answer in enumerate(answers):
        if isinstance(answer, PdserveError):
            raise BadElementError(place, answer)


def _finite(scores: Array, part: PipelineModel) -> Array:
    if scores.ndim != 2 or not np.isfinite(scores).all():
        raise RequestError(
            f"The scores of {part.name} for these tensors are not all numbers; ask for {part.scores!r} "
            "alone, or send tensors as its preprocessing makes them."
        )
    return scores


def _joined(name: str, arrays: Sequence[Array]) -> Array:
    if len({array.shape[1:] for array in arrays}) > 1:
        raise RequestError(f"The output {name!r} has another shape for each of these; send one a request.")
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _answer_output(wanted: Wanted, items: Sequence[Any], default: bool) -> OutputTensor:
    """The service's answers: numbers as they are, anything else an element of JSON for each image."""
    if wanted.classes:
        raise RequestError(f"The output {wanted.name!r} has no scores that could be classified.")
    binary = default if wanted.binary is None else wanted.binary
    if items and isinstance(items[0][:1], tuple) and isinstance(next(iter(items[0]), None), float):
        return output(wanted.name, np.array(items, np.float32), binary)
    return OutputTensor(wanted.name, BYTES, (len(items),), [encode(each) for each in items], binary)


def _classes(part: PipelineModel, wanted: Wanted, array: Array, binary: bool) -> OutputTensor:
    """Triton's classification extension: of each row the best classes, "score:index" or "score:index:label".

    Raises RequestError for what is no list of scores.
    """
    if array.ndim < 2 or array.dtype.kind not in "fiu":
        raise RequestError(f"The output {wanted.name!r} has no scores that could be classified.")
    rows = array.reshape(len(array), -1)
    count = min(wanted.classes, rows.shape[1])
    if count * len(rows) > MAX_TOP_K:
        raise RequestError(
            f"{wanted.classes} classes of each row are {count * len(rows)} in all, more than {MAX_TOP_K}; "
            "ask for fewer, or send several requests."
        )
    names = part.names if part.names and len(part.names) == rows.shape[1] else None
    texts: list[bytes] = []
    for row in rows:
        for index in np.argsort(-row.astype(np.float64), kind="stable")[:count].tolist():
            text = f"{row[index]:f}:{index}" + (f":{names[index]}" if names else "")
            texts.append(text.encode("utf-8", "replace"))
    return OutputTensor(wanted.name, BYTES, (len(rows), count), texts, binary)

"""Paddle Serving's pipeline protocol, as the published server 0.9.0 has it: requests and answers, over HTTP
and gRPC alike.

A request is keys with values, and tensors; every key but one is an image, its value the base64 of a file.
An answer is keys with values again, each value the Python ``repr`` of a list with an entry per image.
"""

import binascii
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from pdserve.errors import (
    BodyTooLargeError,
    ImageError,
    PackageError,
    PdserveError,
    RequestError,
    WrongServiceError,
)
from pdserve.formats.protos import pipeline
from pdserve.services import base64_text, tensors
from pdserve.services.base64_text import Decoded, Text
from pdserve.services.http.messages import encode_results, log_failures, message
from pdserve.services.parsing import in_a_thread, parsed
from pdserve.services.repository import Repository
from pdserve.services.service import Answering, check_count
from pdserve.services.telemetry.metrics import current
from pdserve.services.tensors import Tensor
from pdserve.settings import ServerSettings

log = logging.getLogger("pdserve.pipeline")

PROFILE = "pipeline.profile"

# Beside images: the keys that a request may have, and its tensors.
_MORE_KEYS = 16
MAX_TENSORS = 64


@dataclass(frozen=True)
class PipelineRequest:
    """A request. ``value``: texts; an empty ``name`` means whatever service is here."""

    name: str
    key: Sequence[str]
    value: Sequence[Text | Decoded]
    tensors: Sequence[Tensor] = ()
    logid: int = 0


@dataclass(frozen=True)
class PipelineResponse:
    """An answer; ``err_no`` 0 is success. ``error``: why the request failed as a whole."""

    err_no: int = 0
    err_msg: str = ""
    key: tuple[str, ...] = ()
    value: tuple[str, ...] = ()
    error: PdserveError | None = None


async def answer(
    services: Repository,
    request: PipelineRequest,
    limits: ServerSettings,
    *,
    full: bool = False,
    top_k: int | None = None,
    timeout_s: float | None = None,
) -> PipelineResponse:
    """Answer a request; never raises, unless cancelled.

    With ``full`` the answer also has pdserve's own results, as JSON. ``timeout_s``: how long the caller
    will wait, None for any time.
    """
    started = time.monotonic_ns()
    profile = False
    try:
        service = services.find(request.name)
        if service is None:
            raise WrongServiceError("Failed to inference: Service name error.")
        inputs = await in_a_thread(lambda: _inputs(request)) if request.tensors else _inputs(request)
        profile = inputs.pop(PROFILE, None) in ("1", b"1")
        if not inputs:
            raise RequestError("The request has no image.")
        check_count(list(inputs), limits)  # before they are decoded
        images = await parsed(
            lambda _: [_image(value) for value in inputs.values()], sum(map(_size, inputs.values()))
        )
        answers = await service.answer(images, top_k, timeout_s)
        log_failures(answers, f"log_id {request.logid}")
        response = _response(service, answers, request.logid)  # first: it may be unloaded after this
        if full:
            results = (await encode_results(answers)).decode()
            response = _with(response, pipeline.RESULTS_KEY, results)
    except PdserveError as error:
        log_failures([error], f"log_id {request.logid}")
        response = _failed(error, request.logid)
    except Exception:
        log.exception("log_id %d failed", request.logid)
        response = _failed(PdserveError("internal error"), request.logid)
    if context := current.get():
        context.err_no = response.err_no  # which neither HTTP's status nor gRPC's shows
    if profile:
        micros = (time.monotonic_ns() - started) // 1000
        text = f"PROFILE\tpid:{os.getpid()}\tcall_0:0 call_1:{micros} "
        response = _with(response, PROFILE, text)
    return response


def _with(response: PipelineResponse, key: str, value: str) -> PipelineResponse:
    """The same answer with one more key."""
    return replace(response, key=(*response.key, key), value=(*response.value, value))


def _response(service: Answering, answers: Sequence[Any], logid: int) -> PipelineResponse:
    """The answer to a request."""
    for answer in answers:
        if isinstance(answer, PdserveError):
            # One bad image fails the request as a whole: the lists have no place for an error.
            return replace(_failed(answer, logid), error=None)
    fields = service.fields(answers)
    return PipelineResponse(key=tuple(fields), value=tuple(fields.values()))


def _failed(error: PdserveError, logid: int) -> PipelineResponse:
    if isinstance(error, WrongServiceError):
        text = error.message
    elif isinstance(error, PackageError):
        text = f"rpc package error: {error.message}"
    else:
        text = f"Log_id: {logid}  Raise_msg: {message(error)}"
    return PipelineResponse(error.err_no, text, error=error)


def check_entries(keys: Sequence[object], tensors: Sequence[object], limits: ServerSettings) -> None:
    """Raise BodyTooLargeError for more keys or tensors than a request within the limits can use."""
    most = limits.max_images + _MORE_KEYS
    if len(keys) > most:
        raise BodyTooLargeError(
            f"The request has {len(keys)} keys, more than the limit of {most}; send several requests."
        )
    if len(tensors) > MAX_TENSORS:
        raise BodyTooLargeError(
            f"The request has {len(tensors)} tensors, more than the limit of {MAX_TENSORS}; send fewer."
        )


def _inputs(request: PipelineRequest) -> dict[str, Text | Decoded | None]:
    """The values by key, in order; a later one of the same key replaces an earlier one in its place.

    A tensor of numbers stands as None: it is well-formed, and no image. Raises PackageError.
    """
    inputs: dict[str, Text | Decoded | None] = {}
    for i, key in enumerate(request.key):
        if i >= len(request.value):
            raise PackageError(f"list index ({i}) out of range")
        inputs[key] = request.value[i]
    for tensor in request.tensors:
        inputs[tensor.name] = tensors.value(tensor)
    return inputs


def _size(value: Text | Decoded | None) -> int:
    return 0 if value is None or isinstance(value, Decoded) else len(value)


def _image(value: Text | Decoded | None) -> bytes | PdserveError:
    if value is None:
        return ImageError("A tensor of numbers is no image; send the base64 of an image file.")
    if isinstance(value, Decoded):
        return value.data
    image = base64_text.strict(value)
    if image is not None:
        return image
    try:
        # Characters that are not of the alphabet are passed over, newlines first of all.
        return cast("bytes", base64_text.lenient(value))
    except (binascii.Error, ValueError) as error:
        return ImageError(f"The image is not base64: {error}.")

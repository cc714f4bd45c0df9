"""Paddle Serving's pipeline protocol, as the published server 0.9.0 has it: requests and answers, over HTTP
and gRPC alike.

A request is keys with values, and tensors; every key but one is an image, its value the base64 of a file.
An answer is keys with values again, each value the Python ``repr`` of a list with an entry per image.
"""

import base64
import binascii
import io
import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pdserve.errors import ImageError, PackageError, PdserveError, RequestError, WrongServiceError
from pdserve.formats.protos import pipeline
from pdserve.services.http.messages import encode, log_failures, message, strict_base64, to_json
from pdserve.services.service import Answering
from pdserve.services.telemetry.metrics import current

log = logging.getLogger("pdserve.pipeline")

PROFILE = "pipeline.profile"

# The field of a Tensor that holds its numbers, by elem_type.
_NUMBERS = {
    0: "int64_data",
    1: "float_data",
    2: "int_data",
    3: "float64_data",
    4: "int_data",
    7: "uint32_data",
    8: "int_data",
    9: "bool_data",
}
_STRING, _BYTES = 12, 13
_KNOWN_TYPES = range(14)


@dataclass(frozen=True)
class PipelineRequest:
    """A request. ``tensors`` are Tensor messages; an empty ``name`` means whatever service is here."""

    name: str
    key: Sequence[str]
    value: Sequence[str]
    tensors: Sequence[Any] = ()
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
    service: Answering,
    request: PipelineRequest,
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
        if request.name and request.name not in service.names:
            raise WrongServiceError("Failed to inference: Service name error.")
        inputs = _inputs(request)
        profile = inputs.pop(PROFILE, None) == "1"
        if not inputs:
            raise RequestError("The request has no image.")
        answers = await service.answer([_image(value) for value in inputs.values()], top_k, timeout_s)
        log_failures(answers, f"log_id {request.logid}")
        response = _response(service, answers, request.logid, full)
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
        response = replace(response, key=(*response.key, PROFILE), value=(*response.value, text))
    return response


def _response(service: Answering, answers: Sequence[Any], logid: int, full: bool) -> PipelineResponse:
    extra = {}
    if full:
        extra[pipeline.RESULTS_KEY] = encode({"results": [to_json(answer) for answer in answers]}).decode()
    for answer in answers:
        if isinstance(answer, PdserveError):
            # One bad image fails the request as a whole: the lists have no place for an error.
            failed = _failed(answer, logid)
            return PipelineResponse(failed.err_no, failed.err_msg, tuple(extra), tuple(extra.values()))
    fields = {**service.fields(answers), **extra}
    return PipelineResponse(key=tuple(fields), value=tuple(fields.values()))


def _failed(error: PdserveError, logid: int) -> PipelineResponse:
    if isinstance(error, WrongServiceError):
        text = error.message
    elif isinstance(error, PackageError):
        text = f"rpc package error: {error.message}"
    else:
        text = f"Log_id: {logid}  Raise_msg: {message(error)}"
    return PipelineResponse(error.err_no, text, error=error)


def _inputs(request: PipelineRequest) -> dict[str, str | None]:
    """The values by key, in order; a later one of the same key replaces an earlier one in its place.

    A tensor of numbers stands as None: it is well-formed, and no image. Raises PackageError.
    """
    inputs: dict[str, str | None] = {}
    for i, key in enumerate(request.key):
        if i >= len(request.value):
            raise PackageError(f"list index ({i}) out of range")
        inputs[key] = request.value[i]
    for tensor in request.tensors:
        inputs[tensor.name] = _tensor(tensor)
    return inputs


def _tensor(tensor: Any) -> str | None:
    kind = tensor.elem_type
    if len(tensor.lod) % 2:
        raise PackageError(f"the lod of tensor {tensor.name} has an odd length, {len(tensor.lod)}.")
    if kind == _STRING:
        return "".join(tensor.str_data)
    if kind == _BYTES:
        try:
            _check_array_file(tensor.byte_data)
        except Exception as error:  # NumPy raises many kinds on a hostile header
            raise PackageError(f"the bytes of tensor {tensor.name} are no NumPy array file.") from error
        return None
    if kind not in _KNOWN_TYPES:
        raise PackageError(f"elem_type:{kind} error")
    if kind not in _NUMBERS:
        raise PackageError(f"Sorry, the type {kind} of tensor {tensor.name} is not supported.")
    size = len(getattr(tensor, _NUMBERS[kind]))
    if math.prod(tensor.shape) != size:
        raise PackageError(f"cannot reshape array of size {size} into shape {tuple(tensor.shape)}")
    return None


def _check_array_file(data: bytes) -> None:
    """Whether the bytes are what their header (numpy.lib.format) says. They are never loaded.

    Objects would be unpickled, which runs code of whoever sent them, and a header of 100 bytes may ask for
    all memory. Raises ValueError, and what NumPy raises.
    """
    file = io.BytesIO(data)
    old = np.lib.format.read_magic(file) == (1, 0)
    read_header = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    if dtype.hasobject or min(shape, default=0) < 0:
        raise ValueError("an array of objects, or of no size")
    if math.prod(shape) * dtype.itemsize > len(data) - file.tell():
        raise ValueError("the header promises more than there is")


def _image(value: str | None) -> bytes | PdserveError:
    if value is None:
        return ImageError("A tensor of numbers is no image; send the base64 of an image file.")
    image = strict_base64(value)
    if image is not None:
        return image
    try:
        # Characters that are not of the alphabet are passed over, newlines first of all.
        return base64.b64decode(value)
    except (binascii.Error, ValueError) as error:
        return ImageError(f"The image is not base64: {error}.")

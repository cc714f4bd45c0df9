"""Bodies of the Open Inference Protocol: JSON, with tensors as lists or as bytes behind it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from starlette.responses import Response

from pdserve.errors import RequestError
from pdserve.services.http.json_body import JsonBody
from pdserve.services.http.json_numbers import as_numbers, flattened, read_numbers
from pdserve.services.http.messages import encode, json_images, json_object
from pdserve.services.inference.requests import (
    InferRequest,
    InferResponse,
    Wanted,
    check_no_shared_memory,
    check_tensors,
    request_parameters,
    wanted_output,
)
from pdserve.services.inference.tensors import (
    BYTES,
    DATATYPES,
    MAX_RANK,
    InputTensor,
    OutputTensor,
    element_count,
    from_array,
    from_raw,
    shown,
)
from pdserve.services.parsing import SLICE, Bounds, Buffer, copied
from pdserve.settings import ServerSettings

HEADER_LENGTH = "Inference-Header-Content-Length"
"""The length of the JSON, in bytes, where tensors follow it."""
_WANTED = '{"inputs": [{"name": …, "shape": […], "datatype": …, "data": […]}]}'
# Numbers of an answer above which it is written in a thread.
LARGE_ANSWER = 50_000


@dataclass(frozen=True, eq=False)
class LongList:
    """A tensor whose numbers are not read yet, ``raw`` as they stand in JSON."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    count: int
    raw: memoryview

    @property
    def bytes_needed(self) -> int:
        return self.count * DATATYPES[self.datatype].itemsize

    def read(self) -> InputTensor:
        """The tensor; called in a thread. Raises RequestError."""
        array = read_numbers(self.raw, DATATYPES[self.datatype], self.count)
        return from_array(self.name, self.datatype, self.shape, array)


@dataclass(frozen=True, eq=False)
class Parsed:
    """A body, but for its long lists of numbers."""

    inputs: Sequence[InputTensor | LongList]
    outputs: Sequence[Wanted]
    id: str
    parameters: Mapping[str, Any]

    def request(self, model: str, version: str, inputs: Sequence[InputTensor]) -> InferRequest:
        """The request. Raises RequestError."""
        asked = request_parameters(self.parameters)
        return InferRequest(
            model, inputs, self.outputs, version, self.id, asked.top_k, asked.timeout_s, asked.binary
        )


def parse(body: bytes, header_length: str | None, limits: ServerSettings, bounds: Bounds) -> Parsed:
    """A body. Raises RequestError, BodyTooLargeError."""
    head: Buffer = body
    tail = memoryview(b"")
    if header_length is not None:
        length = int(header_length) if header_length.isdecimal() and len(header_length) < 12 else -1
        if not 0 < length <= len(body):
            raise RequestError(
                f"{HEADER_LENGTH} is {shown(header_length)}; it must be the length of the JSON in the body, "
                f"which has {len(body)} bytes."
            )
        tail = memoryview(body)[length:]
        head = copied(memoryview(body)[:length]) if tail else body
    read = json_object(head, bounds, _WANTED, numbers=True)
    inputs = _objects(read.content, "inputs")
    if not inputs:
        raise RequestError(f"The request has no inputs; send {_WANTED}.")
    tensors: list[InputTensor | LongList] = []
    at = 0
    for each in inputs:
        given = _parameters(each)
        check_no_shared_memory(given)
        size = given.get("binary_data_size")
        if size is None:
            tensors.append(_listed(each, read, limits))
            continue
        if type(size) is not int or not 0 <= size <= len(tail) - at:
            raise RequestError(
                f"binary_data_size is {shown(str(size))}, and {len(tail) - at} bytes are left behind the "
                "JSON."
            )
        name, datatype, shape = _head(each)
        tensors.append(from_raw(name, datatype, shape, tail[at : at + size], limits.max_images))
        at += size
    if at != len(tail):
        raise RequestError(f"{len(tail) - at} bytes behind the JSON belong to no input.")
    outputs = [
        wanted_output(_text(each, "name", "an output"), _parameters(each))
        for each in _objects(read.content, "outputs")
    ]
    return Parsed(tensors, outputs, _text(read.content, "id", "the request", ""), _parameters(read.content))


def _listed(content: Mapping[str, Any], read: JsonBody, limits: ServerSettings) -> InputTensor | LongList:
    """A tensor whose values are in the JSON."""
    name, datatype, shape = _head(content)
    count = element_count(name, datatype, shape, limits.max_images)
    data = content.get("data")
    raw = read.numbers(data)
    if raw is not None and datatype != BYTES:
        return LongList(name, datatype, shape, count, raw)
    flat = flattened(data, MAX_RANK)
    if len(flat) != count:
        raise RequestError(
            f"The input {shown(name)} has {len(flat)} values; the shape {list(shape)} has {count}."
        )
    if datatype != BYTES:
        return from_array(name, datatype, shape, as_numbers(flat, DATATYPES[datatype]))
    if not all(isinstance(each, str) for each in flat):
        raise RequestError(f"The input {shown(name)} is BYTES; in JSON each is the base64 of an image file.")
    return InputTensor(name, datatype, shape, json_images(read, flat, limits))


def _head(content: Mapping[str, Any]) -> tuple[str, str, tuple[int, ...]]:
    name = _text(content, "name", "an input")
    shape = content.get("shape")
    if not isinstance(shape, list) or not all(type(extent) is int for extent in shape):
        raise RequestError(f"The shape of the input {shown(name)} must be a list of whole numbers.")
    return name, _text(content, "datatype", f"the input {shown(name)}"), tuple(shape)


def _objects(content: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    found = content.get(key)
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise RequestError(f"{key} must be a list of objects; send {_WANTED}.")
    check_tensors(key, len(found))
    return found


def _parameters(content: Mapping[str, Any]) -> Mapping[str, Any]:
    found = content.get("parameters")
    if found is not None and not isinstance(found, dict):
        raise RequestError("parameters must be an object.")
    return found or {}


def _text(content: Mapping[str, Any], key: str, whose: str, default: str | None = None) -> str:
    found = content.get(key)
    if found is None:
        found = default
    if not isinstance(found, str):
        raise RequestError(f"The {key} of {whose} is missing, or no text.")
    return found


def is_large(answer: InferResponse) -> bool:
    """Whether writing an answer takes long."""
    return sum(len(each.data) * _numbers_of_row(each) for each in answer.outputs) > LARGE_ANSWER


def _numbers_of_row(tensor: OutputTensor) -> int:
    return tensor.data.size // max(1, len(tensor.data)) if isinstance(tensor.data, np.ndarray) else 1


def response(answer: InferResponse) -> Response:
    """An answer as JSON, with the tensors behind it that are wanted as bytes."""
    described: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for each in answer.outputs:
        about: dict[str, Any] = {"name": each.name, "datatype": each.datatype, "shape": list(each.shape)}
        if each.binary:
            tail.append(each.raw())
            about["parameters"] = {"binary_data_size": len(tail[-1])}
        elif isinstance(each.data, np.ndarray):
            about["data"] = orjson.Fragment(
                orjson.dumps(np.ascontiguousarray(each.data).reshape(-1), option=orjson.OPT_SERIALIZE_NUMPY)
            )
        else:
            about["data"] = [str(text, "utf-8", "replace") for text in each.data]
        described.append(about)
    content: dict[str, Any] = {"model_name": answer.model, "model_version": answer.version}
    if answer.id:
        content["id"] = answer.id
    head = encode(content | {"outputs": described})
    if not tail:
        return Response(head, media_type="application/json")
    headers = {HEADER_LENGTH: str(len(head))}
    return Response(b"".join((head, *tail)), headers=headers, media_type="application/octet-stream")


READ_IN_PLACE = SLICE // 4
"""Bytes of long lists that are read on the event loop."""

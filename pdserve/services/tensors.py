"""Tensors of the pipeline protocol: what is looked at of them. None is ever made, since no image is one."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pdserve.errors import PackageError
from pdserve.services.base64_text import Text
from pdserve.services.parsing import View

MAX_RANK = 32
"""NumPy's own limit in the published server's days; the product of more could take minutes."""

NUMBERS = {
    0: "int64_data",
    1: "float_data",
    2: "int_data",
    3: "float64_data",
    4: "int_data",
    7: "uint32_data",
    8: "int_data",
    9: "bool_data",
}
"""The field of a Tensor that holds its numbers, by elem_type."""
_STRING, _BYTES = 12, 13
_KNOWN_TYPES = range(14)
_LONGEST_NAME = 100  # of a tensor's name, in a message
# Of an array file: NumPy reads headers of 10,000 characters at most.
_HEAD_BYTES = 16 * 1024


@dataclass(frozen=True)
class Tensor:
    """A Tensor message. ``rank``, ``lod``: how many entries the field has; ``shape``: MAX_RANK at most.

    ``numbers``: how many numbers each field has; ``texts`` are str_data, ``data`` is byte_data.
    """

    name: str = ""
    elem_type: int = 0
    shape: Sequence[int] = ()
    rank: int = 0
    lod: int = 0
    numbers: Mapping[str, int] = field(default_factory=dict)
    texts: Sequence[Text] = ()
    data: View = b""


def value(tensor: Tensor) -> Text | None:
    """A tensor's text; None for one of numbers: it is well-formed, and no image. Raises PackageError."""
    kind, name = tensor.elem_type, tensor.name[:_LONGEST_NAME]
    if tensor.lod % 2:
        raise PackageError(f"the lod of tensor {name} has an odd length, {tensor.lod}.")
    if kind == _STRING:
        return _joined(tensor.texts)
    if kind == _BYTES:
        try:
            _check_array_file(tensor.data)
        except Exception as error:  # NumPy raises many kinds on a hostile header
            raise PackageError(f"the bytes of tensor {name} are no NumPy array file.") from error
        return None
    if kind not in _KNOWN_TYPES:
        raise PackageError(f"elem_type:{kind} error")
    if kind not in NUMBERS:
        raise PackageError(f"Sorry, the type {kind} of tensor {name} is not supported.")
    if tensor.rank > MAX_RANK:
        raise PackageError(f"maximum supported dimension for an ndarray is {MAX_RANK}, found {tensor.rank}")
    size = tensor.numbers.get(NUMBERS[kind], 0)
    if math.prod(tensor.shape) != size:
        raise PackageError(f"cannot reshape array of size {size} into shape {tuple(tensor.shape)}")
    return None


def _joined(texts: Sequence[Text]) -> Text:
    if len(texts) == 1:
        return texts[0]
    return b"".join(text.encode(errors="replace") if isinstance(text, str) else text for text in texts)


def _check_array_file(data: View) -> None:
    """Whether the bytes are what their header (numpy.lib.format) says. They are never loaded.

    Objects would be unpickled, which runs code of whoever sent them, and a header of 100 bytes may ask for
    all memory. Raises ValueError, and what NumPy raises.
    """
    file = io.BytesIO(bytes(data[:_HEAD_BYTES]))
    old = np.lib.format.read_magic(file) == (1, 0)
    read_header = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    if dtype.hasobject or min(shape, default=0) < 0:
        raise ValueError("an array of objects, or of no size")
    if len(shape) > MAX_RANK or max(shape, default=0) >= 2**63:
        raise ValueError("no shape of an array of this size")
    if math.prod(shape) * dtype.itemsize > len(data) - file.tell():
        raise ValueError("the header promises more than there is")

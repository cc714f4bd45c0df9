"""Reads a PyTorch checkpoint in the layout of the releases before 1.6, without PyTorch.

The file is five pickles of protocol 2 (magic number, layout version, system information, the state
dict, the list of storage keys), then each storage in that list's order: its element count as a
little-endian int64 and the elements, little-endian as well. Source: ``torch.save`` with
``_use_new_zipfile_serialization=False``.
"""

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdserve.errors import ModelError
from pdserve.formats.pickles import BadPickleError, Global, Unpickler, expect

MAGIC = 119547037146038801333356
LAYOUT_VERSION = 1001
MAX_BYTES = 256 * 1024**2
MAX_OPCODES = 1_000_000  # a state dict has under 40 for each tensor; each may take 72 bytes of memory
MAX_DIMENSIONS = 8

_DICT = "collections.OrderedDict"
_TENSOR = "torch._utils._rebuild_tensor_v2"
_STORAGE_DTYPES: dict[str, np.dtype[Any]] = {
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.LongStorage": np.dtype("<i8"),
}


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype[Any]
    count: int


@dataclass(frozen=True)
class _Tensor:
    """A view into a storage; offset and strides in elements. Not validated until it is made an array."""

    storage: _Storage
    offset: Any
    size: Any
    stride: Any


class _Unpickler(Unpickler):
    """Admits what a state dict of float32 and int64 tensors is made of."""

    names = (_DICT, _TENSOR, *_STORAGE_DTYPES)
    protocols = (2,)
    max_opcodes = MAX_OPCODES

    def call(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        if function == Global(_DICT) and not arguments:
            return {}
        if function == Global(_TENSOR) and len(arguments) == 6 and isinstance(arguments[0], _Storage):
            storage, offset, size, stride, _requires_grad, _hooks = arguments
            return _Tensor(storage, offset, size, stride)
        raise BadPickleError("calls something with arguments that a checkpoint does not have")

    def persistent(self, identity: Any) -> Any:
        """A storage: ('storage', type, key, device, element count, no view)."""
        match identity:
            case ("storage", Global(kind), str(key), str(), int(count), None) if kind in _STORAGE_DTYPES:
                return _Storage(key, _STORAGE_DTYPES[kind], count)
        raise BadPickleError("refers to a storage that is neither float32 nor int64, or is a view")

    def check_state(self, value: Any, state: Any) -> None:
        """The state dict's _metadata: versions of modules, nothing of the weights."""
        expect(value, dict)
        expect(state, dict)


def read_checkpoint(path: Path) -> dict[str, NDArray[Any]]:
    """Read a state dict: each tensor's name and its array, in the file's order.

    float32 and int64 arrays of the stored shapes, read-only; they may be non-contiguous views.
    Nothing in the file is executed. Raises ModelError where the file cannot be read, is larger than
    ``MAX_BYTES``, is truncated or altered, or holds anything but float32 and int64 tensors; a
    refused global is named.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BadPickleError(f"has more than {MAX_BYTES} bytes, the limit for a checkpoint")
        return _read(io.BytesIO(path.read_bytes()))
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    except BadPickleError as error:
        raise ModelError(f"{path} {error}; fetch the model again with `pdserve fetch --force`.") from error


def _read(file: io.BytesIO) -> dict[str, NDArray[Any]]:
    if file.getvalue()[:4] == b"PK\x03\x04":
        raise BadPickleError("is in PyTorch's zip layout, and only the layout before PyTorch 1.6 is read")
    unpickler = _Unpickler()
    magic, version = unpickler.load(file), unpickler.load(file)
    if type(magic) is not int or magic != MAGIC or type(version) is not int or version != LAYOUT_VERSION:
        raise BadPickleError("does not begin with the magic number and version of a PyTorch checkpoint")
    system = unpickler.load(file)
    if type(system) is not dict or system.get("little_endian") is not True:
        raise BadPickleError("does not say that its numbers are little-endian")
    state = unpickler.load(file)
    if type(state) is not dict:
        raise BadPickleError("holds no state dict")
    for name, tensor in state.items():
        if not isinstance(tensor, _Tensor):
            raise BadPickleError(f"has an entry {name!r:.100} that is no tensor")
    storages = _read_storages(file, unpickler.load(file), [tensor.storage for tensor in state.values()])
    return {name: _array(name, tensor, storages[tensor.storage.key]) for name, tensor in state.items()}


def _read_storages(file: io.BytesIO, keys: Any, used: list[_Storage]) -> dict[str, NDArray[Any]]:
    """Read the file's rest, which must be exactly the storages that the tensors use."""
    wanted = {storage.key: storage for storage in used}
    if any(wanted[storage.key] != storage for storage in used):
        raise BadPickleError("gives one storage two types or sizes")
    keys = [expect(key, str) for key in expect(keys, list)]
    if len(keys) != len(wanted) or set(keys) != set(wanted):
        raise BadPickleError("lists other storages than its tensors use")
    storages = {}
    for key in keys:
        storage = wanted[key]
        if _integer(file, 8, signed=True) != storage.count:
            raise BadPickleError(f"states two sizes for storage {key!r:.100}")
        data = _take(file, storage.count * storage.dtype.itemsize)
        storages[key] = np.ndarray((storage.count,), storage.dtype, buffer=data)
    if file.read(1):
        raise BadPickleError("goes on after its last storage")
    return storages


def _take(file: io.BytesIO, count: int) -> bytes:
    """Exactly ``count`` bytes, looked for before they are allocated."""
    left = len(file.getbuffer()) - file.tell()
    if not 0 <= count <= left:
        raise BadPickleError("is truncated, or altered")
    return file.read(count)


def _integer(file: io.BytesIO, size: int, *, signed: bool = False) -> int:
    return int.from_bytes(_take(file, size), "little", signed=signed)


def _array(name: str, tensor: _Tensor, storage: NDArray[Any]) -> NDArray[Any]:
    """View of ``storage`` as the tensor, once offset, size and stride are known to stay inside it."""
    offset, size, stride = tensor.offset, tensor.size, tensor.stride
    if type(size) is not tuple or type(stride) is not tuple or not len(size) == len(stride) <= MAX_DIMENSIONS:
        raise BadPickleError(f"gives tensor {name!r:.100} no usable shape")
    if 0 in size or any(type(n) is not int or not 0 <= n <= MAX_BYTES for n in (offset, *size, *stride)):
        raise BadPickleError(f"gives tensor {name!r:.100} a shape, offset or stride out of range")
    last = offset + sum((extent - 1) * step for extent, step in zip(size, stride, strict=True))
    # A stride of 0 would repeat elements, so that a few bytes become an array of any size.
    if last >= storage.size or math.prod(size) > storage.size:
        raise BadPickleError(f"lets tensor {name!r:.100} reach beyond its storage of {storage.size} elements")
    itemsize = storage.itemsize
    strides = [step * itemsize for step in stride]
    array: NDArray[Any] = np.ndarray(size, storage.dtype, storage, offset * itemsize, strides)
    return array

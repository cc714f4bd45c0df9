"""Reads a PyTorch checkpoint in the layout of the releases before 1.6, without PyTorch.

The file is five pickles of protocol 2 (magic number, layout version, system information, the state
dict, the list of storage keys), then each storage in that list's order: its element count as a
little-endian int64 and the elements, little-endian as well. Source: ``torch.save`` with
``_use_new_zipfile_serialization=False``.

A pickle is a program. ``pickle.Unpickler`` runs it, and even with ``find_class`` refusing everything
nine bytes make it allocate gigabytes (a large memo index), sixty make it hash for ever (a dict key of
tuples in tuples) and some more overflow the C stack. A state dict needs some thirty opcodes, so these
are interpreted here, and ``pickle`` lends only their codes: nothing is imported or called, and time
and memory grow with the file alone.
"""

import io
import math
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdserve.errors import ModelError

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
_GLOBALS = {_DICT, _TENSOR, *_STORAGE_DTYPES}


@dataclass(frozen=True)
class _Global:
    """A name the pickle refers to; it is only ever compared, never looked up."""

    name: str


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


class _BadPickleError(Exception):
    """What is wrong with the checkpoint, as the end of a sentence that begins with its path."""


def read_checkpoint(path: Path) -> dict[str, NDArray[Any]]:
    """Read a state dict: each tensor's name and its array, in the file's order.

    float32 and int64 arrays of the stored shapes, read-only; they may be non-contiguous views.
    Nothing in the file is executed. Raises ModelError where the file cannot be read, is larger than
    ``MAX_BYTES``, is truncated or altered, or holds anything but float32 and int64 tensors; a
    refused global is named.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise _BadPickleError(f"has more than {MAX_BYTES} bytes, the limit for a checkpoint")
        return _read(io.BytesIO(path.read_bytes()))
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    except _BadPickleError as error:
        raise ModelError(f"{path} {error}; fetch the model again with `pdserve fetch --force`.") from error


def _read(file: io.BytesIO) -> dict[str, NDArray[Any]]:
    if file.getvalue()[:4] == b"PK\x03\x04":
        raise _BadPickleError("is in PyTorch's zip layout, and only the layout before PyTorch 1.6 is read")
    magic, version = _unpickle(file), _unpickle(file)
    if type(magic) is not int or magic != MAGIC or type(version) is not int or version != LAYOUT_VERSION:
        raise _BadPickleError("does not begin with the magic number and version of a PyTorch checkpoint")
    system = _unpickle(file)
    if type(system) is not dict or system.get("little_endian") is not True:
        raise _BadPickleError("does not say that its numbers are little-endian")
    state = _unpickle(file)
    if type(state) is not dict:
        raise _BadPickleError("holds no state dict")
    for name, tensor in state.items():
        if not isinstance(tensor, _Tensor):
            raise _BadPickleError(f"has an entry {name!r:.100} that is no tensor")
    storages = _read_storages(file, _unpickle(file), [tensor.storage for tensor in state.values()])
    return {name: _array(name, tensor, storages[tensor.storage.key]) for name, tensor in state.items()}


def _unpickle(file: io.BytesIO) -> Any:
    """The value of the pickle at the file's position, of the types that ``_step`` makes."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        for _ in range(MAX_OPCODES):
            opcode = _take(file, 1)
            if opcode == pickle.STOP:
                (value,) = stack
                return value
            _step(opcode, file, stack, memo)
    except (ValueError, IndexError, KeyError) as error:  # broken text, stack, memo
        raise _BadPickleError("is no PyTorch checkpoint, or is altered") from error
    raise _BadPickleError(f"has a pickle of more than {MAX_OPCODES} opcodes, the limit for a checkpoint")


def _step(opcode: bytes, file: io.BytesIO, stack: list[Any], memo: dict[int, Any]) -> None:
    """Do what one opcode says; its argument follows in ``file``."""
    match opcode:
        case pickle.PROTO:
            if (protocol := _integer(file, 1)) != 2:
                raise _BadPickleError(f"has a pickle of protocol {protocol} instead of 2")
        case pickle.GLOBAL:
            name = f"{_line(file)}.{_line(file)}"
            if name not in _GLOBALS:
                raise _BadPickleError(
                    f"refers to {name!r:.100}, which a checkpoint has no need of, and nothing was run"
                )
            stack.append(_Global(name))
        case pickle.BINPUT | pickle.LONG_BINPUT:
            memo[_integer(file, 1 if opcode == pickle.BINPUT else 4)] = stack[-1]
        case pickle.BINGET | pickle.LONG_BINGET:
            stack.append(memo[_integer(file, 1 if opcode == pickle.BINGET else 4)])
        case pickle.BININT1 | pickle.BININT2:
            stack.append(_integer(file, 1 if opcode == pickle.BININT1 else 2))
        case pickle.BININT:
            stack.append(_integer(file, 4, signed=True))
        case pickle.LONG1:
            stack.append(_integer(file, _integer(file, 1), signed=True))
        case pickle.BINUNICODE:
            stack.append(_take(file, _integer(file, 4)).decode())
        case pickle.NONE | pickle.NEWTRUE | pickle.NEWFALSE:
            stack.append({pickle.NONE: None, pickle.NEWTRUE: True, pickle.NEWFALSE: False}[opcode])
        case pickle.MARK:
            stack.append(_MARK)
        case pickle.EMPTY_DICT:
            stack.append({})
        case pickle.EMPTY_LIST:
            stack.append([])
        case pickle.EMPTY_TUPLE:
            stack.append(())
        case pickle.TUPLE:
            stack.append(tuple(_pop_to_mark(stack)))
        case pickle.TUPLE1 | pickle.TUPLE2 | pickle.TUPLE3:
            stack.append(tuple(_pop(stack, 1 + opcode[0] - pickle.TUPLE1[0])))
        case pickle.APPEND | pickle.APPENDS:
            items = _pop_to_mark(stack) if opcode == pickle.APPENDS else _pop(stack, 1)
            _expect(stack[-1], list).extend(items)
        case pickle.SETITEM | pickle.SETITEMS:
            items = _pop_to_mark(stack) if opcode == pickle.SETITEMS else _pop(stack, 2)
            keys = [_expect(key, str) for key in items[::2]]
            _expect(stack[-1], dict).update(zip(keys, items[1::2], strict=True))
        case pickle.BINPERSID:
            stack.append(_storage(stack.pop()))
        case pickle.REDUCE:
            function, arguments = _pop(stack, 2)
            stack.append(_reduce(function, _expect(arguments, tuple)))
        case pickle.BUILD:  # the state dict's _metadata: versions of modules, nothing of the weights
            target, attributes = _pop(stack, 2)
            _expect(attributes, dict)
            stack.append(_expect(target, dict))
        case _:
            raise _BadPickleError(f"uses the pickle opcode {opcode!r}, which a checkpoint has no need of")


_MARK = object()


def _pop(stack: list[Any], count: int) -> list[Any]:
    if len(stack) < count:
        raise IndexError
    items = stack[-count:]
    del stack[-count:]
    return items


def _pop_to_mark(stack: list[Any]) -> list[Any]:
    items = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return items[::-1]


def _expect(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise _BadPickleError(f"has a {type(value).__name__} where a {kind.__name__} belongs")
    return value


def _reduce(function: Any, arguments: tuple[Any, ...]) -> Any:
    """What the two admitted calls would return."""
    if function == _Global(_DICT) and not arguments:
        return {}
    if function == _Global(_TENSOR) and len(arguments) == 6 and isinstance(arguments[0], _Storage):
        storage, offset, size, stride, _requires_grad, _hooks = arguments
        return _Tensor(storage, offset, size, stride)
    raise _BadPickleError("calls something with arguments that a checkpoint does not have")


def _storage(identity: Any) -> _Storage:
    """Make a storage of a persistent id: ('storage', type, key, device, element count, no view)."""
    match identity:
        case ("storage", _Global(kind), str(key), str(), int(count), None) if kind in _STORAGE_DTYPES:
            return _Storage(key, _STORAGE_DTYPES[kind], count)
    raise _BadPickleError("refers to a storage that is neither float32 nor int64, or is a view")


def _read_storages(file: io.BytesIO, keys: Any, used: list[_Storage]) -> dict[str, NDArray[Any]]:
    """Read the file's rest, which must be exactly the storages that the tensors use."""
    wanted = {storage.key: storage for storage in used}
    if any(wanted[storage.key] != storage for storage in used):
        raise _BadPickleError("gives one storage two types or sizes")
    keys = [_expect(key, str) for key in _expect(keys, list)]
    if len(keys) != len(wanted) or set(keys) != set(wanted):
        raise _BadPickleError("lists other storages than its tensors use")
    storages = {}
    for key in keys:
        storage = wanted[key]
        if _integer(file, 8, signed=True) != storage.count:
            raise _BadPickleError(f"states two sizes for storage {key!r:.100}")
        data = _take(file, storage.count * storage.dtype.itemsize)
        storages[key] = np.ndarray((storage.count,), storage.dtype, buffer=data)
    if file.read(1):
        raise _BadPickleError("goes on after its last storage")
    return storages


def _take(file: io.BytesIO, count: int) -> bytes:
    """Exactly ``count`` bytes, looked for before they are allocated."""
    left = len(file.getbuffer()) - file.tell()
    if not 0 <= count <= left:
        raise _BadPickleError("is truncated, or altered")
    return file.read(count)


def _integer(file: io.BytesIO, size: int, *, signed: bool = False) -> int:
    return int.from_bytes(_take(file, size), "little", signed=signed)


def _line(file: io.BytesIO) -> str:
    return file.readline().decode("ascii").removesuffix("\n")


def _array(name: str, tensor: _Tensor, storage: NDArray[Any]) -> NDArray[Any]:
    """View of ``storage`` as the tensor, once offset, size and stride are known to stay inside it."""
    offset, size, stride = tensor.offset, tensor.size, tensor.stride
    if type(size) is not tuple or type(stride) is not tuple or not len(size) == len(stride) <= MAX_DIMENSIONS:
        raise _BadPickleError(f"gives tensor {name!r:.100} no usable shape")
    if 0 in size or any(type(n) is not int or not 0 <= n <= MAX_BYTES for n in (offset, *size, *stride)):
        raise _BadPickleError(f"gives tensor {name!r:.100} a shape, offset or stride out of range")
    last = offset + sum((extent - 1) * step for extent, step in zip(size, stride, strict=True))
    # A stride of 0 would repeat elements, so that a few bytes become an array of any size.
    if last >= storage.size or math.prod(size) > storage.size:
        raise _BadPickleError(
            f"lets tensor {name!r:.100} reach beyond its storage of {storage.size} elements"
        )
    itemsize = storage.itemsize
    strides = [step * itemsize for step in stride]
    array: NDArray[Any] = np.ndarray(size, storage.dtype, storage, offset * itemsize, strides)
    return array

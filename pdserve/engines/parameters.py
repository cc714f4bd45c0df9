"""The parameter file: is it whole, and the program's own?

Format, as Paddle's ``save_combine`` writes it: the tensors one after the other, in the order of their
names. Each is ``uint32`` version 0; ``uint64`` number of LoD levels, each ``uint64`` bytes and as many
bytes; ``uint32`` version 0; ``int32`` length of a ``VarType.TensorDesc`` message, that message; then
the values, little-endian. Saved one by one, each tensor is a file.
"""

import math
import struct
from pathlib import Path
from typing import BinaryIO

from google.protobuf.message import DecodeError

from pdserve.errors import ModelError
from pdserve.program import ModelFiles, Program
from pdserve.protos import message

# Bytes of a value by VarType.Type.
_SIZES = {0: 1, 1: 2, 2: 4, 3: 8, 4: 2, 5: 4, 6: 8, 20: 1, 21: 1, 22: 2, 23: 8, 24: 16}
_MAX_DESC = 1024


def parameter_files(files: ModelFiles, program: Program) -> list[Path]:
    """The files that hold the parameters, in their order: one, one each, or none."""
    if files.params is not None:
        return [files.params]
    return [files.model.parent / p.name for p in program.parameters]


def read_parameters(files: ModelFiles, program: Program) -> bytes:
    """All parameters as ``save_combine`` would write them. Raises ModelError."""
    try:
        return b"".join(path.read_bytes() for path in parameter_files(files, program))
    except OSError as error:
        raise ModelError(f"Cannot read {error.filename}: {error.strerror}.") from error


def check_parameters(files: ModelFiles, program: Program) -> None:
    """Walk through the parameters without reading the values: their number, extents and the files' ends.

    Engines differ here: some take a broken file, some fall over it. Raises ModelError.
    """
    # A free extent in the program says nothing of the file.
    sizes = [None if min(p.shape, default=0) < 0 else math.prod(p.shape) for p in program.parameters]
    at = 0
    for path in parameter_files(files, program):
        try:
            with path.open("rb") as file:
                end = path.stat().st_size
                while file.tell() < end:
                    size = _skip_tensor(file, end)
                    if at == len(sizes) or sizes[at] not in (None, size):
                        raise ValueError(f"tensor {at} of {len(sizes)} is not the program's")
                    at += 1
        except (OSError, ValueError, struct.error, DecodeError, KeyError) as error:
            raise ModelError(
                f"{path} is broken or belongs to another model ({error or type(error).__name__}); "
                "fetch or export the model again."
            ) from error
    if at != len(sizes):
        raise ModelError(
            f"The parameters of {files.model} end after {at} of {len(sizes)} tensors; "
            "fetch or export the model again."
        )


def _skip_tensor(file: BinaryIO, end: int) -> int:
    """Go past one tensor and return its number of values. Raises ValueError, struct.error, DecodeError."""
    version, levels = struct.unpack("<IQ", file.read(12))
    if version != 0 or levels > 8:
        raise ValueError("no Paddle tensor")
    for _ in range(levels):
        _skip(file, struct.unpack("<Q", file.read(8))[0], end)
    version, length = struct.unpack("<Ii", file.read(8))
    if version != 0 or not 0 < length <= _MAX_DESC:
        raise ValueError("no Paddle tensor")
    desc = message("pdserve.program.VarType.TensorDesc").FromString(file.read(length))
    size: int = math.prod(desc.dims)
    if size < 0 or desc.data_type not in _SIZES:
        raise ValueError("a tensor with unknown extents or type")
    _skip(file, size * _SIZES[desc.data_type], end)
    return size


def _skip(file: BinaryIO, count: int, end: int) -> None:
    if count > end - file.tell():
        raise ValueError("the file ends within a tensor")
    file.seek(count, 1)

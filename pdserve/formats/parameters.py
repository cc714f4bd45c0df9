"""Parameter files: read, and checked against their program.

The format is Paddle's ``save_combine``: the tensors one after the other in the order of their names, each
``uint32`` version 0; ``uint64`` number of LoD levels (each ``uint64`` bytes, data); ``uint32`` version 0;
``int32`` bytes of a TensorDesc message, that message; the values, little-endian. Saved one by one, each
tensor is a file of that name.
"""

import os
import struct
from collections.abc import Sequence
from math import prod
from typing import BinaryIO

from google.protobuf.message import DecodeError

from pdserve.errors import ModelError
from pdserve.files import read_errors
from pdserve.formats.model_files import ModelFiles, parameter_files
from pdserve.formats.program import MAX_RANK, Program, TensorSpec, element
from pdserve.formats.protos import message


def read_parameters(files: ModelFiles, program: Program) -> bytes:
    """All parameters as ``save_combine`` would write them. Raises ModelError."""
    with read_errors(ModelError):
        return b"".join(path.read_bytes() for path in parameter_files(files, program))


def check_parameters(files: ModelFiles, program: Program) -> None:
    """Check that the parameter files hold all of the program's parameters; their data is not read.

    Raises ModelError for a file that is truncated, too long, or of another model.
    """
    paths = parameter_files(files, program)
    groups = [program.parameters] if files.params is not None else [(spec,) for spec in program.parameters]
    for path, specs in zip(paths, groups, strict=True):
        try:
            with read_errors(ModelError, path), path.open("rb") as file:
                _skip_tensors(file, specs)
        except (ValueError, DecodeError) as error:
            raise ModelError(
                f"{path} does not hold the parameters of {files.model.name}: {error}; "
                "fetch or export both again."
            ) from error


def _skip_tensors(file: BinaryIO, specs: Sequence[TensorSpec]) -> None:
    size = os.fstat(file.fileno()).st_size
    for spec in specs:
        version, levels = _unpack(file, "<IQ", spec)
        if version != 0 or levels > MAX_RANK:
            raise ValueError(f"there is no tensor where {spec.name!r} should begin")
        for _ in range(levels):
            _skip(file, _unpack(file, "<Q", spec)[0], size, spec)
        version, length = _unpack(file, "<Ii", spec)
        desc = message("pdserve.program.VarType.TensorDesc")()
        if version != 0 or not 0 < length <= 4096:
            raise ValueError(f"there is no tensor where {spec.name!r} should be")
        desc.ParseFromString(file.read(length))
        if any(d < 0 for d in desc.dims):
            raise ValueError(f"{spec.name!r} has the shape {tuple(desc.dims)}")
        # Only the count: a scalar is [] or [1], by the release that wrote it.
        if min(spec.shape, default=0) >= 0 and prod(desc.dims) != prod(spec.shape):
            raise ValueError(f"{spec.name!r} is {tuple(desc.dims)} and should be {spec.shape}")
        _skip(file, prod(desc.dims) * element(desc)[1], size, spec)
    if file.tell() != size:
        raise ValueError(f"{size - file.tell()} bytes follow the last parameter")


def _unpack(file: BinaryIO, layout: str, spec: TensorSpec) -> tuple[int, ...]:
    data = file.read(struct.calcsize(layout))
    if len(data) < struct.calcsize(layout):
        raise ValueError(f"it ends before {spec.name!r}")
    return struct.unpack(layout, data)


def _skip(file: BinaryIO, length: int, size: int, spec: TensorSpec) -> None:
    if file.tell() + length > size:
        raise ValueError(f"it ends inside {spec.name!r}")
    file.seek(length, os.SEEK_CUR)

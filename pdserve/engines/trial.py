"""Loads and runs a model that is new here in a child process first: native code may crash on a broken one.

One changed byte in a ``.pdmodel`` is enough for Paddle's loader to end its process by signal 11. What was
loaded and run once without that is recorded, and is not tried again, in both of these folders that can be
written::

    PDSERVE_HOME/trials/HASH      or the user's cache folder, pdserve/trials/HASH: an empty file

HASH is over the contents of the files that are loaded, the engine and its version, device, precision,
Paddle's switches and the shapes of the feeds: where anything differs, one byte of a file, nothing is known.
Threads and instances are not in it; they change how often the same is run.
"""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import platformdirs

from pdserve.child_process import ChildError, Limits, call, memory_for
from pdserve.engines import table
from pdserve.engines.base import LoadedModel, LoadRequest, Options
from pdserve.engines.device import Device
from pdserve.engines.runner import summary
from pdserve.errors import ModelError, PdserveError, UnsupportedModelError
from pdserve.files import Signature, read_errors, sha256, signature, user_path
from pdserve.formats.model_files import parameter_files, read_program
from pdserve.formats.program import Program
from pdserve.formats.serving_model import open_serving_model

# Seconds: ten times what the largest models take on two slow cores; TensorRT tries its kernels for minutes.
TIMEOUT_S, TENSORRT_TIMEOUT_S = 300, 1800

# Height and width of an image where neither the model nor its description says.
_GUESSED = (224, 224)

# Grows when more is tried than before.
_REVISION = 1

# Records in a folder; the oldest of more are removed.
_MOST = 1000


def open_model(engine: str, function: str, request: LoadRequest) -> LoadedModel:
    """Load a model with an engine's function ("module:function"), in this process.

    Raises what the function raises on purpose, and UnsupportedModelError for the rest.
    """
    try:
        loaded: LoadedModel = resolve_name(function)(request)
    except PdserveError:
        raise
    except Exception as error:  # each engine has its own kinds; the files are known to be whole
        raise UnsupportedModelError(f"{engine} cannot run {request.model.name}: {summary(error)}.") from error
    return loaded


def require(engine: str, function: str, request: LoadRequest, derived: Sequence[Path]) -> None:
    """See that a model can be loaded and run with an engine: by a record, else in a child process.

    ``derived``: what is loaded beside or in place of the model's own files. Raises UnsupportedModelError
    where the child crashes, takes too long or too much memory; what the engine raises; ModelError for files
    that are written meanwhile.
    """
    files = [request.model.files.model, *parameter_files(request.model.files, request.program), *derived]
    for _ in range(3):
        before = _signatures(files)
        record = _hash(engine, request, files)
        if not any((folder / record).is_file() for folder in folders()):
            _try(engine, function, request, files)
        if _signatures(files) == before:
            _keep(record)
            return
    raise ModelError(f"The files of {request.model.path} are being written; try again when they are whole.")


def folders() -> list[Path]:
    """Where records are kept."""
    home = os.environ.get("PDSERVE_HOME")
    own = [user_path(home) / "trials"] if home else []
    return [*own, platformdirs.user_cache_path("pdserve") / "trials"]


def _try(engine: str, function: str, request: LoadRequest, files: Sequence[Path]) -> None:
    with read_errors(ModelError):
        total = sum(path.stat().st_size for path in files)
    # Drivers of GPUs reserve more than there is.
    memory = memory_for(total) if request.device.kind == "cpu" else None
    limits = Limits(TENSORRT_TIMEOUT_S if request.options.tensorrt else TIMEOUT_S, memory)
    arguments = {
        "engine": engine,
        "function": function,
        "path": str(request.model.path.absolute()),
        "device": str(request.device),
        "threads": request.threads,
        "precision": request.precision,
        "options": asdict(request.options),
        "size": request.size,
    }
    try:
        call(f"{__name__}:run", arguments, limits)
    except ChildError as error:
        raise UnsupportedModelError(
            f"The engine {engine} does not load {request.model.name}: tried in a process of its own, "
            f"{error}; fetch or export the model again, or give another --engine."
        ) from error


def run(
    *,
    engine: str,
    function: str,
    path: str,
    device: str,
    threads: int | None,
    precision: str,
    options: dict[str, Any],
    size: Sequence[int] | None,
) -> None:
    """Load a model and run it on ones; the child's function. Raises what `open_model` raises."""
    model = open_serving_model(Path(path))
    program = read_program(model.files)
    request = LoadRequest(model, program, Device.parse(device), threads, 1, precision, Options(**options))
    loaded = open_model(engine, function, request)
    wanted = shapes(program, (size[0], size[1]) if size else None)
    feeds = {spec.name: np.ones(wanted[spec.name], spec.dtype) for spec in program.signature.feeds}
    for instance in loaded.instances:
        with suppress(Exception):  # free extents are guessed; whoever asked runs it with the right ones
            instance(feeds)


def shapes(program: Program, size: tuple[int, int] | None) -> dict[str, list[int]]:
    """The feeds' shapes by the model's own names, for one image; ``size``: height and width where free."""
    height_width = size or _GUESSED

    def extent(axis: int, known: int) -> int:
        return known if known > 0 else height_width[axis - 2] if axis in (2, 3) else 1

    return {
        spec.name: [extent(axis, known) for axis, known in enumerate(spec.shape)]
        for spec in program.signature.feeds
    }


def _signatures(files: Sequence[Path]) -> list[Signature | None]:
    return [signature(path) for path in files]


def _hash(engine: str, request: LoadRequest, files: Sequence[Path]) -> str:
    with read_errors(ModelError):
        contents = [sha256(path) for path in files]
    known = [
        _REVISION,
        engine,
        table.version(engine),
        str(request.device),
        request.precision,
        asdict(request.options),
        shapes(request.program, request.size),
        contents,
    ]
    return sha256(json.dumps(known).encode())


def _keep(record: str) -> None:
    """Note that it passed, or was used again. A folder that cannot be written is left out."""
    for folder in folders():
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / record).touch()
            found = list(folder.iterdir())
            if len(found) > _MOST:
                for path in sorted(found, key=lambda each: each.stat().st_mtime)[: len(found) - _MOST]:
                    path.unlink(missing_ok=True)

"""Keeps the ONNX form of a model: made once, for all engines that read ONNX, and made again when it is stale.

It is written beside the model, or in the user's cache folder where the model's folder cannot be written::

    NAME_serving/.pdserve/
      HASH-p2o0.1.2-opset17.onnx         HASH-p2o0.1.2-opset17-fp16.onnx in half precision
      HASH-p2o0.1.2-opset17.onnx.json    whose it is, and its size, SHA-256 and time
      onnx.lock                          one process at a time converts

HASH is the model's fingerprint, over program and parameters. So an altered model is converted again, and
with another release of the converter, and where the file is not what was written. What is stale is removed
then, but for what was used in the last minutes.
"""

import json
import logging
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import platformdirs

from pdserve.engines import onnx_converters as converters
from pdserve.engines.base import LoadRequest
from pdserve.engines.int8 import FOLDER, fingerprint
from pdserve.engines.onnx_converters import CONVERTERS, OPSET, Source
from pdserve.errors import DiskError, EngineMissingError, PdserveError, UnsupportedModelError
from pdserve.files import FileRecord, disk_errors, file_lock, replace_files, temp_siblings
from pdserve.formats.onnx import read_onnx

log = logging.getLogger("pdserve")

# Seconds for which a form that was used is left, though stale: another process may be about to read it.
_IN_USE_S = 600

# ONNX Runtime's own converter; in a separate process, as its package changes where modules are found.
# Feeds and fetches stay float32, and so do the operators that it knows to need it.
_HALF = """
import sys, warnings
warnings.simplefilter("ignore")
import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16
source, out = sys.argv[1:]
onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), out)
"""


@dataclass(frozen=True)
class OnnxForm:
    """An ONNX file, and what it calls the program's fetches."""

    path: Path
    outputs: Mapping[str, str]


@dataclass(frozen=True)
class _Made:
    path: Path
    converter: str
    version: str


def onnx_form(request: LoadRequest, half: bool = False) -> OnnxForm:
    """The model's ONNX form in float32, or with ``half`` in float16; converts it if there is none.

    Raises UnsupportedModelError for a model that no converter here converts, EngineMissingError where the
    format has none, DiskError.
    """
    path = _file(request, half)
    names = converters.output_names(read_onnx(path), request.program)
    if names is None:
        raise UnsupportedModelError(f"{path} has other fetches than {request.model.name}; remove it.")
    return OnnxForm(path, names)


def _file(request: LoadRequest, half: bool) -> Path:
    stem, ending = fingerprint(request.model.files, request.program), f"-opset{OPSET}{'-fp16' * half}.onnx"
    folders = (request.model.path / FOLDER, platformdirs.user_cache_path("pdserve") / "onnx")
    for folder in folders:
        if found := _kept(request, folder, stem, ending):
            return found
    unwritable: DiskError | None = None
    with tempfile.TemporaryDirectory(prefix="pdserve-") as scratch:
        made: _Made | None = None
        for folder in folders:
            try:
                with file_lock(folder / "onnx.lock", request.model.name):
                    if found := _kept(request, folder, stem, ending):  # of whoever had the lock
                        return found
                    made = made or _convert(request, Path(scratch), half)
                    target = folder / f"{stem}-{made.converter}{made.version}{ending}"
                    _remove_stale(request, folder, stem)
                    _keep(made, target, request)
                    return target
            except DiskError as error:  # a folder that is read-only, or on a medium that is
                unwritable = error
    raise unwritable or AssertionError("there are two folders")


def _kept(request: LoadRequest, folder: Path, stem: str, ending: str) -> Path | None:
    """A kept form that is whole and of the converter that is installed; of any where it is not."""
    for name, converter in CONVERTERS.items():
        if request.model.files.kind not in converter.reads:
            continue
        for path in sorted(folder.glob(f"{stem}-{name}{converter.version() or '*'}{ending}")):
            with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
                record = json.loads(_record(path).read_bytes())
                if FileRecord(record["bytes"], record["sha256"], record["mtime_ns"]).matches(path):
                    with suppress(OSError):  # another user's
                        _record(path).touch()
                    return path
    return None


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _convert(request: LoadRequest, scratch: Path, half: bool) -> _Made:
    """Convert with the first converter that can. Raises UnsupportedModelError, EngineMissingError."""
    model = request.model
    problems: list[str] = []
    missing: list[str] = []
    for name, converter in CONVERTERS.items():
        if model.files.kind not in converter.reads:
            continue
        version = converter.version()
        if version is None:
            missing.append(name)
            continue
        work = scratch / name
        work.mkdir(exist_ok=True)
        out = work / "model.onnx"
        problem = converter.run(Source(model.files, request.program, work), out)
        problem = problem or converters.difference(out, request.program, model.files.kind)
        if problem is None:
            for failed in problems:
                log.warning("%s", failed)
            log.info("%s: converted to ONNX by %s %s", model.name, name, version)
            return _Made(_half(request, out) if half else out, name, version)
        problems.append(f"{name} {version} does not convert {model.name} ({problem})")
    raise _refusal(problems, missing)


def _refusal(problems: Sequence[str], missing: Sequence[str]) -> PdserveError:
    lines = " or ".join(f"`{CONVERTERS[name].install}`" for name in missing)
    if not problems:
        listed = " or ".join(CONVERTERS[name].distributions[0] for name in missing)
        return EngineMissingError(f"Converting it to ONNX needs {listed}, which is not installed: {lines}.")
    other = f", or try {' or '.join(missing)}: {lines}" if missing else ""
    return UnsupportedModelError(
        f'{" and ".join(problems)}; use --engine paddle: `pip install "pdserve[paddle]"`{other}.'
    )


def _half(request: LoadRequest, path: Path) -> Path:
    half = path.with_name("half.onnx")
    if problem := converters.run_python(_HALF, half, str(path), str(half)):
        raise UnsupportedModelError(
            f"ONNX Runtime does not make {request.model.name} fp16 ({problem}); use --precision fp32."
        )
    return half


def _keep(made: _Made, target: Path, request: LoadRequest) -> None:
    """Copy to the target with its record; nobody sees half a file. Raises DiskError.

    A copy, since it gets the rights that the user gives to new files: others may use it too.
    """
    with disk_errors(target), replace_files(target, _record(target)) as (new, record):
        shutil.copyfile(made.path, new)
        content = asdict(FileRecord.of(new)) | {
            "model": str(request.model.path.resolve()),
            "converter": made.converter,
            "version": made.version,
        }
        record.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def _remove_stale(request: LoadRequest, folder: Path, stem: str) -> None:
    """Remove this model's forms of another fingerprint or converter, and of models that are gone.

    Files that a process holds open are left where the system wants that (Windows).
    """
    beside = folder == request.model.path / FOLDER
    here = str(request.model.path.resolve())
    versions = {name: converter.version() for name, converter in CONVERTERS.items()}
    for left in temp_siblings(folder):  # the lock is ours: nobody writes them any more
        if ".onnx" in left.name:
            _unlink(left)
    for path in folder.glob("*.onnx"):
        record = _record(path)
        try:
            content, used = json.loads(record.read_bytes()), record.stat().st_mtime
            owner, named = str(content["model"]), (content["converter"], content["version"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            if beside:  # without a record it is of no use, and nobody uses it
                _unlink(path)
            continue
        fresh = path.name.startswith(stem) and versions.get(named[0]) in (named[1], None)
        mine = beside or owner == here or not Path(owner).exists()
        if mine and not fresh and time.time() - used > _IN_USE_S:
            _unlink(path)
            _unlink(record)


def _unlink(path: Path) -> None:
    with suppress(OSError):
        path.unlink()

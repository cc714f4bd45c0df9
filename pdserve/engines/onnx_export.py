"""Keeps the ONNX form of a model: made once, for all engines that read ONNX, and made again when it is stale.

It is written beside the model, or in the user's cache folder where the model's folder cannot be written::

    NAME_serving/.pdserve/
      HASH-p2o0.1.2-opset17.onnx         HASH-p2o0.1.2-opset17-fp16.onnx in half precision
      HASH-p2o0.1.2-opset17.onnx.json    whose it is, and its size, SHA-256 and time
      HASH-p2o0.1.2-opset17-cut.onnx     of a detector, without its suppression (pir_nms.py)
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
from pdserve.engines.graph import Graph
from pdserve.engines.int8 import FOLDER, fingerprint
from pdserve.engines.onnx_converters import CONVERTERS, OPSET, Source
from pdserve.errors import DiskError, EngineMissingError, PdserveError, UnsupportedModelError
from pdserve.files import FileRecord, disk_errors, replace_files, temp_siblings
from pdserve.formats.onnx import read_onnx
from pdserve.formats.pir import parse_pir
from pdserve.formats.program import Program
from pdserve.formats.serving_model import ServingModel
from pdserve.locks import file_lock

log = logging.getLogger("pdserve")

# Seconds for which a form that was used is left, though stale: another process may be about to read it.
_IN_USE_S = 600

# Grows when another file is made of the same model by the same release of a converter, as by a rewrite more
# (pir_rewrites.py): forms of before are made again.
_REVISION = 3

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
class _Wanted:
    """A form: ``stem`` begins its file's name, and the converter's name and release and ``ending`` follow.

    ``cut``: the program to convert in place of the model's file.
    """

    model: ServingModel
    program: Program
    cut: bytes | None
    half: bool
    stem: str
    ending: str

    @classmethod
    def of(cls, request: LoadRequest, graph: Graph | None, half: bool) -> "_Wanted":
        cut = graph.program if graph and graph.cut else None
        program = parse_pir(cut, str(request.model.files.model)) if cut else request.program
        ending = f"-opset{OPSET}{'-cut' if cut else ''}{'-fp16' if half else ''}.onnx"
        stem = fingerprint(request.model.files, request.program)
        return cls(request.model, program, cut, half, stem, ending)


@dataclass(frozen=True)
class _Made:
    path: Path
    converter: str
    version: str


def onnx_form(request: LoadRequest, graph: Graph | None = None, half: bool = False) -> OnnxForm:
    """The model's ONNX form in float32, or with ``half`` in float16; converts it if there is none.

    ``graph``: what of the model is to be converted, by default all of it.
    Raises UnsupportedModelError for a model that no converter here converts, EngineMissingError where the
    format has none, DiskError.
    """
    wanted = _Wanted.of(request, graph, half)
    path = _file(wanted)
    names = converters.output_names(read_onnx(path), wanted.program)
    if names is None:
        raise UnsupportedModelError(f"{path} has other fetches than {request.model.name}; remove it.")
    return OnnxForm(path, names)


def _file(wanted: _Wanted) -> Path:
    folders = (wanted.model.path / FOLDER, platformdirs.user_cache_path("pdserve") / "onnx")
    for folder in folders:
        if found := _kept(wanted, folder):
            return found
    unwritable: DiskError | None = None
    with tempfile.TemporaryDirectory(prefix="pdserve-") as scratch:
        made: _Made | None = None
        for folder in folders:
            try:
                with file_lock(folder / "onnx.lock", wanted.model.name):
                    if found := _kept(wanted, folder):  # of whoever had the lock
                        return found
                    made = made or _convert(wanted, Path(scratch))
                    target = folder / f"{wanted.stem}-{made.converter}{made.version}{wanted.ending}"
                    _remove_stale(wanted, folder)
                    _keep(made, target, wanted.model)
                    return target
            except DiskError as error:  # a folder that is read-only, or on a medium that is
                unwritable = error
    raise unwritable or AssertionError("there are two folders")


def _kept(wanted: _Wanted, folder: Path) -> Path | None:
    """A kept form that is whole and of the converter that is installed; of any where it is not."""
    for name, converter in CONVERTERS.items():
        if wanted.model.files.kind not in converter.reads:
            continue
        for path in sorted(folder.glob(f"{wanted.stem}-{name}{converter.version() or '*'}{wanted.ending}")):
            with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
                record = json.loads(_record(path).read_bytes())
                written = FileRecord(record["bytes"], record["sha256"], record["mtime_ns"])
                if record["revision"] == _REVISION and written.matches(path):
                    with suppress(OSError):  # another user's
                        _record(path).touch()
                    return path
    return None


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _convert(wanted: _Wanted, scratch: Path) -> _Made:
    """Convert with the first converter that can. Raises UnsupportedModelError, EngineMissingError."""
    model, files = wanted.model, wanted.model.files
    file = files.model
    if wanted.cut is not None:
        file = scratch / "inference.json"
        with disk_errors(file):
            file.write_bytes(wanted.cut)
    problems: list[str] = []
    missing: list[str] = []
    for name, converter in CONVERTERS.items():
        if files.kind not in converter.reads:
            continue
        version = converter.version()
        if version is None:
            missing.append(name)
            continue
        work = scratch / name
        work.mkdir(exist_ok=True)
        out = work / "model.onnx"
        problem = converter.run(Source(file, files, wanted.program, work), out)
        problem = problem or converters.difference(out, wanted.program, files.kind)
        if problem is None:
            for failed in problems:
                log.warning("%s", failed)
            log.info("%s: converted to ONNX by %s %s", model.name, name, version)
            return _Made(_half(model, out) if wanted.half else out, name, version)
        problems.append(f"{name} {version} does not convert {model.name} ({problem})")
    raise _refusal(model, problems, missing)


def _refusal(model: ServingModel, problems: Sequence[str], missing: Sequence[str]) -> PdserveError:
    if not problems:
        first = CONVERTERS[missing[0]]
        return EngineMissingError(
            f"Converting {model.name} to ONNX needs {first.distributions[0]}, which is not installed: "
            f"`{first.install}`."
        )
    others = "".join(f", or try {name}: `{CONVERTERS[name].install}`" for name in missing)
    return UnsupportedModelError(
        f'{" and ".join(problems)}; use --engine paddle: `pip install "pdserve[paddle]"`{others}.'
    )


def _half(model: ServingModel, path: Path) -> Path:
    half = path.with_name("half.onnx")
    if problem := converters.run_python(_HALF, half, str(path), str(half)):
        raise UnsupportedModelError(
            f"ONNX Runtime does not make {model.name} fp16 ({problem}); use --precision fp32."
        )
    return half


def _keep(made: _Made, target: Path, model: ServingModel) -> None:
    """Copy to the target with its record; nobody sees half a file. Raises DiskError.

    A copy, since it gets the rights that the user gives to new files: others may use it too.
    """
    with disk_errors(target), replace_files(target, _record(target)) as (new, record):
        shutil.copyfile(made.path, new)
        content = asdict(FileRecord.of(new)) | {
            "model": str(model.path.resolve()),
            "converter": made.converter,
            "version": made.version,
            "revision": _REVISION,
        }
        record.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def _remove_stale(wanted: _Wanted, folder: Path) -> None:
    """Remove this model's forms of another fingerprint or converter, and of models that are gone.

    Files that a process holds open are left where the system wants that (Windows).
    """
    beside = folder == wanted.model.path / FOLDER
    here = str(wanted.model.path.resolve())
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
        fresh = path.name.startswith(wanted.stem) and versions.get(named[0]) in (named[1], None)
        mine = beside or owner == here or not Path(owner).exists()
        if mine and not fresh and time.time() - used > _IN_USE_S:
            _unlink(path)
            _unlink(record)


def _unlink(path: Path) -> None:
    with suppress(OSError):
        path.unlink()

"""Converts a Paddle model to an ONNX file, once, with paddle2onnx.

It is written beside the model, ``.pdserve/HASH-opsetN.onnx`` (``-fp16.onnx`` in half precision), or in the
user's cache folder where the model's folder cannot be written. The hash is over program and parameters, so
an altered model is converted again.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import platformdirs

from pdserve.engines import table
from pdserve.engines.base import LoadRequest
from pdserve.engines.int8 import FOLDER, fingerprint
from pdserve.errors import DiskError, UnsupportedModelError
from pdserve.files import disk_errors, replace_file
from pdserve.formats.parameters import read_parameters

OPSET = 17

# In a separate process: paddle2onnx loads all of Paddle, writes on standard output, and dies of some
# models. "none" keeps it from Polygraphy, which would install packages by itself.
_CHILD = """
import sys, warnings
warnings.simplefilter("ignore")
import paddle2onnx
model, params, out, opset = sys.argv[1:]
paddle2onnx.export(model, params, out, opset_version=int(opset), optimize_tool="none")
"""

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


def onnx_file(request: LoadRequest) -> Path:
    """Path of the converted model in the precision asked for, fp32 or fp16; converts it if there is none.

    Raises UnsupportedModelError for a model that paddle2onnx does not convert, EngineMissingError
    without paddle2onnx, DiskError.
    """
    ending = "-fp16" if request.precision == "fp16" else ""
    name = f"{fingerprint(request.model.files, request.program)}-opset{OPSET}{ending}.onnx"
    beside = request.model.path / FOLDER
    users = platformdirs.user_cache_path("pdserve") / "onnx"
    for folder in (beside, users):
        if (folder / name).is_file():
            return folder / name
    for module in ("paddle2onnx", "paddle"):
        table.require("onnx", module)
    with tempfile.TemporaryDirectory(prefix="pdserve-") as scratch:
        made = _convert(request, Path(scratch))
        try:
            return _keep(made, beside / name)
        except DiskError:  # a folder that is read-only, or on a medium that is
            return _keep(made, users / name)


def _convert(request: LoadRequest, scratch: Path) -> Path:
    files, out = request.model.files, scratch / "model.onnx"
    # paddle2onnx goes by these very names, whatever it is given.
    program = scratch / ("inference.json" if files.kind == "PIR" else "inference.pdmodel")
    params = scratch / "inference.pdiparams"
    shutil.copyfile(files.model, program)
    params.write_bytes(read_parameters(files, request.program))
    if problem := _run(_CHILD, out, str(program), str(params), str(out), str(OPSET)):
        raise UnsupportedModelError(
            f"paddle2onnx does not convert {request.model.name} ({problem}); "
            'use --engine paddle: `pip install "pdserve[paddle]"`.'
        )
    if request.precision != "fp16":
        return out
    half = scratch / "half.onnx"
    if problem := _run(_HALF, half, str(out), str(half)):
        raise UnsupportedModelError(
            f"ONNX Runtime does not make {request.model.name} fp16 ({problem}); use --precision fp32."
        )
    return half


def _run(program: str, out: Path, *arguments: str) -> str | None:
    """Run a converter that is to write ``out``; what went wrong, or None."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=out.parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode == 0 and out.is_file() and out.stat().st_size > 0:
        return None
    return _why(done.stdout, done.returncode)


def _why(output: str, status: int) -> str:
    if match := re.search(r"Failed to convert PaddlePaddle model: (.+)", output):
        return match[1].rstrip(". ")[:300]
    lines = [line.strip() for line in output.splitlines() if re.search(r"\w", line)]
    return lines[-1][:300] if lines and status >= 0 else f"it ended with status {status}"


def _keep(made: Path, target: Path) -> Path:
    """Copy to the target in one step, so that nobody sees half a file. Raises DiskError."""
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(target) as new:
            shutil.copyfile(made, new)
    return target

"""Finds and checks the INT8 form of a model, which ``pdserve optimize`` wrote beside the model.

::

    NAME_serving/.pdserve/int8/
      model.xml  model.bin     OpenVINO's own format
      report.json              whose form it is, and its agreement (pdserve.tools.optimize.report)

Of the report this reads ``fingerprint`` (the float model's), ``files`` (name -> SHA-256), and of
``agreement`` its ``measure``, ``value`` and ``images``. To run it, NNCF is not needed.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from pdserve.engines.base import LoadRequest
from pdserve.errors import ModelError
from pdserve.files import read_errors, sha256
from pdserve.formats.model_files import ModelFiles, parameter_files
from pdserve.formats.program import Program
from pdserve.formats.serving_model import DERIVED, ServingModel

FOLDER = DERIVED
PROGRAM, WEIGHTS, REPORT = "model.xml", "model.bin", "report.json"


@dataclass(frozen=True)
class Optimized:
    """A model in OpenVINO's format; ``note``: its agreement with the float one, where that is known."""

    program: bytes
    weights: bytes
    note: str = ""


def fingerprint(files: ModelFiles, program: Program) -> str:
    """SHA-256 (hex) of program and parameters: another one for an altered model. Raises ModelError."""
    with read_errors(ModelError):
        return sha256(files.model, *parameter_files(files, program))


def folder(model: ServingModel, precision: str) -> Path:
    """Where the form of a precision is published."""
    return model.path / FOLDER / precision


def command(model: ServingModel, precision: str) -> str:
    """The command that makes the form."""
    images = "--calibration" if precision == "int8" else "--images"
    return f"pdserve optimize --model {model.path} --precision {precision} {images} DIR"


def read(request: LoadRequest) -> Optimized:
    """Read the form in the folder that the request names, unchecked; else the published one, checked.

    Raises ModelError, with the command that makes it, where there is none, where it is of another state
    of the model, and where its files are altered.
    """
    model, precision, given = request.model, request.precision, request.optimized
    if given is not None:
        return Optimized(_bytes(given / PROGRAM), _bytes(given / WEIGHTS))
    place = folder(model, precision)
    again = f"type `{command(model, precision)}`."
    if not place.is_dir():
        raise ModelError(f"{model.name} has not been made {precision}: {again}")
    try:
        report = json.loads(_bytes(place / REPORT))
        made_from, sums = report["fingerprint"], {name: report["files"][name] for name in (PROGRAM, WEIGHTS)}
        measure, value, images = (report["agreement"][key] for key in ("measure", "value", "images"))
        note = f" ({measure} agreement {value:.4f} with fp32 on {images} images)"
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"{place / REPORT} is no report of `pdserve optimize`: {again}") from error
    if made_from != fingerprint(model.files, request.program):
        raise ModelError(f"{model.name} has changed since it was made {precision}: {again}")
    found = {name: _bytes(place / name) for name in sums}
    for name, data in found.items():
        if sha256(data) != sums[name]:
            raise ModelError(f"{place / name} is not what `pdserve optimize` wrote: {again}")
    return Optimized(found[PROGRAM], found[WEIGHTS], note)


def files(request: LoadRequest) -> list[Path]:
    """The files of the form that `read` reads."""
    place = request.optimized or folder(request.model, request.precision)
    return [place / PROGRAM, place / WEIGHTS]


def _bytes(path: Path) -> bytes:
    with read_errors(ModelError, path):
        return path.read_bytes()

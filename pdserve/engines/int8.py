"""The INT8 form of a model, as ``pdserve optimize`` left it beside the model: found, and checked.

::

    NAME_serving/.pdserve/int8/
      model.xml  model.bin     OpenVINO's own format
      report.json              whose form it is, and how well it agrees (pdserve.tools.optimize.report)

Of the report this reads ``fingerprint`` (the float model's), ``files`` (name -> SHA-256), and of
``agreement`` its ``measure``, ``value`` and ``images``. Nothing that made the form is needed to run it.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pdserve.engines.base import Request
from pdserve.engines.kept import FOLDER, fingerprint
from pdserve.errors import ModelError
from pdserve.formats.serving_model import ServingModel

PROGRAM, WEIGHTS, REPORT = "model.xml", "model.bin", "report.json"


@dataclass(frozen=True)
class Optimized:
    """A model in OpenVINO's format; ``note`` says how it agrees with the float one, where that is known."""

    program: bytes
    weights: bytes
    note: str = ""


def folder(model: ServingModel, precision: str) -> Path:
    """Where the form of a precision is published."""
    return model.path / FOLDER / precision


def command(model: ServingModel, precision: str) -> str:
    """What to type to make the form."""
    images = "--calibration" if precision == "int8" else "--images"
    return f"pdserve optimize --model {model.path} --precision {precision} {images} DIR"


def read(request: Request) -> Optimized:
    """The form in the folder that the request names, as it is there; else the published one, checked.

    Raises ModelError, with the command that makes it, where there is none, where it is of another state
    of the model, and where its files are not whole.
    """
    model, precision, given = request.model, request.precision, request.optimized
    if given is not None:
        return Optimized(_bytes(given / PROGRAM), _bytes(given / WEIGHTS))
    place = folder(model, precision)
    again = f"type `{command(model, precision)}`."
    if not place.is_dir():
        raise ModelError(f"{model.name} has not been made {precision}: {again}")
    report = _report(place / REPORT, again)
    if report["fingerprint"] != fingerprint(model.files, request.program):
        raise ModelError(f"{model.name} has changed since it was made {precision}: {again}")
    found = {}
    for name in (PROGRAM, WEIGHTS):
        found[name] = _bytes(place / name)
        if hashlib.sha256(found[name]).hexdigest() != report["files"][name]:
            raise ModelError(f"{place / name} is not what `pdserve optimize` wrote: {again}")
    told = report["agreement"]
    note = f" ({told['measure']} agreement {told['value']:.4f} with fp32 on {told['images']} images)"
    return Optimized(found[PROGRAM], found[WEIGHTS], note)


def _report(path: Path, again: str) -> dict[str, Any]:
    try:
        report = json.loads(_bytes(path))
        agreement = report["agreement"]
        kinds = (
            (report["fingerprint"], str),
            (report["files"][PROGRAM], str),
            (report["files"][WEIGHTS], str),
            (agreement["measure"], str),
            (agreement["value"], float | int),
            (agreement["images"], int),
        )
        if all(isinstance(value, kind) for value, kind in kinds):
            whole: dict[str, Any] = report
            return whole
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise ModelError(f"{path} is no report of `pdserve optimize`: {again}")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"Cannot read {path}: {error.strerror}.") from error

"""A serving model as Paddle Serving's local predictor takes it.

It looks feeds and fetches up by the model's own names and checks them against the aliases, so that in this
copy each alias is the name.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pdserve.errors import UnsupportedModelError
from pdserve.formats import prototxt
from pdserve.formats.model_files import parameter_files, read_program
from pdserve.formats.program import Signature
from pdserve.formats.prototxt import ModelConfig, Variable
from pdserve.formats.serving_model import ServingModel

Place = Callable[[Path, Path], object]


def link(source: Path, target: Path) -> None:
    """A symbolic link, for a folder that lives as long as the process that made it."""
    target.symlink_to(source.resolve())


def copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def write(model: ServingModel, folder: Path, place: Place) -> Signature:
    """Put a model's files into a new folder, each by ``place``; what the model feeds and fetches.

    Raises UnsupportedModelError for a model of Paddle 3, ModelError for files that cannot be read.
    """
    files = model.files
    if files.kind != "ProgramDesc":
        raise UnsupportedModelError(
            f"{files.model} is a model of Paddle 3, which Paddle Serving does not read; "
            "use --runtime native, or export it as inference.pdmodel."
        )
    program = read_program(files)
    folder.mkdir()
    if files.params:
        place(files.model, folder / "inference.pdmodel")
        place(files.params, folder / "inference.pdiparams")
    else:
        place(files.model, folder / "__model__")
        for path in parameter_files(files, program):
            place(path, folder / path.name)
    config = ModelConfig(_by_name(model.config.feeds), _by_name(model.config.fetches))
    (folder / prototxt.SERVER_TEXT).write_text(prototxt.dump_text(config), "utf-8")
    (folder / prototxt.SERVER_STREAM).write_bytes(prototxt.dump_stream(config))
    return program.signature


def name_of(variables: tuple[Variable, ...], alias: str) -> str:
    """The model's own name of what the callers know by ``alias``, which must be there."""
    return next(v.name for v in variables if v.alias == alias)


def _by_name(variables: tuple[Variable, ...]) -> tuple[Variable, ...]:
    return tuple(replace(v, alias=v.name) for v in variables)

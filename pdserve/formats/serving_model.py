"""Opens a model's folder: model and parameter files, prototxt, pdserve's note, the exporter's description.

::

    NAME_serving/
      inference.pdmodel  inference.pdiparams     (or inference.json; or __model__ and __params__)
      serving_server_conf.prototxt  serving_server_conf.stream.prototxt
      inference.yml                              (where the exporter wrote one, or infer_cfg.yml)
      pdserve.json                               {"name": the catalog's name, "source": {FILE: {"bytes": …,
                                                 "sha256": …, "mtime_ns": …}}, "written": as "source"}

``source``: the files that were converted, ``written``: those of the serving model that people edit.

An inference model, as it was exported, is opened in place: its feeds and fetches are read from its program,
and their aliases follow from the task that its description says.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pdserve.errors import ModelError
from pdserve.formats import inference_yml, prototxt, text_file
from pdserve.formats.inference_yml import Description, Task
from pdserve.formats.model_files import ModelFiles, find_model_files, read_program
from pdserve.formats.program import Program, TensorSpec
from pdserve.formats.prototxt import ModelConfig, Variable

NOTE = "pdserve.json"
# Folder beside a model for what is derived from it.
DERIVED = ".pdserve"
MAX_NOTE_BYTES = 4 << 20


@dataclass(frozen=True)
class ServingModel:
    """An opened model. ``name`` is the catalog's where known, else the folder's."""

    path: Path
    name: str
    files: ModelFiles
    config: ModelConfig

    @property
    def inference_yml(self) -> Path | None:
        """The exporter's description, where the folder has it."""
        return inference_yml.find_description(self.path)

    @cached_property
    def description(self) -> Description:
        """What the exporter's description says, read once. Raises ModelError."""
        return inference_yml.corrected(inference_yml.read_description(self.path), self.name)

    @property
    def converted(self) -> bool:
        """Whether it is a serving model, with its aliases in a file, and not one opened in place."""
        return (self.path / prototxt.SERVER_TEXT).is_file()

    def served_as(self, task: Task) -> "ServingModel":
        """This model; one opened in place whose description says no task gets the aliases of this one."""
        if self.converted or self.description.task is not None:
            return self
        return _in_place(self.path, self.files, self.description, task)


def open_serving_model(path: Path) -> ServingModel:
    """Open a folder that ``pdserve convert`` or Paddle Serving's converter wrote, or an inference model.

    Raises ModelError where the folder, its prototxt or its model files are missing or unreadable.
    """
    if not path.is_dir():
        raise ModelError(f"There is no serving model at {path}; make one with `pdserve convert`.")
    text = path / prototxt.SERVER_TEXT
    if text.is_file():
        return ServingModel(path, _name(path), find_model_files(path), prototxt.read(text))
    try:
        files = find_model_files(path)
    except ModelError as error:
        raise ModelError(
            f"{path} has no {prototxt.SERVER_TEXT}, so it is no serving model, and it cannot be served as it "
            f"is: {error.message} Make one with "
            f"`pdserve convert --dirname {path} --serving-server OUT --serving-client OUT`."
        ) from error
    description = inference_yml.corrected(inference_yml.read_description(path), _name(path))
    return _in_place(path, files, description, description.task)


def _in_place(path: Path, files: ModelFiles, description: Description, task: Task | None) -> ServingModel:
    program = read_program(files)
    feeds, fetches = inference_yml.task_aliases(
        task,
        [spec.name for spec in program.signature.feeds],
        [spec.name for spec in program.signature.fetches],
    )
    model = ServingModel(
        path, _name(path), files, serving_config(files, program).with_aliases(feeds, fetches)
    )
    vars(model)["description"] = description  # where the cached property keeps it: one reading is enough
    return model


def alias_command(path: Path, feeds: Sequence[str] = (), fetches: Sequence[str] = ()) -> str:
    """The command that gives a model's feeds and fetches aliases, each as ``NAME=ALIAS``."""
    if (path / prototxt.SERVER_TEXT).is_file():
        start, ending = f"pdserve alias {path}", ""
    else:  # opened in place: it has no file of aliases
        out = f"--serving-server {folder_name(path)}_serving --serving-client {folder_name(path)}_client"
        start, ending = f"pdserve convert --dirname {path} {out}", "-alias"
    given = [*(("feed", each) for each in feeds), *(("fetch", each) for each in fetches)]
    return " ".join([start, *(f"--{side}{ending} {each}" for side, each in given)])


def serving_config(files: ModelFiles, program: Program) -> ModelConfig:
    """Feeds and fetches as Paddle Serving's converter describes them; aliases are the names."""

    def variables(specs: Sequence[TensorSpec]) -> tuple[Variable, ...]:
        unique = {s.name: s for s in specs}.values()  # a variable can be fetched twice, and is listed once
        return tuple(Variable(s.name, s.name, s.dtype, _shape(s), s.lod_level > 0) for s in unique)

    fetches = program.signature.fetches
    if files.kind == "ProgramDesc":
        fetches = tuple(sorted(fetches, key=lambda s: s.name))
    return ModelConfig(variables(program.signature.feeds), variables(fetches))


def _shape(spec: TensorSpec) -> tuple[int, ...]:
    return (-1,) if spec.lod_level > 0 else tuple(d for d in spec.shape if d >= 0)


def _name(path: Path) -> str:
    try:
        name = json.loads(text_file.read_text(path / NOTE, MAX_NOTE_BYTES))["name"]
        if isinstance(name, str):
            return name
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass  # a folder of another converter has no note
    return folder_name(path)


def folder_name(path: Path) -> str:
    """The name that a model's folder gives it: ``mine`` for ``mine_infer`` and ``mine_serving``."""
    return path.resolve().name.removesuffix("_serving").removesuffix("_infer")

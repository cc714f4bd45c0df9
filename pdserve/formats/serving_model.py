"""Opens a serving model's folder: model and parameter files, prototxt, pdserve's note.

::

    NAME_serving/
      inference.pdmodel  inference.pdiparams     (or inference.json; or __model__ and __params__)
      serving_server_conf.prototxt  serving_server_conf.stream.prototxt
      inference.yml                              (where the exporter wrote one)
      pdserve.json                               {"name": the catalog's name, "source": {FILE: {"bytes": …,
                                                 "sha256": …, "mtime_ns": …}}, "written": as "source"}

``source``: the files that were converted, ``written``: those of the serving model that people edit.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from pdserve.errors import ModelError
from pdserve.formats import prototxt
from pdserve.formats.model_files import ModelFiles, find_model_files

NOTE = "pdserve.json"


@dataclass(frozen=True)
class ServingModel:
    """An opened serving model. ``name`` is the catalog's where known, else the folder's."""

    path: Path
    name: str
    files: ModelFiles
    config: prototxt.ModelConfig

    @property
    def inference_yml(self) -> Path | None:
        """The exporter's pre- and postprocessing, where the folder has it."""
        path = self.path / "inference.yml"
        return path if path.is_file() else None


def open_serving_model(path: Path) -> ServingModel:
    """Open a folder that ``pdserve convert`` or Paddle Serving's converter wrote.

    Raises ModelError where the folder, its prototxt or its model files are missing or unreadable.
    """
    if not path.is_dir():
        raise ModelError(f"There is no serving model at {path}; make one with `pdserve convert`.")
    text = path / prototxt.SERVER_TEXT
    if not text.is_file():
        raise ModelError(
            f"{path} has no {prototxt.SERVER_TEXT}, so it is no serving model; "
            f"make one with `pdserve convert --dirname {path} --serving-server OUT --serving-client OUT`."
        )
    return ServingModel(path, _name(path), find_model_files(path), prototxt.read(text))


def _name(path: Path) -> str:
    try:
        name = json.loads((path / NOTE).read_text("utf-8"))["name"]
        if isinstance(name, str):
            return name
    except (OSError, ValueError, KeyError, TypeError):
        pass  # a folder of another converter has no note
    return path.resolve().name.removesuffix("_serving")

"""``inference.yml``: what a PaddleClas or PaddleX exporter wrote of a model's pre- and postprocessing."""

from collections.abc import Mapping
from typing import Any

from pdserve.errors import ModelError, SettingsError
from pdserve.formats import yaml_file
from pdserve.formats.serving_model import ServingModel
from pdserve.vision import postprocess, preprocess


def read_inference_yml(model: ServingModel) -> Mapping[str, Mapping[str, Any]]:
    """The sections PreProcess and PostProcess, each a mapping that compiles; both empty without a file.

    Raises ModelError with the path.
    """
    path = model.inference_yml
    if path is None:
        return {"PreProcess": {}, "PostProcess": {}}
    try:
        content = yaml_file.read(path)
    except (OSError, yaml_file.YamlError) as error:
        raise ModelError(f"Cannot read {path}: {error}.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} describes no model; it should have PreProcess and PostProcess.")
    sections = {name: content.get(name) or {} for name in ("PreProcess", "PostProcess")}
    for name, section in sections.items():
        if not isinstance(section, dict):
            raise ModelError(f"{path}: {name} is {section!r}; it must be a mapping.")
    try:
        preprocess.build(sections["PreProcess"].get("transform_ops") or ())
        postprocess.build(sections["PostProcess"], None)
    except SettingsError as error:
        raise ModelError(f"{path}: {error.message}") from error
    return sections

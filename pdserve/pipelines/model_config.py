"""Find a model's preprocessing, postprocessing and labels: settings, then inference.yml, then the catalog.

A classifier that none of them describes is refused: guessing a mean or a crop would give answers that look
right and are not. The catalog is asked by the folder's name alone. A model trained by oneself has the name
of its architecture in its file (``Global.model_name``), and neither the labels nor perhaps the
preprocessing of the public one.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PureWindowsPath
from typing import Any

from pdserve.errors import ModelError, SettingsError
from pdserve.formats.inference_yml import Description, postprocessing_of
from pdserve.formats.serving_model import ServingModel
from pdserve.models import catalog, labels
from pdserve.settings import ClassificationOptions
from pdserve.vision import postprocess as scores
from pdserve.vision import preprocess

log = logging.getLogger("pdserve")


@dataclass(frozen=True)
class ClassifierConfig:
    """A classifier's preprocessing, postprocessing and labels. ``origin``: where the chain came from.

    ``params`` are the parameters of the postprocessing, as they are written.
    """

    chain: preprocess.Chain
    postprocess: scores.Postprocess
    names: tuple[str, ...] | None
    origin: str
    params: Mapping[str, Any]


def classifier_config(model: ServingModel, wanted: ClassificationOptions) -> ClassifierConfig:
    """A classifier's configuration. Raises SettingsError or ModelError where it is incomplete."""
    entry = catalog.load().get(model.name)
    description = model.description
    ops: preprocess.TransformOps | None = description.transforms
    origins = [description.path.name] if ops and description.path else []
    if ops is None and entry and entry.transforms is not None:
        ops, origins = entry.transforms, ["catalog"]
    wanted_ops = _with_settings(ops, wanted)
    if wanted_ops is None:
        raise SettingsError(
            f"Nothing says how {model.name} wants its images; give --resize-short and --crop, or --resize "
            "(and --mean, --std where they are not ImageNet's)."
        )
    if wanted_ops is not ops:
        origins.append("settings")
    chain = build_chain(wanted_ops, description)
    found = description.postprocess or (entry.postprocess if entry else None)
    postprocess = _postprocess(found, wanted)
    names = _names(description, postprocess, entry, wanted)
    with _in_file(description if found is description.postprocess and not wanted.postprocess else None):
        compiled = scores.build(postprocess, names)
    params = postprocess.get(compiled.kind) or {}
    return ClassifierConfig(chain, compiled, names, " and ".join(origins), params)


def build_chain(ops: preprocess.TransformOps, description: Description) -> preprocess.Chain:
    """Compile a chain. Raises ModelError where it is the file's and does not compile, else SettingsError."""
    with _in_file(description if ops is description.transforms else None):
        return preprocess.build(ops)


@contextmanager
def _in_file(description: Description | None) -> Iterator[None]:
    """What does not fit in here is the file's fault, and says so."""
    try:
        yield
    except SettingsError as error:
        if description is None or description.path is None:
            raise
        raise ModelError(f"{description.path}: {error.message}") from error


# Where an operator belongs that a chain does not have.
_USUAL = ("DecodeImage", "ResizeImage", "CropImage", "NormalizeImage", "PadImage", "ToCHWImage")


def _with_settings(
    ops: preprocess.TransformOps | None, wanted: ClassificationOptions
) -> preprocess.TransformOps | None:
    """The chain with what the settings change in it; itself where they change nothing.

    None where there is no chain, and the settings do not give a size.
    """
    if wanted.resize and wanted.resize_short:
        raise SettingsError("resize and resize_short contradict each other; give one of them.")
    changes = {name: _given(params) for name, params in _changes(wanted).items()}
    if not any(changes.values()):
        return ops
    if ops is None:
        if not wanted.resize and not (wanted.resize_short and wanted.crop):
            return None
        changes["NormalizeImage"] = changes["NormalizeImage"] or {"order": ""}  # ImageNet's
    chain = [(name, dict(params or {})) for op in ops or () for name, params in op.items()]
    if wanted.resize or wanted.resize_short:
        # A new size ends the old one, and the crop or the filling that went with it.
        old = ("size", "resize_short", "keep_ratio")
        chain = [
            (name, {k: v for k, v in params.items() if name != "ResizeImage" or k not in old})
            for name, params in chain
            if name != "PadImage" and not (name == "CropImage" and wanted.resize)
        ]
    for name, params in changes.items():
        if params and name not in dict(chain):
            later = _USUAL[_USUAL.index(name) :]
            chain.insert(next((i for i, op in enumerate(chain) if op[0] in later), len(chain)), (name, {}))
    return [{name: params | changes.get(name, {})} for name, params in chain]


def _changes(wanted: ClassificationOptions) -> dict[str, dict[str, Any]]:
    """The settings as parameters of the operators that they concern."""
    return {
        "DecodeImage": {"to_rgb": wanted.channel_order and wanted.channel_order == "rgb"},
        "ResizeImage": {
            "resize_short": wanted.resize_short,
            "size": wanted.resize,
            "interpolation": wanted.interpolation,
            "backend": wanted.backend,
        },
        "CropImage": {"size": wanted.crop},
        "NormalizeImage": {"scale": wanted.scale, "mean": wanted.mean, "std": wanted.std},
    }


def _given(params: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in params.items() if value is not None}


def _postprocess(found: Mapping[str, Any] | None, wanted: ClassificationOptions) -> Mapping[str, Any]:
    postprocess: dict[str, Any] = dict(wanted.postprocess or found or {"Topk": {"topk": 5}})
    kind = postprocessing_of(postprocess) or "Topk"
    changes: dict[str, Any] = {}
    if wanted.threshold is not None:
        if kind not in ("ThreshOutput", "MultiLabelThreshOutput", "PersonAttribute"):
            raise SettingsError(f"threshold has no meaning for the postprocessing {kind}; leave it out.")
        changes["threshold"] = wanted.threshold
    if wanted.top_k is not None:
        if kind not in ("Topk", "MultiLabelThreshOutput"):
            raise SettingsError(f"top_k has no meaning for the postprocessing {kind}; leave it out.")
        changes["topk"] = wanted.top_k
    if wanted.labels:
        if kind.endswith("Attribute"):
            raise SettingsError(f"labels have no meaning for the postprocessing {kind}; leave them out.")
        if kind == "ThreshOutput":
            changes |= {"label_0": None, "label_1": None}
    params = postprocess.get(kind) or {}
    if not changes or not isinstance(params, Mapping):  # scores.build says what is wrong with it
        return postprocess
    return {**postprocess, kind: {**params, **changes}}


def _names(
    description: Description,
    postprocess: Mapping[str, Any],
    entry: catalog.Entry | None,
    wanted: ClassificationOptions,
) -> tuple[str, ...] | None:
    if wanted.labels:
        return labels.read_labels(wanted.labels)
    if wanted.postprocess:
        for params in postprocess.values():
            if isinstance(params, Mapping) and isinstance(params.get("label_list"), list):
                return tuple(str(name) for name in params["label_list"])
    if description.labels:
        return description.labels
    in_catalog = labels.FOLDER / entry.labels if entry and entry.labels else None
    if description.label_file and description.path:
        beside = description.path.with_name(
            PureWindowsPath(description.label_file).name
        )  # with / and \ alike
        if beside.is_file():
            return labels.read_labels(beside, description.delimiter)
        if in_catalog is None:
            log.warning(
                "%s has its labels in %s, which is not beside it: labels are class numbers; give --labels.",
                description.path,
                description.label_file,
            )
    return labels.read_labels(in_catalog) if in_catalog else None

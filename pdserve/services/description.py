"""What a classifier wants and means: its preprocessing, its postprocessing, its labels.

Settings that were given come first; then the ``inference.yml`` in the model's folder; then the
catalog, by the model's name. A model that none of them describes is refused: guessing a mean or a
crop would give answers that look right and are not.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pdserve import catalog, labels
from pdserve.errors import ModelError, SettingsError
from pdserve.serving_model import ServingModel
from pdserve.settings import ResultSettings
from pdserve.vision import scores, transforms


@dataclass(frozen=True)
class Description:
    """A classifier's two ends. ``origin`` says where the chain came from, for the log."""

    chain: transforms.Chain
    postprocess: scores.Postprocess
    names: tuple[str, ...] | None
    origin: str


def describe(model: ServingModel, wanted: ResultSettings) -> Description:
    """Put a model's description together. Raises SettingsError or ModelError where it is not enough."""
    in_yml = _inference_yml(model.inference_yml) if model.inference_yml else {}
    entry = catalog.load().get(model.name)
    ops: transforms.TransformOps | None = (in_yml.get("PreProcess") or {}).get("transform_ops")
    origin = "inference.yml"
    if ops is None and entry and entry.transforms is not None:
        ops, origin = entry.transforms, "catalog"
    ops, given = _with_settings(ops, wanted)
    if ops is None:
        raise SettingsError(
            f"Nothing says how {model.name} wants its images; give --resize-short and --crop, or --resize "
            "(and --mean, --std where they are not ImageNet's)."
        )
    postprocess = _postprocess(in_yml.get("PostProcess") or (entry.postprocess if entry else None), wanted)
    names = _names(postprocess, entry, wanted)
    return Description(
        transforms.build(ops),
        scores.build(postprocess, names),
        names,
        f"{origin} and settings" if given and origin else origin,
    )


def _inference_yml(path: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ModelError(f"Cannot read {path}: {' '.join(str(error).split())}.") from error
    return content if isinstance(content, dict) else {}


def _with_settings(
    ops: transforms.TransformOps | None, wanted: ResultSettings
) -> tuple[transforms.TransformOps | None, bool]:
    """The chain with what the settings change in it, and whether they change anything."""
    resize = {
        key: value
        for key, value in (
            ("resize_short", wanted.resize_short),
            ("size", wanted.resize),
            ("interpolation", wanted.interpolation),
            ("backend", wanted.backend),
        )
        if value is not None
    }
    normalize = {
        key: value
        for key, value in (("scale", wanted.scale), ("mean", wanted.mean), ("std", wanted.std))
        if value is not None
    }
    if not resize and not normalize and wanted.crop is None and wanted.channel_order is None:
        return ops, False
    if ops is None and not wanted.resize and not (wanted.resize_short and wanted.crop):
        return None, True
    now: dict[str, dict[str, Any]] = {name: dict(p or {}) for op in ops or () for name, p in op.items()}
    if wanted.resize:
        # A new size ends both the resize by short side and the crop that went with it.
        now.pop("CropImage", None)
        now.setdefault("ResizeImage", {}).pop("resize_short", None)
    if wanted.resize_short:
        now.setdefault("ResizeImage", {}).pop("size", None)
    if wanted.crop:
        now["CropImage"] = {"size": wanted.crop}
    if wanted.channel_order:
        now["DecodeImage"] = {"to_rgb": wanted.channel_order == "rgb"}
    now.setdefault("ResizeImage", {}).update(resize)
    now.setdefault("NormalizeImage", {}).update(normalize)
    usual = ("DecodeImage", "ResizeImage", "CropImage", "PadImage", "NormalizeImage", "ToCHWImage")
    order = [name for name in usual if name in now] + [name for name in now if name not in usual]
    return [{name: now[name]} for name in order], True


def _postprocess(found: Mapping[str, Any] | None, wanted: ResultSettings) -> Mapping[str, Any]:
    postprocess: dict[str, Any] = dict(wanted.postprocess or found or {"Topk": {"topk": 5}})
    kind = str(postprocess.get("main_indicator") or next(iter(postprocess)))
    params = dict(postprocess.get(kind) or {})
    if wanted.threshold is not None:
        if kind not in ("ThreshOutput", "MultiLabelThreshOutput", "PersonAttribute"):
            raise SettingsError(f"threshold has no meaning for the postprocessing {kind}; leave it out.")
        params["threshold"] = wanted.threshold
    if wanted.top_k is not None and kind == "Topk":
        params["topk"] = wanted.top_k
    return {**postprocess, kind: params}


def _names(
    postprocess: Mapping[str, Any], entry: catalog.Entry | None, wanted: ResultSettings
) -> tuple[str, ...] | None:
    if wanted.labels:
        return labels.read_labels(wanted.labels)
    for params in postprocess.values():
        if isinstance(params, Mapping) and isinstance(params.get("label_list"), list):
            return tuple(str(name) for name in params["label_list"])
    return labels.read_labels(labels.FOLDER / entry.labels) if entry and entry.labels else None

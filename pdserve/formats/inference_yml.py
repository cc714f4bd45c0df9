"""Reads what an exporter says of its model: ``inference.yml``, or PaddleDetection's ``infer_cfg.yml``.

PaddleClas, and PaddleX for its classifiers and embedders::

    Global: {model_name: PP-LCNet_x1_0}
    PreProcess: {transform_ops: [{ResizeImage: {…}}, {CropImage: {…}}, …]}
    PostProcess: {Topk: {topk: 5, label_list: [tench, …]}}

PaddleDetection, and PaddleX for its detectors::

    Global: {model_name: PP-ShiTuV2_det}
    arch: GFL
    draw_threshold: 0.5
    Preprocess: [{type: Resize, …}, {type: NormalizeImage, …}, {type: Permute}]
    label_list: [mainbody]
    NMS: {nms_threshold: 0.5, …}

What an operator means is no matter of this module; it says which are there, and what the model is for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pdserve.errors import ModelError
from pdserve.formats import text_file, yaml_file

Task = Literal["classification", "multilabel", "attributes", "embedding", "detection"]

FILES = ("inference.yml", "infer_cfg.yml")
"""What exporters call the file; the first that is there counts."""

MAX_BYTES = 1 << 20
"""Room for the 22,000 labels of ImageNet-22k; read in a second whatever it holds."""

_LABELS = ("label_list", "label_0", "label_1")

_TASKS: Mapping[str, Task] = {
    "Topk": "classification",
    "ThreshOutput": "classification",
    "MultiLabelThreshOutput": "multilabel",
    "PersonAttribute": "attributes",
    "VehicleAttribute": "attributes",
    "TableAttribute": "attributes",
    "NormalizeFeatures": "embedding",
}

# The aliases of the first feed and the first fetch; None keeps the model's own name.
_ALIASES: Mapping[Task, tuple[str | None, str | None]] = {
    "classification": ("image", "prediction"),
    "multilabel": ("image", "prediction"),
    "attributes": ("image", "prediction"),
    "embedding": (None, "features"),
    "detection": (None, None),
}


@dataclass(frozen=True)
class Description:
    """What the file says; everything is None where it says nothing, ``path`` where there is no file.

    ``transforms`` and ``postprocess`` are PaddleClas's ``PreProcess.transform_ops`` and ``PostProcess``,
    ``preprocess`` PaddleDetection's list of ``{type: NAME, …}``, all as they are written. ``labels`` are
    by class id, each as it is written (``yes`` and ``01`` too). ``label_file`` is what the exporter had
    them from, where the file has none itself, ``delimiter`` what stands there between number and name.
    ``draw_threshold``: the score from which PaddleDetection and PaddleX show a box.
    """

    path: Path | None = None
    model_name: str | None = None
    task: Task | None = None
    transforms: Sequence[Mapping[str, Any]] | None = None
    postprocess: Mapping[str, Any] | None = None
    preprocess: Sequence[Mapping[str, Any]] | None = None
    arch: str | None = None
    nms: Mapping[str, Any] | None = None
    draw_threshold: float | None = None
    labels: tuple[str, ...] | None = None
    label_file: str | None = None
    delimiter: str | None = None


# Public models whose file says what is not so, and what of it. The guide's detector comes with COCO's labels,
# of which it knows none, and its reference values, as the published service's, with another chain: the image
# is normalised, then resized bilinearly.
_WRONG: Mapping[str, tuple[str, ...]] = {
    "picodet_PPLCNet_x2_5_mainbody_lite_v1.0": ("preprocess", "nms", "draw_threshold", "labels"),
}


def corrected(description: Description, name: str) -> Description:
    """The description without what is known to be wrong in that of a public model of this name."""
    return replace(description, **dict.fromkeys(_WRONG.get(name, ())))


def find_description(folder: Path) -> Path | None:
    """The file in a folder, None where there is none."""
    return next((folder / name for name in FILES if (folder / name).is_file()), None)


def read_description(folder: Path) -> Description:
    """Read a folder's ``inference.yml`` or ``infer_cfg.yml``. Raises ModelError that names the file."""
    path = find_description(folder)
    if path is None:
        return Description()
    try:
        content = yaml_file.read(path, max_bytes=MAX_BYTES, as_text=_LABELS)
    except (OSError, yaml_file.YamlError) as error:
        raise ModelError(f"Cannot read {path}: {text_file.reason(error)}.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} describes no model; it should have PreProcess and PostProcess.")
    file = _File(path, content)
    preprocess = file.operators("Preprocess", content.get("Preprocess"))
    before, after = file.section("PreProcess"), file.section("PostProcess")
    params: list[Mapping[str, Any]] = [each for each in after.values() if isinstance(each, dict)]
    listed = [*(each.get("label_list") for each in params), content.get("label_list")]
    labels = next((each for each in listed if each is not None), None)
    source = next((each for each in params if labels is None and each.get("class_id_map_file")), {})
    return Description(
        path=path,
        model_name=file.text("Global.model_name", file.section("Global").get("model_name")),
        task=_task(path, content, after),
        transforms=file.operators("PreProcess.transform_ops", before.get("transform_ops")),
        postprocess=after or None,
        preprocess=preprocess,
        arch=file.text("arch", content.get("arch")),
        nms=file.section("NMS") or None,
        draw_threshold=file.score("draw_threshold", content.get("draw_threshold")),
        labels=file.labels(labels),
        label_file=file.text("class_id_map_file", source.get("class_id_map_file")),
        delimiter=file.text("delimiter", source.get("delimiter")),
    )


def task_aliases(
    task: Task | None, feeds: Sequence[str], fetches: Sequence[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """The aliases that a task gives a model's feeds and fetches, by their names, both in program order.

    None where the task is unknown, nor for several feeds: these are told apart by their own names.
    """
    if task is None or len(feeds) != 1 or not fetches:
        return {}, {}
    feed, fetch = _ALIASES[task]
    return {feeds[0]: feed} if feed else {}, {fetches[0]: fetch} if fetch else {}


def postprocessing_of(postprocess: Mapping[str, Any]) -> str | None:
    """The operator of a ``PostProcess`` section whose answer counts, None for none."""
    # SavePreLabel sorts files into folders by label; it says nothing about the answer.
    others = (name for name in postprocess if name not in ("main_indicator", "SavePreLabel"))
    found = postprocess.get("main_indicator") or next(others, None)
    return None if found is None else str(found)


def _task(path: Path, content: Mapping[str, Any], after: Mapping[str, Any]) -> Task | None:
    if path.name == FILES[1] or "Preprocess" in content or "arch" in content:
        return "detection"
    if "label_list" in content and not after:
        return "detection"
    return _TASKS.get(postprocessing_of(after) or "")


@dataclass(frozen=True)
class _File:
    """Reads values of the file, and names it in what is raised."""

    path: Path
    content: Mapping[str, Any]

    def section(self, name: str) -> Mapping[str, Any]:
        value = self.content.get(name) or {}
        if not isinstance(value, dict):
            raise self._error(name, value, "a mapping")
        return value

    def operators(self, name: str, value: Any) -> Sequence[Mapping[str, Any]] | None:
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            raise self._error(name, value, "a list of operators")
        return value or None

    def text(self, name: str, value: Any) -> str | None:
        if value is not None and not isinstance(value, str):
            raise self._error(name, value, "a text")
        return value

    def score(self, name: str, value: Any) -> float | None:
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise self._error(name, value, "a number from 0 to 1")
        return float(value)

    def labels(self, value: Any) -> tuple[str, ...] | None:
        """A list of names, or names by class id from 0 on (``{no: 0, yes: 1}`` has truth values for keys)."""
        if value is None:
            return None
        if isinstance(value, dict) and not any(isinstance(key, bool) for key in value):
            by_id = {int(key) if str(key).isdecimal() else key: name for key, name in value.items()}
            if set(by_id) == set(range(len(value))):
                value = [by_id[i] for i in range(len(value))]
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise self._error("label_list", value, "a list of names")
        return tuple(value) or None

    def _error(self, name: str, value: Any, wanted: str) -> ModelError:
        shown = repr(value) if len(repr(value)) < 100 else repr(value)[:100] + "…"
        return ModelError(f"{self.path}: {name} is {shown}; it must be {wanted}.")

"""Postprocess a model's outputs: a row of scores -> labels.

Written as PaddleClas writes ``PostProcess`` in ``inference.yml``: ``{"Topk": {"topk": 5}}``,
``{"ThreshOutput": {…}}``, ``{"MultiLabelThreshOutput": {…}}`` and the PULC attribute models'
``PersonAttribute``, ``VehicleAttribute``, ``TableAttribute``, whose layouts of outputs are fixed by
those models and tabled below.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
import numpy.typing as npt

from pdserve.answers import Label
from pdserve.errors import SettingsError
from pdserve.vision.preprocess import checked_parameters, whole_number
from pdserve.vision.types import Floats

# Where the exporter had its labels; the caller has resolved them into names.
_LABEL_KEYS = ("class_id_map_file", "label_list", "delimiter")


@dataclass(frozen=True)
class Postprocess:
    """Turns one row of scores, (width,) float32, into labels.

    ``read(scores, top_k)``: ``top_k`` None means what the model's own settings say; it bounds the
    number of labels of top-k and multi-label models and means nothing to the others.
    ``width`` is how many outputs the model must have, None if any number will do.
    """

    kind: str
    width: int | None
    read: Callable[[Floats, int | None], list[Label]]


def build(postprocess: Mapping[str, Any], names: Sequence[str] | None) -> Postprocess:
    """Compile a postprocessing. ``names`` are the labels by class id, None for none.

    Raises SettingsError for an unknown operator or parameter.
    """
    # SavePreLabel sorts files into folders by label; it says nothing about the answer.
    ops = {k: v for k, v in postprocess.items() if k not in ("main_indicator", "SavePreLabel")}
    kind = str(postprocess.get("main_indicator") or next(iter(ops), "Topk"))
    maker = _MAKERS.get(kind)
    if maker is None:
        if kind == "NormalizeFeatures":
            raise SettingsError(
                "The postprocessing is NormalizeFeatures: the model gives features and no labels. "
                "It is an embedder, for `pdserve serve embedding`, recognition or `pdserve index build`."
            )
        raise SettingsError(f"The postprocessing {kind!r} is unknown; known are {', '.join(_MAKERS)}.")
    known = (*list(signature(maker).parameters)[1:], *_LABEL_KEYS)  # the first are the names
    params = checked_parameters(kind, ops.get(kind), known)
    for key, value in params.items():
        by_class = kind == "MultiLabelThreshOutput" and isinstance(value, (list, dict))
        if key.endswith("threshold") and not by_class:
            _check_threshold(f"{kind}.{key}", value)
    return maker(names, **{key: value for key, value in params.items() if key not in _LABEL_KEYS})


def _check_threshold(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise SettingsError(f"{name} is {value!r}; it must be a number from 0 to 1.")
    return float(value)


def score_of(value: np.floating[Any] | float) -> float:
    """A float32 score as the shortest decimal that means it: 0.9341, not 0.934100031852…"""
    return float(str(np.float32(value)))


def _rest_of(value: np.floating[Any] | float) -> float:
    """The score of "no" where ``value`` is that of "yes"."""
    return score_of(1 - score_of(value))


def _name(names: Sequence[str] | None, class_id: int) -> str:
    return names[class_id] if names is not None else str(class_id)


def _topk(names: Sequence[str] | None, topk: int = 5) -> Postprocess:
    whole_number("Topk.topk", topk)

    def read(scores: Floats, top_k: int | None) -> list[Label]:
        count = min(top_k or topk, len(scores))
        return [Label(int(i), _name(names, int(i)), score_of(scores[i])) for i in _best(scores, count)]

    return Postprocess("Topk", len(names) if names is not None else None, read)


def _best(scores: Floats, count: int) -> npt.NDArray[np.intp]:
    """Indices of the ``count`` best, best first, the lower index first among equals."""
    if count < len(scores):
        # Everything at least as good as the count-th best, so that ties are cut by index.
        cut = np.partition(scores, len(scores) - count)[len(scores) - count]
        among = np.flatnonzero(scores >= cut)
    else:
        among = np.arange(len(scores))
    return among[np.argsort(-scores[among], kind="stable")][:count]


def _thresh_output(
    names: Sequence[str] | None,
    threshold: float | None = None,
    default_label_index: int = 0,
    label_0: str | None = None,
    label_1: str | None = None,
) -> Postprocess:
    """Of two outputs, the second from the threshold on. Of more, the best above it, else the default."""
    if threshold is None:
        raise SettingsError("ThreshOutput needs a threshold.")
    if default_label_index != 0:
        whole_number("ThreshOutput.default_label_index", default_label_index)
    width = len(names) if names is not None else None
    if label_0 is not None or label_1 is not None:
        names, width = (str(label_0 or "0"), str(label_1 or "1")), 2
    if width is not None and default_label_index >= width:
        raise SettingsError(f"ThreshOutput.default_label_index is {default_label_index} of {width} labels.")

    def read(scores: Floats, top_k: int | None) -> list[Label]:
        if len(scores) == 2:
            yes = score_of(scores[1]) >= threshold
            score = score_of(scores[1]) if yes else _rest_of(scores[1])
            return [Label(int(yes), _name(names, int(yes)), score)]
        best = int(np.argmax(scores))
        chosen = best if score_of(scores[best]) > threshold else default_label_index
        return [Label(chosen, _name(names, chosen), score_of(scores[chosen]))]

    return Postprocess("ThreshOutput", width, read)


def _multi_label(
    names: Sequence[str] | None,
    threshold: float | Sequence[float] | Mapping[int | str, float] = 0.5,
    topk: int | None = None,
) -> Postprocess:
    """All from the threshold on, best first; ``topk`` is ours, and bounds them.

    As PaddleX has it, there may be a threshold for each class, as a list, or by class id with a ``default``.
    """
    if topk is not None:
        whole_number("MultiLabelThreshOutput.topk", topk)
    width = len(names) if names is not None else None
    default, own = _thresholds(threshold)
    if isinstance(threshold, Sequence):
        if width is not None and width != len(own):
            raise SettingsError(f"MultiLabelThreshOutput has {len(own)} thresholds and {width} labels.")
        width = len(own)
    elif width is not None and own and max(own) >= width:
        raise SettingsError(f"MultiLabelThreshOutput.threshold names the class {max(own)} of {width} labels.")

    def read(scores: Floats, top_k: int | None) -> list[Label]:
        best = (int(i) for i in _best(scores, min(top_k or topk or len(scores), len(scores))))
        labels = (Label(i, _name(names, i), score_of(scores[i])) for i in best)
        return [label for label in labels if label.score >= own.get(label.class_id, default)]

    return Postprocess("MultiLabelThreshOutput", width, read)


def _thresholds(given: object) -> tuple[float, Mapping[int, float]]:
    """The threshold of any class, and those of some. Raises SettingsError."""
    name = "MultiLabelThreshOutput.threshold"
    if isinstance(given, Sequence) and not isinstance(given, str):
        return 0.5, {i: _check_threshold(f"{name} of {i}", value) for i, value in enumerate(given)}
    if not isinstance(given, Mapping):
        return _check_threshold(name, given), {}
    if "default" not in given:
        raise SettingsError(f"{name} is given by class and has no default.")
    own = {}
    for key, value in given.items():
        if key != "default":
            number = str(key)
            if not number.isdecimal() or len(number) > 9:
                raise SettingsError(f"{name} has the key {key!r}; it must be a class id, or default.")
            own[int(number)] = _check_threshold(f"{name} of {number}", value)
    return _check_threshold(f"{name} of default", given["default"]), own


def _choice(scores: Floats, first: int, labels: Sequence[str]) -> Label:
    """The best of a run of outputs that exclude one another."""
    best = int(np.argmax(scores[first : first + len(labels)]))
    return Label(first + best, labels[best], score_of(scores[first + best]))


def _either(scores: Floats, index: int, threshold: float, yes: str, no: str) -> Label:
    """One output that says yes above the threshold, else no with the score that is left."""
    score = score_of(scores[index])
    if score > threshold:
        return Label(index, yes, score)
    return Label(index, no, _rest_of(scores[index]))


def _all_above(scores: Floats, first: int, labels: Sequence[str], threshold: float) -> list[Label]:
    found = (Label(first + i, label, score_of(scores[first + i])) for i, label in enumerate(labels))
    return [label for label in found if label.score > threshold]


def _person_attribute(
    names: Sequence[str] | None,
    threshold: float = 0.5,
    glasses_threshold: float = 0.3,
    hold_threshold: float = 0.6,
) -> Postprocess:
    """26 outputs: hat, glasses, sleeves, upper, lower, boots, bags, hold, age, sex, direction."""
    lower = ("LowerStripe", "LowerPattern", "LongCoat", "Trousers", "Shorts", "Skirt&Dress")

    def read(scores: Floats, top_k: int | None) -> list[Label]:
        bag = _choice(scores, 15, ("HandBag", "ShoulderBag", "Backpack"))
        if bag.score <= threshold:
            bag = Label(bag.class_id, "No bag", _rest_of(scores[bag.class_id]))
        return [
            _either(scores, 22, threshold, "Female", "Male"),
            _choice(scores, 19, ("AgeLess18", "Age18-60", "AgeOver60")),
            _choice(scores, 23, ("Front", "Side", "Back")),
            _either(scores, 1, glasses_threshold, "Glasses: True", "Glasses: False"),
            _either(scores, 0, threshold, "Hat: True", "Hat: False"),
            _either(scores, 18, hold_threshold, "HoldObjectsInFront: True", "HoldObjectsInFront: False"),
            bag,
            _choice(scores, 2, ("ShortSleeve", "LongSleeve")),
            *_all_above(scores, 4, ("UpperStride", "UpperLogo", "UpperPlaid", "UpperSplice"), threshold),
            *(_all_above(scores, 8, lower, threshold) or [_choice(scores, 8, lower)]),
            _either(scores, 14, threshold, "Boots", "No boots"),
        ]

    return Postprocess("PersonAttribute", 26, read)


def _vehicle_attribute(
    names: Sequence[str] | None, color_threshold: float = 0.5, type_threshold: float = 0.5
) -> Postprocess:
    """19 outputs: ten colours, nine types."""
    colors = ("yellow", "orange", "green", "gray", "red", "blue", "white", "golden", "brown", "black")
    types = ("sedan", "suv", "van", "hatchback", "mpv", "pickup", "bus", "truck", "estate")

    def read(scores: Floats, top_k: int | None) -> list[Label]:
        color, kind = _choice(scores, 0, colors), _choice(scores, 10, types)
        return [
            color if color.score >= color_threshold else Label(color.class_id, "Color unknown", color.score),
            kind if kind.score >= type_threshold else Label(kind.class_id, "Type unknown", kind.score),
        ]

    return Postprocess("VehicleAttribute", 19, read)


def _table_attribute(
    names: Sequence[str] | None,
    source_threshold: float = 0.5,
    number_threshold: float = 0.5,
    color_threshold: float = 0.5,
    clarity_threshold: float = 0.5,
    obstruction_threshold: float = 0.5,
    angle_threshold: float = 0.5,
) -> Postprocess:
    """6 outputs, each with its threshold, the label above it and the label else.

    PaddleClas measures the last two against number_threshold; here each has its own.
    """
    outputs = (
        (source_threshold, "Scanned", "Photo"),
        (number_threshold, "Little", "Numerous"),
        (color_threshold, "Black-and-White", "Multicolor"),
        (clarity_threshold, "Clear", "Blurry"),
        (obstruction_threshold, "Without-Obstacles", "With-Obstacles"),
        (angle_threshold, "Horizontal", "Tilted"),
    )

    def read(scores: Floats, top_k: int | None) -> list[Label]:
        return [_either(scores, i, *output) for i, output in enumerate(outputs)]

    return Postprocess("TableAttribute", len(outputs), read)


_MAKERS: Mapping[str, Callable[..., Postprocess]] = {
    "Topk": _topk,
    "ThreshOutput": _thresh_output,
    "MultiLabelThreshOutput": _multi_label,
    "PersonAttribute": _person_attribute,
    "VehicleAttribute": _vehicle_attribute,
    "TableAttribute": _table_attribute,
}

"""Postprocessing: a model's row of scores -> labels.

Written as PaddleClas writes ``PostProcess`` in ``inference.yml``: ``{"Topk": {"topk": 5}}``,
``{"ThreshOutput": {…}}``, ``{"MultiLabelThreshOutput": {…}}`` and the PULC attribute models'
``PersonAttribute``, ``VehicleAttribute``, ``TableAttribute``, whose layouts of outputs are fixed by
those models and tabled below.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pdserve.errors import SettingsError

# Where the exporter had its labels; the caller has resolved them into names.
_LABEL_KEYS = ("class_id_map_file", "label_list", "delimiter")

Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Label:
    """One answer: the output's number, its name, its score in [0, 1]."""

    class_id: int
    label: str
    score: float


@dataclass(frozen=True)
class Postprocess:
    """Turns one row of scores, (width,) float32, into labels.

    ``read(scores, top_k)``: ``top_k`` None means what the model's own settings say; it bounds the
    number of labels of top-k and multi-label models and means nothing to the others.
    ``width`` is how many outputs the model must have, None if any number will do.
    """

    kind: str
    width: int | None
    read: Callable[[Scores, int | None], list[Label]]


def build(postprocess: Mapping[str, Any], names: Sequence[str] | None) -> Postprocess:
    """Compile a postprocessing. ``names`` are the labels by class id, None for none.

    Raises SettingsError for an unknown operator or parameter.
    """
    # SavePreLabel sorts files into folders by label; it says nothing about the answer.
    ops = {k: v or {} for k, v in postprocess.items() if k not in ("main_indicator", "SavePreLabel")}
    kind = str(postprocess.get("main_indicator") or next(iter(ops), "Topk"))
    maker = _MAKERS.get(kind)
    if maker is None:
        raise SettingsError(f"The postprocessing {kind!r} is unknown; known are {', '.join(_MAKERS)}.")
    params = {k: v for k, v in ops.get(kind, {}).items() if k not in _LABEL_KEYS}
    try:
        return maker(names, **params)
    except TypeError as error:
        raise SettingsError(f"The parameters of {kind} do not fit: {error}.") from error


def score_of(value: np.floating[Any] | float) -> float:
    """A float32 score as the shortest decimal that means it: 0.9341, not 0.934100031852…"""
    return float(str(np.float32(value)))


def _name(names: Sequence[str] | None, class_id: int) -> str:
    return names[class_id] if names is not None else str(class_id)


def _topk(names: Sequence[str] | None, topk: int = 5) -> Postprocess:
    if not isinstance(topk, int) or topk < 1:
        raise SettingsError(f"Topk.topk is {topk!r}; it must be a whole number above 0.")

    def read(scores: Scores, top_k: int | None) -> list[Label]:
        count = min(top_k or topk, len(scores))
        return [Label(int(i), _name(names, int(i)), score_of(scores[i])) for i in _best(scores, count)]

    return Postprocess("Topk", len(names) if names is not None else None, read)


def _best(scores: Scores, count: int) -> npt.NDArray[np.intp]:
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
    threshold: float = 0.5,
    default_label_index: int = 1,
    label_0: str = "0",
    label_1: str = "1",
) -> Postprocess:
    def read(scores: Scores, top_k: int | None) -> list[Label]:
        score = score_of(scores[default_label_index])
        if score < threshold:
            return [Label(0, label_0, score_of(1 - scores[default_label_index]))]
        return [Label(1, label_1, score)]

    return Postprocess("ThreshOutput", 2, read)


def _multi_label(names: Sequence[str] | None, threshold: float = 0.5) -> Postprocess:
    def read(scores: Scores, top_k: int | None) -> list[Label]:
        best = (int(i) for i in _best(scores, min(top_k or len(scores), len(scores))))
        return [Label(i, _name(names, i), score_of(scores[i])) for i in best if scores[i] >= threshold]

    return Postprocess("MultiLabelThreshOutput", len(names) if names is not None else None, read)


def _choice(scores: Scores, first: int, labels: Sequence[str]) -> Label:
    """The best of a run of outputs that exclude one another."""
    best = int(np.argmax(scores[first : first + len(labels)]))
    return Label(first + best, labels[best], score_of(scores[first + best]))


def _either(scores: Scores, index: int, threshold: float, yes: str, no: str) -> Label:
    """One output that says yes above the threshold, else no with the score that is left."""
    if scores[index] > threshold:
        return Label(index, yes, score_of(scores[index]))
    return Label(index, no, score_of(1 - scores[index]))


def _all_above(scores: Scores, first: int, labels: Sequence[str], threshold: float) -> list[Label]:
    return [
        Label(first + i, label, score_of(scores[first + i]))
        for i, label in enumerate(labels)
        if scores[first + i] > threshold
    ]


def _person_attribute(
    names: Sequence[str] | None,
    threshold: float = 0.5,
    glasses_threshold: float = 0.3,
    hold_threshold: float = 0.6,
) -> Postprocess:
    """26 outputs: hat, glasses, sleeves, upper, lower, boots, bags, hold, age, sex, direction."""
    lower = ("LowerStripe", "LowerPattern", "LongCoat", "Trousers", "Shorts", "Skirt&Dress")

    def read(scores: Scores, top_k: int | None) -> list[Label]:
        bag = _choice(scores, 15, ("HandBag", "ShoulderBag", "Backpack"))
        if bag.score <= threshold:
            bag = Label(bag.class_id, "No bag", score_of(1 - scores[bag.class_id]))
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

    def read(scores: Scores, top_k: int | None) -> list[Label]:
        color, kind = _choice(scores, 0, colors), _choice(scores, 10, types)
        return [
            color if color.score >= color_threshold else Label(color.class_id, "Color unknown", color.score),
            kind if kind.score >= type_threshold else Label(kind.class_id, "Type unknown", kind.score),
        ]

    return Postprocess("VehicleAttribute", 19, read)


# Output by output: the parameter that holds its threshold, the label above it, the label else.
_TABLE_OUTPUTS = (
    ("source_threshold", "Scanned", "Photo"),
    ("number_threshold", "Little", "Numerous"),
    ("color_threshold", "Black-and-White", "Multicolor"),
    ("clarity_threshold", "Clear", "Blurry"),
    ("obstruction_threshold", "Without-Obstacles", "With-Obstacles"),
    ("angle_threshold", "Horizontal", "Tilted"),
)


def _table_attribute(names: Sequence[str] | None, **thresholds: float) -> Postprocess:
    unknown = thresholds.keys() - {key for key, _, _ in _TABLE_OUTPUTS}
    if unknown:
        raise SettingsError(f"TableAttribute has no parameter {min(unknown)!r}.")

    def read(scores: Scores, top_k: int | None) -> list[Label]:
        return [
            _either(scores, i, thresholds.get(key, 0.5), yes, no)
            for i, (key, yes, no) in enumerate(_TABLE_OUTPUTS)
        ]

    return Postprocess("TableAttribute", len(_TABLE_OUTPUTS), read)


_MAKERS: Mapping[str, Callable[..., Postprocess]] = {
    "Topk": _topk,
    "ThreshOutput": _thresh_output,
    "MultiLabelThreshOutput": _multi_label,
    "PersonAttribute": _person_attribute,
    "VehicleAttribute": _vehicle_attribute,
    "TableAttribute": _table_attribute,
}

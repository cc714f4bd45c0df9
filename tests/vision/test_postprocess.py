import json

import numpy as np
import pytest

from pdserve.answers import Label
from pdserve.errors import SettingsError
from pdserve.models import catalog, labels
from pdserve.vision import postprocess as scores
from pdserve.vision.postprocess import score_of

POSTPROCESSED = [entry.name for entry in catalog.load().values() if entry.postprocess is not None]


def row(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def filled(width: int, **at: float) -> np.ndarray:
    """A row of 0.1, and what is given by number: ``i3=0.9``."""
    out = np.full(width, 0.1, np.float32)
    for name, value in at.items():
        out[int(name[1:])] = value
    return out


def read(postprocess, values, names=None, top_k=None):
    return scores.build(postprocess, names).read(values, top_k)


def said(labels_: list[Label]) -> list[str]:
    return [label.label for label in labels_]


def test_top_k_is_best_first():
    found = read({"Topk": {"topk": 2}}, row(0.1, 0.7, 0.2), ("a", "b", "c"))
    assert found == [Label(1, "b", 0.7), Label(2, "c", 0.2)]


def test_top_k_of_ties_is_by_number():
    values = row(0.2, 0.1, 0.2, 0.2, 0.1, 0.2)
    assert [x.class_id for x in read({"Topk": {"topk": 3}}, values)] == [0, 2, 3]
    assert [x.class_id for x in read({"Topk": {"topk": 5}}, values)] == [0, 2, 3, 5, 1]


def test_top_k_agrees_with_a_full_sort():
    chance = np.random.default_rng(7)
    for _ in range(50):
        values = chance.integers(0, 20, 100).astype(np.float32) / 20
        expected = sorted(range(100), key=lambda i: (-values[i], i))[:7]
        assert [x.class_id for x in read({"Topk": {"topk": 7}}, values)] == expected


def test_top_k_of_fewer_classes():
    assert len(read({"Topk": {"topk": 9}}, row(0.5, 0.3, 0.2))) == 3
    assert len(read({"Topk": {"topk": 1}}, row(0.5, 0.3, 0.2), top_k=100)) == 3


def test_a_request_says_how_many():
    values = row(0.5, 0.3, 0.2)
    assert len(read({"Topk": {"topk": 2}}, values, top_k=1)) == 1
    assert len(read({"Topk": {"topk": 2}}, values, top_k=3)) == 3
    assert len(read({"Topk": {"topk": 2}}, values, top_k=None)) == 2


def test_top_k_unless_said_otherwise_is_five():
    assert len(read({}, filled(9))) == 5
    assert len(read({"Topk": None}, filled(9))) == 5


def test_no_names_are_numbers():
    assert read({"Topk": {"topk": 1}}, row(0.1, 0.9)) == [Label(1, "1", 0.9)]


def test_width_is_that_of_the_names():
    assert scores.build({"Topk": {}}, ("a", "b")).width == 2
    assert scores.build({"Topk": {}}, None).width is None
    assert scores.build({"MultiLabelThreshOutput": {}}, ("a", "b")).width == 2
    assert (
        scores.build({"ThreshOutput": {"threshold": 0.5, "label_0": "no", "label_1": "yes"}}, None).width == 2
    )


def test_main_indicator_and_keys_of_the_exporter():
    postprocess = {
        "main_indicator": "Topk",
        "SavePreLabel": {"save_dir": "./out"},
        "Topk": {"topk": 1, "class_id_map_file": "../list.txt", "label_list": ["a", "b"], "delimiter": " "},
    }
    assert read(postprocess, row(0.1, 0.9), ("a", "b")) == [Label(1, "b", 0.9)]
    assert read({"SavePreLabel": {"save_dir": "x"}, "Topk": {"topk": 1}}, row(0.1, 0.9)) == [
        Label(1, "1", 0.9)
    ]


def test_scores_are_the_shortest_decimals():
    assert json.dumps(score_of(np.float32(0.9341))) == "0.9341"
    assert isinstance(score_of(np.float32(1)), float)
    assert np.float32(score_of(np.float32(1) / 3)) == np.float32(1) / 3


PERSON = {"ThreshOutput": {"threshold": 0.6, "label_0": "nobody", "label_1": "someone"}}


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        (0.61, Label(1, "someone", 0.61)),
        (0.6, Label(1, "someone", 0.6)),
        (0.55, Label(0, "nobody", 0.45)),
    ],
)
def test_threshold_of_two_outputs(second, expected):
    assert read(PERSON, row(1 - second, second)) == [expected]


def test_threshold_of_two_outputs_is_about_the_second_whatever_the_default():
    """default_label_index is for more than two outputs."""
    postprocess = {
        "ThreshOutput": {"threshold": 0.5, "default_label_index": 1, "label_0": "a", "label_1": "b"}
    }
    assert read(postprocess, row(0.9, 0.1)) == [Label(0, "a", 0.9)]


def test_threshold_of_two_outputs_named_by_a_list():
    assert read({"ThreshOutput": {"threshold": 0.5}}, row(0.2, 0.8), ("no", "yes")) == [Label(1, "yes", 0.8)]
    assert read({"ThreshOutput": {"threshold": 0.5}}, row(0.2, 0.8)) == [Label(1, "1", 0.8)]


def test_threshold_of_more_outputs():
    postprocess = {"ThreshOutput": {"threshold": 0.5, "default_label_index": 2}}
    names = ("cat", "dog", "neither")
    assert read(postprocess, row(0.2, 0.7, 0.1), names) == [Label(1, "dog", 0.7)]
    assert read(postprocess, row(0.3, 0.5, 0.2), names) == [Label(2, "neither", 0.2)]


def test_several_labels_from_the_threshold_on():
    postprocess = {"MultiLabelThreshOutput": {"threshold": 0.5}}
    names = ("a", "b", "c", "d")
    values = row(0.5, 0.9, 0.49, 0.7)
    assert read(postprocess, values, names) == [Label(1, "b", 0.9), Label(3, "d", 0.7), Label(0, "a", 0.5)]
    assert said(read(postprocess, values, names, top_k=2)) == ["b", "d"]
    bounded = {"MultiLabelThreshOutput": {"threshold": 0.5, "topk": 1}}
    assert said(read(bounded, values, names)) == ["b"]
    assert said(read(bounded, values, names, top_k=2)) == ["b", "d"]
    assert read(postprocess, row(0.1, 0.2, 0.3, 0.4), names) == []


@pytest.mark.parametrize(
    "threshold", [{"default": 0.5, "0": 0.9, 2: 0.1}, [0.9, 0.5, 0.1]], ids=["by class", "a list"]
)
def test_several_labels_each_with_a_threshold_of_its_own(threshold):
    found = read({"MultiLabelThreshOutput": {"threshold": threshold}}, row(0.8, 0.6, 0.2), ("a", "b", "c"))
    assert found == [Label(1, "b", 0.6), Label(2, "c", 0.2)]


@pytest.mark.parametrize(
    ("threshold", "words"),
    [
        ([0.5, 0.5], "2 thresholds and 3 labels"),
        ([0.5, 0.5, 2], "threshold of 2 is 2; it must be a number from 0 to 1"),
        ({"0": 0.5}, "by class and has no default"),
        ({"default": 0.5, "hat": 0.5}, "the key 'hat'; it must be a class id"),
        ({"default": 0.5, 3: 0.5}, "names the class 3 of 3 labels"),
        ({"default": "x"}, "threshold of default is 'x'"),
        ("0.5", "threshold is '0.5'"),
        (True, "threshold is True"),
    ],
)
def test_thresholds_that_do_not_fit(threshold, words):
    with pytest.raises(SettingsError, match=words):
        scores.build({"MultiLabelThreshOutput": {"threshold": threshold}}, ("a", "b", "c"))


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.7, 0.9])
def test_a_score_shown_as_the_threshold_counts(threshold):
    """0.7 in float32 is a little less than 0.7."""
    assert len(read({"MultiLabelThreshOutput": {"threshold": threshold}}, row(threshold))) == 1


# PaddleClas's layouts: ppcls/data/postprocess/attr_rec.py.
def test_person():
    values = filled(26, i0=0.9, i1=0.31, i3=0.6, i5=0.8, i8=0.7, i11=0.9, i14=0.51, i16=0.8, i18=0.6, i20=0.5,
                    i22=0.4, i24=0.9)  # fmt: skip
    assert read({"PersonAttribute": {}}, values) == [
        Label(22, "Male", 0.6),
        Label(20, "Age18-60", 0.5),
        Label(24, "Side", 0.9),
        Label(1, "Glasses: True", 0.31),
        Label(0, "Hat: True", 0.9),
        Label(18, "HoldObjectsInFront: False", 0.4),  # its threshold is 0.6, and 0.6 is not above
        Label(16, "ShoulderBag", 0.8),
        Label(3, "LongSleeve", 0.6),
        Label(5, "UpperLogo", 0.8),
        Label(8, "LowerStripe", 0.7),
        Label(11, "Trousers", 0.9),
        Label(14, "Boots", 0.51),
    ]


def test_person_with_nothing_above_a_threshold():
    values = filled(26, i12=0.2, i19=0.3, i23=0.3)
    assert said(read({"PersonAttribute": None}, values)) == [
        "Male", "AgeLess18", "Front", "Glasses: False", "Hat: False", "HoldObjectsInFront: False", "No bag",
        "ShortSleeve", "Shorts", "No boots",
    ]  # fmt: skip


def test_persons_thresholds():
    values = filled(26, i1=0.5, i18=0.5, i22=0.5)
    low = {"PersonAttribute": {"threshold": 0.4, "glasses_threshold": 0.6, "hold_threshold": 0.4}}
    found = said(read(low, values))
    assert {"Female", "Glasses: False", "HoldObjectsInFront: True"} < set(found)


def test_vehicle():
    values = filled(19, i4=0.8, i16=0.7)
    assert read({"VehicleAttribute": {}}, values) == [Label(4, "red", 0.8), Label(16, "bus", 0.7)]
    exact = filled(19, i9=0.5, i10=0.5)
    assert said(read({"VehicleAttribute": {}}, exact)) == ["black", "sedan"]
    strict = {"VehicleAttribute": {"color_threshold": 0.9, "type_threshold": 0.75}}
    assert read(strict, values) == [Label(4, "Color unknown", 0.8), Label(16, "Type unknown", 0.7)]


def test_table():
    assert read({"TableAttribute": {}}, row(0.9, 0.2, 0.6, 0.5, 0.51, 0.0)) == [
        Label(0, "Scanned", 0.9),
        Label(1, "Numerous", 0.8),
        Label(2, "Black-and-White", 0.6),
        Label(3, "Blurry", 0.5),
        Label(4, "Without-Obstacles", 0.51),
        Label(5, "Tilted", 1.0),
    ]
    own = {"TableAttribute": {"obstruction_threshold": 0.6, "angle_threshold": 0.0, "number_threshold": 0.1}}
    assert said(read(own, row(0.9, 0.2, 0.6, 0.5, 0.51, 0.1)))[1:] == [
        "Little", "Black-and-White", "Blurry", "With-Obstacles", "Horizontal"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "width"), [("PersonAttribute", 26), ("VehicleAttribute", 19), ("TableAttribute", 6)]
)
def test_attributes_have_a_width_of_their_own(kind, width):
    assert scores.build({kind: {}}, None).width == width


@pytest.mark.parametrize("name", POSTPROCESSED)
def test_every_postprocessing_of_the_catalog_reads(name):
    entry = catalog.get(name)
    names = labels.read_labels(labels.FOLDER / entry.labels) if entry.labels else None
    postprocess = scores.build(entry.postprocess, names)
    width = postprocess.width or 2
    values = np.linspace(0, 1, width, dtype=np.float32)
    found = postprocess.read(values, None)
    assert found
    assert all(0 <= label.class_id < width and 0 <= label.score <= 1 and label.label for label in found)


@pytest.mark.parametrize(
    ("postprocess", "words"),
    [
        ({"Binarize": {}}, "'Binarize' is unknown; known are Topk, ThreshOutput"),
        ({"main_indicator": "Nothing", "Topk": {}}, "'Nothing' is unknown"),
        ({"Topk": 5}, "parameters of Topk are 5"),
        ({"Topk": {"k": 5}}, "Topk has no parameter 'k'; it has topk"),
        ({"Topk": {"topk": 0}}, "Topk.topk is 0"),
        ({"Topk": {"topk": "5"}}, "Topk.topk is '5'"),
        ({"Topk": {"topk": True}}, "Topk.topk is True"),
        ({"ThreshOutput": {}}, "ThreshOutput needs a threshold"),
        (
            {"ThreshOutput": {"threshold": "high"}},
            "ThreshOutput.threshold is 'high'; it must be a number from 0 to 1",
        ),
        ({"ThreshOutput": {"threshold": 50}}, "ThreshOutput.threshold is 50"),
        ({"ThreshOutput": {"threshold": 0.5, "default_label_index": -1}}, "default_label_index is -1"),
        ({"MultiLabelThreshOutput": {"threshold": float("nan")}}, "threshold is nan"),
        ({"MultiLabelThreshOutput": {"thresh": 0.1}}, "no parameter 'thresh'; it has threshold"),
        ({"PersonAttribute": {"color_threshold": 0.1}}, "PersonAttribute has no parameter 'color_threshold'"),
        ({"VehicleAttribute": {"color_threshold": True}}, "VehicleAttribute.color_threshold is True"),
        ({"TableAttribute": {"table_threshold": 0.1}}, "TableAttribute has no parameter 'table_threshold'"),
    ],
)
def test_what_does_not_fit_is_named(postprocess, words):
    with pytest.raises(SettingsError, match=words):
        scores.build(postprocess, None)


def test_default_label_must_be_there():
    with pytest.raises(SettingsError, match="default_label_index is 3 of 3 labels"):
        scores.build({"ThreshOutput": {"threshold": 0.5, "default_label_index": 3}}, ("a", "b", "c"))

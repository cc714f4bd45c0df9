from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pdserve.answers import Label
from pdserve.errors import ModelError, SettingsError
from pdserve.formats.serving_model import ServingModel, open_serving_model
from pdserve.models import catalog
from pdserve.pipelines.embedder import describe_embedder
from pdserve.pipelines.model_config import classifier_config
from pdserve.settings import ClassificationOptions, ModelSettings
from pdserve.vision import preprocess
from tests.tiny import build_serving_model

OWN_CHAIN = [
    {"ResizeImage": {"resize_short": 40, "interpolation": "bicubic", "backend": "pil"}},
    {"CropImage": {"size": 32}},
    {"NormalizeImage": {"scale": "1/255", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "order": ""}},
    {"ToCHWImage": None},
]
OWN = {
    "PreProcess": {"transform_ops": OWN_CHAIN},
    "PostProcess": {"Topk": {"topk": 2, "label_list": ["x", "y", "z"]}},
}
IMAGE = np.random.default_rng(3).integers(0, 256, (50, 70, 3)).astype(np.uint8)

Model = Callable[..., ServingModel]


@pytest.fixture
def model(tmp_path: Path) -> Model:
    """A real serving model by any name, with the inference.yml that a test wants, or none."""

    def make(name: str = "mine", in_yml: object = None) -> ServingModel:
        built = build_serving_model(tmp_path, name)
        if in_yml is None:
            (built.path / "inference.yml").unlink()
        else:
            text = in_yml if isinstance(in_yml, str) else yaml.safe_dump(in_yml)
            (built.path / "inference.yml").write_text(text, "utf-8")
        return open_serving_model(built.path)

    return make


def same(chain: preprocess.Chain, ops: list[dict[str, Any]]) -> bool:
    """Whether a chain does to an image what these operators do."""
    left, right = chain(IMAGE), preprocess.build(ops)(IMAGE)
    return left.shape == right.shape and bool((left == right).all())


def replaced(name: str, **params: object) -> list[dict[str, Any]]:
    """The own chain with other parameters of one operator."""
    return [{key: {**(p or {}), **params} if key == name else p for key, p in op.items()} for op in OWN_CHAIN]


def test_inference_yml_comes_before_the_catalog(model: Model):
    found = classifier_config(model("ResNet50_vd", OWN), ClassificationOptions())
    assert same(found.chain, OWN_CHAIN)
    assert found.names == ("x", "y", "z")
    assert found.origin == "inference.yml"
    assert found.postprocess.read(np.array([0.1, 0.2, 0.7], np.float32), None) == [
        Label(2, "z", 0.7),
        Label(1, "y", 0.2),
    ]


def test_the_catalog_knows_a_model_by_its_name(model: Model):
    found = classifier_config(model("EfficientNet_lite0"), ClassificationOptions())
    entry = catalog.get("EfficientNet_lite0")
    assert entry.transforms is not None
    assert same(found.chain, list(entry.transforms))
    assert found.origin == "catalog"
    assert found.names is not None
    assert len(found.names) == 1000
    assert len(found.postprocess.read(np.zeros(1000, np.float32), None)) == 5


def test_each_half_is_looked_for_on_its_own(model: Model):
    """An inference.yml of an old exporter may have either half only, and labels in no file of ours."""
    only_before = classifier_config(
        model("ResNet50_vd", {"PreProcess": OWN["PreProcess"]}), ClassificationOptions()
    )
    assert same(only_before.chain, OWN_CHAIN)
    assert only_before.names is not None
    assert only_before.names[0] == "tench, Tinca tinca"


def test_only_the_postprocessing_is_in_the_file(model: Model):
    in_yml = {"PostProcess": {"Topk": {"topk": 1, "class_id_map_file": "../imagenet1k_label_list.txt"}}}
    found = classifier_config(model("ResNet50_vd", in_yml), ClassificationOptions())
    assert found.origin == "catalog"
    assert len(found.postprocess.read(np.zeros(1000, np.float32), None)) == 1
    assert found.names is not None
    assert len(found.names) == 1000


def test_pulc(model: Model):
    found = classifier_config(model("safety_helmet"), ClassificationOptions())
    assert found.postprocess.read(np.array([0.1, 0.9], np.float32), None) == [
        Label(1, "unwearing_helmet", 0.9)
    ]
    assert found.names is None


def test_pulc_attributes(model: Model):
    found = classifier_config(model("vehicle_attribute"), ClassificationOptions())
    assert (found.postprocess.kind, found.postprocess.width) == ("VehicleAttribute", 19)
    assert found.chain.size == (192, 256)


@pytest.mark.parametrize("name", ["mine", "RegNetX_4GF"])
def test_nobody_describes_the_model(model: Model, name: str):
    with pytest.raises(SettingsError, match=f"Nothing says how {name} wants its images; give --resize-short"):
        classifier_config(model(name), ClassificationOptions())


@pytest.mark.parametrize(
    "wanted", [{"mean": (0, 0, 0)}, {"crop": 224}, {"resize_short": 256}, {"channel_order": "bgr"}]
)
def test_settings_that_give_no_size_are_not_enough(model: Model, wanted: dict[str, Any]):
    with pytest.raises(SettingsError, match="Nothing says how mine wants its images"):
        classifier_config(model(), ClassificationOptions(**wanted))


def test_settings_alone(model: Model):
    found = classifier_config(model(), ClassificationOptions(resize_short=40, crop=32))
    assert same(
        found.chain,
        [{"ResizeImage": {"resize_short": 40}}, {"CropImage": {"size": 32}}, {"NormalizeImage": {}}],
    )
    assert found.origin == "settings"
    assert found.names is None


def test_settings_alone_with_a_size(model: Model):
    found = classifier_config(model(), ClassificationOptions(resize=(30, 20), mean=(0, 0, 0), std=(1, 1, 1)))
    ops = [{"ResizeImage": {"size": [30, 20]}}, {"NormalizeImage": {"mean": [0, 0, 0], "std": [1, 1, 1]}}]
    assert same(found.chain, ops)


@pytest.mark.parametrize(
    ("wanted", "ops"),
    [
        ({"resize_short": 36}, replaced("ResizeImage", resize_short=36)),
        ({"crop": 20}, replaced("CropImage", size=20)),
        ({"interpolation": "nearest"}, replaced("ResizeImage", interpolation="nearest")),
        ({"backend": "cv2"}, replaced("ResizeImage", backend="cv2")),
        ({"mean": (0.1, 0.2, 0.3)}, replaced("NormalizeImage", mean=[0.1, 0.2, 0.3])),
        ({"std": (1, 2, 3)}, replaced("NormalizeImage", std=[1, 2, 3])),
        ({"scale": "1/127.5"}, replaced("NormalizeImage", scale="1/127.5")),
        ({"channel_order": "bgr"}, [{"DecodeImage": {"to_rgb": False}}, *OWN_CHAIN]),
        ({"channel_order": "rgb"}, OWN_CHAIN),
        (
            {"resize": (30, 20)},
            [replaced("ResizeImage", resize_short=None, size=[30, 20])[0], *OWN_CHAIN[2:]],
        ),
        (
            {"resize": (30, 20), "crop": 10},
            [
                replaced("ResizeImage", resize_short=None, size=[30, 20])[0],
                {"CropImage": {"size": 10}},
                *OWN_CHAIN[2:],
            ],
        ),
    ],
)
def test_settings_change_what_they_name_and_nothing_else(
    model: Model, wanted: dict[str, Any], ops: list[dict[str, Any]]
):
    found = classifier_config(model("mine", OWN), ClassificationOptions(**wanted))
    assert same(found.chain, ops)
    assert found.origin == "inference.yml and settings"


def test_settings_leave_the_order_of_a_chain(model: Model):
    """The text line model pads after normalising."""
    ops = catalog.get("ch_ppocr_mobile_v2_cls").transforms
    assert ops is not None
    found = classifier_config(model("ch_ppocr_mobile_v2_cls"), ClassificationOptions(mean=(0.1, 0.2, 0.3)))
    expected = [
        {"NormalizeImage": {**op["NormalizeImage"], "mean": [0.1, 0.2, 0.3]}}
        if "NormalizeImage" in op
        else op  # type: ignore[dict-item]
        for op in ops
    ]
    assert same(found.chain, expected)
    tall = found.chain(np.zeros((100, 20, 3), np.uint8))
    assert (tall[:, :, 150:] == 0).all()


@pytest.mark.parametrize(
    ("name", "wanted", "shape"),
    [
        ("ch_ppocr_mobile_v2_cls", {"resize": (30, 20)}, (3, 20, 30)),
        ("ch_ppocr_mobile_v2_cls", {"resize_short": 20, "crop": 10}, (3, 10, 10)),
        ("textline_orientation", {"resize_short": 20, "crop": 10}, (3, 10, 10)),
        ("textline_orientation", {"resize": (30, 20)}, (3, 20, 30)),
    ],
)
def test_a_new_size_ends_the_old_one_and_its_filling(
    model: Model, name: str, wanted: dict[str, Any], shape: tuple[int, ...]
):
    assert classifier_config(model(name), ClassificationOptions(**wanted)).chain(IMAGE).shape == shape


def test_two_sizes(model: Model):
    with pytest.raises(SettingsError, match="resize and resize_short contradict each other"):
        classifier_config(model("mine", OWN), ClassificationOptions(resize=(9, 9), resize_short=9))


def test_labels_of_the_settings_come_first(model: Model, tmp_path: Path):
    path = tmp_path / "labels.txt"
    path.write_text("a\nb\nc\n", "utf-8")
    found = classifier_config(model("mine", OWN), ClassificationOptions(labels=path))
    assert found.names == ("a", "b", "c")
    two = tmp_path / "two.txt"
    two.write_text("bare\nhelmet\n", "utf-8")
    helmet = classifier_config(model("safety_helmet"), ClassificationOptions(labels=two))
    assert helmet.postprocess.read(np.array([0.1, 0.9], np.float32), None) == [Label(1, "helmet", 0.9)]


def test_labels_where_they_have_no_meaning(model: Model, tmp_path: Path):
    path = tmp_path / "labels.txt"
    path.write_text("a\nb\n", "utf-8")
    with pytest.raises(SettingsError, match="labels have no meaning for the postprocessing TableAttribute"):
        classifier_config(model("table_attribute"), ClassificationOptions(labels=path))


def test_no_labels_at_all(model: Model):
    in_yml = {"PreProcess": OWN["PreProcess"], "PostProcess": {"Topk": {"topk": 1}}}
    found = classifier_config(model("mine", in_yml), ClassificationOptions())
    assert found.names is None
    assert found.postprocess.read(np.array([0.1, 0.9], np.float32), None) == [Label(1, "1", 0.9)]


def test_top_k_of_the_settings(model: Model):
    found = classifier_config(model("mine", OWN), ClassificationOptions(top_k=1))
    assert len(found.postprocess.read(np.array([0.1, 0.2, 0.7], np.float32), None)) == 1
    several = {**OWN, "PostProcess": {"MultiLabelThreshOutput": {"threshold": 0.1}}}
    bounded = classifier_config(model("other", several), ClassificationOptions(top_k=2))
    assert len(bounded.postprocess.read(np.array([0.1, 0.2, 0.7], np.float32), None)) == 2


def test_threshold_of_the_settings(model: Model):
    found = classifier_config(model("person_exists"), ClassificationOptions(threshold=0.2))
    assert found.postprocess.read(np.array([0.7, 0.3], np.float32), None)[0].label == "someone"
    person = classifier_config(model("person_attribute"), ClassificationOptions(threshold=0.9))
    assert person.postprocess.read(np.full(26, 0.8, np.float32), None)[0].label == "Male"


def test_postprocessing_of_the_settings(model: Model):
    wanted = ClassificationOptions(
        postprocess={"MultiLabelThreshOutput": {"threshold": 0.6, "label_list": ["p", "q", "r"]}}
    )
    found = classifier_config(model("mine", OWN), wanted)
    assert found.postprocess.read(np.array([0.1, 0.2, 0.7], np.float32), None) == [Label(2, "r", 0.7)]


@pytest.mark.parametrize(
    ("name", "wanted", "words"),
    [
        ("ResNet50_vd", {"threshold": 0.5}, "threshold has no meaning for the postprocessing Topk"),
        ("vehicle_attribute", {"threshold": 0.5}, "threshold has no meaning for .* VehicleAttribute"),
        ("person_exists", {"top_k": 1}, "top_k has no meaning for the postprocessing ThreshOutput"),
        ("ResNet50_vd", {"postprocess": {"Topk": 5}, "top_k": 1}, "parameters of Topk are 5"),
        ("ResNet50_vd", {"postprocess": {"Best": {}}}, "'Best' is unknown"),
        ("ResNet50_vd", {"scale": "a"}, "NormalizeImage.scale is 'a'"),
        ("ResNet50_vd", {"labels": Path("none.txt")}, "Cannot read the label file none.txt"),
    ],
)
def test_settings_that_do_not_fit(model: Model, name: str, wanted: dict[str, Any], words: str):
    with pytest.raises(SettingsError, match=words):
        classifier_config(model(name), ClassificationOptions(**wanted))


@pytest.mark.parametrize(
    ("in_yml", "words"),
    [
        ("a: [", "Cannot read"),
        ("", "describes no model"),
        ("- a", "describes no model"),
        ({"PreProcess": [1]}, r"PreProcess is \[1\]; it must be a mapping"),
        ({"PostProcess": "Topk"}, "PostProcess is 'Topk'"),
        ({"PreProcess": {"transform_ops": {"CropImage": {"size": 1}}}}, "it must be a list"),
        ({"PreProcess": {"transform_ops": [{"Blur": {}}]}}, "'Blur' is unknown"),
        ({"PreProcess": {"transform_ops": [{"CropImage": {"size": 0}}]}}, "CropImage.size is 0"),
        ({"PostProcess": {"Topk": {"top": 1}}}, "Topk has no parameter 'top'"),
    ],
)
def test_an_inference_yml_that_does_not_fit_is_named(model: Model, in_yml: object, words: str):
    with pytest.raises(ModelError, match=words) as caught:
        classifier_config(model("ResNet50_vd", in_yml), ClassificationOptions())
    assert "inference.yml" in caught.value.message


def test_labels_from_the_file_that_is_named(model: Model, caplog: pytest.LogCaptureFixture):
    """PaddleClas names its training folder's; what counts is the file of that name beside inference.yml."""
    post = {"Topk": {"topk": 1, "class_id_map_file": "ppcls/utils/names.txt", "delimiter": ","}}
    own = model("mine", OWN | {"PostProcess": post})
    (own.path / "names.txt").write_text("0,red wine\n2,blue\n1,green\n", "utf-8")
    assert classifier_config(own, ClassificationOptions()).names == ("red wine", "green", "blue")
    windows = OWN | {"PostProcess": {"Topk": {"class_id_map_file": "C:\\ppcls\\names.txt", "delimiter": ","}}}
    other = model("theirs", windows)
    (other.path / "names.txt").write_text("0,yes\n1,no\n", "utf-8")
    assert classifier_config(other, ClassificationOptions()).names == ("yes", "no")
    assert not caplog.records
    (own.path / "names.txt").unlink()
    assert classifier_config(own, ClassificationOptions()).names is None
    (record,) = caplog.records
    assert "ppcls/utils/names.txt, which is not beside it: labels are class numbers" in record.getMessage()
    # A name of the catalog has the catalog's, and says nothing.
    caplog.clear()
    public = model("ResNet50_vd", OWN | {"PostProcess": post})
    assert len(classifier_config(public, ClassificationOptions()).names or ()) == 1000
    assert not caplog.records


def test_labels_that_yaml_would_take_for_something_else(model: Model):
    text = yaml.safe_dump({"PreProcess": OWN["PreProcess"]})
    text += "PostProcess: {Topk: {topk: 3, label_list: [yes, 01, null]}}\n"
    assert classifier_config(model("mine", text), ClassificationOptions()).names == ("yes", "01", "null")


def test_an_architectures_name_in_the_file_is_no_name_of_the_catalog(model: Model):
    """An own model of that architecture has other labels, of which the file may say nothing."""
    mine = OWN | {"Global": {"model_name": "ResNet50_vd"}, "PostProcess": {"Topk": {"topk": 2}}}
    assert classifier_config(model("mine", mine), ClassificationOptions()).names is None


@pytest.mark.parametrize(
    ("postprocess", "words"),
    [
        ({"NormalizeFeatures": None}, "no labels.*It is an embedder, for `pdserve serve embedding`"),
        ({"OwnOutput": {"a": 1}}, "The postprocessing 'OwnOutput' is unknown"),
        ({"MultiLabelThreshOutput": {"threshold": {"0": 0.5}}}, "by class and has no default"),
    ],
)
def test_a_classifier_needs_a_postprocessing_that_is_known(
    model: Model, postprocess: dict[str, Any], words: str
):
    own = model("mine", OWN | {"PostProcess": postprocess})
    with pytest.raises(ModelError, match=words) as caught:
        classifier_config(own, ClassificationOptions())
    assert str(own.path / "inference.yml") in caught.value.message
    # What the settings say comes first, and then the file's is not asked for.
    settings = ClassificationOptions(postprocess={"Topk": {"topk": 1}})
    assert classifier_config(own, settings).postprocess.kind == "Topk"
    # An embedder has none, whatever the file says.
    chain, _ = describe_embedder(own, ModelSettings(model="mine"))
    assert same(chain, OWN_CHAIN)

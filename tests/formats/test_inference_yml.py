"""What exporters say of their models, in each form that PaddleClas, PaddleDetection and PaddleX write."""

from pathlib import Path

import pytest

from pdserve.errors import ModelError
from pdserve.formats import inference_yml
from pdserve.formats.inference_yml import Description, read_description, task_aliases

CLASSIFIER = """
Global: {model_name: PP-LCNet_x1_0}
Hpi: {backend_configs: {paddle_infer: {trt_dynamic_shapes: {x: [[1, 3, 224, 224]]}}}}
PreProcess:
  transform_ops:
  - ResizeImage: {resize_short: 256}
  - ToCHWImage: null
PostProcess:
  Topk:
    topk: 5
    label_list: [cup, spoon]
"""
DETECTOR = """
mode: paddle
draw_threshold: 0.5
metric: COCO
use_dynamic_shape: false
Global:
  model_name: PP-ShiTuV2_det
arch: GFL
Preprocess:
- {interp: 2, keep_ratio: false, target_size: [640, 640], type: Resize}
- type: Permute
label_list: [mainbody]
NMS: {keep_top_k: 100, name: MultiClassNMS, nms_threshold: 0.5, nms_top_k: 1000, score_threshold: 0.3}
"""


def read(folder: Path, text: str | bytes, name: str = "inference.yml") -> Description:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_description(folder)


def test_a_classifier(tmp_path: Path) -> None:
    found = read(tmp_path, CLASSIFIER)
    assert found == Description(
        path=tmp_path / "inference.yml",
        model_name="PP-LCNet_x1_0",
        task="classification",
        transforms=[{"ResizeImage": {"resize_short": 256}}, {"ToCHWImage": None}],
        postprocess={"Topk": {"topk": 5, "label_list": ["cup", "spoon"]}},
        labels=("cup", "spoon"),
    )


@pytest.mark.parametrize("name", ["inference.yml", "infer_cfg.yml"])
def test_a_detector(tmp_path: Path, name: str) -> None:
    found = read(tmp_path, DETECTOR, name)
    assert found == Description(
        path=tmp_path / name,
        model_name="PP-ShiTuV2_det",
        task="detection",
        preprocess=[
            {"interp": 2, "keep_ratio": False, "target_size": [640, 640], "type": "Resize"},
            {"type": "Permute"},
        ],
        arch="GFL",
        nms={
            "keep_top_k": 100,
            "name": "MultiClassNMS",
            "nms_threshold": 0.5,
            "nms_top_k": 1000,
            "score_threshold": 0.3,
        },
        draw_threshold=0.5,
        labels=("mainbody",),
    )


@pytest.mark.parametrize(
    ("postprocess", "task"),
    [
        ("{Topk: {topk: 5, class_id_map_file: labels.txt}}", "classification"),
        ("{ThreshOutput: {threshold: 0.5, label_0: no, label_1: yes}}", "classification"),
        ("{MultiLabelThreshOutput: {threshold: 0.5, label_list: [hat, glasses]}}", "multilabel"),
        ("{PersonAttribute: {threshold: 0.5}}", "attributes"),
        ("{VehicleAttribute: {color_threshold: 0.5}}", "attributes"),
        ("{TableAttribute: null}", "attributes"),
        ("{NormalizeFeatures: null}", "embedding"),
        ("{main_indicator: NormalizeFeatures, NormalizeFeatures: null, Topk: {topk: 1}}", "embedding"),
        ("{SavePreLabel: {save_dir: out}, Topk: {topk: 1}}", "classification"),
        ("{OwnOutput: {a: 1}}", None),
        ("null", None),
        ("{}", None),
    ],
)
def test_the_task_is_the_postprocessings(tmp_path: Path, postprocess: str, task: str | None) -> None:
    found = read(tmp_path, f"PreProcess: {{transform_ops: [ToCHWImage: null]}}\nPostProcess: {postprocess}")
    assert found.task == task
    assert found.transforms == [{"ToCHWImage": None}]


def test_no_file_says_nothing(tmp_path: Path) -> None:
    assert read_description(tmp_path) == Description()


def test_of_two_files_inference_yml_counts(tmp_path: Path) -> None:
    read(tmp_path, "draw_threshold: 0.3", "infer_cfg.yml")
    assert read(tmp_path, CLASSIFIER).task == "classification"


def test_labels_stay_as_they_are_written(tmp_path: Path) -> None:
    words = "[yes, no, on, 01, null, ~, 1e5, 2001-01-01, =, <<, 12:30:45, 'a: b', 010, é]"
    expected = (
        *("yes", "no", "on", "01", "null", "~", "1e5", "2001-01-01"),
        *("=", "<<", "12:30:45", "a: b", "010", "é"),
    )
    assert read(tmp_path, f"label_list: {words}").labels == expected
    assert read(tmp_path, f"PostProcess: {{Topk: {{topk: 5, label_list: {words}}}}}").labels == expected
    # Elsewhere these words mean what YAML 1.1 says.
    found = read(tmp_path, "PostProcess: {ThreshOutput: {threshold: 0.5, label_0: no, x: no}}").postprocess
    assert found == {"ThreshOutput": {"threshold": 0.5, "label_0": "no", "x": False}}


def test_labels_by_class_id(tmp_path: Path) -> None:
    assert read(tmp_path, "label_list: {1: spoon, 0: off}").labels == ("off", "spoon")
    assert read(tmp_path, "label_list: {'1': spoon, '0': off}").labels == ("off", "spoon")


@pytest.mark.parametrize("nothing", ["null", "~", "", "[]"])
def test_a_list_of_labels_that_is_none(tmp_path: Path, nothing: str) -> None:
    found = read(tmp_path, f"PostProcess: {{Topk: {{class_id_map_file: a.txt, label_list: {nothing}}}}}")
    assert found.labels is None
    assert read(tmp_path, f"label_list: {nothing}\narch: YOLO").labels is None


def test_the_file_of_the_labels(tmp_path: Path) -> None:
    found = read(tmp_path, "PostProcess: {Topk: {topk: 5, class_id_map_file: a/names.txt, delimiter: ','}}")
    assert (found.labels, found.label_file, found.delimiter) == (None, "a/names.txt", ",")
    both = read(tmp_path, "PostProcess: {Topk: {class_id_map_file: ppcls/names.txt, label_list: [a]}}")
    assert (both.labels, both.label_file) == (("a",), None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "Cannot read .*inference.yml"),
        ("", "describes no model"),
        ("- a", "describes no model"),
        ("PreProcess: [1]", r"PreProcess is \[1\]; it must be a mapping"),
        ("PostProcess: Topk", "PostProcess is 'Topk'; it must be a mapping"),
        ("PreProcess: {transform_ops: {CropImage: 1}}", r"transform_ops is .*; it must be a list"),
        ("Preprocess: {type: Resize}", "Preprocess is .*; it must be a list"),
        ("Preprocess: [Resize]", "Preprocess is .*; it must be a list"),
        ("label_list: cup", "label_list is 'cup'; it must be a list of names"),
        ("label_list: [[a]]", "label_list is .*; it must be a list of names"),
        ("label_list: {1: a}", "label_list is .*; it must be a list of names"),
        ("label_list: {no: 0, yes: 1}", "label_list is .*; it must be a list of names"),
        ("label_list: {'²': a}", "label_list is .*; it must be a list of names"),
        ("label_list: [" + "[a], " * 999 + "]", "…; it must be a list of names"),
        ("draw_threshold: high", "draw_threshold is 'high'; it must be a number from 0 to 1"),
        ("draw_threshold: 50", "draw_threshold is 50"),
        ("arch: 3", "arch is 3; it must be a text"),
        ("Global: {model_name: [a]}", "Global.model_name is"),
        ("#" * (inference_yml.MAX_BYTES + 1), "more than 1 MiB"),
    ],
    ids=lambda value: value[:30],
)
def test_what_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        read(tmp_path, text)
    assert str(tmp_path / "inference.yml") in caught.value.message
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    ("task", "feeds", "fetches", "aliases"),
    [
        ("classification", ["x"], ["softmax_0.tmp_0"], ({"x": "image"}, {"softmax_0.tmp_0": "prediction"})),
        ("multilabel", ["x"], ["a", "b"], ({"x": "image"}, {"a": "prediction"})),
        ("attributes", ["x"], ["a"], ({"x": "image"}, {"a": "prediction"})),
        ("embedding", ["x"], ["a"], ({}, {"a": "features"})),
        ("detection", ["image", "scale_factor"], ["a", "b"], ({}, {})),
        ("detection", ["x"], ["a"], ({}, {})),
        ("classification", ["x", "y"], ["a"], ({}, {})),
        (None, ["x"], ["a"], ({}, {})),
    ],
)
def test_aliases_follow_from_the_task(
    task: inference_yml.Task | None,
    feeds: list[str],
    fetches: list[str],
    aliases: tuple[dict[str, str], dict[str, str]],
) -> None:
    assert task_aliases(task, feeds, fetches) == aliases

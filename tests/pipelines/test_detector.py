"""The detector on small real models, and on the mirror's against the published service's boxes."""

import asyncio
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pdserve.engines import Device, Engine, load
from pdserve.engines.table import engine_info
from pdserve.errors import AliasError, EngineError, ImageError, ModelError, SettingsError
from pdserve.formats import prototxt
from pdserve.formats.model_files import ModelFiles, find_model_files
from pdserve.formats.serving_model import ServingModel
from pdserve.pipelines.base import Clock, Direct
from pdserve.pipelines.detector import (
    Detector,
    DetectorSettings,
    describe_detector,
    find_boxes,
    open_detector,
)
from pdserve.vision.boxes import Box, Suppression
from pdserve.vision.decode import decode
from tests.conftest import GOLDEN
from tests.detectors import AS_IT_IS, HEIGHT, WIDTH, paint, write_detector
from tests.engines.models import needs, serving_model

PICODET = "picodet_PPLCNet_x2_5_mainbody_lite_v1.0"
PREPROCESSED = json.loads((GOLDEN / "preprocess.json").read_text("utf-8"))
RECOGNITION = json.loads((GOLDEN / "recognition.json").read_text("utf-8"))
PLAIN = DetectorSettings(**AS_IT_IS)

Opener = Callable[..., Detector]


@pytest.fixture(params=["openvino", "paddle"])
def engine_name(request: pytest.FixtureRequest) -> str:
    info = engine_info(request.param)
    if not info.installed:
        pytest.skip(f"{info.name} needs {', '.join(info.missing)}: {info.install}")
    return info.name


@pytest.fixture
def opened(engine_name: str, tmp_path: Path) -> Iterator[Opener]:
    """A small detector, written as asked and loaded with the engine under test."""
    engines: list[Engine] = []

    def open_(settings: DetectorSettings = PLAIN, **variant: object) -> Detector:
        folder = write_detector(tmp_path / str(len(engines)), **variant)
        engines.append(load(serving_model(folder), engine=engine_name, device=Device()))
        return open_detector(engines[-1], settings)

    yield open_
    for engine in engines:
        engine.close()


# Two things of different classes, of which one is found twice, and one with a low score.
PICTURE = paint(
    [[0, 0, 4, 4], [0, 0, 4, 3], [4, 0, 8, 4], [6, 2, 8, 4]],
    [[200, 250, 10, 0], [0, 0, 204, 40]],
)
EXPECTED = [Box(0, 0, 4, 3, np.float32(250 / 255)), Box(4, 0, 8, 4, np.float32(204 / 255))]
NOTHING = paint([], [])
TWICE = np.kron(PICTURE, np.ones((2, 2, 1), np.uint8))  # resizing it gives the picture

VARIANTS = {
    "as usual": {},
    "with im_shape": {"im_shape": True},
    "one image at a time": {"batch": 1},
    "without counts": {"counts": False},
    "without suppression": {"suppression": False},
    "without scale_factor": {"scale_factor": False},
    "without either": {"suppression": False, "scale_factor": False},
}


def close_to(found: list[Box], expected: list[Box]) -> bool:
    return len(found) == len(expected) and all(
        np.allclose([a.x1, a.y1, a.x2, a.y2, a.score], [b.x1, b.y1, b.x2, b.y2, b.score], atol=1e-5)
        for a, b in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_export(opened: Opener, variant: str) -> None:
    detector = opened(**VARIANTS[variant])
    detector.check()
    found = detector.detect([PICTURE, NOTHING, TWICE, PICTURE])
    double = [Box(2 * b.x1, 2 * b.y1, 2 * b.x2, 2 * b.y2, b.score) for b in EXPECTED]
    for boxes, expected in zip(found, [EXPECTED, [], double, EXPECTED], strict=True):
        assert close_to(boxes, expected)
    assert detector.detect([]) == []
    (nothing,) = detector.infer([detector.prepare(NOTHING)])
    assert nothing.shape == (0, 6)


def test_several_images_are_one_run_where_the_model_takes_them(opened: Opener) -> None:
    for variant, runs in (
        ({}, [3]),
        ({"suppression": False}, [3]),
        ({"batch": 1}, [1, 1, 1]),
        ({"counts": False}, [1, 1, 1]),
    ):
        detector = opened(**variant)
        counting = Counting(detector.engine)
        counted = replace(detector, engine=counting)
        assert [len(boxes) for boxes in counted.detect([PICTURE, NOTHING, TWICE])] == [2, 0, 2]
        assert counting.batches == runs


class Counting:
    """An engine that notes the size of every batch."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.batches: list[int] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.batches.append(len(feeds["image"]))
        return self._engine.run(feeds)


def test_what_is_fed(opened: Opener) -> None:
    detector = opened(im_shape=True)
    assert detector.size == (HEIGHT, WIDTH)
    fed = detector.prepare(np.zeros((16, 4, 3), np.uint8))
    assert {alias: (a.dtype, a.shape) for alias, a in fed.items()} == {
        "image": (np.float32, (1, 3, HEIGHT, WIDTH)),
        "scale_factor": (np.float32, (1, 2)),
        "im_shape": (np.float32, (1, 2)),
    }
    assert fed["scale_factor"].tolist() == [[4 / 16, 8 / 4]]
    assert fed["im_shape"].tolist() == [[4, 8]]


def test_boxes_are_chosen_by_score(opened: Opener) -> None:
    corners = [[x, 0, x + 1, 4] for x in range(7)]
    picture = paint(corners, [[90, 60, 80, 0, 70, 0, 0], [0, 0, 0, 100, 0, 50, 40]])
    found = opened().detect([picture])[0]
    assert [(box.x1, round(box.score * 255)) for box in found] == [
        (3, 100),
        (0, 90),
        (2, 80),
        (4, 70),
        (1, 60),
    ]
    few = opened(replace(PLAIN, max_results=2)).detect([picture])[0]
    assert [box.x1 for box in few] == [3, 0]
    sure = opened(replace(PLAIN, threshold=80 / 255)).detect([picture])[0]
    assert [box.x1 for box in sure] == [3, 0, 2]
    assert opened(replace(PLAIN, max_results=0)).detect([picture])[0] == []


def test_boxes_outside_the_image_are_clamped_or_dropped(opened: Opener) -> None:
    picture = paint([[2, 1, 200, 99], [8, 0, 30, 4], [3, 3, 3, 4]], [[255, 250, 245]])
    (found,) = opened().detect([picture])
    assert found == [Box(2, 1, 8, 4, 1)]


def test_suppression_outside_goes_by_its_settings(opened: Opener) -> None:
    loose = replace(PLAIN, suppression=Suppression(nms_threshold=0.8, score_threshold=0.5))
    (found,) = opened(loose, suppression=False).detect([PICTURE])
    assert [(box.x2, box.y2) for box in found] == [(4, 3), (8, 4), (4, 4)]  # both of IoU 0.75


def test_the_size_may_be_the_models_or_ours() -> None:
    free = Fake({"image": (-1, 3, -1, 48)}, [])
    assert open_detector(free, DetectorSettings(size=(32, 32))).size == (32, 48)
    assert open_detector(Fake({"image": (-1, 3, -1, -1)}, [])).size == (640, 640)


class Fake:
    """An engine that returns what it is given: for outputs that no exporter of today makes."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], outputs: list[np.ndarray]) -> None:
        self.shapes = shapes
        self.feeds = [prototxt.Variable(alias, alias, "float32", ()) for alias in shapes]
        self.fetches = [prototxt.Variable(str(i), str(i), str(a.dtype), ()) for i, a in enumerate(outputs)]
        self._outputs = outputs

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {str(i): output for i, output in enumerate(self._outputs)}


SHAPES = {"image": (-1, 3, 8, 8), "scale_factor": (-1, 2)}
GREY = np.full((8, 8, 3), 127, np.uint8)


def test_markers_of_no_box_by_older_releases() -> None:
    for marker in (np.full((1, 1), -1, np.float32), np.full((1, 6), -1, np.float32)):
        assert open_detector(Fake(SHAPES, [marker])).detect([GREY]) == [[]]


def test_counts_are_told_from_an_index_of_the_rows() -> None:
    rows = np.array([[0, 0.9, 0, 0, 4, 4], [0, 0.8, 4, 4, 8, 8], [0, 0.7, 0, 0, 8, 8]], np.float32)
    index, counts = np.array([[5], [3], [9]], np.int32), np.array([2, 0, 1], np.int32)
    found = open_detector(Fake(SHAPES, [index, rows, counts])).detect([GREY] * 3)
    assert [[round(box.score, 1) for box in boxes] for boxes in found] == [[0.9, 0.8], [], [0.7]]


@pytest.mark.parametrize("counts", [[2, 2], [4, -1]])
def test_counts_that_do_not_fit(counts: list[int]) -> None:
    rows = np.ones((3, 6), np.float32)
    with pytest.raises(EngineError, match="3 rows for 2 images"):
        open_detector(Fake(SHAPES, [rows, np.array(counts)])).detect([GREY] * 2)


@pytest.mark.parametrize(
    "outputs",
    [
        [np.zeros((1, 85, 8, 8), np.float32)] * 3,  # the heads of a network, undecoded
        [np.zeros((1, 10, 4), np.float32), np.zeros((1, 2, 9), np.float32)],
        [np.zeros((3, 7), np.float32)],
        [np.zeros((1, 1000), np.float32)],
    ],
)
def test_outputs_of_something_else_are_refused(outputs: list[np.ndarray]) -> None:
    with pytest.raises(ModelError, match=r"does not work: The detector returned float32 .*postprocessing"):
        open_detector(Fake(SHAPES, outputs)).check()


@pytest.mark.parametrize(
    ("aliases", "said"),
    [
        (["x", "scale_factor"], "'image' is missing.*`pdserve alias DIR --feed x=image`"),
        (["image", "sf"], "'scale_factor' is missing.*--feed sf=scale_factor`"),
        (["x", "y"], "'image' and 'scale_factor' are missing.*--feed x=image --feed y=scale_factor`"),
        (["scale_factor"], "'image' is missing.*--feed NAME=image`"),
        (["image", "scale_factor", "shape"], "'im_shape' is missing.*--feed shape=im_shape`"),
    ],
)
def test_feeds_are_checked_at_the_start(aliases: list[str], said: str) -> None:
    with pytest.raises(AliasError, match=said):
        open_detector(Fake(dict.fromkeys(aliases, (-1, 3, 8, 8)), []))


def test_an_input_that_is_no_image_is_refused() -> None:
    for shape in ((-1, 1, 8, 8), (-1, 10)):
        with pytest.raises(ModelError, match=r"must be \(N, 3, H, W\)"):
            open_detector(Fake({"image": shape}, []))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (DetectorSettings(size=(0, 640)), "size"),
        (DetectorSettings(std=(0.2, 0.0, 0.2)), "std"),
        (DetectorSettings(max_results=-1), "max_results is -1"),
        (DetectorSettings(interpolation="sharp"), "interpolation is 'sharp'"),
        (DetectorSettings(suppression=Suppression(nms_eta=2)), "nms_eta is 2"),
    ],
)
def test_settings_are_checked_at_the_start(settings: DetectorSettings, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        open_detector(Fake(SHAPES, []), settings)


@pytest.mark.parametrize("name", PREPROCESSED)
def test_golden_input(name: str) -> None:
    expected = PREPROCESSED[name]["detection"]
    detector = open_detector(Fake({"image": (-1, 3, 640, 640)}, []))
    tensor = detector.prepare(decode((GOLDEN / "images" / name).read_bytes()))["image"][0]
    assert list(tensor.shape) == expected["shape"]
    assert np.abs(tensor.ravel()[expected["index"]] - np.array(expected["value"])).max() < 1e-5


@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 30), (129, 500), (641, 3), (1000, 777), (1, 1)])
def test_tall_images_are_resized_as_opencv_does(height: int, width: int) -> None:
    """Only the rows that count are taken; normalising first and resizing then is the published order."""
    import cv2

    image = np.random.default_rng(height).integers(0, 256, (height, width, 3)).astype(np.uint8)
    mean, std = (np.array(values, np.float32) for values in (DetectorSettings.mean, DetectorSettings.std))
    normal = (image.astype(np.float32) / 255 - mean) / std
    for interpolation, flag in (("bilinear", cv2.INTER_LINEAR), ("bicubic", cv2.INTER_CUBIC)):
        expected = cv2.resize(normal, (48, 32), interpolation=flag).transpose(2, 0, 1)
        settings = DetectorSettings(size=(32, 48), interpolation=interpolation)
        found = open_detector(Fake({"image": (-1, 3, -1, -1)}, []), settings).prepare(image)["image"][0]
        assert np.abs(found - expected).max() < 1e-5


def described(folder: Path, text: str, name: str = "mine") -> ServingModel:
    """A detector whose description is this text; it has no more than a name."""
    folder.mkdir(exist_ok=True)
    (folder / "infer_cfg.yml").write_text(text, "utf-8")
    return ServingModel(folder, name, ModelFiles(folder / "x", None, "PIR"), prototxt.ModelConfig((), ()))


CHAIN = """
draw_threshold: 0.5
arch: GFL
Preprocess:
- {type: Resize, target_size: [4, 8], keep_ratio: false, interp: 2}
- {type: NormalizeImage, is_scale: false, mean: [0, 0, 0], std: [1, 1, 1], norm_type: mean_std}
- {type: Permute}
label_list: [mainbody]
NMS: {keep_top_k: 7, name: MultiClassNMS, nms_threshold: 0.5, nms_top_k: 9, score_threshold: 0.3}
"""


def test_a_description_gives_the_settings(tmp_path: Path) -> None:
    found = describe_detector(described(tmp_path, CHAIN))
    assert found.threshold == 0.5
    assert found.chain is not None
    assert found.chain.size == (4, 8)
    assert found.suppression == Suppression(keep_top_k=7, nms_threshold=0.5, nms_top_k=9, score_threshold=0.3)
    assert describe_detector(described(tmp_path, CHAIN), 0.0, 3).threshold == 0
    assert describe_detector(described(tmp_path, CHAIN), 0.7, 3).max_results == 3
    assert describe_detector(described(tmp_path, "label_list: [a]")) == DetectorSettings()


def test_the_guides_detector_stays_as_its_reference_values_need(tmp_path: Path) -> None:
    """Its file asks for a bicubic resize of bytes, and lists COCO's labels, which are not its own."""
    public = described(tmp_path, CHAIN, PICODET)
    assert describe_detector(public) == DetectorSettings()
    assert (public.description.task, public.description.labels) == ("detection", None)
    assert describe_detector(described(tmp_path, CHAIN, PICODET), 0.3, 9) == DetectorSettings(
        threshold=0.3, max_results=9
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Preprocess: [{type: Blur}]", "infer_cfg.yml: The detector's operator 'Blur' is unknown"),
        ("Preprocess: [{type: Resize}]", "infer_cfg.yml: Resize.target_size is None"),
        ("NMS: {keep_top_k: many}", "infer_cfg.yml: NMS.keep_top_k is 'many'; it must be a int"),
        ("NMS: {nms_top_k: true}", "NMS.nms_top_k is True"),
        ("NMS: {normalized: 1}", "NMS.normalized is 1"),
        ("NMS: {nms_eta: 2}", "nms_eta is 2"),
    ],
)
def test_a_description_that_does_not_fit_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        describe_detector(described(tmp_path, text))


def test_a_suppression_of_another_kind_matters_where_it_is_done_here(tmp_path: Path) -> None:
    settings = describe_detector(described(tmp_path, "NMS: {name: MatrixNMS, keep_top_k: 9}"))
    assert settings.suppression is None
    rows = np.array([[0, 0.9, 0, 0, 4, 4]], np.float32)
    assert len(open_detector(Fake(SHAPES, [rows]), settings).detect([GREY])[0]) == 1
    raw = [np.zeros((1, 10, 4), np.float32), np.zeros((1, 2, 10), np.float32)]
    with pytest.raises(EngineError, match="without its suppression, of a kind that is not done here"):
        open_detector(Fake(SHAPES, raw), settings).detect([GREY])


@pytest.mark.parametrize("scale_factor", [True, False])
def test_a_described_detector_finds_the_same_boxes(
    opened: Opener, tmp_path: Path, scale_factor: bool
) -> None:
    """Also where the model does not know the image's size."""
    settings = replace(describe_detector(described(tmp_path / "d", CHAIN)), threshold=0.2, max_results=5)
    detector = opened(settings, scale_factor=scale_factor)
    detector.check()
    assert close_to(detector.detect([PICTURE])[0], EXPECTED)


def test_images_of_several_sizes_run_apart(tmp_path: Path) -> None:
    """A chain that keeps the ratio gives tensors of several sizes."""
    text = """
Preprocess:
- {type: Resize, target_size: [64, 64], keep_ratio: true, interp: 1}
- {type: Permute}
- {type: PadStride, stride: 32}
"""
    rows, counts = np.array([[0, 0.9, 0, 0, 4, 4]], np.float32), np.array([1], np.int32)
    shapes = {"image": (-1, 3, -1, -1), "scale_factor": (-1, 2), "im_shape": (-1, 2)}
    engine = Counting(Fake(shapes, [rows, counts]))
    detector = open_detector(engine, describe_detector(described(tmp_path, text)))
    pictures = [np.zeros((size, 64, 3), np.uint8) for size in (64, 20)]
    made = [detector.prepare(picture) for picture in pictures]
    assert [each["image"].shape for each in made] == [(1, 3, 64, 64), (1, 3, 32, 64)]
    assert [each["im_shape"].tolist() for each in made] == [[[64, 64]], [[20, 64]]]
    assert [len(each) for each in detector.infer(made)] == [1, 1]
    assert engine.batches == [1, 1]


def test_an_image_that_would_become_too_large_has_that_for_its_answer(tmp_path: Path) -> None:
    text = "Preprocess: [{type: Pad, size: [8, 8]}, {type: Permute}]"
    detector = open_detector(Fake(SHAPES, []), describe_detector(described(tmp_path, text)))
    wide = np.zeros((8, 9, 3), np.uint8)
    found = asyncio.run(find_boxes(detector, "mine", wide, Direct({}), Clock()))
    assert isinstance(found, ImageError)
    assert "9×8, too large to be padded to 8×8" in found.message


def test_a_size_that_is_not_the_models(tmp_path: Path) -> None:
    settings = describe_detector(described(tmp_path, CHAIN))
    with pytest.raises(ModelError, match="takes images of 8×8 and its description gives 8×4"):
        open_detector(Fake(SHAPES, []), settings)


@pytest.fixture(scope="module")
def picodet(mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> ServingModel:
    root = tmp_path_factory.mktemp("picodet")
    with tarfile.open(mirror / f"dygraph/rec/models/inference/{PICODET}_infer.tar") as tar:
        tar.extractall(root, filter="data")
    folder = root / f"{PICODET}_infer"
    shutil.copy(GOLDEN / "convert" / PICODET / prototxt.SERVER_TEXT, folder)
    return ServingModel(
        folder, PICODET, find_model_files(folder), prototxt.read(folder / prototxt.SERVER_TEXT)
    )


@pytest.fixture(scope="module")
def pictures(mirror: Path) -> dict[str, np.ndarray]:
    """The golden images and the data set's test images, by their names in ``recognition.json``."""
    found = {path.name: path.read_bytes() for path in (GOLDEN / "images").iterdir()}
    with tarfile.open(mirror / "dygraph/rec/data/drink_dataset_v1.0.tar") as tar:
        for member in tar.getmembers():
            name = member.name.split("/", 1)[-1]
            if name in RECOGNITION:
                found[name] = tar.extractfile(member).read()  # type: ignore[union-attr]
    assert set(found) == set(RECOGNITION)
    return {name: decode(data) for name, data in found.items()}


@pytest.mark.mirror
def test_golden_boxes(engine_name: str, picodet: ServingModel, pictures: dict[str, np.ndarray]) -> None:
    engine = load(picodet, engine=engine_name, device=Device())
    detector = open_detector(engine)
    assert detector.size == (640, 640)
    for name, image in pictures.items():
        (found,) = detector.detect([image])
        *expected, whole = RECOGNITION[name]["boxes"]  # the whole image is the service's addition
        assert whole["score"] == 1
        assert len(found) == len(expected)
        for box, golden in zip(found, expected, strict=True):
            assert [box.x1, box.y1, box.x2, box.y2] == pytest.approx(golden["bbox"], abs=0.01)
            assert box.score == pytest.approx(golden["score"], abs=1e-4)
    engine.close()


@needs("openvino")
@needs("paddle")
@pytest.mark.mirror
def test_openvino_gives_the_rows_of_paddle(picodet: ServingModel, pictures: dict[str, np.ndarray]) -> None:
    """All hundred rows of an image, and not only the best.

    Scores that differ in the seventh digit only are ordered as each engine rounds, and so may be the last
    to stay.
    """
    detectors = [
        open_detector(load(picodet, engine=name, device=Device())) for name in ("openvino", "paddle")
    ]
    for name in ("photo.jpg", "tall.png", "small.png", "test_images/1.jpg"):
        prepared = detectors[0].prepare(pictures[name])
        (ours, counts), (paddles, expected) = (
            detector.engine.run(prepared).values() for detector in detectors
        )
        assert (counts.dtype, counts.tolist()) == (expected.dtype, expected.tolist())
        assert (ours.dtype, ours.shape) == (paddles.dtype, paddles.shape) == (np.float32, (counts[0], 6))
        np.testing.assert_allclose(ours[:, :2], paddles[:, :2], atol=1e-5)
        apart = np.abs(ours[:, None, 2:] - paddles[None, :, 2:]).max(axis=2).min(axis=1)
        assert (apart > 1e-3).sum() <= 1
    for detector in detectors:
        detector.engine.close()

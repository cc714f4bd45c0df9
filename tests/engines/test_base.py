"""One contract, run over every engine on every device that is here."""

import json
import shutil
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from pdserve.engines import PROBES, Device, Engine, load, probe, probe_input
from pdserve.errors import ClosedError, EngineError, FeedError, ModelError, UnsupportedModelError
from pdserve.formats import prototxt
from pdserve.formats.model_files import find_model_files
from pdserve.formats.serving_model import ServingModel, open_serving_model
from tests.conftest import GOLDEN
from tests.engines.models import (
    BOTH,
    DATA,
    DETECTOR,
    PIR,
    PROBE,
    TWO_HEADS,
    engine_params,
    serving_model,
    warm_up,
)

pytestmark = pytest.mark.parametrize(("name", "device"), engine_params())

# A float32 sum in another order; GPUs multiply in other widths too.
CLOSE = {"rtol": 1e-4, "atol": 1e-6}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """A writable copy of a model's folder, one per session: the engine onnx converts each once."""
    root, copies = tmp_path_factory.mktemp("engines"), {}

    def copy(folder: Path) -> Path:
        if folder not in copies:
            copies[folder] = shutil.copytree(folder, root / f"{len(copies)}_serving")
        return copies[folder]

    return copy


@pytest.fixture
def opened(name: str, device: Device, folders: Callable[[Path], Path]) -> "Callable[..., Engine]":
    """Load with the engine under test; closed when the test ends."""
    engines: list[Engine] = []

    def open_(model: Path | ServingModel, **options: object) -> Engine:
        served = model if isinstance(model, ServingModel) else serving_model(folders(model))
        engines.append(load(served, engine=name, device=device, **options))  # type: ignore[arg-type]
        return engines[-1]

    yield open_
    for engine in engines:
        engine.close()


Opener = Callable[..., Engine]


def expected_probabilities() -> npt.NDArray[np.float32]:
    return np.array(json.loads((PROBE / "expected.json").read_text("utf-8"))["prediction"], np.float32)


def test_describes_itself(name: str, device: Device, opened: Opener) -> None:
    engine = opened(PROBE)
    assert (engine.name, engine.device) == (name, device)
    assert [v.alias for v in engine.feeds] == ["image"]
    assert [v.alias for v in engine.fetches] == ["prediction"]
    assert engine.shapes == {"image": (-1, 3, 32, 32)}
    assert device.kind.upper() in engine.description
    assert engine.reason


def test_same_numbers_for_any_batch(name: str, device: Device, opened: Opener) -> None:
    engine, expected, images = opened(PROBE), expected_probabilities(), probe_input(8)
    for batch in (1, 3, 8, 1):
        found = engine.run({"image": images[:batch]})["prediction"]
        assert found.shape == (batch, 10)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found[:2], expected[:batch], **CLOSE)
        np.testing.assert_allclose(found.sum(axis=1), np.ones(batch), rtol=1e-5)


def test_paddle_3_format(name: str, device: Device, opened: Opener) -> None:
    found = opened(PIR).run({"image": probe_input()})["prediction"]
    np.testing.assert_allclose(found, expected_probabilities(), **CLOSE)


@pytest.mark.parametrize("form", ["pdmodel", "pir", "separate"])
def test_several_feeds_and_fetches(name: str, device: Device, opened: Opener, form: str) -> None:
    recorded = json.loads((DATA / "programs/expected.json").read_text("utf-8"))
    probabilities, best = recorded["two_heads/pdmodel/inference.pdmodel"]["values"]
    x = np.linspace(-1, 1, 2 * 3 * 8 * 8, dtype=np.float32).reshape(2, 3, 8, 8)
    # The mapping's order is not the model's.
    found = opened(TWO_HEADS / form).run({"scale": np.array([[1], [2]], np.float32), "x": x})
    assert list(found) == ["prediction", "best"]
    np.testing.assert_allclose(found["prediction"], np.array(probabilities, np.float32), rtol=2e-4, atol=1e-7)
    assert found["best"].dtype == np.int64
    assert found["best"].tolist() == best


def test_fetches_may_be_left_out(name: str, device: Device, folders: Callable[[Path], Path]) -> None:
    model = serving_model(folders(TWO_HEADS / "pdmodel"))
    config = prototxt.ModelConfig(model.config.feeds, model.config.fetches[1:])
    engine = load(ServingModel(model.path, model.name, model.files, config), engine=name, device=device)
    feeds = {"x": np.ones((1, 3, 8, 8), np.float32), "scale": np.ones((1, 1), np.float32)}
    assert list(engine.run(feeds)) == ["best"]
    engine.close()


def test_results_belong_to_the_caller(name: str, device: Device, opened: Opener) -> None:
    engine, images = opened(PROBE), probe_input(2)
    first = engine.run({"image": images[:1]})["prediction"]
    before = first.copy()
    engine.run({"image": images[1:]})
    np.testing.assert_array_equal(first, before)
    first += 1  # writable, and nobody's but ours
    np.testing.assert_allclose(engine.run({"image": images[:1]})["prediction"], before, **CLOSE)


def test_feeds_stay_as_they_are_and_may_be_views(name: str, device: Device, opened: Opener) -> None:
    images = probe_input()
    turned = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    turned.flags.writeable = False
    found = opened(PROBE).run({"image": turned})["prediction"]
    np.testing.assert_allclose(found, expected_probabilities(), **CLOSE)
    np.testing.assert_array_equal(turned, images)


@pytest.mark.parametrize(
    ("feeds", "said"),
    [
        ({"inputs": np.zeros((1, 3, 32, 32), np.float32)}, "no feed 'inputs'; its feeds are 'image'"),
        ({}, "'image' is missing; the model takes 'image'"),
        ({"image": np.zeros((1, 3, 32, 32))}, "dtype float64; the model takes float32"),
        ({"image": np.zeros((1, 3, 32, 32), ">f4")}, "dtype >f4; the model takes float32"),
        (
            {"image": np.zeros((3, 32, 32), np.float32)},
            "shape (3, 32, 32); the model takes (batch, 3, 32, 32)",
        ),
        ({"image": np.zeros((1, 3, 31, 32), np.float32)}, "takes (batch, 3, 32, 32)"),
        ({"image": np.zeros((0, 3, 32, 32), np.float32)}, "takes (batch, 3, 32, 32)"),
        ({"image": [[1.0]]}, "is a list, not a NumPy array"),
    ],
    ids=["alias", "missing", "dtype", "byte order", "rank", "extent", "empty", "type"],
)
def test_feeds_that_do_not_fit(
    name: str, device: Device, opened: Opener, feeds: dict[str, object], said: str
) -> None:
    engine = opened(PROBE)
    with pytest.raises(FeedError) as caught:
        engine.run(feeds)  # type: ignore[arg-type]
    assert said in caught.value.message
    engine.run({"image": probe_input()})  # and goes on


@pytest.mark.parametrize("instances", [1, 2])
def test_many_threads(name: str, device: Device, opened: Opener, instances: int) -> None:
    engine = opened(PROBE, instances=instances, threads=1)
    images = probe_input(24)
    expected = engine.run({"image": images})["prediction"]
    found: dict[int, npt.NDArray[np.float32]] = {}

    def work(first: int) -> None:
        for _ in range(5):
            for i in range(first, 24, 6):
                found[i] = engine.run({"image": images[i : i + 1]})["prediction"][0]
                np.testing.assert_allclose(found[i], expected[i], **CLOSE)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # A thread that failed has no result in its place.
    np.testing.assert_allclose(np.stack([found[i] for i in range(24)]), expected, **CLOSE)


@pytest.mark.parametrize("form", ["pdmodel", "pir"])
def test_a_run_that_fails(
    name: str, device: Device, opened: Opener, form: str, capfd: pytest.CaptureFixture[str]
) -> None:
    engine = opened(TWO_HEADS / form, instances=2)
    x = np.ones((2, 3, 8, 8), np.float32)
    with pytest.raises(EngineError, match=f"^{name} failed to run"):  # each feed is right, not both together
        engine.run({"x": x, "scale": np.ones((3, 1), np.float32)})
    assert engine.run({"x": x, "scale": np.ones((2, 1), np.float32)})["prediction"].shape == (2, 5)
    assert capfd.readouterr().out == ""  # standard output is for results


def test_close(name: str, device: Device, opened: Opener) -> None:
    engine = opened(PROBE)
    engine.close()
    engine.close()
    with pytest.raises(ClosedError, match="closed"):
        engine.run({"image": probe_input()})


@pytest.mark.parametrize("form", PROBES)
def test_probe(name: str, device: Device, form: str) -> None:
    assert device.kind.upper() in probe(name, device, form)


def _cut(path: Path, to: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * to)])


BREAKAGES: dict[str, Callable[[Path], object]] = {
    "program of noise": lambda d: (d / "inference.pdmodel").write_bytes(np.random.default_rng(0).bytes(5000)),
    "program cut": lambda d: _cut(d / "inference.pdmodel", 0.6),
    "program empty": lambda d: (d / "inference.pdmodel").write_bytes(b""),
    "program gone": lambda d: (d / "inference.pdmodel").unlink(),
    "parameters of noise": lambda d: (d / "inference.pdiparams").write_bytes(
        np.random.default_rng(0).bytes(2894)
    ),
    "parameters cut": lambda d: _cut(d / "inference.pdiparams", 0.5),
    "parameters empty": lambda d: (d / "inference.pdiparams").write_bytes(b""),
    "parameters gone": lambda d: (d / "inference.pdiparams").unlink(),
    "parameters of another": lambda d: shutil.copy(
        TWO_HEADS / "pdmodel/inference.pdiparams", d / "inference.pdiparams"
    ),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_broken_files(name: str, device: Device, tmp_path: Path, breakage: str) -> None:
    folder = Path(shutil.copytree(PROBE, tmp_path / "model"))
    model = serving_model(folder)
    BREAKAGES[breakage](folder)
    with pytest.raises(ModelError) as caught:
        load(model, engine=name, device=device)
    assert "inference.pd" in caught.value.message


def test_prototxt_of_another_model(name: str, device: Device, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(PROBE, tmp_path / "model"))
    text = folder / prototxt.SERVER_TEXT
    text.write_text(text.read_text("utf-8").replace('name: "image"', 'name: "x"', 1), "utf-8")
    with pytest.raises(ModelError, match=r"disagree on feed 'x'.*'image'"):
        load(open_serving_model(folder), engine=name, device=device)


def test_suppression_inside(name: str, device: Device, opened: Opener) -> None:
    if name == "onnx":
        with pytest.raises(UnsupportedModelError, match="--engine paddle"):
            opened(DETECTOR)
        return
    boxes = np.array([[0, 0, 10.123, 10.456]] * 2 + [[20 * i, 0, 20 * i + 9.987, 9] for i in range(1, 5)])
    scores = np.array([[[0.91234, 0.8, 0.3, 0.44321, 0.1, 0.7]]], np.float32)
    found = opened(DETECTOR).run({"boxes": boxes[None].astype(np.float32), "scores": scores})
    kept, count = found.values()
    assert (kept.dtype, count.dtype, count.tolist()) == (np.float32, np.int32, [3])
    np.testing.assert_allclose(kept[:, 1], [0.45617, 0.35, 0.221605], rtol=1e-6)
    np.testing.assert_allclose(kept[0, 2:], [0, 0, 10.123, 10.456], rtol=1e-6)


# By paddle2onnx 2.1.0, which does not convert the detectors, with or without their suppression.
_NOT_CONVERTED = {("detector", "pdmodel"), ("boxes", "pdmodel")}


@pytest.mark.parametrize("form", ["pdmodel", "pir"])
@pytest.mark.parametrize("model", ["embedder", "detector", "boxes"])
def test_paddles_numbers_in_both_formats(
    name: str, device: Device, opened: Opener, model: str, form: str
) -> None:
    """Features; rows and counts of the suppression; boxes and scores before it; two images, and one."""
    if name == "onnx" and (model, form) in _NOT_CONVERTED:
        with pytest.raises(UnsupportedModelError, match="--engine paddle"):
            opened(BOTH / model / form)
        return
    engine = opened(BOTH / model / form)
    feeds = {"image": probe_input(), "scale_factor": np.array([[1, 1], [0.5, 2]], np.float32)}
    feeds = {v.alias: feeds[v.alias] for v in engine.feeds}
    recorded = json.loads((BOTH / "expected.json").read_text("utf-8"))[model]
    expected = [np.array(v, np.int32 if isinstance(v[0], int) else np.float32) for v in recorded]
    assert all(shape[0] == -1 for shape in engine.shapes.values())
    for _ in range(2):
        for array, right in zip(engine.run(feeds).values(), expected, strict=True):
            assert (array.dtype, array.shape) == (right.dtype, right.shape)
            np.testing.assert_allclose(array, right, rtol=1e-4, atol=2e-5)
        one = engine.run({alias: array[:1] for alias, array in feeds.items()})
        for array, right in zip(one.values(), expected, strict=True):
            rows = expected[1][0] if model == "detector" and right.ndim == 2 else 1
            np.testing.assert_allclose(array, right[:rows], rtol=1e-4, atol=2e-5)


def test_warm_up(name: str, device: Device, opened: Opener) -> None:
    warm_up(opened(PROBE), batch=2)
    warm_up(opened(TWO_HEADS / "pdmodel"))


@pytest.fixture(scope="session")
def unpacked(mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ServingModel]:
    """A model of the mirror as a serving model, with the published converter's prototxt."""
    root = tmp_path_factory.mktemp("mirror")

    def unpack(name: str) -> ServingModel:
        folder = root / f"{name}_infer"
        if not folder.is_dir():
            (archive,) = mirror.rglob(f"{name}_infer.tar")
            with tarfile.open(archive) as tar:
                tar.extractall(root, filter="data")
            shutil.copy(GOLDEN / "convert" / name / prototxt.SERVER_TEXT, folder)
        return ServingModel(
            folder, name, find_model_files(folder), prototxt.read(folder / prototxt.SERVER_TEXT)
        )

    return unpack


# Computed once, by the first engine that runs; the others must agree with it.
_references: dict[str, npt.NDArray[np.float32]] = {}


@pytest.mark.mirror
@pytest.mark.parametrize("model", ["general_PPLCNet_x2_5_lite_v1.0", "ResNet50_vd"])
def test_models_of_the_mirror_agree(
    name: str, device: Device, opened: Opener, unpacked: Callable[[str], ServingModel], model: str
) -> None:
    served = unpacked(model)
    engine = opened(served)
    (feed,), (fetch,) = engine.feeds, engine.fetches
    images = np.random.default_rng(1).uniform(-2, 2, (3, 3, 224, 224)).astype(np.float32)
    found = engine.run({feed.alias: images})[fetch.alias]
    one = engine.run({feed.alias: images[:1]})[fetch.alias]
    reference = _references.setdefault(model, found)
    scale = float(np.abs(reference).max())
    assert np.abs(found - reference).max() < 1e-4 * scale
    assert np.abs(one - reference[:1]).max() < 1e-4 * scale


@pytest.mark.mirror
def test_the_mirrors_detector(
    name: str, device: Device, opened: Opener, unpacked: Callable[[str], ServingModel]
) -> None:
    served = unpacked("picodet_PPLCNet_x2_5_mainbody_lite_v1.0")
    if name == "onnx":
        with pytest.raises(UnsupportedModelError, match="--engine paddle"):
            opened(served)
        return
    engine = opened(served)
    warm_up(engine)
    with pytest.raises(FeedError, match="scale_factor"):
        engine.run({"image": np.zeros((1, 3, 640, 640), np.float32)})


@pytest.fixture(scope="session")
def paddle_3(mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ServingModel]:
    """A model of Paddle 3 of the mirror, all its fetches under the tests' names."""
    root = tmp_path_factory.mktemp("paddle_3")

    def unpack(name: str) -> ServingModel:
        if not (root / f"{name}_infer").is_dir():
            (archive,) = mirror.rglob(f"paddle3.0.0/{name}_infer.tar")
            with tarfile.open(archive) as tar:
                tar.extractall(root, filter="data")
        return serving_model(root / f"{name}_infer")

    return unpack


@pytest.mark.mirror
@pytest.mark.parametrize("model", ["PP-LCNet_x1_0", "PP-HGNetV2-B0", "PP-ShiTuV2_rec"])
def test_models_of_paddle_3_agree(
    name: str, device: Device, opened: Opener, paddle_3: Callable[[str], ServingModel], model: str
) -> None:
    test_models_of_the_mirror_agree(name, device, opened, paddle_3, model)


@pytest.mark.mirror
def test_the_detector_of_paddle_3_gives_paddlexs_boxes(
    name: str, device: Device, opened: Opener, paddle_3: Callable[[str], ServingModel]
) -> None:
    """All boxes over 0.2 of PaddleX 3.7.2, clamped to the image."""
    engine = opened(paddle_3("PP-ShiTuV2_det"))
    golden = json.loads((GOLDEN / "paddlex.json").read_text("utf-8"))
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    compared = 0
    for image in ("exif6.jpg", "gray.png", "tall.png", "wide.png"):
        picture = cv2.imread(str(GOLDEN / "images" / image), cv2.IMREAD_COLOR_RGB)
        height, width = picture.shape[:2]
        resized = cv2.resize(picture, (640, 640), interpolation=cv2.INTER_CUBIC)  # as its inference.yml says
        feeds = {
            "image": ((resized / np.float32(255) - mean) / std).transpose(2, 0, 1)[None].astype(np.float32),
            "scale_factor": np.array([[640 / height, 640 / width]], np.float32),
        }
        rows, count = engine.run(feeds).values()
        assert count.tolist() == [len(rows)]
        rows = rows[rows[:, 1] > 0.2]
        found = np.column_stack((rows[:, 1], rows[:, 2:].clip(0, [width, height] * 2)))
        expected = [(b["score"], *b["bbox"]) for b in golden[image]["PP-ShiTuV2_det"] if b["score"] > 0.2]
        assert len(found) == len(expected)
        for got, right in zip(found, expected, strict=True):
            assert abs(got[0] - right[0]) < 1e-4
            np.testing.assert_allclose(got[1:], right[1:], atol=0.05)
        compared += len(found)
    assert compared > 50

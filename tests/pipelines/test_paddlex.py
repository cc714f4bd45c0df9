"""Models as PaddleX delivers them, opened in place, against what PaddleX 3.7.2 itself answers for them."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pdserve.engines import Device, Engine, load
from pdserve.formats.serving_model import ServingModel, open_serving_model
from pdserve.pipelines.detector import describe_detector, open_detector
from pdserve.pipelines.embedder import Embedder, describe_embedder
from pdserve.pipelines.model_config import classifier_config
from pdserve.settings import ClassificationOptions, ModelSettings
from pdserve.vision.decode import decode
from pdserve.vision.types import Image8
from tests.conftest import GOLDEN

ANSWERS = json.loads((GOLDEN / "paddlex.json").read_text("utf-8"))
ARCHIVES = "paddlex/official_inference_model/paddle3.0.0"
pytestmark = pytest.mark.mirror


@pytest.fixture(scope="module")
def pictures(mirror: Path) -> dict[str, Image8]:
    """The golden images and two of the data set's test images, by their names in ``paddlex.json``."""
    found = {path.name: path.read_bytes() for path in (GOLDEN / "images").iterdir()}
    with tarfile.open(mirror / "dygraph/rec/data/drink_dataset_v1.0.tar") as tar:
        for member in tar.getmembers():
            name = Path(member.name).name
            if "test_images" in member.name and name in ANSWERS:
                found[name] = tar.extractfile(member).read()  # type: ignore[union-attr]
    assert set(found) >= set(ANSWERS)
    return {name: decode(found[name]) for name in ANSWERS}


@pytest.fixture
def delivered(mirror: Path, tmp_path: Path, request: pytest.FixtureRequest) -> tuple[ServingModel, Engine]:
    """The model whose name is the parameter, as its archive holds it, on the default engine."""
    with tarfile.open(mirror / ARCHIVES / f"{request.param}_infer.tar") as tar:
        tar.extractall(tmp_path, filter="data")
    # Under a name that no catalog has: what counts is in the file.
    folder = (tmp_path / f"{request.param}_infer").rename(tmp_path / "my_model")
    model = open_serving_model(folder)
    return model, load(model, engine="openvino", device=Device())


@pytest.mark.parametrize("delivered", ["PP-LCNet_x1_0", "PP-HGNetV2-B0"], indirect=True)
def test_classifiers(
    delivered: tuple[ServingModel, Engine], pictures: dict[str, Image8], request: pytest.FixtureRequest
) -> None:
    model, engine = delivered
    config = classifier_config(model, ClassificationOptions())
    assert model.description.model_name is not None
    for name, image in pictures.items():
        scores = engine.run({"image": config.chain(image)[None]})["prediction"][0]
        found = [(label.class_id, label.score) for label in config.postprocess.read(scores, None)]
        expected = ANSWERS[name][model.description.model_name]
        assert [class_id for class_id, _ in found] == [class_id for class_id, _ in expected]
        assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-4)


@pytest.mark.parametrize("delivered", ["PP-ShiTuV2_det"], indirect=True)
def test_the_detector(delivered: tuple[ServingModel, Engine], pictures: dict[str, Image8]) -> None:
    model, engine = delivered
    detector = open_detector(engine, describe_detector(model, threshold=0.2, max_results=100))
    assert model.description.labels == ("mainbody",)
    for name, image in pictures.items():
        (found,) = detector.detect([image])
        expected = ANSWERS[name]["PP-ShiTuV2_det"]
        assert len(found) == len(expected)
        for box, golden in zip(found, expected, strict=True):
            assert [box.x1, box.y1, box.x2, box.y2] == pytest.approx(golden["bbox"], abs=0.05)
            assert box.score == pytest.approx(golden["score"], abs=1e-4)


@pytest.mark.parametrize("delivered", ["PP-ShiTuV2_rec"], indirect=True)
def test_the_embedder(delivered: tuple[ServingModel, Engine], pictures: dict[str, Image8]) -> None:
    model, engine = delivered
    chain, fetch = describe_embedder(model, ModelSettings(model="my_model"))
    assert fetch == "features"
    vectors = Embedder(model, (engine,), chain, fetch).embed(list(pictures.values()))
    for name, vector in zip(pictures, vectors, strict=True):
        assert np.abs(vector[::8] - np.array(ANSWERS[name]["PP-ShiTuV2_rec"])).max() < 2e-4

"""The service scripts run on Python 3.6 to 3.9, and there prepare images as pdserve does."""

import ast
import base64
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from pdserve.runtimes.paddle_serving.interpreter import SCRIPTS
from pdserve.runtimes.paddle_serving.work_folder import steps
from pdserve.vision import preprocess
from pdserve.vision.decode import decode

GOLDEN = Path(__file__).parents[2] / "data" / "golden"
IMAGES = sorted((GOLDEN / "images").iterdir())


@pytest.fixture(scope="module")
def images() -> ModuleType:
    """scripts/images.py, which needs none of the old packages."""
    spec = importlib.util.spec_from_file_location("images", SCRIPTS / "images.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def value(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("*.py")), ids=lambda path: path.name)
def test_a_script_is_python_3_6(path: Path) -> None:
    ast.parse(path.read_text("utf-8"), feature_version=(3, 6))


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_an_image_is_the_same(images: ModuleType, path: Path) -> None:
    ours, theirs = decode(path.read_bytes()), images.decode(value(path))
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1


NORMALIZE = {"NormalizeImage": {"scale": "1/255", "mean": [0.1, 0.2, 0.3], "std": [1, 2, 3], "order": ""}}


@pytest.mark.parametrize(
    "ops",
    [
        [{"ResizeImage": {"resize_short": 64}}, {"CropImage": {"size": 48}}, {"NormalizeImage": None}],
        [
            {"DecodeImage": {"to_rgb": False}},
            {"ResizeImage": {"size": [40, 30], "interpolation": 2}},
            NORMALIZE,
        ],
        [{"ResizeImage": {"size": 32, "backend": "PIL", "interpolation": "Bicubic"}}, NORMALIZE],
        [
            {"ResizeImage": {"size": [192, 48], "keep_ratio": True}},
            NORMALIZE,
            {"PadImage": {"size": [192, 48], "value": 0.5}},
            {"ToCHWImage": None},
        ],
        [
            {"DetNormalizeImage": {"is_scale": True}},
            {"DetResize": {"target_size": [64, 96], "keep_ratio": False}},
        ],
    ],
)
def test_a_chain_gives_the_same_tensor(images: ModuleType, ops: list[dict[str, Any]]) -> None:
    pixels = decode((GOLDEN / "images" / "photo.jpg").read_bytes())
    read = json.loads(json.dumps(steps(ops)))  # as service.json keeps them
    found = images.build_chain(read)(pixels)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    assert np.abs(found - preprocess.build(ops)(pixels)).max() < 1e-4


def test_a_request_without_an_image_is_told(images: ModuleType) -> None:
    with pytest.raises(ValueError, match="no image"):
        images.decode_all({"pipeline.profile": "1"})
    with pytest.raises(ValueError, match="known format"):
        images.decode_all({"image": "aGVsbG8="})
    with pytest.raises(ValueError, match="tensor"):
        images.decode_all({"image": np.zeros(3)})


def test_an_image_too_small_for_the_crop_is_told(images: ModuleType) -> None:
    chain = images.build_chain(steps([{"CropImage": {"size": 64}}]))
    with pytest.raises(ValueError, match="too small"):
        chain(np.zeros((32, 32, 3), np.uint8))

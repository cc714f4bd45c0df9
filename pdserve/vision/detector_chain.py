"""Preprocess images for detectors: the chain of operators that PaddleDetection writes as ``Preprocess``.

A list of mappings, ``[{"type": "Resize", "target_size": [640, 640], …}, {"type": "NormalizeImage", …},
{"type": "Permute"}]``, run in its order: an image that is resized before it is normalised is resized in
bytes, and rounded to them. The arithmetic is that of PaddleX 3.7.2's detectors (its
``inference/models/object_detection``), where PaddleDetection's own reader differs:

- ``Resize`` with ``keep_ratio`` rounds height and width to whole pixels, and the scale factors are those of
  the rounded size; PaddleDetection's are those from before.
- Filling (``Pad``, ``PadStride``) and ``WarpAffine`` change neither ``im_shape`` nor ``scale_factor``.

``norm_type: none`` is PaddleDetection's: no mean and no standard deviation. (PaddleX takes it for
``mean_std``; exported models have 0 and 1 there, so that it makes no difference.)
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pdserve.errors import ImageError, SettingsError
from pdserve.vision.decode import MAX_PIXELS
from pdserve.vision.preprocess import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Normalize,
    channels,
    check_length,
    checked_parameters,
    flag,
    pair,
    whole_number,
)
from pdserve.vision.resize import opencv, resizer
from pdserve.vision.types import Array, Floats, Image8, Tensor

Size = tuple[int, int]
"""Height and width in pixels."""

MAX_FREE_PIXELS = 16_000_000
"""Of the tensor of an image that is not resized: its layers take some hundred bytes for each pixel."""


@dataclass(frozen=True)
class DetectorInput:
    """What an image becomes: ``image`` (3, H, W), ``im_shape`` and ``scale_factor`` (2,), all float32.

    ``im_shape``: height and width as resized, without what was filled; ``scale_factor``: these over the
    image's own.
    """

    image: Tensor
    im_shape: Floats
    scale_factor: Floats


@dataclass(frozen=True)
class Step:
    """An operator: ``apply`` on an H×W×3 image, ``size`` on its height and width.

    ``fixed``: the size that it makes of any. ``resizes``: whether boxes are scaled back from that size.
    """

    apply: Callable[[Array], Array]
    size: Callable[[Size], Size] = lambda size: size
    fixed: Size | None = None
    resizes: bool = False


@dataclass(frozen=True)
class DetectorChain:
    """A compiled chain, called with an H×W×3 uint8 RGB image. ``size``: of every tensor, None if it varies.

    ``ops``: as they are written.
    """

    ops: tuple[Mapping[str, Any], ...]
    steps: tuple[Step, ...]
    size: Size | None

    def __call__(self, image: Image8) -> DetectorInput:
        """Raises ImageError for an image that would become too large."""
        shape, scale = self.geometry(image.shape[:2])  # before any memory is taken
        made: Array = image
        for step in self.steps:
            made = step.apply(made)
        # A normalised image is a view of its planes, so that this copies nothing.
        tensor = np.ascontiguousarray(np.moveaxis(made, 2, 0), np.float32)
        return DetectorInput(tensor, np.array(shape, np.float32), np.array(scale, np.float32))

    def geometry(self, image: tuple[int, ...]) -> tuple[Size, tuple[float, float]]:
        """An image's height and width -> those it is resized to, and their ratio to its own.

        Raises ImageError.
        """
        height, width = image
        size = shape = (height, width)
        for step in self.steps:
            size = step.size(size)
            if size[0] * size[1] > MAX_PIXELS:
                raise _too_large((height, width), size, MAX_PIXELS)
            if step.resizes:
                shape = size
        if self.size is None and size[0] * size[1] > MAX_FREE_PIXELS:
            raise _too_large((height, width), size, MAX_FREE_PIXELS)
        return shape, (shape[0] / height, shape[1] / width)


def _too_large(image: Size, size: Size, limit: int) -> ImageError:
    return ImageError(
        f"The image is {image[1]}×{image[0]}; for this detector it would become {size[1]}×{size[0]}, "
        f"more than {limit} pixels."
    )


def build(ops: Sequence[Mapping[str, Any]]) -> DetectorChain:
    """Compile a chain. Raises SettingsError that names an unknown operator or a wrong parameter."""
    steps: list[Step] = []
    size: Size | None = None
    permuted = floating = False
    check_length(ops)
    for op in ops:
        kind, params = op.get("type"), {key: value for key, value in op.items() if key != "type"}
        if not isinstance(kind, str) or kind not in _OPERATORS:
            known = ", ".join(_OPERATORS)
            raise SettingsError(f"The detector's operator {kind!r} is unknown; known are {known}.")
        if permuted and kind != "PadStride":
            raise SettingsError(f"{kind} comes after Permute; it works on height, width, channels.")
        make, names = _OPERATORS[kind]
        step = make(checked_parameters(kind, params, names), floating)
        try:
            size = step.size(size) if size else step.fixed
        except ImageError as error:  # of every image: what it is filled up to is smaller than it is by then
            raise SettingsError(error.message.replace("The image is", "The image would be")) from error
        steps.append(step)
        permuted |= kind == "Permute"
        floating |= kind in ("NormalizeImage", "Pad")
    return DetectorChain(tuple(ops), tuple(steps), size)


def _resize(params: dict[str, Any], floating: bool) -> Step:
    high, wide = pair("Resize.target_size", params.get("target_size"))
    resize = resizer(params.get("interp", 1), "cv2", floating)
    if not flag("Resize.keep_ratio", params.get("keep_ratio", False)):
        return Step(lambda image: resize(image, wide, high), lambda size: (high, wide), (high, wide), True)
    long, short = max(high, wide), min(high, wide)

    def within(size: Size) -> Size:
        scale = min(long / max(size), short / min(size))
        return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))

    def keeping(image: Array) -> Array:
        height, width = within(image.shape[:2])
        return resize(image, width, height)

    return Step(keeping, within, resizes=True)


def _normalize(params: dict[str, Any], floating: bool) -> Step:
    kind = params.get("norm_type", "mean_std")
    if kind not in ("mean_std", "none", None):
        raise SettingsError(f"NormalizeImage.norm_type is {kind!r}; use mean_std or none.")
    mean = channels(params.get("mean"), IMAGENET_MEAN, "NormalizeImage.mean")
    std = channels(params.get("std"), IMAGENET_STD, "NormalizeImage.std")
    if not all(std):
        raise SettingsError("NormalizeImage.std has a zero; the image would be divided by it.")
    if kind == "none":
        mean, std = [0.0] * 3, [1.0] * 3
    scale = 1 / 255 if flag("NormalizeImage.is_scale", params.get("is_scale", True)) else 1.0
    with np.errstate(over="ignore"):
        normalize = Normalize.by(scale, mean, std)
    if not (np.isfinite(normalize.factors).all() and np.isfinite(normalize.offsets).all()):
        raise SettingsError("NormalizeImage has a mean or std that float32 cannot hold.")
    return Step(lambda image: np.moveaxis(normalize(image), 0, 2))


def _pad(params: dict[str, Any], floating: bool) -> Step:
    high, wide = pair("Pad.size", params.get("size"))
    value = params.get("fill_value")
    filling = channels(
        [value] * 3 if isinstance(value, (int, float)) else value, (127.5,) * 3, "Pad.fill_value"
    )

    def filled(size: Size) -> Size:
        if size[0] > high or size[1] > wide:
            raise ImageError(f"The image is {size[1]}×{size[0]}, too large to be padded to {wide}×{high}.")
        return high, wide

    return Step(lambda image: _filled(image, (high, wide), filling), filled, (high, wide))


def _pad_stride(params: dict[str, Any], floating: bool) -> Step:
    """Fill with zeros up to whole strides; a stride of 0 fills nothing."""
    if params.get("stride", 32) == 0:
        return Step(lambda image: image)
    stride = whole_number("PadStride.stride", params.get("stride", 32))

    def up(size: Size) -> Size:
        return math.ceil(size[0] / stride) * stride, math.ceil(size[1] / stride) * stride

    return Step(lambda image: _filled(image, up(image.shape[:2]), (0, 0, 0)), up)


def _filled(image: Array, size: Size, values: Sequence[float]) -> Array:
    """The image at the top left of a larger one, float32, of a colour; itself where it has that size."""
    if image.shape[:2] == size:
        return image
    planes = np.empty((3, *size), np.float32)
    planes[:] = np.array(values, np.float32)[:, None, None]
    planes[:, : image.shape[0], : image.shape[1]] = np.moveaxis(image, 2, 0)
    return np.moveaxis(planes, 0, 2)


def _warp_affine(params: dict[str, Any], floating: bool) -> Step:
    """CenterNet's: blue first, and moved to the middle of a larger image; or scaled to a given one.

    ``keep_res``: height and width go up to the next multiple of ``pad`` + 1, at least by one. Else the image
    is scaled so that its longer side fills the width, whatever the height.
    """
    keep = flag("WarpAffine.keep_res", params.get("keep_res", True))
    given = tuple(whole_number(f"WarpAffine.{key}", params.get(key, 512)) for key in ("input_h", "input_w"))
    filling = whole_number("WarpAffine.pad", params.get("pad", 31))

    def target(size: Size) -> Size:
        return ((size[0] | filling) + 1, (size[1] | filling) + 1) if keep else (given[0], given[1])

    def warp(image: Array) -> Array:
        height, width = image.shape[:2]
        high, wide = target((height, width))
        scale = 1.0 if keep else wide / max(height, width)
        x, y = (width // 2, height // 2) if keep else (width / 2, height / 2)
        matrix = np.array([[scale, 0, wide / 2 - scale * x], [0, scale, high / 2 - scale * y]])
        cv2 = opencv()
        moved: Array = cv2.warpAffine(cv2.cvtColor(image, cv2.COLOR_RGB2BGR), matrix, (wide, high))
        return moved

    return Step(warp, target, None if keep else (given[0], given[1]))


def _permute(params: dict[str, Any], floating: bool) -> Step:
    """To 3×H×W, which is done at the end."""
    return Step(lambda image: image)


_OPERATORS: Mapping[str, tuple[Callable[[dict[str, Any], bool], Step], tuple[str, ...]]] = {
    "Resize": (_resize, ("target_size", "keep_ratio", "interp")),
    "NormalizeImage": (_normalize, ("mean", "std", "is_scale", "norm_type")),
    "Pad": (_pad, ("size", "fill_value")),
    "PadStride": (_pad_stride, ("stride",)),
    "WarpAffine": (_warp_affine, ("keep_res", "input_h", "input_w", "pad")),
    "Permute": (_permute, ()),
}

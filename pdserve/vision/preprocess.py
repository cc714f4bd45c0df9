"""Preprocess images: the chain of operators that turns an RGB image into a model's input.

A chain is written as PaddleClas writes ``PreProcess.transform_ops`` in ``inference.yml``: a list of
one-key mappings, ``[{"ResizeImage": {"resize_short": 256}}, {"CropImage": {"size": 224}}, …]``.
The arithmetic follows that format's published behaviour.

Two things are ours, for text lines, after PaddleOCR's reader of them: ``ResizeImage.keep_ratio`` (to
the height of ``size``, no wider than its width) and ``PadImage`` (fill up to ``size`` at the right and
below). Every ``size`` is a number or [width, height]. The ``Det…`` operators of PaddleClas's detectors
are read as what they do: they take [height, width] and OpenCV's number of an interpolation.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from pdserve.errors import ImageError, SettingsError
from pdserve.vision.decode import MAX_PIXELS
from pdserve.vision.resize import opencv, resizer
from pdserve.vision.types import Array, Floats, Tensor

TransformOps = Sequence[Mapping[str, Any]]
Step = Callable[[Array], Array]
Sizing = tuple[Step, tuple[int, int] | None]  # a step, and the (height, width) that it makes
_Sized = tuple[str, int | None, tuple[int, int] | None]  # an operator, its resize_short, what it makes

MAX_OPERATORS = 32

MAX_RESIZED = 16_777_216
"""Pixels of an image whose short side was resized: more come only of one that is far longer than wide."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# return_numpy and to_np choose between kinds of object, DecodeImage's backend between decoders of the same
# files, order says where the channels are, which is known here: they change nothing.
_PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "DecodeImage": ("to_rgb", "to_np", "channel_first", "backend"),
    "ResizeImage": ("size", "resize_short", "interpolation", "backend", "keep_ratio", "return_numpy"),
    "CropImage": ("size",),
    "PadImage": ("size", "value"),
    "NormalizeImage": ("scale", "mean", "std", "order", "output_fp16", "channel_num"),
    "ToCHWImage": (),
    "DetResize": ("target_size", "keep_ratio", "interp"),
    "DetNormalizeImage": ("mean", "std", "is_scale"),
    "DetPermute": (),
}
_ONLY = {
    "DecodeImage.channel_first": False,
    "NormalizeImage.output_fp16": False,
    "NormalizeImage.channel_num": 3,
}


@dataclass(frozen=True)
class Normalize:
    """(x·scale − mean) / std, as x·(scale / std) + (−mean / std) in float32, for three channels.

    On whole pixels the same takes ten times as long, most of it for factors that come three at a time and
    for moving the channels apart afterwards.
    """

    factors: Floats
    offsets: Floats

    @classmethod
    def by(cls, scale: float, mean: Sequence[float], std: Sequence[float]) -> "Normalize":
        """From a factor for all channels, and a mean and a standard deviation for each."""
        spread = np.array(std, np.float64)
        return cls(
            (scale / spread).astype(np.float32), (-np.array(mean, np.float64) / spread).astype(np.float32)
        )

    def __call__(self, image: Array) -> Tensor:
        """H×W×3, uint8 or float32 -> 3×H×W float32, C-contiguous."""
        out = np.empty((3, *image.shape[:2]), np.float32)
        self.planes(opencv().split(image) if image.dtype == np.uint8 else _planes_of(image), out)
        return out

    def planes(self, planes: Iterable[Array], out: Tensor) -> None:
        """Three planes H×W into ``out``, 3×H×W float32, which may be the planes themselves."""
        for plane, made, factor, offset in zip(planes, out, self.factors, self.offsets, strict=True):
            np.multiply(plane, factor, out=made, dtype=np.float32)
            np.add(made, offset, out=made)


@dataclass(frozen=True)
class Chain:
    """A compiled chain. Calling it maps H×W×3 uint8 RGB to the model's 3×H×W float32, C-contiguous.

    ``size`` is the (height, width) that comes out, None where it depends on the image.
    """

    ops: tuple[Mapping[str, Any], ...]
    steps: tuple[Step, ...]
    finish: Callable[[Array], Tensor]
    size: tuple[int, int] | None

    def __call__(self, image: Array) -> Tensor:
        for step in self.steps:
            image = step(image)
        return self.finish(image)


def build(ops: TransformOps) -> Chain:
    """Compile a chain. Raises SettingsError that names an unknown operator or a wrong parameter."""
    steps: list[Step] = []
    normalize: Normalize | None = None  # one that nothing came after yet: it may make the tensor
    size: tuple[int, int] | None = None
    before: _Sized | None = None
    chw = floating = False
    if not isinstance(ops, (list, tuple)):
        raise SettingsError(f"The preprocessing is {ops!r}; it must be a list of operators.")
    check_length(ops)
    for op in ops:
        name, params = parse_operator(op)
        if chw and name != "NormalizeImage":
            raise SettingsError(f"{name} comes after ToCHWImage; it works on height, width, channels.")
        if normalize and name != "ToCHWImage":
            steps.append(_as_step(normalize))
            normalize = None
        match name:
            case "DecodeImage":
                # Decoding comes before the chain and gives RGB; a chain may ask for BGR.
                if not flag("DecodeImage.to_rgb", params.get("to_rgb", True)):
                    steps.append(_reverse_channels)
            case "ResizeImage" | "CropImage" | "PadImage":
                step, made = _SIZING[name](params, floating)
                if made:
                    _check_fit(name, made, before)
                size, before = made, (name, params.get("resize_short"), made)
                steps.append(step)
                floating |= name == "PadImage"
            case "NormalizeImage":
                normalize = _normalize(params)  # by channel, so before ToCHWImage is as good as after
                floating = True
            case "ToCHWImage":
                chw = True
    return Chain(tuple(ops), tuple(steps), normalize or _to_tensor, size)


def _check_fit(name: str, size: tuple[int, int], before: _Sized | None) -> None:
    """Raise SettingsError for a crop, or a filling, to a size that no image fits after the step before.

    After ``resize_short``, the shorter side of every image is that, the other one may be anything.
    """
    if before is None or name == "ResizeImage":
        return
    former, short, made = before
    if short is None:
        made = made or size  # any, where it depends on the image
        small, large = (size, made) if name == "CropImage" else (made, size)
        fits, given = small[0] <= large[0] and small[1] <= large[1], f"{made[1]}×{made[0]}"
    else:
        fits = min(size) <= short if name == "CropImage" else min(size) >= short
        given = f"a short side of {short}"
    if not fits:
        change = (
            "crop less, or resize to more" if name == "CropImage" else "fill up to more, or resize to less"
        )
        words = f"{name} to {size[1]}×{size[0]} fits no image after {former} to {given}"
        raise SettingsError(f"{words}; {change}.")


def check_length(ops: Sequence[Any]) -> None:
    """Raise SettingsError for a chain of more operators than any model has: each runs on every image."""
    if len(ops) > MAX_OPERATORS:
        raise SettingsError(f"The preprocessing has {len(ops)} operators, more than {MAX_OPERATORS}.")


def parse_operator(op: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name and the parameters of a step, both checked; a detector's operators become a classifier's.

    Raises SettingsError.
    """
    if not isinstance(op, Mapping) or len(op) != 1:
        raise SettingsError(f"A preprocessing step is one operator and its parameters, not {op!r}.")
    name, params = next(iter(op.items()))
    known = _PARAMETERS.get(name)
    if known is None:
        raise SettingsError(
            f"The preprocessing operator {name!r} is unknown; known are {', '.join(_PARAMETERS)}."
        )
    params = checked_parameters(name, params, known)
    for key, value in params.items():
        only = _ONLY.get(f"{name}.{key}", value)
        if value != only:
            raise SettingsError(f"{name}.{key} is {value!r}; only {only!r} is supported.")
    match name:
        case "DetResize":
            if flag("DetResize.keep_ratio", params.get("keep_ratio", True)):
                raise SettingsError("DetResize.keep_ratio is True; only False is supported.")
            high, wide = pair("DetResize.target_size", params.get("target_size"))
            return "ResizeImage", {"size": [wide, high], "interpolation": params.get("interp", 1)}
        case "DetNormalizeImage":
            scaled = flag("DetNormalizeImage.is_scale", params.pop("is_scale", True))
            return "NormalizeImage", params | {"scale": 1 / 255 if scaled else 1.0}
        case "DetPermute":
            return "ToCHWImage", {}
    return name, params


def checked_parameters(name: str, params: object, known: Sequence[str]) -> dict[str, Any]:
    """An operator's parameters. Raises SettingsError for one it does not have."""
    if params is not None and not isinstance(params, Mapping):
        raise SettingsError(f"The parameters of {name} are {params!r}; they must be a mapping.")
    for key in params or ():
        if key not in known:
            raise SettingsError(f"{name} has no parameter {key!r}; it has {', '.join(known) or 'none'}.")
    return dict(params or {})


def flag(name: str, value: object) -> bool:
    """True or false. Raises SettingsError for anything else."""
    if not isinstance(value, bool):
        raise SettingsError(f"{name} is {value!r}; it must be true or false.")
    return value


def whole_number(name: str, value: object) -> int:
    """A whole number above 0. Raises SettingsError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SettingsError(f"{name} is {value!r}; it must be a whole number above 0.")
    return value


def pair(name: str, value: object) -> tuple[int, int]:
    """One number for both, or two. Raises SettingsError for more than an image may have, too."""
    sides = value if isinstance(value, (list, tuple)) and len(value) == 2 else (value, value)
    first, second = whole_number(name, sides[0]), whole_number(name, sides[1])
    if first * second > MAX_PIXELS:
        raise SettingsError(f"{name} is {value!r}, more than {MAX_PIXELS} pixels.")
    return first, second


def _resize(params: dict[str, Any], floating: bool) -> Sizing:
    """``floating``: whether the image is float32 by now, and bytes no longer."""
    resize = resizer(params.get("interpolation"), params.get("backend", "cv2"), floating)
    keep_ratio = flag("ResizeImage.keep_ratio", params.get("keep_ratio", False))
    short = params.get("resize_short")
    if short is not None:
        short = whole_number("ResizeImage.resize_short", short)
        if keep_ratio:
            raise SettingsError("ResizeImage.keep_ratio goes with size; resize_short keeps the ratio anyway.")
        if short * short > MAX_RESIZED:
            raise SettingsError(
                f"ResizeImage.resize_short is {short}; of a square image that makes more than {MAX_RESIZED} "
                "pixels."
            )

        def by_short_side(image: Array) -> Array:
            height, width = image.shape[:2]
            ratio = short / min(height, width)
            wide, high = round(width * ratio), round(height * ratio)
            if wide * high > max(MAX_RESIZED, width * height):
                raise ImageError(
                    f"The image is {width}×{height}; with its short side resized to {short} it would be "
                    f"{wide}×{high}, more than {MAX_RESIZED} pixels."
                )
            return resize(image, wide, high)

        return by_short_side, None
    if params.get("size") is None:
        raise SettingsError("ResizeImage needs size or resize_short.")
    wide, high = pair("ResizeImage.size", params["size"])
    if keep_ratio:

        def within(image: Array) -> Array:
            height, width = image.shape[:2]
            return resize(image, min(wide, math.ceil(high * (width / height))), high)

        return within, None
    return (lambda image: resize(image, wide, high)), (high, wide)


def _crop(params: dict[str, Any], floating: bool) -> Sizing:
    wide, high = pair("CropImage.size", params.get("size"))

    def centre(image: Array) -> Array:
        height, width = image.shape[:2]
        if height < high or width < wide:
            raise ImageError(f"The image is {width}×{height}, too small for a crop of {wide}×{high}.")
        top, left = (height - high) // 2, (width - wide) // 2
        return image[top : top + high, left : left + wide]

    return centre, (high, wide)


def _pad(params: dict[str, Any], floating: bool) -> Sizing:
    """Fill up to size [width, height] at the right and below: text line models take them so."""
    wide, high = pair("PadImage.size", params.get("size"))
    value = number(params.get("value", 0), "PadImage.value")

    def pad(image: Array) -> Array:
        height, width = image.shape[:2]
        if height > high or width > wide:
            raise ImageError(f"The image is {width}×{height}, too large to be padded to {wide}×{high}.")
        filled = np.full((3, high, wide), value, np.float32)
        filled[:, :height, :width] = _planes_of(image)
        return _pixels_of(filled)

    return pad, (high, wide)


_SIZING = {"ResizeImage": _resize, "CropImage": _crop, "PadImage": _pad}


def number(value: object, name: str) -> float:
    """A number, or a quotient in a string as PaddleClas writes a scale, ``"1.0/255.0"``."""
    with suppress(ValueError, ZeroDivisionError):
        top, slash, bottom = str(value).partition("/")
        out = float(top) / (float(bottom) if slash else 1)
        if math.isfinite(out):
            return out
    raise SettingsError(f"{name} is {value!r}; it must be a number, or two with a / between.")


def _normalize(params: dict[str, Any]) -> Normalize:
    if str(params.get("order") or "hwc").lower() not in ("chw", "hwc"):
        raise SettingsError(f"NormalizeImage.order is {params['order']!r}; use chw or hwc.")
    scale = number(1 / 255 if params.get("scale") is None else params["scale"], "NormalizeImage.scale")
    if not scale:
        raise SettingsError("NormalizeImage.scale is 0; all images would be the same.")
    mean = channels(params.get("mean"), IMAGENET_MEAN, "NormalizeImage.mean")
    std = channels(params.get("std"), IMAGENET_STD, "NormalizeImage.std")
    if not all(std):
        raise SettingsError("NormalizeImage.std has a zero; the image would be divided by it.")
    with np.errstate(over="ignore"):
        normalize = Normalize.by(scale, mean, std)
    if not (np.isfinite(normalize.factors).all() and np.isfinite(normalize.offsets).all()):
        raise SettingsError("NormalizeImage has a scale, mean or std that float32 cannot hold.")
    return normalize


def channels(given: object, default: Sequence[float], name: str) -> list[float]:
    """Three numbers, one for each channel. Raises SettingsError."""
    values = default if given is None else given
    if not isinstance(values, (list, tuple)) or len(values) != 3:
        raise SettingsError(f"{name} is {given!r}; it must be three numbers.")
    return [number(v, name) for v in values]


def _as_step(normalize: Normalize) -> Step:
    return lambda image: _pixels_of(normalize(image))


def _reverse_channels(image: Array) -> Array:
    out: Array = opencv().cvtColor(image, opencv().COLOR_RGB2BGR)
    return out


def _to_tensor(image: Array) -> Tensor:
    return np.ascontiguousarray(_planes_of(image), np.float32)


def _planes_of(image: Array) -> Array:
    """H×W×3 -> 3×H×W, a view."""
    return np.moveaxis(image, 2, 0)


def _pixels_of(planes: Array) -> Array:
    """3×H×W -> H×W×3, a view: further steps by channel run fast on it."""
    return np.moveaxis(planes, 0, 2)

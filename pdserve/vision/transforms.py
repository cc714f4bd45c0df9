"""Preprocessing: the chain of operators that turns an RGB image into a model's input.

A chain is written as PaddleClas writes ``PreProcess.transform_ops`` in ``inference.yml``: a list of
one-key mappings, ``[{"ResizeImage": {"resize_short": 256}}, {"CropImage": {"size": 224}}, …]``.
The arithmetic follows that format's published behaviour; OpenCV and Pillow resize differently
(Pillow's bilinear and bicubic average over the area when shrinking), so the back end is part of it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pdserve.errors import ImageError, SettingsError

Array = npt.NDArray[Any]
TransformOps = Sequence[Mapping[str, Any]]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INTERPOLATIONS = {
    "cv2": ("nearest", "bilinear", "area", "bicubic", "lanczos"),
    "pil": ("nearest", "bilinear", "bicubic", "box", "lanczos", "hamming"),
}


@dataclass(frozen=True)
class Chain:
    """A compiled chain. Calling it maps H×W×3 uint8 RGB to the model's C×H×W float32, C-contiguous.

    ``size`` is the (height, width) that comes out, None where it depends on the image.
    """

    ops: tuple[Mapping[str, Any], ...]
    steps: tuple[Callable[[Array], Array], ...]
    size: tuple[int, int] | None

    def __call__(self, image: Array) -> npt.NDArray[np.float32]:
        for step in self.steps:
            image = step(image)
        return np.ascontiguousarray(image, dtype=np.float32)


def build(ops: TransformOps) -> Chain:
    """Compile a chain. Raises SettingsError that names an unknown operator or a wrong parameter."""
    steps: list[Callable[[Array], Array]] = []
    size: tuple[int, int] | None = None
    chw = False
    for op in ops:
        name, params = _named(op)
        match name:
            case "DecodeImage":
                # Decoding comes before the chain and gives RGB; a chain may ask for BGR.
                if params.get("to_rgb", True) is False:
                    steps.append(_reverse_channels)
            case "ResizeImage":
                step, size = _resize(params)
                steps.append(step)
            case "CropImage":
                step, size = _crop(params)
                steps.append(step)
            case "PadImage":
                step, size = _pad(params)
                steps.append(step)
            case "NormalizeImage":
                steps.append(_normalize(params, chw))
            case "ToCHWImage":
                steps.append(_to_chw)
                chw = True
            case _:
                raise SettingsError(
                    f"The preprocessing operator {name!r} is unknown; known are DecodeImage, ResizeImage, "
                    "CropImage, PadImage, NormalizeImage and ToCHWImage."
                )
    if not chw:
        steps.append(_to_chw)
    return Chain(tuple(ops), tuple(steps), size)


def _named(op: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if not isinstance(op, Mapping) or len(op) != 1:
        raise SettingsError(f"A preprocessing step is one operator and its parameters, not {op!r}.")
    name, params = next(iter(op.items()))
    if params is not None and not isinstance(params, Mapping):
        raise SettingsError(f"The parameters of {name} are {params!r}; they must be a mapping.")
    return name, dict(params or {})


def _whole(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SettingsError(f"{name} is {value!r}; it must be a whole number above 0.")
    return value


def _pair(name: str, value: object) -> tuple[int, int]:
    """One number for both, or two."""
    if isinstance(value, (list, tuple)) and len(value) == 2:
        return _whole(name, value[0]), _whole(name, value[1])
    side = _whole(name, value)
    return side, side


def _resize(params: dict[str, Any]) -> tuple[Callable[[Array], Array], tuple[int, int] | None]:
    resize = _resizer(params.get("interpolation"), params.get("backend", "cv2"))
    short = params.get("resize_short")
    if short is not None:
        short = _whole("ResizeImage.resize_short", short)

        def by_short_side(image: Array) -> Array:
            height, width = image.shape[:2]
            ratio = short / min(height, width)
            return resize(image, round(width * ratio), round(height * ratio))

        return by_short_side, None
    if params.get("size") is None:
        raise SettingsError("ResizeImage needs size or resize_short.")
    wide, high = _pair("ResizeImage.size", params["size"])
    if params.get("keep_ratio"):

        def within(image: Array) -> Array:
            height, width = image.shape[:2]
            return resize(image, min(wide, max(1, int(np.ceil(width * high / height)))), high)

        return within, None
    return (lambda image: resize(image, wide, high)), (high, wide)


def _resizer(interpolation: object, backend: object) -> Callable[[Array, int, int], Array]:
    """A function (image, width, height) -> image, of one library and one interpolation."""
    back_end = str(backend).lower()
    known = INTERPOLATIONS.get(back_end)
    if known is None:
        raise SettingsError(f"The resize backend {backend!r} is unknown; use cv2 or pil.")
    name = "bilinear" if interpolation is None else interpolation
    if isinstance(name, int) and not isinstance(name, bool):  # OpenCV's own numbers, as detectors write them
        name = dict(enumerate(("nearest", "bilinear", "bicubic", "area", "lanczos"))).get(name, name)
    name = str(name).lower()
    if name not in known:
        raise SettingsError(
            f"The interpolation {interpolation!r} is unknown to {back_end}; use one of {', '.join(known)}."
        )
    return _pil_resizer(name) if back_end == "pil" else _cv2_resizer(name)


def _cv2_resizer(name: str) -> Callable[[Array, int, int], Array]:
    import cv2

    flag = {
        "nearest": cv2.INTER_NEAREST,
        "bilinear": cv2.INTER_LINEAR,
        "area": cv2.INTER_AREA,
        "bicubic": cv2.INTER_CUBIC,
        "lanczos": cv2.INTER_LANCZOS4,
    }[name]

    def resize(image: Array, width: int, height: int) -> Array:
        out: Array = cv2.resize(image, (width, height), interpolation=flag)
        return out

    return resize


def _pil_resizer(name: str) -> Callable[[Array, int, int], Array]:
    from PIL import Image

    resample = Image.Resampling[name.upper()]

    def resize(image: Array, width: int, height: int) -> Array:
        return np.asarray(Image.fromarray(image).resize((width, height), resample))

    return resize


def _crop(params: dict[str, Any]) -> tuple[Callable[[Array], Array], tuple[int, int]]:
    wide, high = _pair("CropImage.size", params.get("size"))

    def centre(image: Array) -> Array:
        height, width = image.shape[:2]
        if height < high or width < wide:
            raise ImageError(f"The image is {width}×{height}, too small for a crop of {wide}×{high}.")
        top, left = (height - high) // 2, (width - wide) // 2
        return image[top : top + high, left : left + wide]

    return centre, (high, wide)


def _pad(params: dict[str, Any]) -> tuple[Callable[[Array], Array], tuple[int, int]]:
    """Fill up to size [width, height] at the right and below: text line models take them so."""
    wide, high = _pair("PadImage.size", params.get("size"))
    value = float(params.get("value", 0))

    def pad(image: Array) -> Array:
        height, width = image.shape[:2]
        return np.pad(image, ((0, high - height), (0, wide - width), (0, 0)), constant_values=value)

    return pad, (high, wide)


def number(value: object, name: str) -> float:
    """A number, or a quotient in a string as PaddleClas writes a scale, ``"1.0/255.0"``."""
    try:
        if isinstance(value, str):
            top, _, bottom = value.partition("/")
            return float(top) / float(bottom or 1)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    except (ValueError, ZeroDivisionError):
        pass
    raise SettingsError(f"{name} is {value!r}; it must be a number, or two with a / between.")


def _normalize(params: dict[str, Any], chw: bool) -> Callable[[Array], Array]:
    """(x·scale − mean) / std per channel, as one multiplication and one addition in float32."""
    if params.get("channel_num", 3) != 3:
        raise SettingsError(f"NormalizeImage.channel_num is {params['channel_num']!r}; only 3 is supported.")
    scale = number(1 / 255 if params.get("scale") is None else params["scale"], "NormalizeImage.scale")
    mean = _channels(params.get("mean"), IMAGENET_MEAN, "NormalizeImage.mean")
    std = _channels(params.get("std"), IMAGENET_STD, "NormalizeImage.std")
    if not std.all():
        raise SettingsError("NormalizeImage.std has a zero; the image would be divided by it.")
    shape = (3, 1, 1) if chw else (1, 1, 3)
    factor = (scale / std).astype(np.float32).reshape(shape)
    offset = (-mean / std).astype(np.float32).reshape(shape)

    def normalize(image: Array) -> Array:
        out = image.astype(np.float32)
        out *= factor
        out += offset
        return out

    return normalize


def _channels(given: object, default: Sequence[float], name: str) -> npt.NDArray[np.float64]:
    values = default if given is None else given
    if not isinstance(values, (list, tuple)) or len(values) != 3:
        raise SettingsError(f"{name} is {given!r}; it must be three numbers.")
    return np.array([number(v, name) for v in values], np.float64)


def _reverse_channels(image: Array) -> Array:
    return np.ascontiguousarray(image[:, :, ::-1])


def _to_chw(image: Array) -> Array:
    return np.moveaxis(image, 2, 0)

"""Image files -> a model's input, as service.json says: the steps of the chain, written as PaddleClas does.

Part of a folder for Paddle Serving, which runs on Python 3.6 to 3.9.
"""

import base64
import math
from typing import Any, Callable, Dict, List, Sequence

import cv2
import numpy as np

PROFILE = "pipeline.profile"  # a key that asks for timings, and is no image

# By each library's own numbers, which a chain may give instead of the name.
INTERPOLATIONS = {
    "cv2": ("nearest", "bilinear", "bicubic", "area", "lanczos"),
    "pil": ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"),
}


def decode_all(values: Dict[str, Any]) -> List[Any]:
    """The images of a request, each the base64 of a file -> H×W×3 uint8, RGB. Raises ValueError."""
    images = [decode(value) for key, value in values.items() if key != PROFILE]
    if not images:
        raise ValueError("The request has no image.")
    return images


def decode(value: Any) -> Any:
    """The base64 of an image file -> H×W×3 uint8, RGB. Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError("A tensor of numbers is no image; send the base64 of an image file.")
    data = np.frombuffer(base64.b64decode(value.encode()), np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if len(data) else None
    if image is None:
        raise ValueError(f"The {len(data)} bytes are no image in a known format.")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def build_chain(steps: Sequence[Dict[str, Dict[str, Any]]]) -> Callable[[Any], Any]:
    """A function H×W×3 RGB -> C×H×W float32, C-contiguous."""
    named = [item for step in steps for item in step.items()]

    def chain(image: Any) -> Any:
        for name, params in named:
            image = STEPS[name](image, **params)
        return np.ascontiguousarray(image.transpose(2, 0, 1), np.float32)

    return chain


def reverse_channels(image: Any) -> Any:
    return image[:, :, ::-1]


def resize(
    image: Any,
    size: Sequence[int] = (),
    resize_short: int = 0,
    keep_ratio: bool = False,
    interpolation: Any = "bilinear",
    backend: str = "cv2",
) -> Any:
    """To ``size`` (width, height), with ``keep_ratio`` to its height; or the short side to a length."""
    height, width = image.shape[:2]
    if resize_short:
        ratio = resize_short / min(height, width)
        wide, high = round(width * ratio), round(height * ratio)
    else:
        wide, high = size
        if keep_ratio:
            wide = min(wide, math.ceil(high * (width / height)))
    number = interpolation if isinstance(interpolation, int) else INTERPOLATIONS[backend].index(interpolation)
    if backend == "pil":
        from PIL import Image

        return np.asarray(Image.fromarray(image).resize((wide, high), number))
    return cv2.resize(np.ascontiguousarray(image), (wide, high), interpolation=number)


def crop(image: Any, size: Sequence[int]) -> Any:
    """The middle, ``size`` (width, height). Raises ValueError for an image that is smaller."""
    (wide, high), (height, width) = size, image.shape[:2]
    if height < high or width < wide:
        raise ValueError(f"The image is {width}×{height}, too small for a crop of {wide}×{high}.")
    top, left = (height - high) // 2, (width - wide) // 2
    return image[top : top + high, left : left + wide]


def pad(image: Any, size: Sequence[int], value: float) -> Any:
    """Filled up to ``size`` (width, height) at the right and below. Raises ValueError for a larger one."""
    (wide, high), (height, width) = size, image.shape[:2]
    if height > high or width > wide:
        raise ValueError(f"The image is {width}×{height}, too large for {wide}×{high}.")
    filled = np.full((high, wide, 3), value, np.float32)
    filled[:height, :width] = image
    return filled


def normalize(image: Any, scale: float, mean: Sequence[float], std: Sequence[float]) -> Any:
    """(x · scale − mean) / std, in float32."""
    return (image.astype(np.float32) * np.float32(scale) - np.array(mean, np.float32)) / np.array(
        std, np.float32
    )


STEPS: Dict[str, Callable[..., Any]] = {
    "ReverseChannels": reverse_channels,
    "ResizeImage": resize,
    "CropImage": crop,
    "PadImage": pad,
    "NormalizeImage": normalize,
}

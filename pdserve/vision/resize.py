"""Resizing, with OpenCV or Pillow.

They differ: Pillow's bilinear and bicubic average over the area when shrinking, OpenCV's do not. So the
library is as much a part of a model's preprocessing as the interpolation.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from pdserve.errors import SettingsError

Array = npt.NDArray[Any]

# By each library's own numbers, which a chain may give instead of the name.
INTERPOLATIONS = {
    "cv2": ("nearest", "bilinear", "bicubic", "area", "lanczos"),
    "pil": ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"),
}


def resizer(interpolation: object, backend: object, floating: bool) -> Callable[[Array, int, int], Array]:
    """A function (H×W×3 image, width, height) -> image, of one library and one interpolation.

    ``interpolation``: a name, the library's number, or None for bilinear. ``floating``: whether the
    images are float32, which Pillow does not resize in three channels. Raises SettingsError.
    """
    back_end = str(backend).lower()
    known = INTERPOLATIONS.get(back_end)
    if known is None:
        raise SettingsError(f"ResizeImage.backend is {backend!r}; use cv2 or pil.")
    if floating and back_end == "pil":
        raise SettingsError("ResizeImage.backend is pil, which resizes bytes; put it before the normalising.")
    name = "bilinear" if interpolation is None else interpolation
    if isinstance(name, int) and not isinstance(name, bool):
        name = dict(enumerate(known)).get(name, name)
    name = str(name).lower()
    if name not in known:
        raise SettingsError(
            f"ResizeImage.interpolation is {interpolation!r}; {back_end} has {', '.join(known)}."
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

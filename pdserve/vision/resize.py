"""Resize images, with OpenCV or Pillow.

They differ: Pillow's bilinear and bicubic average over the area when shrinking, OpenCV's do not. So the
library is as much a part of a model's preprocessing as the interpolation.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np

from pdserve.errors import SettingsError
from pdserve.vision.types import Array, Floats, Image8


@cache
def opencv() -> Any:
    """Import ``cv2``, with its own threads and its messages on standard error turned off.

    Images are processed in parallel already, a thread each. OpenCV's threads would take the engine's
    cores, and after each call they spin until the next one: of a resize of half a millisecond every 4 ms
    that doubles the CPU time. What OpenCV says of a broken image becomes an ImageError. Both settings
    hold for the process; to change them, do so after this was called. In this process it decodes nothing of
    more than `MAX_PIXELS_HERE`, whatever a file says.
    """
    with _environment("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS_HERE)):
        import cv2

    cv2.setNumThreads(1)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2


MAX_PIXELS_HERE = 16_777_216
"""Of an image that is decoded in this process. Larger ones go to `pdserve.vision.decoder`."""


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Set a variable for as long as OpenCV is being loaded, which reads it then; no child is to have it."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


# In pixels. Memory for whole planes is 7 bytes for each, 15 MB: enough for 1920×1080. A thread keeps it, as
# far as that comes to no more than so much in as many threads as there are cores.
_WHOLE = 1 << 21
_KEPT = (192 << 20) // (7 * (os.cpu_count() or 1))
_BAND = 1 << 18

# In the order of each library's own numbers, which a chain may give instead of the name.
INTERPOLATIONS = {
    "cv2": ("nearest", "bilinear", "bicubic", "area", "lanczos"),
    "pil": ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"),
}

# What PaddleX calls some of them, after OpenCV's constants.
_OTHER_NAMES = {"linear": "bilinear", "lanczos4": "lanczos"}


def resizer(interpolation: object, backend: object, floating: bool) -> Callable[[Array, int, int], Array]:
    """A function (H×W×3 image, width, height) -> image, of one library and one interpolation.

    ``interpolation``: a name, the library's number, or None for bilinear. ``floating``: whether the
    images are float32, which Pillow does not resize in three channels. Raises SettingsError.
    """
    back_end = str(backend).lower()
    if floating and back_end == "pil":
        raise SettingsError("ResizeImage.backend is pil, which resizes bytes; put it before the normalising.")
    name = interpolation_name(interpolation, backend)
    number = INTERPOLATIONS[back_end].index(name)
    if back_end == "pil":
        from PIL import Image

        return lambda image, width, height: np.asarray(Image.fromarray(image).resize((width, height), number))
    cv2 = opencv()
    return lambda image, width, height: cv2.resize(image, (width, height), interpolation=number)


def interpolation_name(interpolation: object, backend: object) -> str:
    """The name in `INTERPOLATIONS` of an interpolation, given as there, by its number, or as PaddleX does.

    Raises SettingsError.
    """
    back_end = str(backend).lower()
    known = INTERPOLATIONS.get(back_end)
    if known is None:
        raise SettingsError(f"ResizeImage.backend is {backend!r}; use cv2 or pil.")
    name = "bilinear" if interpolation is None else interpolation
    if isinstance(name, int) and not isinstance(name, bool):
        name = dict(enumerate(known)).get(name, name)
    name = _OTHER_NAMES.get(str(name).lower(), str(name).lower())
    if name not in known:
        raise SettingsError(
            f"ResizeImage.interpolation is {interpolation!r}; {back_end} has {', '.join(known)}."
        )
    return name


def resize_planes(image: Image8, interpolation: str, out: Floats) -> None:
    """H×W×3 uint8 -> ``out``, 3×h×w float32: what OpenCV makes of the image as floats, in planes.

    Resized as bytes it would be rounded to them. The whole image as floats would be twelve bytes a pixel, so
    bilinear interpolation goes plane by plane, in memory that each thread keeps, or by bands of rows. Raises
    SettingsError for an interpolation that OpenCV does not have.
    """
    high, wide = out.shape[1:]
    height, width = image.shape[:2]
    if interpolation != "bilinear":
        small = resizer(interpolation, "cv2", floating=True)(image.astype(np.float32), wide, high)
        out[:] = np.moveaxis(small, 2, 0)
    elif height <= 2 * high and height * width <= _WHOLE:
        _resize_whole(image, out)
    else:
        _resize_by_bands(image, out)


class _Scratch(threading.local):
    """Memory of each thread, written over by its next image: three planes of bytes, one of floats."""

    bytes = np.empty(0, np.uint8)
    floats = np.empty(0, np.float32)


_scratch = _Scratch()


def _resize_whole(image: Image8, out: Floats) -> None:
    cv2 = opencv()
    height, width = image.shape[:2]
    size = height * width
    scratch = _scratch if size <= _KEPT else _Scratch()
    if size > len(scratch.floats):
        scratch.bytes, scratch.floats = np.empty(3 * size, np.uint8), np.empty(size, np.float32)
    planes = scratch.bytes[: 3 * size].reshape(3, height, width)
    floats = scratch.floats[:size].reshape(height, width)
    cv2.split(image, list(planes))
    for plane, made in zip(planes, out, strict=True):
        np.copyto(floats, plane)
        cv2.resize(floats, made.shape[::-1], made)


def _resize_by_bands(image: Image8, out: Floats) -> None:
    """The same for an image that is large, a few rows of ``out`` at a time.

    Each lies between two rows of the image; only these become floats, which are resized in width and then
    brought together.
    """
    cv2 = opencv()
    (high, wide), (height, width) = out.shape[1:], image.shape[:2]
    at = (np.arange(high) + 0.5) * (height / high) - 0.5  # a row's centre, in rows of the image
    above = np.floor(at)
    down = (at - above).astype(np.float32)[:, None]
    rows = np.stack([above, above + 1], axis=1).astype(np.intp)  # may lie just outside: then the outermost
    step = min(high, max(1, _BAND // (2 * width)))
    pairs = np.empty((step, 2, width, 3), np.uint8)
    planes = np.empty((3, 2 * step, width), np.uint8)
    floats = np.empty((2 * step, width), np.float32)
    narrow = np.empty((2 * step, wide), np.float32)
    for top in range(0, high, step):
        band = slice(top, min(top + step, high))
        count = band.stop - top
        np.take(image, rows[band], axis=0, out=pairs[:count], mode="clip")
        some = [plane[: 2 * count] for plane in planes]
        cv2.split(pairs[:count].reshape(2 * count, width, 3), some)
        for plane, made in zip(some, out[:, band], strict=True):
            np.copyto(floats[: 2 * count], plane)
            cv2.resize(floats[: 2 * count], (wide, 2 * count), narrow[: 2 * count])
            upper, lower = narrow[0 : 2 * count : 2], narrow[1 : 2 * count : 2]
            np.subtract(lower, upper, out=made)
            made *= down[band]
            made += upper

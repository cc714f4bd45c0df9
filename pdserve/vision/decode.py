"""Decode image files: bytes of a JPEG, PNG, WebP, … -> RGB array.

The pixels are those of ``cv2.imdecode(data, IMREAD_COLOR)``, as the published Paddle Serving readers
have them: EXIF orientation applied, alpha dropped, 16 bits brought to 8, grey and CMYK to colour.

A plainly ordinary JPEG is decoded at once, in the calling thread: of 8 bits, with all components in its
first scan (so that the rows are decoded one after the other, each once), of at most `PLAIN_PIXELS`. Its cost
is that of its pixels, whatever its bytes are. Everything else is decoded in a process that can be ended
(`pdserve.vision.decoder`).
"""

import numpy as np

from pdserve.vision.header import Buffer, Header
from pdserve.vision.resize import MAX_PIXELS_HERE, opencv
from pdserve.vision.types import Image8

MAX_PIXELS = 64_000_000
PLAIN_PIXELS = MAX_PIXELS_HERE
"""Of an image that is decoded in the calling thread: a seventh of a second, which nothing interrupts."""

_END = b"\xff\xd9"
# What fills a file that was cut: one byte again and again. The decoder would take it for pixels.
_FILL = 16
_ZEROS = bytes(32)
# The grey that libjpeg goes on with where data end too soon: RGB, and what CMYK of it becomes.
_GREYS = ((128, 128, 128), (65, 65, 65))
_NEAR = 3


def decode(data: Buffer, max_pixels: int = MAX_PIXELS) -> Image8:
    """Decode one image file, and wait for it.

    ``data``: the file's bytes: JPEG, PNG, WebP, BMP, GIF (its first picture), TIFF, PPM, JPEG 2000, AVIF,
    as far as the installed OpenCV has them. Returns H×W×3 uint8, RGB, C-contiguous. Raises ImageError for
    what is empty, no image, truncated, broken or takes far too long, and ImageTooLargeError for more than
    ``max_pixels`` pixels.
    """
    from pdserve.vision.decoder import shared

    return shared().decode(data, max_pixels)


def plain(header: Header) -> bool:
    """Whether an image is plainly ordinary: see the module."""
    return bool(header.scan) and header.pixels <= PLAIN_PIXELS


def decode_plain(data: Buffer, header: Header) -> Image8 | None:
    """Decode a plainly ordinary JPEG in this thread; None for what is not, or may be cut or broken.

    Whether that is so a decoder process finds out, which sees libjpeg's warnings. Here such a JPEG shows by
    having no end marker, by a run of one byte before it or of zeros anywhere, by grey in its last corner, or
    by no image at all.
    """
    if not plain(header):
        return None
    end = data.rfind(_END)
    if end < header.scan + _FILL or data[end - _FILL : end] == data[end - 1 : end] * _FILL:
        return None
    if data.find(_ZEROS, header.scan) >= 0:
        return None
    cv2 = opencv()
    try:
        image: Image8 | None = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error:
        return None
    return None if image is None or _may_be_cut(image, header) else image


def _may_be_cut(image: Image8, header: Header) -> bool:
    """Whether a corner has the grey of blocks that were not there.

    It is the last as stored, which EXIF may have turned to any corner.
    """
    height, width = image.shape[0] - 1, image.shape[1] - 1
    for y, x in ((height, width), (0, 0), (0, width), (height, 0)):
        red, green, blue = image[y, x].tolist()
        for grey in _GREYS:
            if abs(red - grey[0]) <= _NEAR and abs(green - grey[1]) <= _NEAR and abs(blue - grey[2]) <= _NEAR:
                return True
    return False

"""Bytes of an image file -> RGB array.

The pixels are those of ``cv2.imdecode(data, IMREAD_COLOR)``, as the published Paddle Serving readers
have them: EXIF orientation applied, alpha dropped, 16 bits brought to 8, grey and CMYK to colour.
OpenCV reads a half file as a half grey picture and takes any size; both are refused here first.
"""

import io
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pdserve.errors import ImageError, ImageTooLargeError

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

Image8 = npt.NDArray[np.uint8]

MAX_PIXELS = 64_000_000


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Image8:
    """Decode one image file.

    ``data``: the file's bytes, in any format that OpenCV and Pillow know. Returns H×W×3 uint8, RGB,
    C-contiguous. Raises ImageError for what is empty, no image, truncated or broken, and
    ImageTooLargeError for more than ``max_pixels`` pixels (read from the header, before decoding).
    """
    import cv2

    if not data:
        raise ImageError("The image is empty (0 bytes).")
    header = _open(data)
    width, height = header.size
    if width * height > max_pixels:
        raise ImageTooLargeError(
            f"The image has {width}×{height} pixels, more than the limit of {max_pixels}; "
            "send a smaller one or raise max_pixels."
        )
    if not _ends_as_it_should(data, header.format):
        _decode_strictly(header)
    try:
        bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise ImageError(f"The {header.format} image cannot be decoded.") from error
    if bgr is None:
        raise ImageError(f"The {header.format} image cannot be decoded.")
    rgb: Image8 = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
    return rgb


def _open(data: bytes) -> "ImageFile":
    from PIL import Image

    # Pillow's own limit warns or raises by a process-wide number; max_pixels takes its place.
    Image.MAX_IMAGE_PIXELS = None
    try:
        return Image.open(io.BytesIO(data))
    except Exception as error:  # Pillow's plugins raise nearly anything on hostile headers
        raise ImageError(f"The {len(data)} bytes are no image in a known format.") from error


def _ends_as_it_should(data: bytes, image_format: str | None) -> bool:
    """Whether the file surely goes to its end: a quick look for the formats that nearly all use."""
    if image_format in ("JPEG", "MPO"):
        return data.rstrip(b"\0").endswith(b"\xff\xd9")
    if image_format == "PNG":
        return data.endswith(b"IEND\xaeB`\x82")
    if image_format == "WEBP":
        return len(data) >= 8 + int.from_bytes(data[4:8], "little")
    return False


def _decode_strictly(image: "ImageFile") -> None:
    """Decode the whole file with Pillow, which, unlike OpenCV, says so when it is cut short."""
    try:
        image.load()
    except Exception as error:
        raise ImageError(f"The {image.format} image is truncated or broken.") from error

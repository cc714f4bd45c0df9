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
# What both libraries read. Of Pillow's other formats OpenCV knows nothing, and opening some of them
# (EPS) would run another program on a stranger's file.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")

_JPEG = b"\xff\xd8\xff"  # start of image, and of the first segment (ITU T.81)


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Image8:
    """Decode one image file.

    ``data``: the file's bytes: JPEG, PNG, WebP, BMP, GIF (its first picture), TIFF, PPM, JPEG 2000, AVIF,
    as far as the installed OpenCV and Pillow have them. Returns H×W×3 uint8, RGB,
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
    if header.format == "PNG":
        _check_chunks(data)
    elif not _ends_as_it_should(data, header.format):
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
    Image.init()
    known = [name for name in _FORMATS if name in Image.OPEN]  # builds of Pillow differ
    try:
        return Image.open(io.BytesIO(data), formats=known)
    except Exception as error:  # Pillow's plugins raise nearly anything on hostile headers
        if data.startswith(_JPEG):  # Pillow 12 does not get past the header of one that is cut there
            raise ImageError("The JPEG image is truncated or broken.") from error
        raise ImageError(f"The {len(data)} bytes are no image in a known format.") from error


def _ends_as_it_should(data: bytes, image_format: str | None) -> bool:
    """Whether the file surely goes to its end: a quick look for the formats that nearly all use."""
    if image_format in ("JPEG", "MPO"):
        scan = _first_scan(data)
        return scan is not None and data.rstrip(b"\0").endswith(b"\xff\xd9", scan)
    if image_format == "WEBP":
        return len(data) >= 8 + int.from_bytes(data[4:8], "little")
    return False


def _check_chunks(data: bytes) -> None:
    """See that each chunk of a PNG is inside the file, up to the last.

    OpenCV takes memory for a chunk, up to 4 GiB, by the length that is written there, before it looks
    for the bytes. Chunks (PNG specification, 5.3) are a length, a name, as many bytes and a checksum.
    """
    at = 8
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end <= len(data) and data[at + 4 : at + 8] == b"IEND":
            return
        at = end
    raise ImageError("The PNG image is truncated or broken.")


def _first_scan(data: bytes) -> int | None:
    """Where a JPEG's first scan begins; None for a file that stops before it.

    A preview in the header ends with the same two bytes as the picture itself, so a file cut behind it
    looks complete from behind. Segments (ITU T.81, B.1.1.4) are a marker and a length that counts itself.
    """
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xDA:
            return at
        # A marker may be preceded by any number of fill bytes, 0xFF.
        at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _decode_strictly(image: "ImageFile") -> None:
    """Decode the whole file with Pillow, which, unlike OpenCV, says so when it is cut short."""
    try:
        image.load()
    except Exception as error:
        raise ImageError(f"The {image.format} image is truncated or broken.") from error

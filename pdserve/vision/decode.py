"""Bytes of an image file -> RGB array.

The pixels are those of ``cv2.imdecode(data, IMREAD_COLOR)``, as the published Paddle Serving readers
have them: EXIF orientation applied, alpha dropped, 16 bits brought to 8, grey and CMYK to colour.
OpenCV reads a half file as a half grey picture and takes any size; both are refused here first.
"""

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from pdserve.errors import ImageError, ImageTooLargeError
from pdserve.vision.opencv import opencv
from pdserve.vision.types import Image8

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile


MAX_PIXELS = 64_000_000
# What both libraries read. Of Pillow's other formats OpenCV knows nothing, and opening some of them
# (EPS) would run another program on a stranger's file.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")

# Of a JPEG (ITU T.81): the start of the image and of the first segment; the markers of a frame (baseline,
# extended, progressive), of a scan; those that may come before a scan, each with a length behind it: tables
# of Huffman codes, arithmetic coding, quantisation, restart interval, applications' own, comments.
_JPEG = b"\xff\xd8\xff"
_FRAMES = (0xC0, 0xC1, 0xC2)
_SCAN = 0xDA
_BEFORE_A_SCAN = frozenset((0xC4, 0xCC, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE))


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Image8:
    """Decode one image file.

    ``data``: the file's bytes: JPEG, PNG, WebP, BMP, GIF (its first picture), TIFF, PPM, JPEG 2000, AVIF,
    as far as the installed OpenCV and Pillow have them. Returns H×W×3 uint8, RGB,
    C-contiguous. Raises ImageError for what is empty, no image, truncated or broken, and
    ImageTooLargeError for more than ``max_pixels`` pixels (read from the header, before decoding).
    """
    if not data:
        raise ImageError("The image is empty (0 bytes).")
    size = _size_of_whole_jpeg(data)
    if size is not None:
        _check_size(size, max_pixels)
        return _pixels(data, "JPEG")
    header = _open(data)
    _check_size(header.size, max_pixels)
    if header.format == "PNG":
        _check_chunks(data)
    elif not _ends_as_it_should(data, header.format):
        _decode_strictly(header)
    return _pixels(data, header.format)


def _pixels(data: bytes, image_format: str | None) -> Image8:
    cv2 = opencv()
    # OpenCV 4.11 and newer make RGB of a JPEG at once, which for a large one saves a tenth of the time.
    rgb = getattr(cv2, "IMREAD_COLOR_RGB", None) if image_format == "JPEG" else None
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR if rgb is None else rgb)
    except cv2.error as error:
        raise ImageError(f"The {image_format} image cannot be decoded.") from error
    if pixels is None:
        raise ImageError(f"The {image_format} image cannot be decoded.")
    image: Image8 = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB) if rgb is None else pixels
    return image


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageTooLargeError(
            f"The image has {width}×{height} pixels, more than the limit of {max_pixels}; "
            "send a smaller one or raise max_pixels."
        )


def _size_of_whole_jpeg(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a JPEG in which nothing is unusual and that goes to its end; else None.

    That is nearly every image, and it spares them Pillow, whose look at a header takes a tenth of the time of
    decoding it. Whatever a decoder could read in another way than this does is left to Pillow.
    """
    if not data.startswith(_JPEG):
        return None
    size = None
    for marker, at in _segments(data):
        if marker == _SCAN:
            return size if data.rstrip(b"\0").endswith(b"\xff\xd9", at) else None
        if marker in _FRAMES and size is None and at + 10 <= len(data):
            precision, components = data[at + 4], data[at + 9]
            size = int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(data[at + 5 : at + 7], "big")
            if precision != 8 or components not in (1, 3, 4) or not all(size):
                return None
        elif marker not in _BEFORE_A_SCAN:
            return None
    return None


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
    looks complete from behind.
    """
    return next((at for marker, at in _segments(data) if marker == _SCAN), None)


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """The markers of a JPEG up to the first scan's, and where each begins.

    Segments (ITU T.81, B.1.1.4) are a marker and a length that counts itself.
    """
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a marker may be preceded by any number of these, to fill
            at += 1
            continue
        yield marker, at
        if marker == _SCAN:
            return
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")


def _decode_strictly(image: "ImageFile") -> None:
    """Decode the whole file with Pillow, which, unlike OpenCV, says so when it is cut short."""
    try:
        image.load()
    except Exception as error:
        raise ImageError(f"The {image.format} image is truncated or broken.") from error

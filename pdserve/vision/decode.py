"""Decode image files: bytes of a JPEG, PNG, WebP, … -> RGB array.

The pixels are those of ``cv2.imdecode(data, IMREAD_COLOR)``, as the published Paddle Serving readers
have them: EXIF orientation applied, alpha dropped, 16 bits brought to 8, grey and CMYK to colour.
OpenCV 5 refuses truncated files of all these formats; it has no per-call limit of the size, so that is
read from the header first.
"""

import io

import numpy as np

from pdserve.errors import ImageError, ImageTooLargeError
from pdserve.vision.resize import opencv
from pdserve.vision.types import Image8

MAX_PIXELS = 64_000_000
# What both libraries read. Of Pillow's other formats OpenCV knows nothing, and opening some of them
# (EPS) would run another program on a stranger's file.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")

# JPEG markers (ITU T.81): the start of the image and of the first segment; frames (baseline, extended,
# progressive); scan; those allowed before a scan, each followed by a length: tables of Huffman codes,
# arithmetic coding, quantisation, restart interval, application data, comments.
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
    size, image_format = _plain_jpeg_size(data), "JPEG"
    if size is None:
        size, image_format = _read_header(data)
    width, height = size
    if width * height > max_pixels:
        raise ImageTooLargeError(
            f"The image has {width}×{height} pixels, more than the limit of {max_pixels}; "
            "send a smaller one or raise max_pixels."
        )
    if image_format == "PNG":
        _check_chunks(data)
    cv2 = opencv()
    try:
        image: Image8 | None = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error:
        image = None
    if image is None:
        raise ImageError(f"The {image_format} image is truncated or broken.")
    return image


def _plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Read (width, height) from the header of a JPEG that has nothing unusual; None for all other files.

    Nearly every image is one, and is spared Pillow, whose look at a header takes a tenth of the time of
    decoding it. Whatever a decoder could read differently is left to Pillow. Segments (ITU T.81, B.1.1.4)
    are a marker and a length that counts itself.
    """
    if not data.startswith(_JPEG):
        return None
    size, at = None, 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a marker may be preceded by any number of these, to fill
            at += 1
            continue
        if marker == _SCAN:
            return size
        if marker in _FRAMES and size is None and at + 10 <= len(data):
            precision, components = data[at + 4], data[at + 9]
            size = int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(data[at + 5 : at + 7], "big")
            if precision != 8 or components not in (1, 3, 4) or not all(size):
                return None
        elif marker not in _BEFORE_A_SCAN:
            return None
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _read_header(data: bytes) -> tuple[tuple[int, int], str]:
    """Read (width, height) and the format's name with Pillow. Raises ImageError."""
    from PIL import Image

    # Pillow's own limit warns or raises by a process-wide number; max_pixels takes its place.
    Image.MAX_IMAGE_PIXELS = None
    Image.init()
    known = [name for name in _FORMATS if name in Image.OPEN]  # builds of Pillow differ
    try:
        with Image.open(io.BytesIO(data), formats=known) as header:
            return header.size, str(header.format)
    except Exception as error:  # Pillow's plugins raise nearly anything on hostile headers
        if data.startswith(_JPEG):  # Pillow 12 does not get past the header of one that is cut there
            raise ImageError("The JPEG image is truncated or broken.") from error
        raise ImageError(f"The {len(data)} bytes are no image in a known format.") from error


def _check_chunks(data: bytes) -> None:
    """Check that each chunk of a PNG ends inside the file, up to the last. Raises ImageError.

    OpenCV allocates a chunk's length, up to 4 GiB, before it looks for the bytes. Chunks (PNG
    specification, 5.3) are a length, a name, as many bytes and a checksum.
    """
    at = 8
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end <= len(data) and data[at + 4 : at + 8] == b"IEND":
            return
        at = end
    raise ImageError("The PNG image is truncated or broken.")

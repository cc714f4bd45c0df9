"""Read what an image file says of itself, before anything is decoded: format, size, what decoding takes.

A reader per format (`READERS`), each with a bound on its own work, whatever the file's length. What no reader
here knows is refused, though OpenCV might read it. A header only announces: that the decoder sees no more
pixels than were allowed is checked by the decoder itself (`pdserve.vision.decoder`).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

from pdserve.errors import ImageError, ImageTooLargeError

Buffer: TypeAlias = bytes | bytearray

MAX_PIECES = 1024
"""Segments, boxes, tags or chunks that a reader looks at before it gives up."""


@dataclass(frozen=True, slots=True)
class Header:
    """``width`` and ``height`` in pixels, as stored; ``buffered``: pixels that decoding holds, if more.

    ``scan``: of a JPEG with one frame whose first scan has all of its components, row by row, where that
    scan's data begin; 0 for everything else.
    """

    format: str
    width: int
    height: int
    scan: int = 0
    buffered: int = 0

    @property
    def pixels(self) -> int:
        """Of the picture."""
        return self.width * self.height

    @property
    def bytes_needed(self) -> int:
        """About the bytes that decoding takes at most: OpenCV's buffers and the picture, H×W×3."""
        costs = COSTS[self.format]
        per_pixel = costs.bytes_per_pixel if self.scan or self.format != "JPEG" else _PROGRESSIVE
        return per_pixel * max(self.pixels, self.buffered)

    @property
    def seconds_allowed(self) -> float:
        """CPU time after which decoding is given up: several times what a slow machine takes."""
        return 5 + COSTS[self.format].seconds_per_megapixel * self.pixels / 1e6


@dataclass(frozen=True, slots=True)
class Cost:
    """Of decoding with OpenCV 5, measured with the costliest kind of each format, and rounded up."""

    bytes_per_pixel: int
    seconds_per_megapixel: float


COSTS = {
    "JPEG": Cost(7, 0.3),
    "PNG": Cost(15, 0.5),
    "WEBP": Cost(12, 0.5),
    "BMP": Cost(7, 0.2),
    "GIF": Cost(10, 0.5),
    "TIFF": Cost(18, 0.5),
    "PPM": Cost(10, 0.5),
    "JPEG2000": Cost(26, 2),
    "AVIF": Cost(40, 2),
}
# A progressive JPEG's coefficients are kept too, two bytes for each pixel of each component.
_PROGRESSIVE = 15

# JPEG (ITU T.81, table B.1): frames of Huffman and of arithmetic coding; those whose scans follow each other.
_FRAMES = frozenset((0xC0, 0xC1, 0xC2, 0xC9, 0xCA))
_IN_ROWS = frozenset((0xC0, 0xC1))
_NEVER = frozenset((0xC3, 0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF))
_SCAN, _END = 0xDA, 0xD9
_WITHOUT_LENGTH = frozenset((0x00, 0x01, *range(0xD0, 0xD9)))
# Tables of Huffman codes and quantisation, restart interval, application data, comments.
_PASSED_OVER = frozenset((0xC4, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE))


def read_header(data: Buffer, max_pixels: int) -> Header:
    """Read an image file's header. Raises ImageError, and ImageTooLargeError for more than ``max_pixels``."""
    if not data:
        raise ImageError("The image is empty (0 bytes).")
    for signature, name, reader in READERS:
        if signature.match(data):
            header = _read(reader, data, name)
            break
    else:
        raise ImageError(f"The {len(data)} bytes are no image in a known format.")
    if header.width < 1 or header.height < 1:
        broken(name)
    if header.pixels > max_pixels:
        raise too_large(header.width, header.height, max_pixels)
    return header


def too_large(width: int, height: int, max_pixels: int) -> ImageTooLargeError:
    """The error for an image of too many pixels."""
    return ImageTooLargeError(
        f"The image has {width}×{height} pixels, more than the limit of {max_pixels}; "
        "send a smaller one or raise max_pixels."
    )


def broken(name: str) -> NoReturn:
    """Refuse a file that is cut or makes no sense."""
    raise ImageError(f"The {name} image is truncated or broken.")


def _read(reader: str | Callable[[Buffer], Header], data: Buffer, name: str) -> Header:
    if isinstance(reader, str):
        from pkgutil import resolve_name

        reader = resolve_name(reader)
    try:
        return reader(data)  # type: ignore[operator]
    except (IndexError, ValueError, OverflowError):
        broken(name)


def _jpeg(data: Buffer) -> Header:
    """ITU T.81, B.1.1.4: a marker, FF and a byte, and a length that counts itself and what follows."""
    frame, size, components, at = 0, (0, 0), 0, 2
    for _ in range(MAX_PIECES):
        if data[at] != 0xFF:  # bytes that belong to nothing, which decoders pass over
            at = data.index(b"\xff", at)
        marker = data[at + 1]
        if marker == 0xFF:  # a marker may be preceded by any number of these, to fill
            at = _past_fill(data, at)
            marker = data[at + 1]
        at += 2
        if marker in _PASSED_OVER:
            at += data[at] << 8 | data[at + 1]
            continue
        if marker in _WITHOUT_LENGTH:
            continue
        length = int.from_bytes(data[at : at + 2], "big")
        if marker == _END or length < 2 or at + length > len(data):
            broken("JPEG")
        if marker in _NEVER or (marker in _FRAMES and data[at + 2] != 8):
            what = "lossless or hierarchical" if marker in _NEVER else f"of {data[at + 2]} bits a sample"
            raise ImageError(f"The JPEG image is {what}, which cannot be read; save it as one of 8 bits.")
        if marker in _FRAMES:
            if frame:
                broken("JPEG")
            frame, components = marker, data[at + 7]
            size = int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 3 : at + 5], "big")
            if components not in (1, 3, 4):
                broken("JPEG")
        if marker == _SCAN:
            if not frame:
                broken("JPEG")
            in_rows = frame in _IN_ROWS and data[at + 2] == components
            return Header("JPEG", *size, scan=at + length if in_rows else 0)
        at += length
    raise ImageError(f"The JPEG image has more than {MAX_PIECES} segments before its first scan.")


_FILL = re.compile(rb"\xff+")


def _past_fill(data: Buffer, at: int) -> int:
    """The place of the last of several bytes FF."""
    found = _FILL.match(data, at)
    return found.end() - 1 if found else at


def _png(data: Buffer) -> Header:
    """PNG specification, 11.2.1: the first chunk is IHDR, of 13 bytes."""
    if data[12:16] != b"IHDR" or data[8:12] != b"\0\0\0\x0d":
        broken("PNG")
    return Header("PNG", int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big"))


def _webp(data: Buffer) -> Header:
    """RFC 9649: chunks of a name, a length and as many bytes, filled up to an even number.

    An extended file has a canvas, and one frame or several, each within it.
    """
    size, buffered, at, end = (0, 0), 0, 12, min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    for _ in range(MAX_PIECES):
        name, length = bytes(data[at : at + 4]), int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8
        if at + length > end:
            broken("WEBP")
        if name == b"VP8X" and length >= 10 and size == (0, 0):
            size = 1 + _little(data, at + 4, 3), 1 + _little(data, at + 7, 3)
            buffered = 2 * size[0] * size[1] if data[at] & 2 else 0  # animated: canvas and frame
        elif name in _WEBP_FRAMES:
            own = _WEBP_FRAMES[name](data, at)
            if own != size and size != (0, 0) and name != b"ANMF":
                raise ImageError(
                    f"The WEBP image's canvas has {size[0]}×{size[1]} pixels and its picture "
                    f"{own[0]}×{own[1]}; save it anew."
                )
            return Header("WEBP", *(size if name == b"ANMF" else own), buffered=buffered)
        at += length + length % 2
    broken("WEBP")


def _little(data: Buffer, at: int, count: int) -> int:
    return int.from_bytes(data[at : at + count], "little")


def _vp8(data: Buffer, at: int) -> tuple[int, int]:
    """RFC 6386, 9.1: a tag of 3 bytes, a start code of 3, width and height of 14 bits."""
    if data[at + 3 : at + 6] != b"\x9d\x01\x2a":
        broken("WEBP")
    return _little(data, at + 6, 2) & 0x3FFF, _little(data, at + 8, 2) & 0x3FFF


def _vp8l(data: Buffer, at: int) -> tuple[int, int]:
    """RFC 9649, 3.4: a byte 2F, width and height less 1 in 14 bits each."""
    bits = _little(data, at + 1, 4)
    return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)


def _anmf(data: Buffer, at: int) -> tuple[int, int]:
    """RFC 9649, 2.7.1.1: the place of a frame, then its width and height less 1, in 24 bits each."""
    return 1 + _little(data, at + 6, 3), 1 + _little(data, at + 9, 3)


_WEBP_FRAMES: dict[bytes, Callable[[Buffer, int], tuple[int, int]]] = {
    b"VP8 ": _vp8,
    b"VP8L": _vp8l,
    b"ANMF": _anmf,
}


def _bmp(data: Buffer) -> Header:
    """A file header of 14 bytes; an information header that begins with its own length."""
    length = _little(data, 14, 4)
    if length == 12:  # OS/2's
        width, height = _little(data, 18, 2), _little(data, 20, 2)
        bits, packing = _little(data, 24, 2), 0
    elif 36 <= length <= 1024:
        width, height = (int.from_bytes(data[at : at + 4], "little", signed=True) for at in (18, 22))
        bits, packing = _little(data, 28, 2), _little(data, 30, 4)
    else:
        broken("BMP")
    height = abs(height)  # below 0: from the top down
    rows = (width * bits + 31) // 32 * 4 * height
    # 0 and 3, 6: rows as they are, with masks; the others are packed. Where far too few bytes are there for
    # them, what is wrong is the size, and is said as that.
    if packing in (0, 3, 6) and _little(data, 10, 4) + rows > len(data) >= width * height // 64:
        broken("BMP")
    return Header("BMP", width, height)


def _gif(data: Buffer) -> Header:
    """The logical screen, as its descriptor has it."""
    return Header("GIF", _little(data, 6, 2), _little(data, 8, 2))


# Whole numbers before the pixels, and comments between them, up to so many bytes.
_PPM_HEADER = 4096
_BETWEEN = rb"\s(?:\s|#[^\n\r]*[\n\r])*"  # a # that stands in a number readers take differently
_PPM = re.compile(rb"P([1-6])" + _BETWEEN + rb"(\d{1,10})" + _BETWEEN + rb"(\d{1,10})\s")


def _ppm(data: Buffer) -> Header:
    """Netpbm: P1 to P6, then width and height in decimal numbers, with white space between."""
    found = _PPM.match(data, 0, _PPM_HEADER)
    if not found:
        broken("PPM")
    kind, width, height = (int(each) for each in found.groups())
    least = {4: (width + 7) // 8, 5: width, 6: 3 * width}.get(kind, width) * height
    if found.end() + least > len(data) and width * height <= 64 * len(data):
        broken("PPM")
    return Header("PPM", width, height)


# What a file begins with, the format's name in messages, and its reader, or that one's import string.
READERS: tuple[tuple["re.Pattern[bytes]", str, Any], ...] = (
    (re.compile(rb"\xff\xd8\xff"), "JPEG", _jpeg),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "PNG", _png),
    (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), "WEBP", _webp),
    (re.compile(rb"BM"), "BMP", _bmp),
    (re.compile(rb"GIF8[79]a"), "GIF", _gif),
    (re.compile(rb"P[1-6]\s"), "PPM", _ppm),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), "TIFF", "pdserve.vision.tiff_header:read_tiff"),
    (re.compile(rb"\0\0\0\x0cjP  \r\n\x87\n"), "JPEG2000", "pdserve.vision.box_headers:read_jp2"),
    (re.compile(rb"\xff\x4f\xff\x51"), "JPEG2000", "pdserve.vision.box_headers:read_codestream"),
    (re.compile(rb"....ftyp", re.DOTALL), "AVIF", "pdserve.vision.box_headers:read_avif"),
)

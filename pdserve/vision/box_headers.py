"""Read the headers of image files made of boxes: JPEG 2000 and AVIF.

A box (ISO/IEC 14496-12, 4.2; ISO/IEC 15444-1, I.4) is a length that counts itself, a name and its content;
a length of 1 means that 8 bytes of length follow, 0 that the box reaches to the end.
"""

from collections.abc import Iterator

from pdserve.errors import ImageError
from pdserve.vision.header import MAX_PIECES, Buffer, Header, broken

# JPEG 2000 (ISO/IEC 15444-1, A.5.1) allows no more tiles.
_MAX_TILES = 65535
_MAX_COMPONENTS = 4
_BRANDS = (b"avif", b"avis")
# Boxes around those that are wanted, and what stands in them before these: version and flags.
_CONTAINERS = {b"meta": 4, b"iprp": 0, b"ipco": 0}


def read_jp2(data: Buffer) -> Header:
    """The size of a JPEG 2000 in boxes, which its codestream says again. Raises ImageError."""
    announced = (0, 0)
    header: Header | None = None
    for name, start, end in _boxes(data, 0, len(data)):
        if name == b"jp2h":
            for inner, at, _ in _boxes(data, start, end):
                if inner == b"ihdr":
                    announced = _number(data, at + 4, 4), _number(data, at, 4)
        elif name == b"jp2c":
            header = read_codestream(data, start)
            break
    if header is None:
        broken("JPEG2000")
    if announced != (header.width, header.height):
        raise ImageError(
            f"The JPEG2000 image has {announced[0]}×{announced[1]} pixels by its box and "
            f"{header.width}×{header.height} by its codestream; save it anew."
        )
    return header


def read_codestream(data: Buffer, at: int = 0) -> Header:
    """The size of a JPEG 2000's codestream. Raises ImageError.

    ISO/IEC 15444-1, A.5.1: SIZ follows the start. Its numbers are the grid's extent, where the image begins
    on it, the same of tiles, then the components, each with how far its samples stand apart.
    """
    if data[at : at + 4] != b"\xff\x4f\xff\x51":
        broken("JPEG2000")
    wide, high, left, top, tile_wide, tile_high, tile_left, tile_top = (
        _number(data, at + 8 + 4 * n, 4) for n in range(8)
    )
    components = _number(data, at + 40, 2)
    width, height = wide - left, high - top
    if not tile_wide or not tile_high or not 1 <= components <= _MAX_COMPONENTS:
        broken("JPEG2000")
    tiles = -(-(wide - tile_left) // tile_wide) * -(-(high - tile_top) // tile_high)
    if tiles > _MAX_TILES:
        raise ImageError(f"The JPEG2000 image has {tiles} tiles, more than {_MAX_TILES}; save it anew.")
    return Header("JPEG2000", width, height)


def read_avif(data: Buffer) -> Header:
    """The largest size that an AVIF's properties announce (``ispe``, ISO/IEC 23008-12, 6.5.3).

    That of the picture is one of them; tiles of a grid, alpha and previews have their own. Raises ImageError.
    """
    size, known, at = (0, 0), False, 0
    for _ in range(MAX_PIECES):
        name, start, stop = next(_boxes(data, at, len(data)), (b"", 0, 0))
        if name == b"ftyp":
            listed = bytes(data[start : min(stop, start + 4 * MAX_PIECES)])
            known = any(
                listed[place : place + 4] in _BRANDS for place in range(0, len(listed), 4) if place != 4
            )
        if not known or not name:
            break
        if name == b"ispe":
            own = _number(data, start + 4, 4), _number(data, start + 8, 4)
            size = max(size, own, key=lambda each: each[0] * each[1])
        at = start + _CONTAINERS[name] if name in _CONTAINERS else stop
    if not known:
        raise ImageError(f"The {len(data)} bytes are no image in a known format.")
    return Header("AVIF", *size)


def _boxes(data: Buffer, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and end of the content of each box between two places."""
    for _ in range(MAX_PIECES):
        if at + 8 > end:
            return
        length, name, start = _number(data, at, 4), bytes(data[at + 4 : at + 8]), at + 8
        if length == 1:
            length, start = _number(data, at + 8, 8), at + 16
        stop = at + length if length else end
        if stop < start or stop > end:
            return
        yield name, start, stop
        at = stop


def _number(data: Buffer, at: int, count: int) -> int:
    return int.from_bytes(data[at : at + count], "big")

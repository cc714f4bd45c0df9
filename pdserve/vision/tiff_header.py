"""Read the header of a TIFF file: the first directory of tags, as libtiff, which decodes it, takes them.

A format of tags invites two readings of one file (TIFF 6.0; BigTIFF has 8 bytes where that has 4). So what
another reader could take otherwise is refused: a tag that comes twice, a number of an odd type.
"""

import struct

from pdserve.errors import ImageError
from pdserve.vision.header import MAX_PIECES, Buffer, Header, broken

_WIDTH, _HEIGHT, _BITS, _SAMPLES = 256, 257, 258, 277
_TILE_WIDTH, _TILE_HEIGHT, _SAMPLE_FORMAT = 322, 323, 339
_WANTED = frozenset((_WIDTH, _HEIGHT, _BITS, _SAMPLES, _TILE_WIDTH, _TILE_HEIGHT, _SAMPLE_FORMAT))
# Types of whole numbers that the standard has for these tags: SHORT, LONG, and BigTIFF's LONG8.
_TYPES = {3: "H", 4: "I", 16: "Q"}
_WHOLE, _UNDEFINED = 1, 4  # of SampleFormat


def read_tiff(data: Buffer) -> Header:
    """The size of the first picture. Raises ImageError."""
    order = "<" if data[:1] == b"I" else ">"
    try:
        tags = _tags(data, order, big=data[2:4] in (b"+\0", b"\0+"))
    except struct.error:
        broken("TIFF")
    width, height = tags.get(_WIDTH, 0), tags.get(_HEIGHT, 0)
    if tags.get(_SAMPLE_FORMAT, _WHOLE) not in (_WHOLE, _UNDEFINED):
        raise ImageError(
            "The TIFF image has samples that are no whole numbers without sign, but floating-point or "
            "signed ones, whose range nothing says; save it with 8 or 16 bits."
        )
    if tags.get(_BITS, 1) not in (1, 2, 4, 8, 10, 12, 14, 16):
        raise ImageError(f"The TIFF image has {tags[_BITS]} bits per sample; save it with 8 or 16.")
    tile = tags.get(_TILE_WIDTH, 0) * tags.get(_TILE_HEIGHT, 0)
    return Header("TIFF", width, height, buffered=tile)


def _tags(data: Buffer, order: str, big: bool) -> dict[int, int]:
    """The wanted tags of the first directory, the first value of each."""
    if big:
        (at,) = struct.unpack_from(order + "Q", data, 8)
        (count,) = struct.unpack_from(order + "Q", data, at)
        entry, inline, start = order + "HHQ", 8, at + 8
    else:
        (at,) = struct.unpack_from(order + "I", data, 4)
        (count,) = struct.unpack_from(order + "H", data, at)
        entry, inline, start = order + "HHI", 4, at + 2
    if count > MAX_PIECES:
        raise ImageError(f"The TIFF image has {count} tags, more than {MAX_PIECES}.")
    step = struct.calcsize(entry) + inline
    tags: dict[int, int] = {}
    seen: set[int] = set()
    for place in range(start, start + count * step, step):
        tag, kind, values = struct.unpack_from(entry, data, place)
        if tag in seen:
            raise ImageError(f"The TIFF image has its tag {tag} twice; save it anew.")
        seen.add(tag)
        if tag not in _WANTED:
            continue
        if kind not in _TYPES or not values:
            broken("TIFF")
        form = order + _TYPES[kind]
        value_at = place + step - inline
        if struct.calcsize(form) * values > inline:
            (value_at,) = struct.unpack_from(order + ("Q" if big else "I"), data, value_at)
        (tags[tag],) = struct.unpack_from(form, data, value_at)
    return tags

"""Image files written by hand, as no library writes them."""

import struct
import zlib
from collections.abc import Sequence


def tiff(tags: Sequence[tuple[int, int, int]]) -> bytes:
    """A TIFF of these tags, each (tag, type, value) in the order given, without pixels."""
    out = b"II*\0" + struct.pack("<IH", 8, len(tags))
    for tag, kind, value in tags:
        out += struct.pack("<HHI", tag, kind, 1)
        out += struct.pack("<HH", value, 0) if kind == 3 else struct.pack("<I", value)
    return out + bytes(4)


def two_readings(width: int, height: int, rows: int = 512, small: int = 10) -> bytes:
    """A TIFF that libtiff takes for one of ``width`` by ``height``, deflated, and Pillow for a small raw one.

    Each tag comes twice: first as SLONG8 (type 17), which Pillow passes over, then in the usual type, which
    libtiff ignores as a duplicate.
    """
    strips, count = -(-height // rows), 15
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(width * 3)) for _ in range(rows)) + packer.flush()
    head, blob = 8 + 2 + 12 * count + 4, bytearray()

    def put(data: bytes) -> int:
        blob.extend(bytes(-(head + len(blob)) % 8))
        blob.extend(data)
        return head + len(blob) - len(data)

    def long(*values: int) -> int:
        return put(struct.pack(f"<{len(values)}q", *values))

    bits, raw, deflated = put(struct.pack("<3H", 8, 8, 8)), put(bytes(small * small * 3)), put(packed)
    entries = [
        (256, 17, 1, long(width)), (256, 4, 1, small), (257, 17, 1, long(height)), (257, 4, 1, small),
        (258, 3, 3, bits), (259, 17, 1, long(8)), (259, 3, 1, 1), (262, 3, 1, 2),
        (273, 17, strips, long(*[deflated] * strips)), (273, 4, 1, raw), (277, 3, 1, 3),
        (278, 17, 1, long(rows)), (278, 4, 1, small), (279, 17, strips, long(*[len(packed)] * strips)),
        (279, 4, 1, small * small * 3),
    ]  # fmt: skip
    out = b"II*\0" + struct.pack("<IH", 8, count)
    for tag, kind, number, value in entries:
        out += struct.pack("<HHI", tag, kind, number)
        out += struct.pack("<HH", value, 0) if kind == 3 and number == 1 else struct.pack("<I", value)
    return out + bytes(4) + bytes(blob)


def empty_scans(width: int, height: int, scans: int) -> bytes:
    """A grey progressive JPEG whose many scans each say by runs that all their blocks have nothing."""

    def table(kind: int, symbol: int) -> bytes:
        """One code, of one bit."""
        return b"\xff\xc4" + struct.pack(">HB", 2 + 17 + 1, kind << 4) + bytes([1] + [0] * 15 + [symbol])

    def coded(bits: str) -> bytes:
        bits += "1" * (-len(bits) % 8)
        return int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")

    def scan(first: int, last: int, bits: str) -> bytes:
        return b"\xff\xda" + struct.pack(">HB", 8, 1) + b"\1\0" + bytes([first, last, 0]) + coded(bits)

    blocks = -(-width // 8) * -(-height // 8)
    run = "0" + "1" * 14  # of 32767 blocks: the longest that there is
    return (
        b"\xff\xd8\xff\xdb\0\x43\0"
        + b"\x10" * 64
        + b"\xff\xc2"
        + struct.pack(">HBHHB", 11, 8, height, width, 1)
        + b"\1\x11\0"
        + table(0, 0)
        + table(1, 0xE0)
        + scan(0, 0, "0" * blocks)
        + b"".join(scan(1 + n % 63, 1 + n % 63, run * -(-blocks // 32767)) for n in range(scans))
        + b"\xff\xd9"
    )


def bmp(width: int, height: int, bits: int, masks: Sequence[int] = (), pixels: bytes | None = None) -> bytes:
    """A BMP, black unless there are ``pixels``, with a header of 40 bytes and, behind it, any masks."""
    rows = pixels or bytes((width * bits + 31) // 32 * 4 * abs(height))
    packing, said = (3 if masks else 0), struct.pack(f"<{len(masks)}I", *masks)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, packing, len(rows), 2835, 2835, 0, 0)
    offset = 14 + len(info) + len(said)
    return struct.pack("<2sIHHI", b"BM", offset + len(rows), 0, 0, offset) + info + said + rows

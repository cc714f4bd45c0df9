"""Image files of every format that is read."""

import io
import re
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from PIL import Image, features

from pdserve.errors import ImageError
from pdserve.vision.decode import decode
from pdserve.vision.header import read_header
from tests.fuzz.guard import outcome
from tests.fuzz.mutation import mutated
from tests.vision.files import tiff

MAX_PIXELS = 1_000_000


@pytest.fixture(scope="module", autouse=True)
def decoder_process() -> None:
    """Started before it is watched what a file makes a parser do: no file is to need another process."""
    decode(SEEDS["PNG"][0], MAX_PIXELS)


_CELLS = np.random.default_rng(3).integers(0, 256, (6, 8, 4), np.uint8).repeat(4, 0).repeat(4, 1)


def _file(form: str, mode: str = "RGB", **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(_CELLS).convert(mode).save(out, form, **options)
    return out.getvalue()


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


SEEDS: dict[str, list[bytes]] = {
    "JPEG": [
        _file("JPEG"),
        _file("JPEG", "L"),
        _file("JPEG", "CMYK"),
        _file("JPEG", progressive=True, exif=_exif(6)),
        _file("JPEG", restart_marker_blocks=1, comment=b"a comment"),
    ],
    "PNG": [
        _file("PNG"),
        _file("PNG", "RGBA"),
        _file("PNG", "P"),
        _file("PNG", "I;16"),
        _file("PNG", "1"),
        _file("PNG", exif=_exif(3)),
    ],
    "WEBP": [_file("WEBP"), _file("WEBP", "RGBA", lossless=True), _file("WEBP", exif=_exif(8))],
    "BMP": [_file("BMP"), _file("BMP", "L"), _file("BMP", "P"), _file("BMP", "1")],
    "GIF": [_file("GIF", "P"), _file("GIF", save_all=True, append_images=[Image.new("RGB", (9, 9), "red")])],
    "TIFF": [
        _file("TIFF"),
        _file("TIFF", "L", compression="tiff_lzw"),
        _file("TIFF", compression="tiff_adobe_deflate"),
        _file("TIFF", compression="jpeg"),
        _file("TIFF", "1", compression="group4"),
    ],
    "PPM": [_file("PPM"), _file("PPM", "L"), _file("PPM", "1"), b"P3 2 2 255\n" + b"1 2 3 " * 4],
    "JPEG2000": [_file("JPEG2000"), _file("JPEG2000", "L", no_jp2=True)],
}
if features.check("avif"):
    SEEDS["AVIF"] = [_file("AVIF", speed=10)]

TOKENS = (
    b"\xff\xd8\xff", b"\xff\xd9", b"\xff\xda\0\x0c", b"\xff\xc0\0\x11\x08\xff\xff\xff\xff\x03", b"\xff\xc4",
    b"\xff\xdb", b"\xff" * 300, b"\xff\xe1\xff\xffExif\0\0", b"\xff\xdd\0\x04\0\0", b"IHDR", b"IDAT",
    b"IEND", b"PLTE", b"tRNS", b"iCCP", b"zTXt", b"acTL", b"fcTL", b"eXIf", b"RIFF", b"VP8 ", b"VP8L",
    b"VP8X", b"ANIM", b"BM", b"GIF89a", b"\x21\xff\x0b", b",", b"II*\0", b"MM\0*", b"P6", b"P1",
    b"99999 99999", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", b"ftypavif", b"meta", b"\0" * 300,
)  # fmt: skip


def _with_sums(data: bytes) -> bytes:
    """A PNG whose chunks' checksums fit; chunks are a length, a name, as many bytes and a checksum."""
    out = bytearray(data)
    at = 8
    while at + 12 <= len(out):
        end = at + 8 + int.from_bytes(out[at : at + 4], "big")
        if end + 4 > len(out):
            break
        out[end : end + 4] = zlib.crc32(out[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(out)


@st.composite
def _files(draw: DrawFn, form: str) -> bytes:
    # In tiny files the header, where sizes stand, is the half of it.
    data = draw(mutated(SEEDS[form], TOKENS, among=120))
    if form == "PNG" and draw(st.booleans()):
        return _with_sums(data)
    return data


@pytest.mark.parametrize("form", SEEDS)
@given(data=st.data())
def test_image(form: str, data: Any) -> None:
    file = data.draw(_files(form))
    image = outcome(lambda: decode(file, MAX_PIXELS), ImageError)
    if image is not None:
        height, width, channels = image.shape
        assert (channels, image.dtype) == (3, np.uint8)
        assert 0 < height * width <= MAX_PIXELS


# Where the pieces of a format begin: markers and what follows them, chunks by their names.
_PIECES = {
    "JPEG": re.compile(rb"(?=\xff[\xc0-\xcf\xda-\xfe])"),
    "PNG": re.compile(rb"(?=....(?:IHDR|PLTE|IDAT|IEND|eXIf|tRNS))", re.DOTALL),
    "WEBP": re.compile(rb"(?=VP8[ LX]|ALPH|EXIF|ANIM|ANMF)"),
    "AVIF": re.compile(rb"(?=....(?:meta|iprp|ipco|ispe|mdat|iloc))", re.DOTALL),
    "JPEG2000": re.compile(rb"(?=....(?:jp2h|ihdr|jp2c)|\xff[\x51-\x5c\x90\x93])", re.DOTALL),
}


@st.composite
def _rearranged(draw: DrawFn, form: str) -> bytes:
    """Whole pieces of files of one format, some twice, some left out, in another order."""
    pieces = [piece for seed in SEEDS[form] for piece in _PIECES[form].split(seed) if piece]
    begin = _PIECES[form].split(draw(st.sampled_from(SEEDS[form])))[:2]
    return b"".join([*begin, *draw(st.lists(st.sampled_from(pieces), max_size=12))])


@pytest.mark.full
@pytest.mark.parametrize("form", [form for form in _PIECES if form in SEEDS])
@given(data=st.data())
def test_pieces_in_another_order(form: str, data: Any) -> None:
    file = data.draw(_rearranged(form))
    image = outcome(lambda: decode(file, MAX_PIXELS), ImageError)
    assert image is None or 0 < image.shape[0] * image.shape[1] <= MAX_PIXELS


@given(
    st.lists(
        st.tuples(
            st.sampled_from([254, 256, 257, 258, 259, 262, 273, 277, 278, 279, 322, 323, 324, 325, 339]),
            st.sampled_from([1, 3, 4, 5, 16, 17, 200]),
            st.sampled_from([0, 1, 2, 3, 8, 16, 255, 1000, 65535, 2**31, 2**32 - 1]),
        ),
        max_size=20,
    )
)
def test_tags_of_a_tiff(tags: list[tuple[int, int, int]]) -> None:
    file = tiff([(tag, kind, value & 0xFFFF if kind == 3 else value) for tag, kind, value in tags]) + bytes(
        400
    )
    image = outcome(lambda: decode(file, MAX_PIXELS), ImageError)
    assert image is None or 0 < image.shape[0] * image.shape[1] <= MAX_PIXELS


@pytest.mark.parametrize("form", SEEDS)
@given(data=st.data())
def test_header(form: str, data: Any) -> None:
    """A header is read or refused, and nothing else comes of it."""
    file = data.draw(_files(form))
    header = outcome(lambda: read_header(file, MAX_PIXELS), ImageError)
    if header is not None:
        assert 0 < header.pixels <= MAX_PIXELS
        assert header.bytes_needed >= 3 * header.pixels

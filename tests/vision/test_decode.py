import io
import random
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from pdserve.errors import ImageError, ImageTooLargeError
from pdserve.vision.decode import MAX_PIXELS, decode
from tests.conftest import GOLDEN
from tests.fuzz.guard import outcome

IMAGES = sorted((GOLDEN / "images").iterdir())

# Every format that OpenCV reads, as Pillow writes it.
FORMATS = {
    "jpeg": ("JPEG", {}),
    "progressive": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {}),
    "lossless": ("WEBP", {"lossless": True}),
    "bmp": ("BMP", {}),
    "gif": ("GIF", {}),
    "tiff": ("TIFF", {}),
    "lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "ppm": ("PPM", {}),
    "jp2": ("JPEG2000", {}),
}


def photo(size: tuple[int, int] = (45, 35)) -> Image.Image:
    with Image.open(GOLDEN / "images" / "photo.jpg") as image:
        return image.resize(size)


def encoded(name: str, image: Image.Image | None = None, **options: object) -> bytes:
    kind, own = FORMATS[name]
    out = io.BytesIO()
    (image or photo()).save(out, kind, **own, **options)
    return out.getvalue()


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises any size and has no pixels."""
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + png_chunk(b"IDAT", zlib.compress(b""))
        + png_chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("path", IMAGES, ids=[p.name for p in IMAGES])
def test_golden_images_are_rgb_bytes(path: Path):
    image = decode(path.read_bytes())
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3
    assert image.flags.c_contiguous
    expected = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    assert (image == expected[:, :, ::-1]).all()


@pytest.mark.parametrize("name", FORMATS)
def test_every_format(name):
    image = decode(encoded(name))
    assert image.shape == (35, 45, 3)
    lossy = name in ("jpeg", "progressive", "webp", "gif", "jp2")
    assert np.abs(image.astype(int) - np.asarray(photo())).mean() < (12 if lossy else 1e-9)


def test_orientation_of_exif_is_applied():
    """6: the top is at the right. A red left half comes out at the top."""
    image = Image.new("RGB", (60, 40), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, 30, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decode(encoded("jpeg", image, exif=exif, quality=95))
    assert turned.shape == (60, 40, 3)
    assert (turned[:25] @ [1, 0, -1]).min() > 200
    assert (turned[35:] @ [1, 0, -1]).max() < -200
    with Image.open(GOLDEN / "images" / "exif6.jpg") as golden:
        assert decode((GOLDEN / "images" / "exif6.jpg").read_bytes()).shape == (*golden.size, 3)


def test_alpha_is_dropped_not_blended():
    image = Image.new("RGBA", (4, 3), (10, 20, 30, 0))
    assert (decode(encoded("png", image)) == (10, 20, 30)).all()


def test_grey_becomes_colour():
    assert (decode(encoded("png", Image.new("L", (4, 3), 77))) == (77, 77, 77)).all()


def test_sixteen_bits_become_eight():
    image = Image.fromarray(np.full((3, 4), 0x81FF, np.uint16))
    assert set(np.unique(decode(encoded("png", image)))) <= {0x81, 0x82}


def test_palette_and_one_bit():
    image = Image.new("P", (4, 3), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    assert (decode(encoded("png", image)) == (200, 100, 50)).all()
    assert (decode(encoded("png", Image.new("1", (4, 3), 1))) == 255).all()


def test_cmyk():
    image = decode(encoded("jpeg", Image.new("CMYK", (16, 16), (0, 255, 255, 0)), quality=95))
    assert image[8, 8, 0] > 150
    assert image[8, 8, 1:].max() < 90


def test_empty():
    with pytest.raises(ImageError, match=r"empty \(0 bytes\)"):
        decode(b"")


@pytest.mark.parametrize(
    "data",
    [b"\0", b"GIF", b"\xff\xd8", b"not an image", b"\x89PNG\r\n\x1a\n", b"BM" + bytes(60), bytes(5000)],
)
def test_no_image(data):
    with pytest.raises(ImageError):
        decode(data)


def test_formats_that_would_run_a_program_are_no_images():
    """Pillow hands PostScript to Ghostscript."""
    with pytest.raises(ImageError, match="no image in a known format"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n")


@pytest.mark.parametrize("name", FORMATS)
def test_cut_anywhere(name):
    data = encoded(name)
    # A JPEG's last two bytes are its end marker, without which it is whole; its last but two may be padding.
    end = len(data) - 3 if FORMATS[name][0] == "JPEG" else len(data)
    lengths = {*range(1, end, max(1, end // 150)), *range(end - 8, end)}
    for length in sorted(lengths):
        with pytest.raises(ImageError):
            decode(data[:length])


@pytest.mark.parametrize("name", ["photo.jpg", "progressive.jpg", "cmyk.jpg", "exif6.jpg", "photo.webp"])
def test_golden_file_cut(name):
    data = (GOLDEN / "images" / name).read_bytes()
    for share in (0.1, 0.5, 0.9, 0.999):
        with pytest.raises(ImageError):
            decode(data[: int(share * len(data))])


def test_a_preview_in_the_header_does_not_hide_a_cut():
    """A JPEG cut right behind its preview ends, like a whole one, with an end-of-image marker."""
    preview = encoded("jpeg", photo((16, 12)))
    application = b"\xff\xe1" + struct.pack(">H", 2 + 6 + len(preview)) + b"Exif\0\0" + preview
    whole = encoded("jpeg")
    data = whole[:2] + application + whole[2:]
    assert (decode(data) == decode(whole)).all()
    for end in (2 + len(application), 2 + len(application) - 1):
        with pytest.raises(ImageError):
            decode(data[:end])


def test_a_preview_at_the_very_end_of_the_header_does_not_hide_a_cut():
    """The same with all the tables before the preview, so that only the picture is missing."""
    whole = encoded("jpeg")
    scan = whole.index(b"\xff\xda")
    preview = encoded("jpeg", photo((16, 12)))
    comment = b"\xff\xfe" + struct.pack(">H", 2 + len(preview)) + preview
    assert (decode(whole[:scan] + comment + whole[scan:]) == decode(whole)).all()
    with pytest.raises(ImageError, match="JPEG image is truncated or broken"):
        decode(whole[:scan] + comment)


@pytest.mark.parametrize("tail", [b"\0" * 100, b"\n", b"some maker's trailer", b"\xff\xd9"])
@pytest.mark.parametrize("name", ["jpeg", "png", "webp"])
def test_bytes_behind_a_whole_file_are_no_cut(name, tail):
    data = encoded(name)
    assert (decode(data + tail) == decode(data)).all()


def test_limit_of_pixels_is_a_setting():
    data = encoded("png", Image.new("RGB", (30, 20)))
    assert decode(data, 600).shape == (20, 30, 3)
    with pytest.raises(ImageTooLargeError, match=r"30×20 pixels, more than the limit of 599"):
        decode(data, 599)


@pytest.fixture(scope="module")
def started():
    """The decoder process that is there from the first image on; it is no work of the next one's."""
    decode(encoded("png"))


@pytest.mark.parametrize("size", [(10_000, 10_000), (MAX_PIXELS + 1, 1), (2**31 - 1, 2**31 - 1)])
def test_a_hundred_megapixels_are_refused_by_the_header(size):
    assert outcome(lambda: decode(png_header(*size)), ImageTooLargeError, memory=64 << 20) is None


@pytest.mark.parametrize("name", ["jpeg", "bmp", "gif", "webp"])
def test_hostile_sizes_of_other_formats(name):
    data = bytearray(encoded(name))
    if name == "jpeg":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", 65000, 65000)
    elif name == "bmp":
        data[18:26] = struct.pack("<ii", 2_000_000, 2_000_000)
    elif name == "gif":
        data[6:10] = struct.pack("<HH", 65000, 65000)
    else:
        at = data.index(b"\x9d\x01\x2a") + 3
        data[at : at + 4] = struct.pack("<HH", 16000, 16000)
    with pytest.raises(ImageTooLargeError):
        decode(bytes(data))


@pytest.mark.parametrize("length", [0xFFFFFFFF, 0xF0000000, 0x7FFFFFFF, 100_000])
@pytest.mark.parametrize("chunk", [b"IDAT", b"tEXt", b"IEND", b"nonS"])
def test_png_chunk_that_promises_gigabytes(chunk, length, started):
    """OpenCV would take that much memory before it looks for the bytes."""
    data = encoded("png")
    at = data.index(b"IDAT") - 4
    hostile = data[:at] + struct.pack(">I", length) + chunk + data[at + 8 :]
    assert outcome(lambda: decode(hostile), ImageError, memory=64 << 20) is None


@pytest.mark.filterwarnings("ignore")  # Pillow warns of much that is odd in a header
@pytest.mark.parametrize("name", FORMATS)
def test_flipped_bytes_give_an_image_or_an_image_error(name):
    data = encoded(name)
    chance = random.Random(name)
    images = 0
    for i in range(200):
        flipped = bytearray(data)
        reach = len(data) if i % 2 else min(len(data), 200)  # headers are where it hurts
        for _ in range(chance.randint(1, 4)):
            flipped[chance.randrange(reach)] = chance.randrange(256)
        try:
            image = decode(bytes(flipped), 1_000_000)
        except ImageError:
            continue
        assert image.dtype == np.uint8
        assert image.shape[2] == 3
        assert image.shape[0] * image.shape[1] <= 1_000_000
        images += 1
    assert images < 200

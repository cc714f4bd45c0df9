"""What headers say, and which are refused, before anything is decoded."""

import io
import struct
import time

import pytest
from PIL import Image

from pdserve.errors import ImageError, ImageTooLargeError
from pdserve.vision.decode import MAX_PIXELS, PLAIN_PIXELS, plain
from pdserve.vision.header import COSTS, MAX_PIECES, Header, read_header
from tests.conftest import GOLDEN
from tests.vision.files import bmp, tiff


def saved(form: str, mode: str = "RGB", size: tuple[int, int] = (31, 17), **options: object) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size).save(out, form, **options)
    return out.getvalue()


@pytest.mark.parametrize("path", sorted((GOLDEN / "images").iterdir()), ids=lambda path: path.name)
def test_golden_images_have_the_size_that_pillow_finds(path):
    header = read_header(path.read_bytes(), MAX_PIXELS)
    with Image.open(path) as image:
        assert (header.width, header.height) == image.size
        assert header.format == image.format


@pytest.mark.parametrize(
    ("form", "mode", "options"),
    [
        ("JPEG", "RGB", {}),
        ("JPEG", "L", {"progressive": True}),
        ("JPEG", "CMYK", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "1", {}),
        ("WEBP", "RGB", {}),
        ("WEBP", "RGBA", {"lossless": True}),
        ("WEBP", "RGB", {"save_all": True, "append_images": [Image.new("RGB", (31, 17), "red")]}),
        ("BMP", "RGB", {}),
        ("BMP", "1", {}),
        ("GIF", "P", {}),
        ("TIFF", "RGB", {}),
        ("TIFF", "I;16", {}),
        ("TIFF", "RGB", {"big_tiff": True}),
        ("PPM", "RGB", {}),
        ("PPM", "1", {}),
        ("JPEG2000", "RGB", {}),
        ("JPEG2000", "L", {"no_jp2": True}),
        ("AVIF", "RGB", {}),
    ],
)
def test_every_format(form, mode, options):
    header = read_header(saved(form, mode, **options), MAX_PIXELS)
    assert (header.format, header.width, header.height) == (form, 31, 17)
    assert header.pixels == 527
    assert header.bytes_needed >= 527 * COSTS[form].bytes_per_pixel


def test_what_is_plainly_ordinary():
    assert plain(read_header(saved("JPEG"), MAX_PIXELS))
    assert plain(read_header(saved("JPEG", "L"), MAX_PIXELS))
    assert not plain(read_header(saved("JPEG", progressive=True), MAX_PIXELS))
    assert not plain(read_header(saved("PNG"), MAX_PIXELS))
    assert plain(Header("JPEG", 4096, 4096, scan=600))
    assert not plain(Header("JPEG", 4096, PLAIN_PIXELS // 4096 + 1, scan=600))


def test_a_progressive_jpeg_is_to_take_more_memory_and_a_costly_format_more_time():
    assert Header("JPEG", 10, 10).bytes_needed == 1500
    assert Header("JPEG", 10, 10, scan=600).bytes_needed == 700
    assert Header("WEBP", 10, 10, buffered=400).bytes_needed == 12 * 400
    assert Header("JPEG2000", 1000, 1000).seconds_allowed == 7


def test_limit_of_pixels():
    assert read_header(saved("GIF", "P"), 527).pixels == 527
    with pytest.raises(ImageTooLargeError, match="31×17 pixels, more than the limit of 526"):
        read_header(saved("GIF", "P"), 526)


def test_a_tag_of_tiff_that_comes_twice_is_refused():
    """libtiff takes the first, and of types that others pass over; Pillow the last."""
    assert read_header(tiff([(256, 4, 10), (257, 4, 20)]), MAX_PIXELS).pixels == 200
    with pytest.raises(ImageError, match="its tag 256 twice"):
        read_header(tiff([(256, 4, 32000), (256, 4, 10), (257, 4, 10)]), MAX_PIXELS)


def test_numbers_of_tiff_have_the_types_of_the_standard():
    with pytest.raises(ImageError, match="truncated or broken"):
        read_header(tiff([(256, 17, 32000), (257, 4, 10)]), MAX_PIXELS)


@pytest.mark.parametrize("sample_format", [2, 3, 5, 6])
def test_samples_of_tiff_that_are_no_plain_numbers(sample_format):
    with pytest.raises(ImageError, match="save it with 8 or 16 bits"):
        read_header(tiff([(256, 4, 10), (257, 4, 20), (339, 3, sample_format)]), MAX_PIXELS)


def test_a_tile_of_tiff_that_is_larger_than_the_image_counts():
    header = read_header(tiff([(256, 4, 10), (257, 4, 20), (322, 4, 4096), (323, 4, 4096)]), MAX_PIXELS)
    assert header.bytes_needed == 18 * 4096 * 4096


def test_jpeg_2000_whose_box_and_codestream_differ():
    data = bytearray(saved("JPEG2000"))
    at = data.index(b"ihdr") + 4
    data[at : at + 8] = struct.pack(">II", 5, 6)
    with pytest.raises(ImageError, match="6×5 pixels by its box and 31×17 by its codestream"):
        read_header(bytes(data), MAX_PIXELS)


def test_jpeg_2000_of_very_many_tiles():
    data = bytearray(saved("JPEG2000", size=(1000, 1000), no_jp2=True))
    data[24:32] = struct.pack(">II", 1, 1)
    with pytest.raises(ImageError, match="1000000 tiles, more than 65535"):
        read_header(bytes(data), MAX_PIXELS)


def test_webp_whose_canvas_and_picture_differ():
    data = bytearray(saved("WEBP", "RGBA"))
    assert data[12:16] == b"VP8X"
    data[24:30] = (9).to_bytes(3, "little") * 2
    with pytest.raises(ImageError, match="canvas has 10×10 pixels and its picture 31×17"):
        read_header(bytes(data), MAX_PIXELS)


def test_bmp_from_the_top_down_and_with_masks():
    header = read_header(bmp(40, -30, 32, (0xFF0000, 0xFF00, 0xFF)), MAX_PIXELS)
    assert (header.width, header.height) == (40, 30)
    with pytest.raises(ImageError, match="truncated or broken"):
        read_header(bmp(40, -30, 32, (0xFF0000, 0xFF00, 0xFF))[:-1], MAX_PIXELS)


@pytest.mark.parametrize(("precision", "marker"), [(12, 0xC1), (16, 0xC3)])
def test_jpeg_of_other_depths_says_so(precision, marker):
    data = bytearray(saved("JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 1], data[at + 4] = marker, precision
    with pytest.raises(ImageError, match="save it as one of 8 bits"):
        read_header(bytes(data), MAX_PIXELS)


@pytest.mark.parametrize(
    "data",
    [
        b"P6 #" + b"a" * 20_000_000 + b"\n1 1 255\nabc",
        b"P6\n#" + b"\n#" * 10_000_000 + b"\n1 1 255\nabc",
        b"P6 30000#35000 255\n 1 255\n" + bytes(90_000),
        b"P6 " + b" " * 10_000_000 + b"1 1 255 abc",
        b"\xff\xd8" + b"\xff" * 10_000_000,
        b"\xff\xd8\xff\xe0\0\2" + b"\xff\xfe\0\2" * 2_000_000,
        b"\xff\xd8\xff" + b"\xe0\0\2" + b"\0\xff\0" * 5_000_000,
        b"II*\0\x08\0\0\0\xff\xff" + bytes(12 * 65535),
        b"RIFF\xff\xff\xff\xffWEBP" + b"ABCD\0\0\0\0" * 2_000_000,
        b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\x08abcd" * 2_000_000,
        b"\0\0\0\x10ftypavif\0\0\0\0" + b"\0\0\0\x08abcd" * 2_000_000,
    ],
    ids=lambda data: repr(data[:12]),
)
def test_a_reader_works_no_longer_for_a_longer_file(data):
    """Each is bounded, as the event loop reads headers; what one took 44 s for is refused at once."""
    started = time.process_time()
    with pytest.raises(ImageError):
        read_header(data, MAX_PIXELS)
    assert time.process_time() - started < 0.05


def test_boxes_within_boxes_are_not_gone_through_for_ever():
    inner = b""
    for _ in range(2000):
        inner = struct.pack(">I4s", 8 + len(inner), b"ipco") + inner
    meta = struct.pack(">I4sI", 12 + len(inner), b"meta", 0) + inner
    with pytest.raises(ImageError):
        read_header(b"\0\0\0\x10ftypavif\0\0\0\0" + meta, MAX_PIXELS)


def test_very_many_tags_are_counted_not_read():
    with pytest.raises(ImageError, match=f"more than {MAX_PIECES}"):
        read_header(b"II*\0\x08\0\0\0\xff\xff" + bytes(12 * 65535), MAX_PIXELS)


@pytest.mark.parametrize("data", [b"P7\nWIDTH 1\n", b"Pf\n1 1\n-1\n", b"\x59\xa6\x6a\x95", b"#?RADIANCE\n"])
def test_what_opencv_reads_and_no_reader_here_knows_is_refused(data):
    with pytest.raises(ImageError, match="no image in a known format"):
        read_header(data + bytes(100), MAX_PIXELS)

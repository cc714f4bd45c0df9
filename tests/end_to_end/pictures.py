"""Small pictures in the forms in which programs read images differently."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image, TiffImagePlugin

SIZE = (24, 16)  # width, height


def _picture() -> Image.Image:
    """Eight flat cells across and eight down: no encoder blurs what is sampled in their midst."""
    cells = np.random.default_rng(11).integers(0, 256, (2, 3, 3), dtype=np.uint8)
    return Image.fromarray(cells.repeat(8, 0).repeat(8, 1))


def _saved(image: Image.Image, form: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def _rotated(orientation: int) -> Callable[[], bytes]:
    def make() -> bytes:
        exif = Image.Exif()
        exif[0x0112] = orientation
        return _saved(_picture(), "JPEG", quality=95, subsampling=0, exif=exif)

    return make


def _with_alpha() -> Image.Image:
    image = _picture().convert("RGBA")
    image.putalpha(Image.fromarray(np.full(SIZE[::-1], 90, np.uint8)))
    return image


def _deep_gray() -> Image.Image:
    values = np.linspace(0, 65535, SIZE[0] * SIZE[1]).reshape(SIZE[::-1])
    return Image.fromarray(values.astype(np.uint16))


def _oriented_png() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return _saved(_picture(), "PNG", exif=exif)


def _oriented_tiff() -> bytes:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[0x0112] = 6
    return _saved(_picture(), "TIFF", tiffinfo=info)


PICTURES: Mapping[str, Callable[[], bytes]] = {
    "rgb.png": lambda: _saved(_picture(), "PNG"),
    "rgb.bmp": lambda: _saved(_picture(), "BMP"),
    "rgb.tiff": lambda: _saved(_picture(), "TIFF"),
    "rgb.webp": lambda: _saved(_picture(), "WEBP", lossless=True),
    "rgb.gif": lambda: _saved(_picture(), "GIF"),
    "rgb.avif": lambda: _saved(_picture(), "AVIF", quality=100, subsampling="4:4:4"),
    "gray.png": lambda: _saved(_picture().convert("L"), "PNG"),
    "gray16.png": lambda: _saved(_deep_gray(), "PNG"),
    "gray16.tiff": lambda: _saved(_deep_gray(), "TIFF"),
    "bits.png": lambda: _saved(_picture().convert("1", dither=Image.Dither.NONE), "PNG"),
    "palette.png": lambda: _saved(_picture().quantize(8), "PNG"),
    "palette-transparent.png": lambda: _saved(_picture().quantize(8), "PNG", transparency=0),
    "rgba.png": lambda: _saved(_with_alpha(), "PNG"),
    "rgba.webp": lambda: _saved(_with_alpha(), "WEBP", lossless=True, exact=True),
    "rgba.tiff": lambda: _saved(_with_alpha(), "TIFF"),
    "gray-alpha.png": lambda: _saved(_with_alpha().convert("LA"), "PNG"),
    "cmyk.jpg": lambda: _saved(_picture().convert("CMYK"), "JPEG", quality=95, subsampling=0),
    "cmyk.tiff": lambda: _saved(_picture().convert("CMYK"), "TIFF"),
    "exif6.jpg": _rotated(6),
    "exif2.jpg": _rotated(2),
    "exif6.png": _oriented_png,
    "exif6.tiff": _oriented_tiff,
    "pages.tiff": lambda: _saved(
        _picture(), "TIFF", save_all=True, append_images=[_picture().transpose(Image.Transpose.ROTATE_180)]
    ),
    "cut.jpg": lambda: _saved(_picture().resize((240, 160)), "JPEG", quality=95)[:2000],
    "cut.png": lambda: _saved(_picture(), "PNG")[:-30],
    "empty.png": lambda: b"",
    "text.png": lambda: b"no image",
}


def write(folder: Path) -> None:
    """Write all of them into a folder."""
    for name, make in PICTURES.items():
        (folder / name).write_bytes(make())

"""Draw answers on an image: boxes, labels and scores, for people to look at.

Text is drawn with the font that OpenCV 5 brings along: Latin, Greek, Cyrillic, Hebrew, Arabic, Chinese,
Japanese and Korean. ``PDSERVE_FONT`` names a font file that is preferred to it.
"""

import colorsys
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pdserve.answers import Label
from pdserve.errors import DiskError, SettingsError
from pdserve.files import user_path
from pdserve.vision.resize import opencv
from pdserve.vision.types import Image8

_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)
_SHADE = 0.37  # how much of the image's brightness is left behind a classification's labels
_SMALLEST = 9  # pixels; smaller letters cannot be read
_ASCENT, _LINE = 1.05, 1.35  # of the built-in font, above the base line and in all, in letter sizes
_GOLDEN = 0.618034  # steps around the circle of hues that never come near an earlier one for long
# Of characters, each of up to four bytes, where a file's name has 255 bytes.
_NAME_LENGTH = 60

Colour = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]


class DrawnObject(Protocol):
    """What is drawn of an object: x1, y1, x2, y2 in pixels (x2, y2 outside), what it is, how sure."""

    @property
    def bbox(self) -> tuple[float, float, float, float]: ...

    @property
    def label(self) -> str: ...

    @property
    def score(self) -> float: ...


@dataclass(frozen=True)
class Drawn:
    """A drawn picture, H×W×3 uint8 RGB, and lines to print beside it where it could not hold all labels."""

    picture: Image8
    legend: tuple[str, ...] = ()


def draw_objects(
    image: Image8, objects: Sequence[DrawnObject], environ: Mapping[str, str] = os.environ
) -> Drawn:
    """Draw a box around each object, each in another colour, label and score on a band at its top left.

    ``image``: H×W×3 uint8 RGB, not changed. Where the font lacks characters of the labels, boxes are
    numbered, and the legend says what the numbers mean. Raises SettingsError as ``load_font`` does.
    """
    font = load_font(environ)
    texts = [f"{_line(each.label)} {each.score:.2f}" for each in objects]
    legend: tuple[str, ...] = ()
    if missing := _missing(font, texts):
        numbered = (f"{number}: {text}" for number, text in enumerate(texts, 1))
        legend = (*numbered, _without_font(missing, "the boxes are numbered"))
        texts = [str(number) for number in range(1, len(texts) + 1)]
    picture = image.copy()
    if not texts:
        _write_lines(picture, ["no object"], font)
    cv2 = opencv()
    height, width = image.shape[:2]
    boxes = [_inside(each.bbox, (width, height)) for each in objects]
    for number, (x1, y1, x2, y2) in enumerate(boxes):
        thickness = min(max(2, min(width, height) // 150), (x2 - x1 + 1) // 2, (y2 - y1 + 1) // 2)
        for inset in range(thickness):
            corners = (x1 + inset, y1 + inset), (x2 - 1 - inset, y2 - 1 - inset)
            cv2.rectangle(picture, *corners, _colour(number))
    bands: list[Rectangle] = []
    for number, (box, text) in enumerate(zip(boxes, texts, strict=True)):
        size = _fitting(font, [text], width, max(12, min(width, height) // 26))
        wide = _length(font, text, size) + 2 * (size // 4)
        band = _free_place((wide, round(_LINE * size)), box, (width, height), bands)
        bands.append(band)
        colour = _colour(number)
        cv2.rectangle(picture, band[:2], (band[2] - 1, band[3] - 1), colour, cv2.FILLED)
        _write(picture, font, (band[0] + size // 4, band[1]), text, size, _readable_on(colour))
    return Drawn(picture, legend)


def draw_labels(image: Image8, labels: Sequence[Label], environ: Mapping[str, str] = os.environ) -> Drawn:
    """Draw labels and scores on a dark band at the top left. ``image``: H×W×3 uint8 RGB, not changed.

    Where the font lacks characters of the labels, class ids stand for them, and the legend says what they
    mean. Raises SettingsError as ``load_font`` does.
    """
    font = load_font(environ)
    lines = [f"{each.score:.3f}  {_line(each.label)}" for each in labels] or ["no label"]
    legend: tuple[str, ...] = ()
    if missing := _missing(font, lines):
        lines = [f"{each.score:.3f}  {each.class_id}" for each in labels]
        named = (f"{each.class_id}: {_line(each.label)} {each.score:.3f}" for each in labels)
        legend = (*named, _without_font(missing, "class ids stand for the labels"))
    picture = image.copy()
    _write_lines(picture, lines, font)
    return Drawn(picture, legend)


def load_font(environ: Mapping[str, str] = os.environ) -> Any:
    """Load the font that PDSERVE_FONT names, else OpenCV's built-in one: a ``cv2.FontFace``.

    What a named font lacks is drawn with the built-in one. Raises SettingsError for a file that is no font.
    """
    named = environ.get("PDSERVE_FONT")
    return _load(user_path(named) if named else None)


@cache  # for good: OpenCV 5.0 takes a new font's letters for those of one that was freed
def _load(path: Path | None) -> Any:
    font = opencv().FontFace("uni")
    if path:
        from PIL import ImageFont

        try:
            with path.open("rb") as file:
                ImageFont.truetype(file, 16)  # OpenCV ends the process on some files that are no font
            usable = font.set(str(path))
        except OSError:
            usable = False
        if not usable:
            raise SettingsError(
                f"PDSERVE_FONT is {path}, which is no font that can be read; "
                "give the path of a .ttf, .otf or .ttc file."
            )
    return font


def _missing(font: Any, texts: Iterable[str]) -> str:
    """The characters that OpenCV would draw as question marks, or not at all; sorted."""

    def drawn(character: str) -> bytes:
        picture = np.zeros((40, 60, 3), np.uint8)
        _write(picture, font, (4, 4), f"o{character}", 20, _WHITE)  # some combine with the letter before
        return picture.tobytes()

    none = (drawn(""), drawn("?"))
    wanted = sorted({c for text in texts for c in text if not c.isspace() and c != "?"})
    return "".join(c for c in wanted if drawn(c) in none)


def _line(label: str) -> str:
    """A label without what cannot be drawn on one line: breaks, controls, marks without a shape."""
    return "".join(c for c in " ".join(label.split()) if c.isprintable())


def _without_font(missing: str, instead: str) -> str:
    shown = missing if len(missing) <= 12 else f"{missing[:12]}…"
    return (
        f"No font with the characters {shown} was found, so {instead}; set PDSERVE_FONT to the path of a "
        ".ttf, .otf or .ttc font that has them (a Noto font of their script, say)."
    )


def _write_lines(picture: Image8, lines: Sequence[str], font: Any) -> None:
    width = picture.shape[1]
    size = _fitting(font, lines, width, max(11, width // 28))
    margin, height = max(2, width // 100), round(_LINE * size)
    right = 2 * margin + max(_length(font, line, size) for line in lines)
    band = picture[: 2 * margin + height * len(lines), :right]
    band[:] = (_SHADE * band).astype(np.uint8)
    for number, line in enumerate(lines):
        _write(picture, font, (margin, margin + height * number), line, size, _WHITE)


def _fitting(font: Any, lines: Sequence[str], width: int, size: int) -> int:
    """A size in pixels at which the longest line fits into the width, ``size`` if it does."""
    wide = max(_length(font, line, size) for line in lines) + size // 2
    return size if wide <= 0.96 * width else max(_SMALLEST, int(size * 0.96 * width / wide))


def _length(font: Any, text: str, size: int) -> int:
    return int(opencv().getTextSize((0, 0), text, (0, 0), font, size)[2])


def _write(picture: Image8, font: Any, corner: tuple[int, int], text: str, size: int, colour: Colour) -> None:
    """Draw one line of text, ``corner`` its top left, ``size`` in pixels."""
    base = (corner[0], corner[1] + round(_ASCENT * size))
    opencv().putText(picture, text, base, colour, font, size)


def _inside(box: tuple[float, float, float, float], size: tuple[int, int]) -> Rectangle:
    """The whole pixels of a box in the image, one at least, at the nearest edge if there is none."""
    x1, y1 = (max(0, min(int(at), side - 1)) for at, side in zip(box[:2], size, strict=True))
    x2, y2 = (max(low + 1, min(int(at), side)) for low, at, side in zip((x1, y1), box[2:], size, strict=True))
    return x1, y1, x2, y2


def _free_place(
    band: tuple[int, int], box: Rectangle, size: tuple[int, int], taken: Sequence[Rectangle]
) -> Rectangle:
    """Above the box's top left, inside it where no space is left, below bands that are in the way."""
    wide, high = band
    x = max(0, min(box[0], size[0] - wide))
    start = max(0, min(box[1] - high if box[1] >= high else box[1], size[1] - high))

    def in_the_way(y: int) -> list[int]:
        return [y2 for x1, y1, x2, y2 in taken if x1 < x + wide and x < x2 and y1 < y + high and y < y2]

    y = start
    while bottoms := in_the_way(y):
        y = max(bottoms)
    if y + high > size[1]:
        y = start
    return x, y, x + wide, y + high


def _colour(number: int) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb((0.38 + number * _GOLDEN) % 1, 0.85, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def _readable_on(colour: Colour) -> Colour:
    """Black or white, by the luminance of ITU-R BT.601."""
    red, green, blue = colour
    return _BLACK if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else _WHITE


def save(picture: Image8, folder: Path, name: str) -> Path:
    """Write an RGB picture as a PNG named after the image into a folder, created if absent; return its path.

    A name that is taken gets a number, so that ``a/cat.jpg`` and ``b/cat.jpg`` both stay; ``-`` and the
    like become ``image``. Raises DiskError.
    """
    plain = "".join(c if c.isalnum() or c in "-_. " else "_" for c in Path(name).stem)
    stem = plain[:_NAME_LENGTH].strip("-. ") or "image"
    cv2 = opencv()
    png = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path, number = folder / f"{stem}.png", 2
        while True:
            try:
                with path.open("xb") as file:
                    file.write(png)
                return path
            except FileExistsError:
                path, number = folder / f"{stem}-{number}.png", number + 1
    except OSError as error:
        raise DiskError(
            f"Cannot write {folder}: {error.strerror or error}; give --draw another folder."
        ) from error

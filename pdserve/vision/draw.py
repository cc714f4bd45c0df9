"""Pictures for people: an image with its answers painted on it."""

import colorsys
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image, ImageDraw

from pdserve.errors import DiskError
from pdserve.vision.fonts import OWN, Fonts, Places, find_fonts
from pdserve.vision.postprocess import Label
from pdserve.vision.types import Image8

_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)
_SHADE = 160  # of 255, the darkness of the band under a classification's labels
_SMALLEST = 9  # pixels; smaller letters cannot be read
_GOLDEN = 0.618034  # steps around the circle of hues that never come near an earlier one for long
# Of characters, each of up to four bytes, where a file's name has 255 bytes.
_NAME_LENGTH = 60

Colour = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]


class DrawnObject(Protocol):
    """What is painted of an object: whole pixels x1, y1, x2, y2 (x2, y2 outside), what it is, how sure."""

    @property
    def bbox(self) -> Rectangle: ...

    @property
    def label(self) -> str: ...

    @property
    def score(self) -> float: ...


@dataclass(frozen=True)
class Drawn:
    """A painted picture and lines for beside it: none, unless its labels could not be written on it."""

    picture: Image.Image
    legend: tuple[str, ...] = ()


def draw_objects(image: Image8, objects: Sequence[DrawnObject], places: Places | None = None) -> Drawn:
    """Paint a box in a colour of its own around each object, label and score on a band at its top left.

    ``image``: H×W×3 uint8 RGB, not changed. Where no font of ``places`` (those of this process's environment
    if not given) has all the labels' characters, boxes bear numbers, and the legend says what they mean.
    Raises SettingsError if PDSERVE_FONT is not a font that can be used.
    """
    texts = [f"{_line(each.label)} {each.score:.2f}" for each in objects]
    fonts = find_fonts(texts, places or Places.from_environ(os.environ))
    legend: tuple[str, ...] = ()
    if fonts.missing:
        numbered = (f"{number}: {text}" for number, text in enumerate(texts, 1))
        legend = (*numbered, _without_font(fonts.missing, "the boxes are numbered"))
        texts = [str(number) for number in range(1, len(texts) + 1)]
    picture = Image.fromarray(image).copy()
    pen = ImageDraw.Draw(picture)
    if not texts:
        _write_lines(picture, ["no object"], fonts)
    thickness = max(2, min(picture.size) // 150)
    boxes = [_inside(each.bbox, picture.size) for each in objects]
    for number, (x1, y1, x2, y2) in enumerate(boxes):
        pen.rectangle((x1, y1, x2 - 1, y2 - 1), outline=_colour(number), width=thickness)
    bands: list[Rectangle] = []
    for number, (box, text) in enumerate(zip(boxes, texts, strict=True)):
        size = _fitting(fonts, [text], picture.width, max(12, min(picture.size) // 26))
        margin = size // 4
        ascent, height = _heights(fonts, size)
        wide = _length(fonts, text, size) + 2 * margin
        band = _free_place((wide, height), box, picture.size, bands)
        bands.append(band)
        colour = _colour(number)
        pen.rectangle((band[0], band[1], band[2] - 1, band[3] - 1), fill=colour)
        _write(pen, fonts, (band[0] + margin, band[1] + ascent), text, size, _readable_on(colour))
    return Drawn(picture, legend)


def draw_labels(image: Image8, labels: Sequence[Label], places: Places | None = None) -> Drawn:
    """Write labels and scores on a dark band at the top left. ``image``: H×W×3 uint8 RGB, not changed.

    Where no font of ``places`` (as in draw_objects) has all the labels' characters, class ids stand for
    labels, and the legend says what they mean. Raises SettingsError as there.
    """
    lines = [f"{each.score:.3f}  {_line(each.label)}" for each in labels] or ["no label"]
    fonts = find_fonts(lines, places or Places.from_environ(os.environ))
    legend: tuple[str, ...] = ()
    if fonts.missing:
        lines = [f"{each.score:.3f}  {each.class_id}" for each in labels]
        named = (f"{each.class_id}: {_line(each.label)} {each.score:.3f}" for each in labels)
        legend = (*named, _without_font(fonts.missing, "class ids stand for the labels"))
    picture = Image.fromarray(image).copy()
    _write_lines(picture, lines, fonts)
    return Drawn(picture, legend)


def _line(label: str) -> str:
    """A label without what cannot be drawn on one line: breaks, controls, marks without a shape."""
    return "".join(c for c in " ".join(label.split()) if c.isprintable())


def _without_font(missing: str, instead: str) -> str:
    shown = missing if len(missing) <= 12 else f"{missing[:12]}…"
    return (
        f"No font with the characters {shown} was found, so {instead}; set PDSERVE_FONT to the path of a "
        ".ttf, .otf or .ttc font that has them, or install one (for Chinese, on Debian and Ubuntu: "
        "apt install fonts-noto-cjk or fonts-wqy-microhei)."
    )


def _write_lines(picture: Image.Image, lines: Sequence[str], fonts: Fonts) -> None:
    size = _fitting(fonts, lines, picture.width, max(11, picture.width // 28))
    margin = max(2, picture.width // 100)
    ascent, height = _heights(fonts, size)
    right = margin + max(_length(fonts, line, size) for line in lines)
    band = (0, 0, min(picture.width, right + margin), min(picture.height, 2 * margin + height * len(lines)))
    picture.paste(Image.blend(picture.crop(band), Image.new("RGB", band[2:]), _SHADE / 255), band)
    pen = ImageDraw.Draw(picture)
    for number, line in enumerate(lines):
        _write(pen, fonts, (margin, margin + height * number + ascent), line, size, _WHITE)


def _fitting(fonts: Fonts, lines: Sequence[str], width: int, size: int) -> int:
    """A size in pixels at which the longest line fits into the width, ``size`` if it does."""
    wide = max(_length(fonts, line, size) for line in lines) + size // 2
    return size if wide <= 0.96 * width else max(_SMALLEST, int(size * 0.96 * width / wide))


def _heights(fonts: Fonts, size: int) -> tuple[int, int]:
    """From the top of a line to its base, and its whole height, whichever faces are on it."""
    metrics = [face.at(size).getmetrics() for face in {OWN, *fonts.faces.values()}]
    ascent = max(ascent for ascent, _ in metrics)
    return ascent, ascent + max(descent for _, descent in metrics)


def _length(fonts: Fonts, text: str, size: int) -> int:
    return round(sum(face.at(size).getlength(run) for face, run in fonts.runs(text)))


def _write(
    pen: ImageDraw.ImageDraw, fonts: Fonts, base: tuple[float, float], text: str, size: int, colour: Colour
) -> None:
    """Write from the left end of the line's base."""
    x, y = base
    for face, run in fonts.runs(text):
        font = face.at(size)
        pen.text((x, y), run, colour, font, anchor="ls")
        x += font.getlength(run)


def _inside(box: Rectangle, size: tuple[int, int]) -> Rectangle:
    """The part of a box in the image, of one pixel at least, at the nearest edge if there is none."""
    x1, y1 = (max(0, min(at, whole - 1)) for at, whole in zip(box[:2], size, strict=True))
    x2, y2 = (max(low + 1, min(at, whole)) for low, at, whole in zip((x1, y1), box[2:], size, strict=True))
    return x1, y1, x2, y2


def _free_place(
    band: tuple[int, int], box: Rectangle, size: tuple[int, int], taken: Sequence[Rectangle]
) -> Rectangle:
    """Above the box's top left, inside it where there is no room, below bands that are in the way."""
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


def save(picture: Image.Image, folder: Path, name: str) -> Path:
    """Write a PNG named after the image into a folder, made if need be, and say where it is.

    A name that is taken gets a number, so that ``a/cat.jpg`` and ``b/cat.jpg`` both stay; ``-`` and the
    like become ``image``. Raises DiskError.
    """
    plain = "".join(c if c.isalnum() or c in "-_. " else "_" for c in Path(name).stem)
    stem = plain[:_NAME_LENGTH].strip("-. ") or "image"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path, number = folder / f"{stem}.png", 2
        while True:
            try:
                with path.open("xb") as file:
                    picture.save(file, "PNG")
                return path
            except FileExistsError:
                path, number = folder / f"{stem}-{number}.png", number + 1
    except OSError as error:
        raise DiskError(
            f"Cannot write {folder}: {error.strerror or error}; give --draw another folder."
        ) from error

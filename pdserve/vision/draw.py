"""Pictures for people: an image with its labels written on it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from pdserve.errors import DiskError
from pdserve.vision.decode import Image8
from pdserve.vision.scores import Label

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont
    from PIL.ImageFont import ImageFont as BitmapFont

_BAND = (0, 0, 0, 160)
_TEXT = (255, 255, 255, 255)
# Of characters, each of up to four bytes, where a file's name has 255 bytes.
_NAME_LENGTH = 60


def draw_labels(image: Image8, labels: Sequence[Label]) -> Image.Image:
    """Write labels and scores on a dark band at the top left. ``image``: H×W×3 uint8 RGB, not changed."""
    base = Image.fromarray(image).convert("RGBA")
    layer = Image.new("RGBA", base.size, (0, 0, 0, 0))
    pen = ImageDraw.Draw(layer)
    text = "\n".join(f"{each.score:.3f}  {each.label}" for each in labels) or "no label"
    font = _font(base.width, text)
    margin = max(2, base.width // 100)
    _, _, right, bottom = pen.multiline_textbbox((margin, margin), text, font=font)
    pen.rectangle((0, 0, right + margin, bottom + margin), fill=_BAND)
    pen.multiline_text((margin, margin), text, font=font, fill=_TEXT)
    return Image.alpha_composite(base, layer).convert("RGB")


def _font(width: int, text: str) -> "FreeTypeFont | BitmapFont":
    """Pillow's own font, of a size at which the longest line fits into the width."""
    longest = max(text.splitlines(), key=len)
    size = max(11, width // 28)
    font = ImageFont.load_default(size)
    wide = font.getlength(longest)
    return font if wide <= 0.96 * width else ImageFont.load_default(max(9, int(size * 0.96 * width / wide)))


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

"""Reads a gallery: images with their labels, from a label list or from folders."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pdserve.errors import GalleryError
from pdserve.vision.image_files import SUFFIXES, find_images


@dataclass(frozen=True, slots=True)
class GalleryImage:
    """``image``: its path in the gallery as the id map has it; ``source``: the file, or its bytes."""

    image: str
    label: str
    source: Path | bytes

    def read(self) -> bytes:
        """The file's bytes. Raises OSError."""
        return self.source if isinstance(self.source, bytes) else self.source.read_bytes()


@dataclass(frozen=True)
class Skipped:
    """An image that did not become an entry, and why."""

    image: str
    reason: str


def read_list(path: Path, root: Path, delimiter: str = "\t") -> list[GalleryImage]:
    """Read a label list in PaddleClas's form: a line per image, path, delimiter, label; more is not read.

    Paths are relative to ``root``, the gallery's folder. Raises GalleryError with the line's number.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise GalleryError(f"The label list {path} cannot be read: {error}.") from error
    images = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        image, found, rest = line.strip().partition(delimiter)
        label = rest.split(delimiter)[0].strip()
        if not found or not image or not label:
            raise GalleryError(
                f"{path}, line {number}: {line[:80]!r} is not an image, {_shown(delimiter)} and a label; "
                "correct it, or give the separator with --delimiter."
            )
        images.append(GalleryImage(image.strip(), label, root / image.strip()))
    if not images:
        raise GalleryError(f"The label list {path} names no image.")
    return images


def scan(root: Path) -> tuple[list[GalleryImage], list[Skipped]]:
    """Find images in folders that are named after their labels, sorted; others are skipped.

    Raises GalleryError for a folder without labelled images.
    """
    if not root.is_dir():
        raise GalleryError(f"There is no gallery folder {root}.")
    images, skipped = [], []
    for path in find_images(root):
        parts = path.relative_to(root).parts
        if len(parts) > 1:
            images.append(GalleryImage("/".join(parts), parts[0], path))
        else:
            skipped.append(Skipped(path.name, "is in no folder named after a label"))
    if not images:
        raise GalleryError(
            f"{root} has no images in folders named after their labels "
            f"({', '.join(sorted(SUFFIXES))}); give a label list with --labels."
        )
    return images, skipped


def check(images: Sequence[GalleryImage]) -> None:
    """Raise GalleryError for an image or label that an id map cannot represent."""
    for each in images:
        for what, text in (("image", each.image), ("label", each.label)):
            if not text.strip() or any(c in text for c in "\t\r\n\0"):
                raise GalleryError(f"The {what} {text[:80]!r} is empty or has a tab or a line break in it.")
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise GalleryError(f"The {what} {text!r} is not valid Unicode; rename it.") from error


def _shown(delimiter: str) -> str:
    return {"\t": "a tab", " ": "a blank"}.get(delimiter, repr(delimiter))

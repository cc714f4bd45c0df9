"""What a gallery is made of: images with their labels, found in folders; see label_list.py for lists."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pdserve.errors import GalleryError
from pdserve.vision.image_files import SUFFIXES, LeftOut, find_images, shown_name

MAX_TEXT = 4096
"""Bytes of an image's path, or of a label: more of a label is no name, and every reader holds all of them."""


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


@dataclass(frozen=True)
class Scanned:
    """The labelled images of a folder; ``skipped``: of what looks like images, ``left_out``: of the rest."""

    images: list[GalleryImage]
    skipped: list[Skipped]
    left_out: list[LeftOut]

    def __iter__(self) -> Iterator[Any]:
        """Images, and what was skipped."""
        return iter((self.images, self.skipped))


def scan(root: Path) -> Scanned:
    """Find images in folders that are named after their labels, sorted; others are skipped.

    Raises GalleryError for a folder without labelled images.
    """
    if not root.is_dir():
        raise GalleryError(f"There is no gallery folder {root}.")
    found = find_images(root)
    images, skipped = [], []
    for path in found.images:
        parts = path.relative_to(root).parts
        name = "/".join(parts)
        if len(parts) == 1:
            skipped.append(Skipped(shown_name(name), "is in no folder named after a label"))
        elif problem := unfit(name) or unfit(parts[0]):
            skipped.append(Skipped(shown_name(name), f"has a name that {problem}; rename it"))
        else:
            images.append(GalleryImage(name, parts[0], path))
    for each in found.left_out:
        if each.meant:
            skipped.append(Skipped(shown_name(each.path.relative_to(root)), each.reason))
    if not images:
        first = f"; {skipped[0].image} {skipped[0].reason}" if skipped else ""
        raise GalleryError(
            f"{root} has no images in folders named after their labels "
            f"({', '.join(sorted(SUFFIXES))}){first}; give a label list with --labels."
        )
    return Scanned(images, skipped, [each for each in found.left_out if not each.meant])


def check(images: Sequence[GalleryImage]) -> None:
    """Raise GalleryError for an image or label that an id map cannot represent."""
    for each in images:
        for what, text in (("image", each.image), ("label", each.label)):
            if problem := unfit(text):
                raise GalleryError(f"The {what} {text[:80]!r} {problem}; rename it.")


def unfit(text: str) -> str | None:
    """Why an id map cannot hold an image's path or a label: the end of a sentence; None where it can."""
    if not text.strip():
        return "is empty"
    if any(c in text for c in "\t\r\n\0"):
        return "has a tab or a line break in it"
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return "is no text (UTF-8)"
    return f"is longer than {MAX_TEXT} bytes" if size > MAX_TEXT else None

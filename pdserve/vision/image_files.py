"""Finds image files in a folder, by their names or their first bytes, and names what it leaves out.

The one scan for galleries, `predict`, `bench`, `tune` and `optimize`.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pdserve.vision.header import READERS

_NAMES = "jpg jpeg jpe jfif png apng bmp dib webp gif tif tiff ppm pgm pbm pnm jp2 j2k j2c jpc jpf jpx avif"
SUFFIXES = frozenset(f".{name}" for name in _NAMES.split())
"""Of the formats that are decoded (`pdserve.vision.header`)."""

_OTHERS = "heic heif jxl svg psd tga exr hdr ico eps pdf dng cr2 cr3 nef arw orf rw2 raw"
_UNREADABLE = frozenset(f".{name}" for name in _OTHERS.split())
# What systems, editors and tools put beside pictures: thumbnails, checkpoints, resource forks.
_SYSTEM = frozenset(
    (
        "thumbs.db",
        "desktop.ini",
        "__macosx",
        "@eadir",
        "#recycle",
        "$recycle.bin",
        "lost+found",
        "__pycache__",
    )
)
_FIRST_BYTES = 64


@dataclass(frozen=True)
class LeftOut:
    """A file or folder that is not taken, and why: what would follow its name in a sentence.

    ``meant``: it may have been meant as an image, or has some in it.
    """

    path: Path
    reason: str
    meant: bool = False


@dataclass
class Found:
    """The image files in a folder and in those below it, sorted; and what was left out, sorted."""

    images: list[Path] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def find_images(folder: Path) -> Found:
    """The image files in a folder and in those below it, also in linked ones; no folder is read twice.

    A file is one by its suffix (`SUFFIXES`) or else by its first bytes. What is hidden or a system's own
    (``.ipynb_checkpoints``, ``__MACOSX``, ``@eaDir``, ``Thumbs.db``) is left out.
    """
    found = Found()
    around = {_identity(parent) for parent in (folder.resolve(), *folder.resolve().parents)}
    seen: set[tuple[int, int] | None] = set()
    # Folders first, then links, so that a linked folder that is in here as well has its own name.
    waiting = deque([folder])
    links: deque[Path] = deque()
    while waiting or links:
        linked = not waiting
        path = links.popleft() if linked else waiting.popleft()
        known = _identity(path)
        if linked and known in around:
            found.left_out.append(LeftOut(path, "is a link to a folder that it is in"))
        elif known in seen:
            found.left_out.append(LeftOut(path, "is another name of a folder that was read already"))
        else:
            seen.add(known)
            _look_into(path, found, waiting, links)
    found.images.sort()
    found.left_out.sort(key=lambda each: each.path)
    return found


def _look_into(folder: Path, found: Found, folders: deque[Path], links: deque[Path]) -> None:
    try:
        with os.scandir(folder) as entries:
            inside = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        found.left_out.append(LeftOut(folder, f"cannot be read: {error.strerror}", meant=True))
        return
    for entry in inside:
        path = folder / entry.name
        if entry.name.startswith(".") or entry.name.lower() in _SYSTEM:
            found.left_out.append(LeftOut(path, "is hidden, or a system's own"))
        elif _is(entry.is_dir):
            (links if entry.is_symlink() else folders).append(path)
        elif reason := _reason(entry, path):
            found.left_out.append(reason)
        else:
            found.images.append(path)


def _reason(entry: os.DirEntry[str], path: Path) -> LeftOut | None:
    """Why a file is not taken; None for an image."""
    suffix = path.suffix.lower()
    if not _is(entry.is_file):
        dangling = entry.is_symlink() and not path.exists()
        reason = "is a link that leads nowhere" if dangling else "is no ordinary file"
        return LeftOut(path, reason, meant=dangling and suffix in SUFFIXES)
    if suffix in SUFFIXES:
        return None
    if suffix in _UNREADABLE:
        return LeftOut(
            path, f"is a {suffix} file, which cannot be read; convert it to JPEG or PNG", meant=True
        )
    try:
        with path.open("rb") as file:
            start = file.read(_FIRST_BYTES)
    except OSError as error:
        return LeftOut(path, f"cannot be read: {error.strerror}")
    return None if _begins_as_image(start) else LeftOut(path, "is no image")


def _begins_as_image(start: bytes) -> bool:
    """As the readers of headers say, and of two formats that begin as other files do a little more."""
    name = next((name for pattern, name, _ in READERS if pattern.match(start)), None)
    if name == "BMP":
        return start[6:10] == bytes(4)
    if name == "AVIF":  # as videos do
        return start[8:12] in (b"avif", b"avis")
    return name is not None


def _is(ask: object) -> bool:
    """What a directory entry says of itself; False where it cannot be looked at."""
    try:
        return bool(ask())  # type: ignore[operator]
    except OSError:
        return False


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def shown_name(path: Path | str) -> str:
    """A path as text, also one whose bytes are none."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def summaries(folder: Path, left_out: Iterable[LeftOut], most: int = 3) -> Iterator[str]:
    """A line for each reason: how many, and some of their names."""
    names: dict[str, list[str]] = {}
    for each in left_out:
        path = each.path.relative_to(folder) if each.path != folder else each.path
        names.setdefault(each.reason, []).append(shown_name(path))
    for reason, some in names.items():
        more = f" and {len(some) - most} more" if len(some) > most else ""
        yield f"left out in {shown_name(folder)}: {', '.join(some[:most])}{more} ({reason})"

"""Image files in a folder, by their suffixes."""

from pathlib import Path

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"))


def find_images(folder: Path) -> list[Path]:
    """The image files in a folder and in those below it, sorted."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())

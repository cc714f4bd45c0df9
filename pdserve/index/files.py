"""The files of versions on the disk: written through, linked, replaced in one step, swept."""

import shutil
from contextlib import suppress
from pathlib import Path

from pdserve.files import temp_siblings
from pdserve.index import manifest
from pdserve.index.store import VERSIONS


def versions(folder: Path) -> list[int]:
    """The numbers of the versions that are kept, and of what killed writers left, ascending."""
    return sorted(int(p.name) for p in (folder / VERSIONS).glob("*") if p.name.isdecimal())


def newest(folder: Path) -> int:
    """The highest number that any version had, 0 for none."""
    known = manifest.read(folder)
    return max([0, known.version if known else 0, *versions(folder)])


def sweep(folder: Path, keep: set[int]) -> None:
    """Remove other versions. What is open elsewhere (Windows) is left for the next time."""
    for path in (folder / VERSIONS).glob("*"):
        if not path.name.isdecimal() or int(path.name) not in keep:
            shutil.rmtree(path, ignore_errors=True)
    for left in temp_siblings(folder):
        with suppress(OSError):
            left.unlink()
